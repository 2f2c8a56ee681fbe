-- How long events were kept when retention last had nothing left to drop: an operator who lowers that, for a disk that is
-- full, is not made to wait.
-- `cell` is locked for a new column only, which rewrites nothing.
set local lock_timeout = '5s';
set local statement_timeout = '60s';

alter table relay.cell add column retention_days integer;
