-- Where an event belongs in a trace (W3C Trace Context), so that its webhooks go on with it. Null without traces.
-- Locks `events` for a new column only, which rewrites nothing.
set local lock_timeout = '5s';
set local statement_timeout = '60s';

alter table relay.events add column traceparent text;
