-- A crashed run is not tried again at once: what made it fail may pass, and a crash loop must not burn its attempts in
-- milliseconds.
alter table run add column ready_at timestamptz not null default now();

-- A worker that is ending takes no new work.
alter table worker add column draining boolean not null default false;
