-- name: answer_kept
-- Return the stored response to the first request with this Idempotency-Key.
-- $1 organization_id uuid, $2 key text
-- gives: digest bytea, answer bytea
select a.digest, a.answer
from relay.answers as a
where a.organization_id = $1::uuid and a.key = $2::text and a.expires_at > now();

-- name: forget_answers
-- Delete up to $1 stored responses whose Idempotency-Key has expired.
-- $1 batch int, $2 now timestamptz, the trusted time
-- gives: forgotten int8
with old as materialized (
    select a.organization_id, a.key
    from relay.answers as a
    where a.expires_at <= least(now(), $2::timestamptz)
    order by a.expires_at
    limit $1::int
    for update skip locked
),
forgotten as (
    delete from relay.answers as a
    using old as o
    where a.organization_id = o.organization_id and a.key = o.key and a.expires_at <= least(now(), $2::timestamptz)
    returning a.key
)
select count(*) as forgotten
from forgotten;
