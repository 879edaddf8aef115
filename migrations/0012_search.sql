-- A search: a set of runs over hyper-parameters. All that it has decided is here; whoever takes its next step reads this
-- and remembers nothing.
create table search (
    id uuid primary key,
    experiment_id uuid not null references experiment,
    name text not null,
    document jsonb not null,
    state text not null constraint search_state_known
        check (state in ('running', 'paused', 'succeeded', 'failed', 'cancelled')),
    reason text not null default '',
    -- Who submitted it, and under which Idempotency-Key.
    token_id uuid not null,
    key text,
    body_sha256 bytea not null,
    created_at timestamptz not null default now(),
    finished_at timestamptz,
    constraint search_key_unique unique (token_id, key)
);

create index search_open on search (id) where state in ('running', 'paused');
create index search_of_experiment on search (experiment_id, id);

-- A point of the space. Trials are numbered from 1.
create table search_trial (
    search_id uuid not null references search on delete cascade,
    trial integer not null,
    point jsonb not null,
    state text not null default 'waiting' constraint search_trial_state_known
        check (state in ('waiting', 'running', 'stopped', 'finished', 'failed', 'cancelled')),
    -- The rung that it is on its way to, from 0; where it has ended, the last one that it reached.
    rung integer not null default 0,
    -- What it was worth at the last rung that it reached.
    value double precision,
    reason text not null default '',
    primary key (search_id, trial)
);

create table search_run (
    search_id uuid not null,
    trial integer not null,
    -- The first rung that the run can reach: 0, but where each rung is a run of its own.
    rung integer not null,
    seed bigint not null,
    run_id uuid not null constraint search_run_unique unique references run on delete cascade,
    primary key (search_id, trial, rung, seed),
    constraint search_run_trial foreign key (search_id, trial) references search_trial on delete cascade
);

-- What was decided, in order, each with what it was decided from.
create table search_decision (
    search_id uuid not null references search on delete cascade,
    n integer not null,
    action text not null constraint search_decision_action_known
        check (action in ('submit', 'reach', 'go_on', 'stop', 'promote', 'finish', 'fail',
                          'pause', 'resume', 'extend', 'cancel', 'end')),
    trial integer,
    rung integer,
    -- Mean over the seeds; the seeds are in made_from.
    value double precision,
    place integer,
    among integer,
    made_from jsonb not null default '{}',
    reason text not null default '',
    at timestamptz not null default now(),
    primary key (search_id, n)
);

-- Why a run was asked to stop; it becomes the run's reason.
alter table run add column cancel_reason text;
