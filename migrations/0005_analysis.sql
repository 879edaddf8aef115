-- What a run was told of its weights and features after its sweep: one document of each kind, and the small images that
-- it shows, as one blob.
create table analysis (
    run_id uuid not null references run on delete cascade,
    kind text not null constraint analysis_kind_known check (kind in ('spectrum', 'similarity')),
    backbone text not null,
    checkpoint text not null,
    document jsonb not null,
    blob text references blob,
    computed_at timestamptz not null default now(),
    primary key (run_id, kind)
);

create index analysis_of_checkpoint on analysis (checkpoint, kind, computed_at);
create index analysis_blob on analysis (blob) where blob is not null;
