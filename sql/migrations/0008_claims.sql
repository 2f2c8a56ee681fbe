-- How often a delivery was claimed without a result, so that one that kills its process is found; and an index of the
-- deliveries whose next attempt is far off, which claims do not meet: their bucket is written as -2 - bucket, and set
-- back when they are due. Ingest pays for neither.
-- `open` is locked for a new column, which rewrites nothing. While the index is built nothing is written to `open`: its
-- table is read once, and nothing is kept of it, for no row has such a bucket yet.
set local lock_timeout = '5s';
set local statement_timeout = '600s';

alter table relay.open add column claims smallint not null default 0;

-- squawk-ignore require-concurrent-index-creation
create index open_parked on relay.open (due_at) where bucket < -1;
