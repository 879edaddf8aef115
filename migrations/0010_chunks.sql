-- Values by the chunk. A row a value took a hundred bytes and a foreign key's look-up each; a chunk holds up to 1,024
-- values of one series and attempt that follow each other, and what they come to, which is what charts read.
set local statement_timeout = 0;

create table chunk (
    series_id bigint not null references series on delete cascade,
    first_step bigint not null,
    last_step bigint not null,
    first double precision not null,
    last double precision not null,
    -- Of the finite values, and the first step that has them; null where none is finite.
    min double precision,
    min_step bigint,
    max double precision,
    max_step bigint,
    -- Distance between neighbouring steps; null where it varies.
    stride bigint,
    attempt integer not null,
    -- 0: these values stand. Else the number of the rollback that took them back: kept, but hidden.
    rollback integer not null default 0,
    first_n integer not null,
    last_n integer not null,
    count integer not null,
    non_finite integer not null,
    -- Where there is no stride.
    steps bigint[],
    -- Which of the values at its step each is; null where all are the only ones.
    ns integer[],
    numbers double precision[] not null,
    primary key (series_id, attempt, rollback, first_step, first_n),
    constraint chunk_is_whole check (count between 1 and 1024 and cardinality(numbers) = count)
) with (toast_tuple_target = 8160);

-- Random mantissas do not compress; trying costs more than writing them.
alter table chunk alter column numbers set storage external;

-- What the standing and visible values of an attempt's share of a series come to, kept in the transaction that takes
-- them; and where its next values go.
create table summary (
    series_id bigint not null references series on delete cascade,
    count bigint not null,
    non_finite bigint not null,
    first double precision not null,
    first_step bigint not null,
    last double precision not null,
    last_step bigint not null,
    min double precision,
    min_step bigint,
    max double precision,
    max_step bigint,
    attempt integer not null,
    first_n integer not null,
    last_n integer not null,
    -- The chunks from here on are not full yet: together they hold so many values.
    open_step bigint,
    open_n integer,
    open_count integer not null default 0,
    -- The last of them.
    tail_step bigint,
    tail_n integer,
    tail_count integer not null default 0,
    primary key (series_id, attempt)
) with (fillfactor = 50);

-- A value that arrived twice with another number: the first one stays, the other is noted.
create table conflict (
    series_id bigint not null references series on delete cascade,
    step bigint not null,
    kept double precision not null,
    refused double precision not null,
    times bigint not null default 1,
    noted_at timestamptz not null default now(),
    attempt integer not null,
    n integer not null,
    primary key (series_id, attempt, step, n)
);

-- What there was: negative n meant taken back.
insert into chunk (series_id, attempt, rollback, first_step, first_n, last_step, last_n, count, non_finite,
                   first, last, min, min_step, max, max_step, stride, steps, ns, numbers)
select series_id, attempt, rollback, min(step), 0, max(step), 0, count(*),
       count(*) filter (where value = any ('{NaN,Infinity,-Infinity}')),
       (array_agg(value order by step))[1], (array_agg(value order by step desc))[1],
       min(value) filter (where value <> all ('{NaN,Infinity,-Infinity}')),
       (array_agg(step order by value, step) filter (where value <> all ('{NaN,Infinity,-Infinity}')))[1],
       max(value) filter (where value <> all ('{NaN,Infinity,-Infinity}')),
       (array_agg(step order by value desc, step) filter (where value <> all ('{NaN,Infinity,-Infinity}')))[1],
       case when max(step) - min(step) = count(*) - 1 then 1 end,
       case when max(step) - min(step) <> count(*) - 1 then array_agg(step order by step) end, null,
       array_agg(value order by step)
from (select series_id, attempt, greatest(-n, 0) as rollback, step, value,
             (row_number() over (partition by series_id, attempt, greatest(-n, 0) order by step) - 1) / 1024 as block
      from value) v
group by series_id, attempt, rollback, block;

insert into summary (series_id, attempt, count, non_finite, first, first_step, first_n, last, last_step, last_n,
                     min, min_step, max, max_step)
select v.series_id, v.attempt, count(*), count(*) filter (where value = any ('{NaN,Infinity,-Infinity}')),
       (array_agg(value order by step))[1], min(step), 0, (array_agg(value order by step desc))[1], max(step), 0,
       min(value) filter (where value <> all ('{NaN,Infinity,-Infinity}')),
       (array_agg(step order by value, step) filter (where value <> all ('{NaN,Infinity,-Infinity}')))[1],
       max(value) filter (where value <> all ('{NaN,Infinity,-Infinity}')),
       (array_agg(step order by value desc, step) filter (where value <> all ('{NaN,Infinity,-Infinity}')))[1]
from value v join series s on s.id = v.series_id join attempt a on a.run_id = s.run_id and a.number = v.attempt
where v.n >= 0 and v.step <= coalesce(a.visible_through, v.step)
group by v.series_id, v.attempt;

drop table value;

-- A row a value, for those who ask in SQL.
create view value as
select c.series_id, c.attempt, c.rollback, coalesce(c.steps[v.place], c.first_step + (v.place - 1) * c.stride) as step,
       coalesce(c.ns[v.place], 0) as n, v.value
from chunk c cross join lateral unnest(c.numbers) with ordinality v(value, place);
