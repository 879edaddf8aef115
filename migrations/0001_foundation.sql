-- What Causeway remembers. Append-only from here on: a change is a new file.

create table project (
    id uuid primary key,
    name text not null constraint project_name_unique unique,
    created_at timestamptz not null default now()
);

insert into project (id, name) values ('00000000-0000-7000-8000-000000000001', 'default');

create table experiment (
    id uuid primary key,
    project_id uuid not null references project,
    name text not null,
    description text not null default '',
    created_at timestamptz not null default now(),
    constraint experiment_name_unique unique (project_id, name)
);

create table token (
    id uuid primary key,
    kind text not null constraint token_kind_known check (kind in ('user', 'worker', 'session')),
    name text not null,
    sha256 bytea not null constraint token_sha256_unique unique,
    created_at timestamptz not null default now(),
    expires_at timestamptz
);

-- θ0, as workers have met it.
create table backbone (
    digest text primary key,
    name text not null,
    parameters bigint not null,
    created_at timestamptz not null default now()
);

create table blob (
    sha256 text primary key,
    bytes bigint not null,
    created_at timestamptz not null default now()
);

-- θ1. The digest is that of its file, which is a blob.
create table checkpoint (
    digest text primary key,
    backbone text not null,
    method text not null,
    created_at timestamptz not null default now()
);

-- The queue is this table: `queued` rows in the order of the partial index.
create table run (
    id uuid primary key,
    experiment_id uuid not null references experiment,
    name text not null,
    kind text not null,
    method text not null,
    seed bigint not null,
    spec jsonb not null,
    -- Equal for runs whose specs differ in nothing but seed, name, tags, note and scheduling: the lines of one band.
    variant text not null,
    state text not null constraint run_state_known
        check (state in ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'lost')),
    phase text not null constraint run_phase_known check (phase in ('train', 'evaluate')),
    priority integer not null,
    queue_position bigint generated always as identity,
    epoch bigint not null default 0,
    attempts integer not null default 0,
    max_attempts integer not null,
    cancel_requested boolean not null default false,
    reason text not null default '',
    note text not null default '',
    tags text[] not null default '{}',
    backbone text references backbone,
    trainable bigint,
    checkpoint text references checkpoint,
    checkpoint_step bigint,
    created_at timestamptz not null default now(),
    started_at timestamptz,
    finished_at timestamptz
);

create index run_ready on run (priority desc, queue_position, id) where state = 'queued';
create index run_of_experiment on run (experiment_id, id);
create index run_checkpoint on run (checkpoint) where checkpoint is not null;

-- How far a run is: rewritten every second, so kept out of the wide row.
create table run_progress (
    run_id uuid primary key references run on delete cascade,
    progress jsonb not null,
    updated_at timestamptz not null default now()
) with (fillfactor = 50);

create table idempotency_key (
    token_id uuid not null,
    key text not null,
    body_sha256 bytea not null,
    run_id uuid not null references run on delete cascade,
    created_at timestamptz not null default now(),
    primary key (token_id, key)
);

create table worker (
    id uuid primary key,
    name text not null,
    host text not null,
    version text not null,
    devices text[] not null,
    assets jsonb not null,
    registered_at timestamptz not null default now()
);

-- Heartbeats: narrow, and with room for in-place updates.
create table worker_pulse (
    worker_id uuid primary key references worker on delete cascade,
    seen_at timestamptz not null default now()
) with (fillfactor = 50);

create table attempt (
    id uuid primary key,
    run_id uuid not null references run on delete cascade,
    number integer not null,
    worker_id uuid not null references worker,
    device text not null,
    epoch bigint not null,
    state text not null constraint attempt_state_known
        check (state in ('assigned', 'running', 'succeeded', 'failed', 'cancelled', 'lost')),
    phase text not null,
    resumed_step bigint not null default 0,
    -- Values of this attempt beyond this step were done again by a later one: kept, but hidden. Null: all visible.
    visible_through bigint,
    environment jsonb,
    reason text not null default '',
    exit_code integer,
    signal integer,
    assigned_at timestamptz not null default now(),
    started_at timestamptz,
    ended_at timestamptz,
    constraint attempt_number_unique unique (run_id, number)
);

create index attempt_of_worker on attempt (worker_id, assigned_at);

create table lease (
    id uuid primary key,
    run_id uuid not null constraint lease_run_unique unique references run on delete cascade,
    attempt_id uuid not null references attempt on delete cascade,
    attempt integer not null,
    worker_id uuid not null references worker,
    device text not null,
    epoch bigint not null,
    delivered boolean not null default false,
    shipped_seq bigint not null default 0,
    expires_at timestamptz not null,
    constraint lease_device_unique unique (worker_id, device)
) with (fillfactor = 50);

create index lease_expiry on lease (expires_at);

create table resume_state (
    run_id uuid not null references run on delete cascade,
    step bigint not null,
    attempt integer not null,
    blob text not null references blob,
    file text not null,
    created_at timestamptz not null default now(),
    primary key (run_id, step)
);

create index resume_state_blob on resume_state (blob);

create table series (
    id bigint generated always as identity primary key,
    run_id uuid not null references run on delete cascade,
    name text not null,
    constraint series_name_unique unique (run_id, name)
);

create table value (
    series_id bigint not null references series on delete cascade,
    attempt integer not null,
    step bigint not null,
    n integer not null default 0,
    value double precision not null,
    primary key (series_id, attempt, step, n)
);

create table log_line (
    run_id uuid not null references run on delete cascade,
    attempt integer not null,
    stream text not null,
    position bigint not null,
    text text not null,
    received_at timestamptz not null default now(),
    primary key (run_id, attempt, stream, position)
);

create table dataset (
    digest text primary key,
    name text not null,
    title text not null,
    licence text not null,
    source text not null,
    queries integer not null,
    bank integer not null,
    leave_one_out boolean not null,
    classes jsonb not null,
    created_at timestamptz not null default now()
);

-- The datasets a run is evaluated on, in the order of its spec.
create table run_dataset (
    run_id uuid not null references run on delete cascade,
    dataset text not null references dataset,
    role text not null,
    ordinal integer not null,
    primary key (run_id, dataset)
);

create table protocol (
    id text primary key,
    definition jsonb not null
);

-- Accuracy against α for one (θ0, checkpoint, dataset, protocol). α = 0 is the bare backbone: its curve has the
-- empty checkpoint and belongs to no run.
create table curve (
    id bigint generated always as identity primary key,
    backbone text not null,
    checkpoint text not null,
    dataset text not null references dataset,
    protocol text not null references protocol,
    constraint curve_unique unique (backbone, checkpoint, dataset, protocol)
);

create index curve_of_checkpoint on curve (checkpoint);

create table point (
    curve_id bigint not null references curve on delete cascade,
    alpha numeric(5, 4) not null constraint point_alpha_on_the_line check (alpha between 0 and 1),
    n integer not null,
    correct integer not null,
    correct_top5 integer not null,
    hits bytea not null,
    stamp jsonb not null,
    run_id uuid references run on delete set null,
    computed_at timestamptz not null default now(),
    primary key (curve_id, alpha)
);
