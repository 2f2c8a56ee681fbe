-- name: key_seal
-- Return the installation's encrypted HMAC key; null before the first startup.
-- gives: key_seal bytea
select key_seal
from relay.cell;

-- name: keep_key_seal
-- Store the HMAC key that this process generated, unless another process was first. Return the one that is stored.
-- $1 key_seal bytea
-- gives: key_seal bytea
update relay.cell
set key_seal = coalesce(key_seal, $1::bytea)
returning key_seal;

-- name: replace_key_seal
-- Replace the encrypted HMAC key, if it still is the one that was read.
-- $1 read key_seal bytea, $2 key_seal bytea
-- gives: id text
update relay.cell
set key_seal = $2::bytea
where key_seal = $1::bytea
returning id;

-- name: create_organization
-- Create an organization with its first key. Running it twice with the same ids creates one.
-- $1 organization_id uuid, $2 name text, $3 tier text, $4 key_id uuid, $5 scopes text[], $6 digest bytea,
-- $7 argon2 text
with organization as (
    insert into relay.organizations (id, name, tier)
    values ($1::uuid, $2::text, $3::text)
    on conflict do nothing
)
insert into relay.api_keys (organization_id, id, name, scopes, digest, argon2)
values ($1::uuid, $4::uuid, 'first', $5::text[], $6::bytea, $7::text)
on conflict do nothing;

-- name: keys_by_id
-- Return the rows that verify keys, and the version of the same snapshot. Many keys at once, because after a restart
-- the first requests of all clients arrive together.
-- $1 key_id uuid[]
-- gives: id uuid, organization_id uuid, scopes text[], digest bytea, argon2 text, expires_at timestamptz, tier text,
-- keys_version int8
select k.id, k.organization_id, k.scopes, k.digest, k.argon2, k.expires_at, o.tier, c.keys_version
from relay.api_keys as k
inner join relay.organizations as o on o.id = k.organization_id
cross join relay.cell as c
where k.id = any($1::uuid[]) and (k.expires_at is null or k.expires_at > now());

-- name: keys_version
-- Return the counter that rises when a key is rotated or revoked.
-- gives: keys_version int8
select keys_version
from relay.cell;

-- name: key_changes_since
-- Return the keys that were revoked or changed after a version, oldest first. If a step of the counter is missing, the
-- previous release made it or it is too old: then any key may have changed.
-- $1 version int8, $2 limit int
-- gives: version int8, key_id uuid
select version, key_id
from relay.key_changes
where version > $1::int8
order by version
limit $2::int;

-- name: keys_in_force
-- Return those of the given keys that are in force, as they are now. The digest of an id never changes.
-- $1 key_id uuid[]
-- gives: id uuid, organization_id uuid, scopes text[], expires_at timestamptz, tier text
select k.id, k.organization_id, k.scopes, k.expires_at, o.tier
from relay.api_keys as k
inner join relay.organizations as o on o.id = k.organization_id
where k.id = any($1::uuid[]) and (k.expires_at is null or k.expires_at > now());

-- name: keys_of_organization
-- Return an organization with its keys in force, oldest first.
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
where o.id = $1::uuid and coalesce(k.expires_at, 'infinity') > now()
order by k.id;

-- name: create_key
-- Create another key for an organization. No row: there is no such organization. If `room` is false nothing is created:
-- the organization has 100 keys in force. N concurrent requests may exceed that limit by N. Running it twice with the
-- same ids creates one key.
-- $1 organization_id uuid, $2 key_id uuid, $3 name text, $4 scopes text[], $5 digest bytea, $6 argon2 text,
-- $7 expires_at timestamptz or null
-- gives: room bool
with counted as materialized (
    select (
        select count(*)
        from relay.api_keys as k
        where k.organization_id = o.id and k.id <> $2::uuid and coalesce(k.expires_at, 'infinity') > now()
    ) < 100 as room
    from relay.organizations as o
    where o.id = $1::uuid
),
made as (
    insert into relay.api_keys (organization_id, id, name, scopes, digest, argon2, expires_at, own_expires_at)
    select
        $1::uuid, $2::uuid, $3::text, $4::text[], $5::bytea, $6::text, $7::timestamptz, $7::timestamptz
    from counted
    where room
    on conflict do nothing
)
select room
from counted;

-- name: rotate_key
-- Create a new key and let the old one expire $6 seconds from now, or earlier if it would have. Return the old one's
-- expiry. The new key has the name, the scopes and the expiry that the old one was created with. No expiry is returned
-- if the old key has already expired: two rotations of one key do not create two. Running it twice with the same ids
-- creates one key. If the first run expired the old key, the second returns no expiry, and rotated_key returns it. A
-- key in its last second is not rotated: a rotation that waited for the one that expired the key may have begun before
-- it, so its now() may be earlier than that expiry. If `room` is false nothing is done: both keys would be in force,
-- and the organization already has 100 in force.
-- $1 organization_id uuid, $2 old_key_id uuid, $3 new_key_id uuid, $4 digest bytea, $5 argon2 text, $6 overlap_s float8
-- gives: expires_at timestamptz, room bool
with counted as materialized (
    select $6::float8 = 0 or count(*) < 100 as room
    from relay.api_keys
    where organization_id = $1::uuid and id <> $3::uuid and coalesce(expires_at, 'infinity') > now()
),
old as (
    update relay.api_keys
    set expires_at = least(expires_at, now() + $6::float8 * interval '1 second')
    where organization_id = $1::uuid
        and id = $2::uuid
        and (expires_at is null or expires_at > now() + interval '1 second')
        and (select room from counted)
    returning name, scopes, expires_at, own_expires_at
),
made as (
    insert into relay.api_keys (organization_id, id, name, scopes, digest, argon2, expires_at, own_expires_at)
    select $1::uuid, $3::uuid, name, scopes, $4::bytea, $5::text, own_expires_at, own_expires_at
    from old
    on conflict do nothing
),
raised as (
    update relay.cell
    set keys_version = keys_version + 1
    where exists (select from old)
    returning keys_version
),
noted as (
    insert into relay.key_changes (version, key_id)
    select keys_version, $2::uuid
    from raised
)
select (select old.expires_at from old), room
from counted;

-- name: rotated_key
-- Return the expiry of an old key whose rotation was committed but whose response was lost. No row: it was not
-- committed. This is a separate statement, because only a later snapshot is sure to see the rotation.
-- $1 organization_id uuid, $2 old_key_id uuid, $3 new_key_id uuid
-- gives: expires_at timestamptz
select old.expires_at
from relay.api_keys as old
inner join relay.api_keys as new on new.organization_id = old.organization_id
where old.organization_id = $1::uuid and old.id = $2::uuid and new.id = $3::uuid;

-- name: revoke_key
-- Revoke a key now, unless no other key could then manage its organization. A key that expires does not count as a
-- substitute for one that does not: once the last permanent key is gone, the organization soon cannot be managed. If
-- all keys expire, one with at least a minute left counts. The relevant keys are locked in the order of their ids and
-- read once they are locked: of two concurrent revocations of the last two keys, the second sees the first key expired.
-- By its now() the second may have begun before that expiry, which is why the minute is needed. If `in_force` is false
-- the key had already expired, perhaps by the first of two tries. No row: the organization has no such key.
-- $1 organization_id uuid, $2 key_id uuid
-- gives: in_force bool, spare bool
with locked as materialized (
    select id, 'manage' = any(scopes) as manages, expires_at
    from relay.api_keys
    where organization_id = $1::uuid
        and (
            id = $2::uuid
            or ('manage' = any(scopes) and coalesce(expires_at, 'infinity') > now() + interval '1 minute')
        )
    order by id
    for no key update
),
judged as materialized (
    select
        asked.expires_at is null or asked.expires_at > now() as in_force,
        not asked.manages
        or exists (
            select from locked as other
            where other.id <> asked.id and (other.expires_at is null or asked.expires_at is not null)
        ) as spare
    from locked as asked
    where asked.id = $2::uuid
),
ended as (
    update relay.api_keys
    set expires_at = now()
    where organization_id = $1::uuid and id = $2::uuid and exists (select from judged where in_force and spare)
    returning id
),
raised as (
    update relay.cell
    set keys_version = keys_version + 1
    where exists (select from ended)
    returning keys_version
),
noted as (
    insert into relay.key_changes (version, key_id)
    select keys_version, $2::uuid
    from raised
)
select in_force, spare
from judged;

-- name: organization_of_key
-- Return the organization that owns a key, in force or not.
-- $1 key_id uuid
-- gives: organization_id uuid
select organization_id
from relay.api_keys
where id = $1::uuid;

-- name: keys_page
-- Return a page of the keys in force of all organizations, in the order of the primary key.
-- $1 after organization_id uuid, $2 after key_id uuid, $3 limit int
-- gives: organization_id uuid, organization_name text, tier text, id uuid, name text, scopes text[], created_at
-- timestamptz, last_used_at timestamptz, expires_at timestamptz
select
    k.organization_id,
    o.name as organization_name,
    o.tier,
    k.id,
    k.name,
    k.scopes,
    k.created_at,
    k.last_used_at,
    k.expires_at
from relay.api_keys as k
inner join relay.organizations as o on o.id = k.organization_id
where (k.organization_id, k.id) > ($1::uuid, $2::uuid) and (k.expires_at is null or k.expires_at > now())
order by k.organization_id, k.id
limit $3::int;

-- name: note_keys_used
-- Record when keys were last used, unless that was recorded within the minute before: several processes that report the
-- same key write its row once. Rows are locked in the order of their ids, and checked again once locked.
-- $1 key_id uuid[], $2 age_s float8[]: how long ago each was used
with used as materialized (
    select u.key_id, now() - u.age_s * interval '1 second' as used_at
    from unnest($1::uuid[], $2::float8[]) as u (key_id, age_s)
),
due as materialized (
    select k.organization_id, k.id, u.used_at
    from relay.api_keys as k
    inner join used as u on u.key_id = k.id
    where k.last_used_at is null or k.last_used_at < u.used_at - interval '1 minute'
    order by k.id
    for no key update of k
)
update relay.api_keys as k
set last_used_at = d.used_at
from due as d
where k.organization_id = d.organization_id and k.id = d.id;

-- name: forget_keys
-- Delete up to $1 keys that expired two days ago. They are no longer needed, because ids are never reused. An
-- organization that rotates without a pause has 300,000 of them, which no page and no count reads.
-- $1 batch int, $2 now timestamptz, the trusted time
-- gives: forgotten int8
with ended as materialized (
    select k.organization_id, k.id
    from relay.api_keys as k
    where k.expires_at < least(now(), $2::timestamptz) - interval '2 days'
    limit $1::int
    for update skip locked
),
forgotten as (
    delete from relay.api_keys as k
    using ended as e
    where k.organization_id = e.organization_id and k.id = e.id
    returning k.id
)
select count(*) as forgotten
from forgotten;

-- name: forget_key_changes
-- Delete up to $1 of the oldest key changes, an hour after they were made. Processes poll twice a second. One that was
-- suspended for longer reads all its keys again.
-- $1 batch int, $2 now timestamptz, the trusted time
-- gives: forgotten int8
with oldest as materialized (
    select version, changed_at
    from relay.key_changes
    order by version
    limit $1::int
),
forgotten as (
    delete from relay.key_changes as c
    using oldest as o
    where c.version = o.version and o.changed_at < least(now(), $2::timestamptz) - interval '1 hour'
    returning c.version
)
select count(*) as forgotten
from forgotten;
