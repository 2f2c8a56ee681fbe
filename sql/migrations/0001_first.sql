-- The cell: every table of one installation, in one schema.
-- Locks nothing that exists: all tables are new.
set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- One row. `epoch` is raised when the server below is another one (a restored dump, a moved cell), so that positions
-- written by the old server's transaction ids sort before those of the new one.
create table relay.cell (
    id text not null default 'c1' primary key check (id ~ '^[a-z0-9]{2}$'),
    epoch integer not null default 0,
    system_identifier bigint not null default 0,
    -- The installation's HMAC key for API keys, sealed under RELAY_SECRET_KEY.
    key_seal bytea,
    -- Counts every change that may refuse a key, so that each process can see within a second that it must look again.
    keys_version bigint not null default 0
);

insert into relay.cell default values;

create table relay.organizations (
    id uuid not null primary key,
    name text not null check (char_length(name) between 1 and 255),
    tier text not null check (tier in ('free', 'pro', 'business', 'enterprise')),
    created_at timestamptz not null default now()
);

create table relay.api_keys (
    organization_id uuid not null,
    id uuid not null,
    name text not null check (char_length(name) between 1 and 255),
    scopes text[] not null,
    digest bytea not null,
    argon2 text not null,
    created_at timestamptz not null default now(),
    last_used_at timestamptz,
    expires_at timestamptz,
    primary key (organization_id, id)
);

-- A key names its own id and not its organization.
create unique index api_keys_by_id on relay.api_keys (id);

create table relay.endpoints (
    organization_id uuid not null,
    id uuid not null,
    -- Ten bits of the id: delivery processes share endpoints by bucket.
    bucket smallint not null check (bucket between 0 and 1023),
    url text not null,
    -- Sealed under RELAY_SECRET_KEY.
    secret_seal bytea not null,
    is_default boolean not null default false,
    enabled boolean not null default true,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (organization_id, id)
);

create unique index endpoints_default on relay.endpoints (organization_id) where is_default;

-- Append-only. (epoch, xid, id) is an event's position: the order in which readers that go forward see events.
create table relay.events (
    organization_id uuid not null,
    id uuid not null,
    epoch integer not null,
    xid bigint not null,
    type text not null,
    dedup_id text,
    payload bytea not null,
    primary key (organization_id, id)
) partition by range (id);

create index events_by_position on relay.events (organization_id, epoch, xid, id);

-- What is open: a row for each delivery that has not ended, or one with the nil endpoint for an event that only waits
-- for its acknowledgement. A page of pending events reads the primary key, which holds nothing else.
-- A null `due_at` is not to be sent: held because its endpoint is disabled, or without an endpoint.
-- The lease stands in columns that no index holds, so that taking and renewing it are HOT updates.
create table relay.open (
    organization_id uuid not null,
    epoch integer not null,
    xid bigint not null,
    event_id uuid not null,
    endpoint_id uuid not null,
    bucket smallint not null,
    acknowledged boolean not null default false,
    attempts integer not null default 0,
    due_at timestamptz,
    leased_until timestamptz not null default '-infinity',
    claim_token uuid,
    last_error_class text,
    primary key (organization_id, epoch, xid, event_id, endpoint_id)
) with (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);

create index open_due on relay.open (bucket, endpoint_id, due_at) where due_at is not null;

-- Deliveries that have ended.
create table relay.deliveries (
    organization_id uuid not null,
    event_id uuid not null,
    endpoint_id uuid not null,
    status text not null check (status in ('delivered', 'failed', 'cancelled')),
    attempts integer not null,
    last_error_class text,
    ended_at timestamptz not null default now(),
    primary key (organization_id, event_id, endpoint_id)
) partition by range (event_id);

create table relay.attempts (
    organization_id uuid not null,
    event_id uuid not null,
    endpoint_id uuid not null,
    number integer not null,
    at timestamptz not null,
    status_code integer,
    latency_ms integer not null,
    error_class text,
    -- The first KiB of the answer, as it came.
    response bytea,
    primary key (organization_id, event_id, endpoint_id, number)
) partition by range (event_id);

create table relay.acknowledgements (
    organization_id uuid not null,
    event_id uuid not null,
    at timestamptz not null default now(),
    primary key (organization_id, event_id)
) partition by range (event_id);

-- Keys that make two requests one event: kind `d` for a dedup_id, `i` for an Idempotency-Key. A table of its own,
-- because a unique constraint over time partitions cannot leave out the partition key.
create table relay.dedup (
    organization_id uuid not null,
    kind text not null check (kind in ('d', 'i')),
    key text not null,
    event_id uuid not null,
    digest bytea not null,
    expires_at timestamptz not null,
    primary key (organization_id, kind, key)
);

-- Processes that are alive, by their own word: an API sends wake-ups only while somebody delivers.
create table relay.processes (
    id uuid not null primary key,
    kind text not null check (kind in ('serve', 'deliver')),
    seen_at timestamptz not null default now()
);

-- The transaction that writes, as it stands in positions. A cell on Citus has another body here.
create function relay.stamp() returns bigint
language sql stable parallel safe
return pg_current_xact_id()::text::bigint;

-- Every transaction below this one has ended: readers that go forward stop before it.
create function relay.horizon() returns bigint
language sql stable parallel safe
return pg_snapshot_xmin(pg_current_snapshot())::text::bigint;

-- The least UUIDv7 of a moment (RFC 9562, section 5.7): the bounds of partitions.
create function relay.uuid7_floor(moment timestamptz) returns uuid
language sql stable parallel safe
return (
    lpad(to_hex((extract(epoch from moment) * 1000)::bigint), 12, '0') || '70008000000000000000'
)::uuid;

-- Make the partitions of one UTC day where they are missing; says how many tables it made.
-- Each is made by itself and then attached: attaching locks out no reader and no writer of the parent, while
-- `create table ... partition of` waits for all of them. The row of the cell serves as the lock between processes.
create function relay.make_partitions(day date) returns integer
language plpgsql
set lock_timeout = '2s'
as $$
declare
    parent text;
    child text;
    made integer := 0;
    low uuid := relay.uuid7_floor(day::timestamp at time zone 'UTC');
    high uuid := relay.uuid7_floor((day + 1)::timestamp at time zone 'UTC');
begin
    foreach parent in array array['events', 'deliveries', 'attempts', 'acknowledgements'] loop
        child := parent || '_' || to_char(day, 'YYYYMMDD');
        continue when to_regclass(format('relay.%I', child)) is not null;
        lock table relay.schema_migrations in share row exclusive mode;
        continue when to_regclass(format('relay.%I', child)) is not null;
        execute format('create table relay.%I (like relay.%I including defaults including constraints)', child, parent);
        execute format(
            'alter table relay.%I attach partition relay.%I for values from (%L) to (%L)', parent, child, low, high
        );
        -- Else statistics from a day's first minute could say that each organization has a single event, and a look-up
        -- by id would read all of an organization's through the index by position.
        execute format('alter table relay.%I alter column organization_id set (n_distinct = 100)', child);
        made := made + 1;
    end loop;
    return made;
end;
$$;

-- The status of one event and the sum of its attempts. Acknowledged: delivered. Else anything open: pending. Else
-- anything failed: failed. Else anything delivered: delivered. Else, with nothing or only cancelled deliveries: pending.
-- A table function, so that it is inlined into the query that calls it.
create function relay.event_status(organization_id uuid, epoch integer, xid bigint, event_id uuid)
returns table (status text, attempts integer)
language sql stable rows 1
begin atomic
select
    case
        when exists (
            select
            from relay.acknowledgements as a
            where a.organization_id = event_status.organization_id and a.event_id = event_status.event_id
        ) then 'delivered'
        when o.held > 0 then 'pending'
        when d.failed then 'failed'
        when d.delivered then 'delivered'
        else 'pending'
    end,
    coalesce(o.attempts, 0)::int + coalesce(d.attempts, 0)::int
from (
    select count(*) as held, sum(o.attempts) as attempts
    from relay.open as o
    where o.organization_id = event_status.organization_id
        and o.epoch = event_status.epoch
        and o.xid = event_status.xid
        and o.event_id = event_status.event_id
) as o
cross join (
    select bool_or(d.status = 'failed') as failed, bool_or(d.status = 'delivered') as delivered, sum(d.attempts) as attempts
    from relay.deliveries as d
    where d.organization_id = event_status.organization_id and d.event_id = event_status.event_id
) as d;
end;

-- Payloads as text, for people at a psql prompt.
create view relay.readable_events as
select organization_id, id, type, dedup_id, convert_from(payload, 'UTF8') as payload
from relay.events;
