-- The latest runs of a method: what a submission is estimated by.
create index run_of_method on run (method, started_at) where started_at is not null;
