-- Consumers, which lease events instead of being sent them, as rows of `endpoints`; and leases, as columns of `open`.
-- `endpoints` is locked while its constraint and an index are checked against its rows: milliseconds for 10,000. `open`
-- takes no writes while two indexes are built: about a second for a million events that wait for their acknowledgement
-- alone; other rows are read and left out. All else is new.
set local lock_timeout = '5s';
set local statement_timeout = '600s';

-- A consumer has no URL and the bucket -1, which no delivery process visits: not one of this release, and not one of
-- the release before, which takes it for an endpoint without a URL. Its secret is never used.
alter table relay.endpoints
    add column kind text not null default 'endpoint',
    -- Of a consumer.
    add column name text,
    -- How long a lease lasts if the request does not say.
    add column lease_s integer,
    add column max_attempts integer,
    add column last_leased_at timestamptz;

-- squawk-ignore ban-drop-constraint
alter table relay.endpoints drop constraint endpoints_bucket_check;

alter table relay.endpoints
    -- squawk-ignore constraint-missing-not-valid
    add constraint endpoints_bucket_check check (
        (kind = 'endpoint' and bucket between 0 and 1023)
        or (kind = 'consumer' and bucket = -1 and name is not null and lease_s is not null and max_attempts is not null)
    );

-- squawk-ignore require-concurrent-index-creation
create unique index endpoints_by_name on relay.endpoints (organization_id, name) where kind = 'consumer';

-- The names of deleted consumers, whose deliveries keep them.
create table relay.deleted_consumers (
    organization_id uuid not null,
    id uuid not null,
    name text not null,
    deleted_at timestamptz not null default now(),
    primary key (organization_id, id)
);

create index deleted_consumers_by_name on relay.deleted_consumers (organization_id, name, deleted_at);

create index deleted_consumers_by_time on relay.deleted_consumers (deleted_at);

-- The row of a consumer, or of an event that only waits for its acknowledgement, is ready for a lease, or away until
-- `back_at`: `leased`, or `waiting` for its next attempt. No other row is ever away, and claims write neither column,
-- so that they remain HOT updates.
alter table relay.open
    add column away text,
    add column back_at timestamptz;

-- What is ready for a lease, in the order of positions: of one consumer, or of the inbox of one organization.
-- squawk-ignore require-concurrent-index-creation
create index open_ready on relay.open (
    (case when endpoint_id = '00000000-0000-0000-0000-000000000000' then organization_id else endpoint_id end),
    epoch,
    xid,
    event_id
) where (bucket = -1 or endpoint_id = '00000000-0000-0000-0000-000000000000') and away is null;

-- squawk-ignore require-concurrent-index-creation
create index open_away on relay.open (organization_id, endpoint_id, away, back_at) where away is not null;

-- The wait after a number of failures, as in `relay.values.retry_schedule`: past the end of a schedule its last wait
-- doubles, up to a day. `chance`, from 0 to 1, adds up to a fifth.
create function relay.retry_wait_s(schedule float8[], failures integer, chance float8) returns float8
language sql immutable parallel safe
return least(
    case
        when failures <= cardinality(schedule) then schedule[failures]
        else schedule[cardinality(schedule)] * power(2, least(failures - cardinality(schedule), 64))
    end,
    86400
) * (1 + 0.2 * chance);
