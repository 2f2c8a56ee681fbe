-- name: ask_ping
-- Ask the delivery processes for a test delivery to an endpoint; no row when there is no such endpoint.
-- $1 organization_id uuid, $2 endpoint_id uuid, $3 ping_id uuid
-- gives: id uuid, timeout_s float8
with found as materialized (
    select e.id, e.timeout_s
    from relay.endpoints as e
    where e.organization_id = $1::uuid and e.id = $2::uuid
),
asked as (
    insert into relay.pings (organization_id, id, endpoint_id)
    select $1::uuid, $3::uuid, id
    from found
)
select id, timeout_s
from found;

-- name: take_ping_answers
-- Those of the pings that a process waits for which have been answered; taken, because nobody else will read them.
-- $1 organization_id uuid[], $2 ping_id uuid[]
-- gives: id uuid, number int4, at timestamptz, status_code int4, latency_ms int4, error_class text, response bytea
delete from relay.pings as p
using unnest($1::uuid[], $2::uuid[]) as w (organization_id, id)
where p.organization_id = w.organization_id and p.id = w.id and p.at is not null
returning p.id, 1 as number, p.at, p.status_code, p.latency_ms, p.error_class, p.response;

-- name: drop_ping
-- A ping that nobody waits for any more.
-- $1 organization_id uuid, $2 ping_id uuid
delete from relay.pings
where organization_id = $1::uuid and id = $2::uuid;
