-- Endpoints that can be set up one by one, deliveries that can be sent again, and jobs.
-- `endpoints`, `open` and `processes` are locked for new columns only, which rewrites nothing. While the two indexes are
-- built nothing is written to `open` and `deliveries`: each reads its table once and keeps next to nothing. All else is
-- new.
set local lock_timeout = '5s';
set local statement_timeout = '600s';

alter table relay.endpoints
    add column description text not null default '',
    -- Exact types, or `order.*` for all that begin so; none means all.
    add column event_types text[] not null default '{}',
    -- What stands before the stars.
    add column event_prefixes text[] not null default '{}',
    -- The names stand apart from the values because reads show them; the seal holds both, as a JSON object.
    add column header_names text[] not null default '{}',
    add column headers_seal bytea,
    -- Null is the default of the process that delivers.
    add column rate_limit_per_second integer,
    add column max_in_flight integer,
    add column timeout_s float8,
    add column retry_schedule float8[],
    -- How Standard Webhooks names the schemes: v1 is HMAC-SHA256, v1a is Ed25519.
    add column signature text not null default 'v1',
    -- Of v1a, as it is shown: so that reads need not open the seal.
    add column public_key text,
    -- Signs beside the present secret until then.
    add column old_secret_seal bytea,
    add column old_secret_until timestamptz,
    -- Why relay itself disabled it: `gone` after a 410, `failing` after days of nothing but failures.
    add column disabled_reason text,
    add column disabled_at timestamptz,
    -- Since when every attempt has failed, written once that has lasted for a minute.
    add column failing_since timestamptz,
    -- Since when its circuit breaker is open.
    add column broken_since timestamptz,
    -- Raised by each change that those who send must know.
    add column version integer not null default 1;

-- Attempts before the schedule began that is running now: a retry begins a fresh one, and the numbers go on.
alter table relay.open add column attempts_before integer not null default 0;

-- What is held. Ingest pays for it only where an endpoint is disabled.
-- squawk-ignore require-concurrent-index-creation
create index open_held on relay.open (organization_id, endpoint_id)
where due_at is null and endpoint_id <> '00000000-0000-0000-0000-000000000000';

-- The dead letters.
-- squawk-ignore require-concurrent-index-creation
create index deliveries_failed on relay.deliveries (organization_id, event_id, endpoint_id) where status = 'failed';

-- Answers to requests with an Idempotency-Key that post no event: replay, retry, catch-up.
create table relay.answers (
    organization_id uuid not null,
    key text not null,
    -- Of method, path and body.
    digest bytea not null,
    answer bytea not null,
    expires_at timestamptz not null,
    primary key (organization_id, key)
);

create index answers_expiring on relay.answers (expires_at);

-- What touches many rows goes on in short transactions, each of which moves the place on: a job that is killed goes on
-- where it was. `retry`, `replay` and `catch_up` are shown by the API. `hold`, `release` and `cancel` follow from an
-- endpoint that was disabled, enabled or deleted, and are not.
create table relay.jobs (
    organization_id uuid not null,
    id uuid not null,
    kind text not null check (kind in ('retry', 'replay', 'catch_up', 'hold', 'release', 'cancel')),
    status text not null default 'running' check (status in ('running', 'done', 'cancelled', 'failed')),
    endpoint_id uuid,
    -- Of ended deliveries, which ones; null is every one.
    statuses text[],
    error_class text,
    -- Bounds on the event's id, the second exclusive.
    since uuid not null default '00000000-0000-0000-0000-000000000000',
    until uuid not null default 'ffffffff-ffff-ffff-ffff-ffffffffffff',
    -- How far it has come: in the order of deliveries, or for `catch_up` in the order of commits.
    at_epoch integer not null default -1,
    at_xid bigint not null default 0,
    at_event_id uuid not null default '00000000-0000-0000-0000-000000000000',
    at_endpoint_id uuid not null default '00000000-0000-0000-0000-000000000000',
    matched bigint not null default 0,
    done bigint not null default 0,
    failed bigint not null default 0,
    created_at timestamptz not null default now(),
    leased_until timestamptz not null default '-infinity',
    claim_token uuid,
    primary key (organization_id, id)
);

create index jobs_running on relay.jobs (id) where status = 'running';

create index jobs_ended on relay.jobs (id) where status <> 'running';

-- Test deliveries: asked for by an API process, made and answered by a delivery process, stored as no event. What a crash
-- takes of them was waited for by nobody any more.
create unlogged table relay.pings (
    organization_id uuid not null,
    id uuid not null,
    endpoint_id uuid not null,
    asked_at timestamptz not null default now(),
    leased_until timestamptz not null default '-infinity',
    at timestamptz,
    status_code integer,
    latency_ms integer,
    error_class text,
    response bytea,
    primary key (organization_id, id)
);

alter table relay.processes
    -- Gives its buckets to the others and takes none.
    add column leaves boolean not null default false,
    -- Endpoints to which it still has something in flight though another process may have their buckets.
    add column on_wire uuid[] not null default '{}';

-- Who delivers to which endpoints: a row for each run of 16 buckets.
create table relay.bucket_leases (
    first_bucket smallint not null primary key,
    process_id uuid,
    leased_until timestamptz not null default '-infinity'
);

insert into relay.bucket_leases (first_bucket)
select bucket
from generate_series(0, 1008, 16) as bucket;

-- Whether an endpoint with these event types wants an event of this type. Without a subquery, so that it is inlined.
create function relay.subscribes(event_types text[], event_prefixes text[], type text) returns boolean
language sql immutable parallel safe
return cardinality(event_types) = 0 or type = any(event_types) or type ^@ any(event_prefixes);
