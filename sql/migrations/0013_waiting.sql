-- When a process last said that requests wait in it for events: while one does, the others send it notifications.
-- `processes` is locked for a new column only, which rewrites nothing.
set local lock_timeout = '5s';
set local statement_timeout = '60s';

alter table relay.processes add column waits_at timestamptz;
