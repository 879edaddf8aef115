-- A part of another run's evaluation: it computes the features of a share of the images. The whole waits for its parts.
alter table run add column part_of uuid references run on delete cascade;
-- From 1.
alter table run add column part integer;
create unique index run_parts on run (part_of, part) where part_of is not null;

-- What parts have computed. The checkpoint is empty at α = 0.
create table feature_file (
    run_id uuid not null references run on delete cascade,
    backbone text not null,
    checkpoint text not null,
    dataset text not null,
    alpha numeric(5, 4) not null,
    feature text not null,
    stamp jsonb not null,
    first bigint not null,
    beyond bigint not null,
    blob text not null references blob,
    bytes bigint not null,
    primary key (run_id, dataset, checkpoint, alpha, first)
);

create index feature_file_blob on feature_file (blob);
