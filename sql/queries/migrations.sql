-- name: schema_is_there
-- Whether the schema and the table of what has been applied exist. Asked first, because making them, even if they
-- exist, takes rights that a role may lack once they do.
-- $1 schema text
-- gives: schema bool, migrations bool
select
    exists (select from pg_namespace where nspname = $1::text) as schema,
    to_regclass('relay.schema_migrations') is not null as migrations;

-- name: create_schema
-- The schema of the cell.
create schema if not exists relay;

-- name: create_migrations_table
-- What has been applied, with a checksum of what it said then.
create table if not exists relay.schema_migrations (
    name text not null primary key,
    checksum bytea not null,
    applied_at timestamptz not null default now()
);

-- name: lock_migrations
-- One process migrates at a time; the others wait here until its transaction ends.
lock table relay.schema_migrations in share row exclusive mode;

-- name: applied_migrations
-- Everything applied so far, by a newer release too.
-- gives: name text, checksum bytea
select name, checksum
from relay.schema_migrations
order by name;

-- name: record_migration
-- Note that a file has been applied, in the transaction that applied it.
-- $1 name text, $2 checksum bytea
insert into relay.schema_migrations (name, checksum)
values ($1::text, $2::bytea);
