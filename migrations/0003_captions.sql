-- What a run was trained on: digest of its ordered (pixel sha256, caption) list, and the number of images.
alter table run add column captions text;
alter table run add column training_images bigint;
