-- name: put_off_claims
-- Give back what could not be sent for lack of something of ours, and let it rest so long: else it would be claimed again
-- at once, for as long as the lack lasts. It was no attempt,
-- and its claim is not counted.
-- $1 organization_id uuid[], $2 epoch int[], $3 xid int8[], $4 event_id uuid[], $5 endpoint_id uuid[],
-- $6 claim_token uuid[], $7 pause_s float8[]
with held as materialized (
    select
        organization_id,
        epoch,
        xid,
        event_id,
        endpoint_id,
        claim_token,
        now() + pause_s * interval '1 second' as due_at
    from unnest($1::uuid[], $2::int[], $3::int8[], $4::uuid[], $5::uuid[], $6::uuid[], $7::float8[])
        as h (organization_id, epoch, xid, event_id, endpoint_id, claim_token, pause_s)
)
update relay.open as o
set due_at = h.due_at, leased_until = '-infinity', claim_token = null, claims = greatest(o.claims - 1, 0)
from held as h
where o.organization_id = h.organization_id and o.epoch = h.epoch and o.xid = h.xid
    and o.event_id = h.event_id and o.endpoint_id = h.endpoint_id and o.claim_token = h.claim_token;
