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
-- What is needed to verify keys, and the version it holds for: the same snapshot gives both. Many at once, because
-- after a restart everybody's first requests come together.
-- $1 key_id uuid[]
-- gives: id uuid, organization_id uuid, scopes text[], digest bytea, argon2 text, expires_at timestamptz, tier text,
-- keys_version int8
select k.id, k.organization_id, k.scopes, k.digest, k.argon2, k.expires_at, o.tier, c.keys_version
from relay.api_keys as k
inner join relay.organizations as o on o.id = k.organization_id
cross join relay.cell as c
where k.id = any($1::uuid[]) and (k.expires_at is null or k.expires_at > now());

-- name: keys_version
-- Whether any key may have been refused since the last look.
-- gives: keys_version int8
select keys_version
from relay.cell;

-- name: key_changes_since
-- The keys that were refused or changed by the steps of `keys_version` after one, oldest first. Where a step is missing
-- it was the release before that took it, or it is long ago: then any key may be another.
-- $1 version int8, $2 limit int
-- gives: version int8, key_id uuid
select version, key_id
from relay.key_changes
where version > $1::int8
order by version
limit $2::int;

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
where o.id = $1::uuid and coalesce(k.expires_at, 'infinity') > now()
order by k.id;

-- name: create_key
-- A further key of an organization; no row when there is no such organization. Without room, because it has 100 keys in
-- force already (requests that race may pass that by as many as race), none is made. Sent twice with the same ids it
-- makes one.
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
-- Put a new key beside an old one that ends $6 seconds from now, or sooner where it would have; gives the old one's
-- end. The new key has the name, the scopes and the end that the old one was made with.
-- No end when the old key has ended already: two rotations of one key do not make two. Sent twice with the same ids it
-- makes one key; where the first has ended the old one, the second gives no end, and rotated_key tells.
-- A key in its last second is not rotated: a rotation that waited for the one that ended the key may have begun before
-- it, so that its now() lies before that end.
-- Without room nothing is done: both keys would be in force, and the organization has 100 of them.
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
-- The end of an old key whose rotation was committed though its answer was lost; no row if it was not.
-- A statement of its own, because only a later snapshot is sure to see it.
-- $1 organization_id uuid, $2 old_key_id uuid, $3 new_key_id uuid
-- gives: expires_at timestamptz
select old.expires_at
from relay.api_keys as old
inner join relay.api_keys as new on new.organization_id = old.organization_id
where old.organization_id = $1::uuid and old.id = $2::uuid and new.id = $3::uuid;

-- name: revoke_key
-- End a key now, unless that would leave nobody who can manage its organization. A key with an end does not stand in
-- for one without: when the last lasting one is gone, so is, before long, the organization. Among keys that all end it
-- does, if it has a minute left.
-- The keys that matter are locked in the order of their ids, and what is seen is what they are once they are locked: of
-- two revocations that race for the last two keys, the second finds the first one's key ended. That it may have begun
-- before that end, by its now(), is what the minute is for. Not in force: it has ended already, perhaps by the first of
-- two tries. No row when the organization has no such key.
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
-- Whose key it is, in force or not.
-- $1 key_id uuid
-- gives: organization_id uuid
select organization_id
from relay.api_keys
where id = $1::uuid;

-- name: keys_page
-- Keys in force after a key, of all organizations, in the order of the primary key.
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
-- Keep when keys were last used, for those of which nothing was kept in the minute before: several processes that say
-- so of one key write its row once. Locked in the order of their ids, and looked at again once locked.
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
-- Delete up to $1 keys that ended two days ago. Nobody asks for them any more: ids are never given out twice. What
-- rotates its keys without a pause leaves 300,000 of them, which no page and no count walks over.
-- $1 batch int, $2 now timestamptz as it is believed
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
-- Delete up to $1 of the oldest changes of keys, an hour after they were made. Processes look twice a second; one that
-- was stopped for longer reads all its keys again.
-- $1 batch int, $2 now timestamptz as it is believed
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
