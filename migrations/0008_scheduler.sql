-- The scheduler of a lab: devices with properties, runs that ask for them, projects that share them.

-- A run is set aside by hand and goes on later.
alter table run drop constraint run_state_known;
alter table run add constraint run_state_known
    check (state in ('queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled', 'lost'));

-- What a run asks for, out of its spec, so that a pass over the queue reads no documents.
alter table run add column project_id uuid references project;
update run set project_id = e.project_id from experiment e where e.id = run.experiment_id;
alter table run alter column project_id set not null;
-- The token it came in by.
alter table run add column submitted_by uuid;
alter table run add column devices integer not null default 1;
alter table run add column nodes integer not null default 1;
-- Bytes that each device must have.
alter table run add column device_memory bigint not null default 0;
alter table run add column labels text[] not null default '{}';
-- Names of assets. Null for runs of before: read from the spec then.
alter table run add column needs text[];
alter table run add column limit_seconds integer;
-- Asked to save its state and give its devices back, until when, and what for.
alter table run add column yield_for text constraint run_yield_known check (yield_for in ('pause', 'preempt', 'drain'));
alter table run add column yield_by timestamptz;
-- Ends in a row that were no fault of the run's: a lost worker, a host out of memory.
alter table run add column setbacks integer not null default 0;

create index run_yielding on run (yield_by) where yield_for is not null;

-- A run waits for others to succeed.
create table run_dependency (
    run_id uuid not null references run on delete cascade,
    needs_run uuid not null references run on delete cascade,
    -- It has succeeded, and the spec names what it made.
    resolved boolean not null default false,
    primary key (run_id, needs_run)
);

create index run_dependency_needed on run_dependency (needs_run);
create index run_dependency_open on run_dependency (run_id) where not resolved;

-- Names a run that another was made from: a retry or a clone.
alter table run add column made_from uuid references run on delete set null;

alter table project add column weight double precision not null default 1 constraint project_weight_positive check (weight > 0);
-- Most devices held at once, by the project and by one of its users.
alter table project add column devices_max integer;
alter table project add column user_devices_max integer;
-- Device-seconds, decayed up to `usage_at`.
alter table project add column usage double precision not null default 0;
alter table project add column usage_at timestamptz not null default now();

alter table worker add column labels text[] not null default '{}';
alter table worker add column address text not null default '';
-- Somebody takes it out of service; `draining` is the worker's own word.
alter table worker add column drained boolean not null default false;

-- One lease for each worker of an attempt.
alter table lease drop constraint lease_run_unique;
alter table lease drop constraint lease_device_unique;
alter table lease add column rank integer not null default 0;
alter table lease add constraint lease_rank_unique unique (run_id, rank);

-- The devices of the workers. A device has one lease at most because it has one column for it.
create table device (
    worker_id uuid not null references worker on delete cascade,
    name text not null,
    ordinal integer not null,
    model text not null default '',
    memory bigint not null default 0,
    free_memory bigint not null default 0,
    capability text not null default '',
    lease_id uuid references lease on delete set null,
    primary key (worker_id, name)
);

create index device_lease on device (lease_id) where lease_id is not null;

insert into device (worker_id, name, ordinal)
    select w.id, d.name, d.ordinal from worker w cross join lateral unnest(w.devices) with ordinality d(name, ordinal);
update device set lease_id = l.id from lease l where l.worker_id = device.worker_id and l.device = device.name;
alter table lease drop column device;
alter table worker drop column devices;

alter table attempt drop constraint attempt_state_known;
alter table attempt add constraint attempt_state_known
    check (state in ('assigned', 'running', 'succeeded', 'failed', 'cancelled', 'lost', 'yielded'));
-- Workers beside the first of an attempt that runs on several, in words.
alter table attempt add column members jsonb;
-- Why it ended, for the rule of retries.
alter table attempt add column cause text;
