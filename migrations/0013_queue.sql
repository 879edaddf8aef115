-- What every pass of the scheduler asks of the runs at work, beside what they hold: when they were given their devices, and
-- when they are past their limit. Read from the attempts it cost more than all else, for those of all time are there.
alter table lease add column assigned_at timestamptz not null default now();
alter table lease add column ends_at timestamptz;
update lease l set assigned_at = a.assigned_at, ends_at = a.assigned_at + make_interval(secs => r.limit_seconds)
    from attempt a join run r on r.id = a.run_id where a.id = l.attempt_id;

create index lease_of_worker on lease (worker_id);

-- Every heartbeat moves the expiry: with an index on it none of them can be an update in place. A pass reads all leases, of
-- which there are as many as there are devices.
drop index lease_expiry;
