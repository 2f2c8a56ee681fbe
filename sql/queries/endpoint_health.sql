-- name: note_health
-- Record since when an endpoint has been failing and its breaker open, so that another process continues from there.
-- Null clears it.
-- $1 organization_id uuid, $2 endpoint_id uuid, $3 failing_s float8, $4 broken_s float8
update relay.endpoints
set
    failing_since = now() - $3::float8 * interval '1 second',
    broken_since = now() - $4::float8 * interval '1 second',
    version = version + 1
where organization_id = $1::uuid and id = $2::uuid and enabled;

-- name: disable_endpoint
-- Disable an endpoint if it still has the URL that failed. Create a job that holds its deliveries and an event that
-- notifies the organization, delivered to its other endpoints. A second call has no effect. Null if the epoch is not
-- that of the current server: nothing was done.
-- $1 organization_id uuid, $2 endpoint_id uuid, $3 url text, $4 reason text, $5 at timestamptz, $6 job_id uuid,
-- $7 event_id uuid, $8 payload bytea, $9 type text
-- gives: disabled int8
with here as materialized (
    select epoch, relay.stamp() as xid
    from relay.cell
    where started_at = pg_postmaster_start_time()
),
disabled as (
    update relay.endpoints
    set
        enabled = false,
        disabled_reason = $4::text,
        disabled_at = $5::timestamptz,
        updated_at = now(),
        version = version + 1
    where organization_id = $1::uuid and id = $2::uuid and url = $3::text and enabled and exists (select from here)
    returning organization_id, id
),
holding as (
    insert into relay.jobs (organization_id, id, kind, endpoint_id)
    select organization_id, $6::uuid, 'hold', id
    from disabled
),
stored as (
    insert into relay.events (organization_id, id, epoch, xid, type, payload)
    select d.organization_id, $7::uuid, h.epoch, h.xid, $9::text, $8::bytea
    from disabled as d
    cross join here as h
    returning organization_id, id, epoch, xid, type
),
targets as materialized (
    select s.organization_id, s.epoch, s.xid, s.id as event_id, e.id as endpoint_id, e.bucket, e.enabled
    from stored as s
    left join relay.endpoints as e
        on e.organization_id = s.organization_id
        and e.id <> $2::uuid
        and relay.subscribes(e.event_types, e.event_prefixes, s.type)
),
opened as (
    insert into relay.open (organization_id, epoch, xid, event_id, endpoint_id, bucket, due_at)
    select
        organization_id,
        epoch,
        xid,
        event_id,
        coalesce(endpoint_id, '00000000-0000-0000-0000-000000000000'),
        coalesce(bucket, 0),
        case when enabled then now() end
    from targets
)
select case when exists (select from here) then count(*) end as disabled
from disabled;
