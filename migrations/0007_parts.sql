-- A part of another run's evaluation: it computes the features of a share of the images. The whole waits for its parts.
alter table run add column part_of uuid references run on delete cascade;
-- From 1.
alter table run add column part integer;
create unique index run_parts on run (part_of, part) where part_of is not null;

-- What parts have computed: a file, and what it holds in the trainer's words.
create table feature_file (
    run_id uuid not null references run on delete cascade,
    blob text not null references blob,
    bytes bigint not null,
    key jsonb not null,
    primary key (run_id, blob)
);

create index feature_file_blob on feature_file (blob);
