-- Counting an experiment's runs by state, and when it was last at work, without reading their specs. Pages of runs go by
-- `run_of_experiment` and the primary key.
create index run_activity on run (experiment_id, state) include (created_at, started_at, finished_at)
    where part_of is null;

-- The home page's short lists.
create index run_ended_badly on run (finished_at desc) where state in ('failed', 'lost') and part_of is null;
create index run_at_work on run (started_at, id) where state = 'running';

-- Runs that a worker has begun: what an experiment's figure can be drawn from.
create index run_begun on run (experiment_id, id) where backbone is not null and part_of is null;
