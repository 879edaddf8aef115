-- What a run has been through, written down by the database itself in the transaction that does it: the product keeps
-- states, not their history, and a write that should not have been leaves no trace of when it came.

create schema recorder;

create table recorder.state (
    id bigint generated always as identity primary key,
    at timestamptz not null default clock_timestamp(),
    run_id uuid not null,
    old text,
    new text not null
);

create index state_of_run on recorder.state (run_id, id);

create table recorder.lease (
    lease_id uuid primary key,
    run_id uuid not null,
    attempt integer not null,
    epoch bigint not null
);

create index lease_of_run on recorder.lease (run_id);

create table recorder.violation (
    at timestamptz not null default clock_timestamp(),
    rule text not null,
    detail text not null
);

create function recorder.note(rule text, detail text) returns void language sql as
    $$ insert into recorder.violation (rule, detail) values (rule, detail) $$;

-- Every state of a run; and whether one begins while another of higher priority, which could run on the same device,
-- has been waiting for longer than any pass takes.
create function recorder.run_changed() returns trigger language plpgsql as $$
declare
    passed uuid;
begin
    if tg_op = 'UPDATE' and old.state = new.state then
        return null;
    end if;
    insert into recorder.state (run_id, old, new)
        values (new.id, case when tg_op = 'UPDATE' then old.state end, new.state);
    if new.state = 'running' then
        select w.id into passed from public.run w
        where w.state = 'queued' and w.kind = 'command' and w.priority > new.priority and w.devices = 1 and w.nodes = 1
          and w.ready_at < now() - interval '5 s'
          and not exists (select from public.run_dependency d where d.run_id = w.id and not d.resolved)
          and (select max(s.at) from recorder.state s where s.run_id = w.id) < now() - interval '5 s'
        limit 1;
        if passed is not null then
            perform recorder.note('priority', format('run %s began while run %s, of higher priority, waited', new.id, passed));
        end if;
    end if;
    return null;
end $$;

create trigger recorder after insert or update of state on public.run
    for each row execute function recorder.run_changed();

create function recorder.leased() returns trigger language plpgsql as $$
begin
    if exists (select from public.lease l where l.run_id = new.run_id and l.attempt_id <> new.attempt_id) then
        perform recorder.note('one attempt at a time', format('run %s has leases of two attempts', new.run_id));
    end if;
    if exists (select from recorder.lease l
               where l.run_id = new.run_id and l.epoch >= new.epoch and l.attempt <> new.attempt) then
        perform recorder.note('epochs grow', format('run %s got the epoch %s again', new.run_id, new.epoch));
    end if;
    insert into recorder.lease (lease_id, run_id, attempt, epoch) values (new.id, new.run_id, new.attempt, new.epoch);
    return null;
end $$;

create trigger recorder after insert on public.lease for each row execute function recorder.leased();

create function recorder.device_given() returns trigger language plpgsql as $$
begin
    perform recorder.note('one lease a device', format('device %s of worker %s went from lease %s to %s',
                                                       new.name, new.worker_id, old.lease_id, new.lease_id));
    return null;
end $$;

create trigger recorder after update of lease_id on public.device for each row
    when (old.lease_id is not null and new.lease_id is not null and old.lease_id <> new.lease_id)
    execute function recorder.device_given();

-- The fence, seen from the inside: what an attempt writes stands beside its lease, in the same transaction.
create function recorder.written() returns trigger language plpgsql as $$
declare
    run uuid;
begin
    if tg_table_name = 'chunk' then
        select s.run_id into run from public.series s where s.id = new.series_id;
    else
        run := new.run_id;
    end if;
    if not exists (select from public.lease l where l.run_id = run and l.attempt = new.attempt) then
        perform recorder.note('fence', format('a %s of attempt %s of run %s was written without its lease',
                                              tg_table_name, new.attempt, run));
    end if;
    return null;
end $$;

create trigger recorder after insert or update on public.chunk for each row execute function recorder.written();
create trigger recorder after insert or update on public.log_line for each row execute function recorder.written();
create trigger recorder after insert or update on public.resume_state for each row execute function recorder.written();

create function recorder.attempt_reopened() returns trigger language plpgsql as $$
begin
    perform recorder.note('an attempt ends once', format('attempt %s of run %s went from %s to %s',
                                                         new.number, new.run_id, old.state, new.state));
    return null;
end $$;

create trigger recorder after update of state on public.attempt for each row
    when (old.state not in ('assigned', 'running') and old.state <> new.state)
    execute function recorder.attempt_reopened();
