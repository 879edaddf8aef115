-- Accuracy by class, and what it is a share of. Points and datasets of before have neither.
alter table dataset add column queries_per_class integer[] not null default '{}';
alter table point add column correct_per_class integer[] not null default '{}';
