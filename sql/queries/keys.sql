-- name: key_seal
-- The installation's sealed HMAC key; null before the first start.
-- gives: key_seal bytea
select key_seal
from relay.cell;

-- name: keep_key_seal
-- Keep the HMAC key that this start made, unless another process was first; gives the one that is kept.
-- $1 key_seal bytea
-- gives: key_seal bytea
update relay.cell
set key_seal = coalesce(key_seal, $1::bytea)
returning key_seal;

-- name: replace_key_seal
-- Put a new seal of the HMAC key in the place of the one that was read.
-- $1 read key_seal bytea, $2 key_seal bytea
-- gives: id text
update relay.cell
set key_seal = $2::bytea
where key_seal = $1::bytea
returning id;

-- name: create_organization
-- A new organization with its first key. Sent twice with the same ids it makes one.
-- $1 organization_id uuid, $2 name text, $3 tier text, $4 key_id uuid, $5 scopes text[], $6 digest bytea, $7 argon2 text
with organization as (
    insert into relay.organizations (id, name, tier)
    values ($1::uuid, $2::text, $3::text)
    on conflict do nothing
)
insert into relay.api_keys (organization_id, id, name, scopes, digest, argon2)
values ($1::uuid, $4::uuid, 'first', $5::text[], $6::bytea, $7::text)
on conflict do nothing;

-- name: key_by_id
-- What is needed to verify one key, and the version it holds for: the same snapshot gives both.
-- $1 key_id uuid
-- gives: id uuid, organization_id uuid, scopes text[], digest bytea, argon2 text, expires_at timestamptz, tier text,
-- keys_version int8
select k.id, k.organization_id, k.scopes, k.digest, k.argon2, k.expires_at, o.tier, c.keys_version
from relay.api_keys as k
inner join relay.organizations as o on o.id = k.organization_id
cross join relay.cell as c
where k.id = $1::uuid and (k.expires_at is null or k.expires_at > now());

-- name: keys_version
-- Whether any key may have been refused since the last look.
-- gives: keys_version int8
select keys_version
from relay.cell;

-- name: keys_in_force
-- Of the keys that a process has verified, those that still hold, as they now are. The digest of an id never changes.
-- $1 key_id uuid[]
-- gives: id uuid, organization_id uuid, scopes text[], expires_at timestamptz, tier text
select k.id, k.organization_id, k.scopes, k.expires_at, o.tier
from relay.api_keys as k
inner join relay.organizations as o on o.id = k.organization_id
where k.id = any($1::uuid[]) and (k.expires_at is null or k.expires_at > now());

-- name: keys_of_organization
-- An organization with its keys that still hold, oldest first.
-- $1 organization_id uuid
-- gives: organization_name text, tier text, webhook_url text, id uuid, name text, scopes text[], created_at
-- timestamptz, last_used_at timestamptz, expires_at timestamptz
select
    o.name as organization_name,
    o.tier,
    (select e.url from relay.endpoints as e where e.organization_id = o.id and e.is_default) as webhook_url,
    k.id,
    k.name,
    k.scopes,
    k.created_at,
    k.last_used_at,
    k.expires_at
from relay.organizations as o
inner join relay.api_keys as k on k.organization_id = o.id
where o.id = $1::uuid and (k.expires_at is null or k.expires_at > now())
order by k.id;

-- name: rotate_key
-- Put a new key beside an old one that ends $6 seconds from now, or sooner where it would have; gives the old one's end.
-- No row when the old key has ended already: two rotations of one key do not make two. Sent twice with the same ids it
-- makes one key; where the first has ended the old one, the second gives no row, and rotated_key tells.
-- A key in its last second is not rotated: a rotation that waited for the one that ended the key may have begun before
-- it, so that its now() lies before that end.
-- $1 organization_id uuid, $2 old_key_id uuid, $3 new_key_id uuid, $4 digest bytea, $5 argon2 text, $6 overlap_s float8
-- gives: expires_at timestamptz
with old as (
    update relay.api_keys
    set expires_at = least(expires_at, now() + $6::float8 * interval '1 second')
    where organization_id = $1::uuid
        and id = $2::uuid
        and (expires_at is null or expires_at > now() + interval '1 second')
    returning name, scopes, expires_at
),
made as (
    insert into relay.api_keys (organization_id, id, name, scopes, digest, argon2)
    select $1::uuid, $3::uuid, name, scopes, $4::bytea, $5::text
    from old
    on conflict do nothing
),
counted as (
    update relay.cell
    set keys_version = keys_version + 1
    where exists (select from old)
)
select expires_at
from old;

-- name: rotated_key
-- The end of an old key whose rotation was committed though its answer was lost; no row if it was not.
-- A statement of its own, because only a later snapshot is sure to see it.
-- $1 organization_id uuid, $2 old_key_id uuid, $3 new_key_id uuid
-- gives: expires_at timestamptz
select old.expires_at
from relay.api_keys as old
inner join relay.api_keys as new on new.organization_id = old.organization_id
where old.organization_id = $1::uuid and old.id = $2::uuid and new.id = $3::uuid;
