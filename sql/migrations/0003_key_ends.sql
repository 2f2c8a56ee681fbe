-- Keys that are made with an end of their own. The table is locked for a new column only, which rewrites nothing.
set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- The end that a key was made with. A rotation brings `expires_at` forward and leaves this: the new key takes it over.
alter table relay.api_keys add column own_expires_at timestamptz;
