-- name: schema_is_there
-- Return whether the schema and the table of applied migrations exist. This is checked first, because even
-- `create if not exists` needs privileges that the role may not have.
-- $1 schema text
-- gives: schema bool, migrations bool
select
    exists (select from pg_namespace where nspname = $1::text) as schema,
    to_regclass('relay.schema_migrations') is not null as migrations;

-- name: create_schema
-- Create the schema of the cell.
create schema if not exists relay;

-- name: create_migrations_table
-- Create the table of applied migrations, each with a checksum of its file.
create table if not exists relay.schema_migrations (
    name text not null primary key,
    checksum bytea not null,
    applied_at timestamptz not null default now()
);

-- name: lock_migrations
-- Let one process migrate at a time. The others wait here until its transaction ends.
lock table relay.schema_migrations in share row exclusive mode;

-- name: applied_migrations
-- Return all applied migrations, including those of a newer release.
-- gives: name text, checksum bytea
select name, checksum
from relay.schema_migrations
order by name;

-- name: record_migration
-- Record that a file was applied, in the transaction that applies it.
-- $1 name text, $2 checksum bytea
insert into relay.schema_migrations (name, checksum)
values ($1::text, $2::bytea);
