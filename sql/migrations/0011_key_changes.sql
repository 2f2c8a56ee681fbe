-- Which key each step of `keys_version` was about, so that a process reads that one again and not all that it knows; and
-- indexes by when keys end, because those that have ended stay for a while.
-- `api_keys` takes no writes while the two indexes are built: milliseconds for 10,000 keys. All else is new.
set local lock_timeout = '5s';
set local statement_timeout = '600s';

-- The release before raises the version and writes nothing here: a gap means that any key may be another.
create table relay.key_changes (
    version bigint not null primary key,
    key_id uuid not null,
    changed_at timestamptz not null default now()
);

-- squawk-ignore require-concurrent-index-creation
create index api_keys_in_force on relay.api_keys (organization_id, (coalesce(expires_at, 'infinity')));

-- squawk-ignore require-concurrent-index-creation
create index api_keys_ended on relay.api_keys (expires_at) where expires_at is not null;
