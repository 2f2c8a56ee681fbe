-- name: set_default_endpoint
-- Point the organization's default endpoint at a URL, making it with its secret the first time; the secret stays when
-- the URL changes. Events that were accepted before and still wait for an acknowledgement keep waiting for one.
-- $1 organization_id uuid, $2 endpoint_id uuid, $3 bucket int2, $4 url text, $5 secret_seal bytea
-- gives: id uuid, secret_seal bytea
insert into relay.endpoints as e (organization_id, id, bucket, url, secret_seal, is_default)
values ($1::uuid, $2::uuid, $3::int2, $4::text, $5::bytea, true)
on conflict (organization_id) where is_default do update
set url = excluded.url, updated_at = now()
returning e.id, e.secret_seal;
