#!/bin/sh
# Checks the whole contract of a running relay with curl. Prints a line for each step. Exit code 1: something differs.
#
#   scripts/smoke.sh https://relay.example.com        the first argument, or BASE_URL; http://127.0.0.1:8080 without
#
#   RELAY_API_KEY         a key with all scopes; without it the script creates an organization
#   RELAY_ADMIN_TOKEN     for that, if the operator has set one
#   RELAY_METRICS_TOKEN   for /metrics, if the operator has set one
#   SMOKE_WEBHOOK_URL     a receiver: then deliveries are sent and waited for. Without it they are only held
#
# It sends about 85 requests, fewer than the free tier's burst, and removes the endpoint, the consumer and the keys that
# it creates. Its events stay until retention drops them. It needs curl and a POSIX system.
set -u
umask 077

base=${1:-${BASE_URL:-http://127.0.0.1:8080}}
base=${base%/}
run="smoke-$(date +%s)-$$"
type="smoke.$$"
work=$(mktemp -d) || exit 1
undo=''
leave() {
    # Removes everything that may be left. If it is gone already, the response is 404.
    for path in $undo; do
        curl --silent --max-time 10 --request DELETE --header "@$key" --output "$work/undone" "$base$path"
    done
    rm -rf "$work"
}
trap leave EXIT
trap 'exit 1' HUP INT TERM
passed=0 failed=0 status='' body=''
key="$work/key" other="$work/other"
zero=01900000-0000-7000-8000-000000000000

# Secrets are passed to curl in a file, because a list of processes shows arguments.
header() { printf '%s: %s\n' "$2" "$3" > "$1"; }

call() { # METHOD PATH [argument of curl...]
    method=$1 path=$2
    shift 2
    : > "$work/body"
    : > "$work/head"
    status=$(curl --silent --show-error --max-time 40 --request "$method" --output "$work/body" \
        --dump-header "$work/head" --write-out '%{http_code}' "$@" "$base$path" 2> "$work/said") ||
        status="none ($(head -c 150 "$work/said"))"
    body=$(cat "$work/body")
}

ask() { # METHOD PATH [argument of curl...], as the organization
    method=$1 path=$2
    shift 2
    call "$method" "$path" --header "@$key" "$@"
}

post() { # PATH JSON [argument of curl...], as the organization
    path=$1 json=$2
    shift 2
    ask POST "$path" --header 'Content-Type: application/json' --data-binary "$json" "$@"
}

is() { # WHAT STATUS [text of the body | header:text of the head...]
    what=$1 wanted=$2 differs=''
    shift 2
    [ "$status" = "$wanted" ] || differs="status $status, not $wanted"
    for text in "$@"; do
        case $text in
        header:*) grep -qi -- "^${text#header:}" "$work/head" || differs="${differs:+$differs; }no header ${text#header:}" ;;
        not:*) case $body in *"${text#not:}"*) differs="${differs:+$differs; }${text#not:} in it" ;; esac ;;
        *) case $body in *"$text"*) ;; *) differs="${differs:+$differs; }no $text in it" ;; esac ;;
        esac
    done
    if [ -z "$differs" ]; then
        passed=$((passed + 1))
        printf 'ok    %-3s %s\n' "$wanted" "$what"
    else
        failed=$((failed + 1))
        printf 'FAIL      %s: %s\n' "$what" "$differs"
        # Keys and secrets are never printed.
        printf '%s\n' "$body" | head -c 400 | sed -e 's/rly_live_[a-z0-9_]*/rly_live_.../g' -e 's/whsec_[^"]*/whsec_.../g' -e 's/^/          /'
    fi
}

skip() { printf 'skip      %s\n' "$1"; }

field() { # NAME: the first string of that name in the body
    printf '%s' "$body" | grep -o "\"$1\":\"[^\"]*\"" | head -n 1 | cut -d '"' -f 4
}

# Tries `ask GET PATH` once a second until the body has TEXT, SECONDS long.
until_has() { # SECONDS PATH TEXT
    left=$1
    while :; do
        ask GET "$2"
        case $body in *"$3"*) return ;; esac
        case $status in 4*) return ;; esac
        [ "$left" -gt 0 ] || return
        left=$((left - 1))
        sleep 1
    done
}

echo "$base, as $run"

# ---- What needs no key
call GET /health
is 'health' 200 '"status":"healthy"' '"version":"' header:x-request-id:
call GET /health/live
is 'liveness' 200 '"status":"healthy"'
call GET /openapi.json
is 'OpenAPI document' 200 '"openapi":"3.1' '"/api/events"' '"/api/inbox"' '"/api/endpoints/{id}"' '"/api/keys/rotate"'
call GET /docs
is 'documentation for browsers' 200 '<html'
call GET /health --header "X-Request-Id: $run"
is 'a request id comes back' 200 "header:x-request-id: $run"
call GET /api/inbox
is 'no key' 401 '"code":"missing_api_key"' '"request_id":"' '"error":"'
call GET /api/inbox --header 'X-API-Key: rly_live_invented'
is 'an invented key' 401 '"code":"invalid_api_key"'
if [ -n "${RELAY_METRICS_TOKEN:-}" ]; then
    call GET /metrics
    is 'metrics without their token' 401 '"code":"invalid_metrics_token"'
    header "$other" Authorization "Bearer $RELAY_METRICS_TOKEN"
    call GET /metrics --header "@$other"
    is 'metrics' 200 'relay_'
else
    call GET /metrics
    if [ "$status" = 401 ]; then skip 'metrics: they want RELAY_METRICS_TOKEN'; else is 'metrics' 200 'relay_'; fi
fi

# ---- A key
own=''
if [ -n "${RELAY_API_KEY:-}" ]; then
    header "$key" X-API-Key "$RELAY_API_KEY"
    skip 'an organization of its own: RELAY_API_KEY is given'
else
    own=yes
    if [ -n "${RELAY_ADMIN_TOKEN:-}" ]; then
        call POST /api/keys/generate --header 'Content-Type: application/json' --data '{"organization_name":"smoke"}'
        is 'sign-up without the token' 401 '"code":"invalid_admin_token"'
        header "$other" Authorization "Bearer $RELAY_ADMIN_TOKEN"
    else
        header "$other" X-Smoke "$run"
    fi
    call POST /api/keys/generate --header "@$other" --header 'Content-Type: application/json' \
        --data "{\"organization_name\":\"$run\"}"
    is 'an organization and its key' 201 '"api_key":"rly_live_' '"organization_id":"' '"tier":"free"'
    made=$(field api_key)
    if [ -z "$made" ]; then
        echo 'nothing more can be tried without a key: set RELAY_ADMIN_TOKEN or RELAY_API_KEY'
        exit 1
    fi
    header "$key" X-API-Key "$made"
fi
ask GET /api/keys
is 'the organization and its keys' 200 '"organization_id":"' '"rate_limit_per_minute":' '"keys":[{"key_id":"' \
    header:ratelimit-limit: header:ratelimit-remaining: header:ratelimit-reset:

# ---- Events
payload='{"n":12345678901234567890,"a":1.10,"a":2,"text":"caf\u00e9"}'
post /api/events "{\"type\":\"$type\",\"payload\":$payload,\"dedup_id\":\"$run\"}"
is 'an event' 201 '"status":"accepted"' '"id":"'
event=$(field id)
: "${event:=$zero}"
post /api/events "{\"type\":\"$type\",\"payload\":$payload,\"dedup_id\":\"$run\"}"
is 'the same event again' 409 '"code":"duplicate"' "\"id\":\"$event\"" 'not:"conflict"'
post /api/events "{\"type\":\"$type\",\"payload\":0,\"dedup_id\":\"$run\"}"
is 'its dedup_id with another payload' 409 "\"id\":\"$event\"" '"conflict":"payload"'
post /api/events "{\"type\":\"$type\",\"payload\":1}" --header "Idempotency-Key: $run"
is 'an event with an Idempotency-Key' 201 '"status":"accepted"'
second=$(field id)
: "${second:=$zero}"
post /api/events "{\"type\":\"$type\",\"payload\":1}" --header "Idempotency-Key: $run"
is 'its repeat' 201 "\"id\":\"$second\"" 'header:idempotent-replayed: true'
post /api/events "{\"type\":\"$type\",\"payload\":2}" --header "Idempotency-Key: $run"
is 'its Idempotency-Key with another payload' 422 '"code":"idempotency_key_reused"'
post /api/events/batch "[{\"type\":\"$type\",\"payload\":1},{\"type\":\"$type\",\"payload\":$payload,\"dedup_id\":\"$run\"},{\"payload\":1}]"
is 'a batch' 200 '"results":[{"status":"accepted","id":"' "{\"status\":\"duplicate\",\"id\":\"$event\"" '"status":"invalid"'
third=$(field id)
: "${third:=$zero}"
printf '{"type":"%s","payload":1}\nnot JSON\n' "$type" > "$work/lines"
ask POST /api/events/batch --header 'Content-Type: application/x-ndjson' --data-binary "@$work/lines"
is 'a batch of lines' 200 '"results":[{"status":"accepted","id":"' '"status":"invalid"'
post /api/events/batch '[]'
is 'an empty batch' 200 '"results":[]'

# ---- Bad input
post /api/events '{"type":'
is 'malformed JSON' 400 '"code":"malformed_json"'
post /api/events '{"payload":1}'
is 'an event without a type' 422 '"code":"invalid_request"' '"details":[{"field":"'
post /api/events '{"type":"relay.mine","payload":1}'
is "a type that is relay's" 422 '"details":[{"field":"'
post /api/events "{\"type\":\"$type\",\"payload\":1,\"unknown\":1}"
is 'an unknown member' 422 '"details":[{"field":"'
ask POST /api/events --header 'Content-Type: text/plain' --data 'hello'
is 'another media type' 415 '"code":"unsupported_media_type"'
ask GET "/api/inbox?colour=red"
is 'an unknown parameter' 422 '"details":[{"field":"'
ask GET "/api/inbox?cursor=invented"
is 'an invented cursor' 422 '"code":"invalid_cursor"'
ask DELETE /api/inbox
is 'another method' 405 '"code":"method_not_allowed"' header:allow:
ask GET /api/nothing
is 'another address' 404 '"code":"not_found"'
ask GET "/api/events/$zero"
is 'an event that is not there' 404 '"code":"event_not_found"'

# ---- Reading and acknowledging
# If the organization existed before, its webhooks may already have delivered the events, so they are not pending.
if [ -n "$own" ]; then pending=pending; else pending=all; fi
ask GET "/api/inbox?type=$type&limit=100&status=$pending"
is 'the inbox' 200 "\"id\":\"$event\"" "\"id\":\"$second\"" "\"payload\":$payload" '"delivery_status":"' '"next_cursor":'
ask GET "/api/inbox?type=smoke.*&order=asc&limit=1&status=$pending"
is 'the inbox, oldest first' 200 '"events":[{"id":"' '"next_cursor":"'
ask GET "/api/inbox?type=$type&order=asc&status=all&cursor=now&wait=0.2"
is 'waiting for an event that does not come' 200 '"events":[],' '"next_cursor":"'
ask GET "/api/inbox?type=$type&order=asc&status=all&limit=1"
cursor=$(printf '%s' "$body" | sed -n 's/.*"next_cursor":"\([^"]*\)".*/\1/p')
# It does not end by itself.
status=$(curl --silent --no-buffer --max-time 2 --header "@$key" --output "$work/body" --dump-header "$work/head" \
    --write-out '%{http_code}' "$base/api/inbox/stream?type=$type&cursor=$cursor" 2> "$work/said")
body=$(cat "$work/body")
is 'a stream' 200 'header:content-type: text/event-stream' 'id: ' "data: {\"id\":\"$second\""
ask GET "/api/events?dedup_id=$run"
is 'events by dedup_id' 200 "\"events\":[{\"id\":\"$event\""
ask GET "/api/events/$event"
is 'the story of an event' 200 "\"id\":\"$event\"" "\"payload\":$payload" '"deliveries":['
ask POST "/api/ack/$event"
is 'an acknowledgement' 200 '"success":true'
ask POST "/api/ack/$event"
is 'the same acknowledgement again' 200 '"success":true'
post /api/ack "{\"ids\":[\"$second\",\"$zero\"]}"
is 'acknowledgements of several' 200 '"acknowledged":1' "\"not_found\":[\"$zero\"]"
ask POST "/api/ack/$zero"
is 'an acknowledgement of nothing' 404 '"code":"event_not_found"'
ask GET "/api/inbox?type=$type&status=delivered"
is 'what was acknowledged' 200 "\"id\":\"$event\"" "\"id\":\"$second\"" ${own:+"not:\"id\":\"$third\""}

# ---- Endpoints and deliveries
hook=${SMOKE_WEBHOOK_URL:-https://example.com/relay-smoke}
if [ -n "${SMOKE_WEBHOOK_URL:-}" ]; then enabled=true state=delivered; else enabled=false state=held; fi
if [ -n "$own" ]; then
    # Only for an organization that the script created: elsewhere it would replace an existing webhook.
    post /api/webhook/config "{\"webhook_url\":\"$hook\"}"
    is 'the default endpoint' 200 '"success":true' '"endpoint_id":"' '"secret":"whsec_'
    default=$(field endpoint_id)
    undo="/api/endpoints/${default:-$zero}"
    ask DELETE "/api/endpoints/$default"
    is 'the default endpoint is removed' 204
else
    skip 'the default endpoint: RELAY_API_KEY is given'
fi
post /api/webhook/config '{"webhook_url":"ftp://example.com"}'
is 'a webhook that is none' 422 '"code":"invalid_url"'
post /api/endpoints "{\"url\":\"$hook\",\"event_types\":[\"$type.*\"],\"enabled\":$enabled,\"description\":\"$run\",\"headers\":{\"X-Smoke\":\"hidden\"}}"
is 'an endpoint' 201 '"id":"' '"secret":"whsec_' "\"event_types\":[\"$type.*\"]" 'not:hidden'
endpoint=$(field id)
: "${endpoint:=$zero}"
undo="/api/endpoints/$endpoint"
ask GET /api/endpoints?limit=1000
is 'all endpoints' 200 "\"id\":\"$endpoint\""
ask GET "/api/endpoints/$endpoint"
is 'an endpoint keeps its secrets' 200 '"headers":["X-Smoke"]' 'not:hidden' 'not:whsec_'
ask PATCH "/api/endpoints/$endpoint" --header 'Content-Type: application/json' --data '{"max_in_flight":2}'
is 'a changed endpoint' 200 '"max_in_flight":2'
ask POST "/api/endpoints/$endpoint/secret/rotate"
is 'a new secret' 200 '"secret":"whsec_' '"previous_expires_at":"'
if [ "$enabled" = true ]; then
    ask POST "/api/endpoints/$endpoint/test"
    is 'a test delivery' 200 '"status_code":2' '"latency_ms":'
else
    skip 'a test delivery: SMOKE_WEBHOOK_URL is not given'
fi
post /api/events "{\"type\":\"$type.pushed\",\"payload\":$payload}"
is 'an event for the endpoint' 201 '"status":"accepted"'
pushed=$(field id)
: "${pushed:=$zero}"
until_has 30 "/api/deliveries?endpoint_id=$endpoint" "\"status\":\"$state\""
is "its delivery is $state" 200 "\"event_id\":\"$pushed\"" "\"status\":\"$state\"" '"attempts":' '"last_error_class":'
delivery=$(field id)
: "${delivery:=$zero}"
ask POST "/api/deliveries/$delivery/retry"
is 'a retry' 202 "\"id\":\"$delivery\"" '"status":"'
ask POST "/api/events/$pushed/replay"
is 'a replay of the event' 202 '"deliveries":'
ask POST "/api/events/$third/replay"
is 'a replay that nobody takes' "$([ -n "$own" ] && echo 409 || echo "$status")"
ask POST "/api/deliveries/$zero/retry"
is 'a retry of nothing' 404 '"code":"delivery_not_found"'
post /api/deliveries/retry "{\"endpoint_id\":\"$endpoint\",\"status\":\"failed\"}" --header "Idempotency-Key: $run-retry"
is 'a retry of all that failed' 202 '"job_id":"' '"matched":0'
job=$(field job_id)
: "${job:=$zero}"
post /api/deliveries/retry "{\"endpoint_id\":\"$endpoint\",\"status\":\"failed\"}" --header "Idempotency-Key: $run-retry"
is 'its repeat is the same job' 202 "\"job_id\":\"$job\"" 'header:idempotent-replayed: true'
post "/api/endpoints/$endpoint/replay" '{"since":"2020-01-01T00:00:00Z"}'
is 'a replay of the endpoint' 202 '"job_id":"' '"matched":'
if [ "$enabled" = true ]; then
    until_has 30 "/api/jobs/$job" '"status":"done"'
    is 'the job is done' 200 "\"id\":\"$job\"" '"kind":"retry"' '"status":"done"'
else
    ask GET "/api/jobs/$job"
    is 'the job' 200 "\"id\":\"$job\"" '"kind":"retry"' '"matched":0'
fi
ask GET /api/jobs?limit=1000
is 'all jobs' 200 "\"id\":\"$job\""
ask DELETE "/api/jobs/$job"
is 'a job is stopped' 204
ask GET "/api/jobs/$zero"
is 'a job that is not there' 404 '"code":"job_not_found"'
ask GET /api/stats
is 'statistics' 200 '"accepted":' '"pending":' "\"endpoint_id\":\"$endpoint\""
ask DELETE "/api/endpoints/$endpoint"
is 'the endpoint is removed' 204
undo=''
ask GET "/api/endpoints/$endpoint"
is 'it is gone' 404 '"code":"endpoint_not_found"'

# ---- Consumers and leases
post /api/consumers "{\"name\":\"$run\",\"event_types\":[\"$type.pulled\"],\"lease_s\":60}"
is 'a consumer' 201 "\"name\":\"$run\"" '"pending":0' '"max_attempts":5'
undo="/api/consumers/$run"
post /api/events "{\"type\":\"$type.pulled\",\"payload\":$payload}"
is 'an event for the consumer' 201 '"status":"accepted"'
pulled=$(field id)
: "${pulled:=$zero}"
post /api/inbox/lease "{\"consumer\":\"$run\"}"
is 'a lease' 200 "\"id\":\"$pulled\"" "\"payload\":$payload" '"receipt":"' '"attempt":1'
receipt=$(field receipt)
post /api/inbox/lease "{\"consumer\":\"$run\"}"
is 'what is leased is not leased again' 200 '"events":[]'
post /api/extend "{\"receipts\":[\"$receipt\",\"made-up\"],\"lease_s\":60}"
is 'a longer lease' 200 '"extended":1' '"not_found":["made-up"]'
post /api/nack "{\"receipts\":[\"$receipt\"],\"delay_s\":0}"
is 'a return' 200 '"returned":1'
post /api/ack "{\"receipts\":[\"$receipt\"]}"
is 'a receipt of a lease that has ended' 200 '"acknowledged":0' "\"not_found\":[\"$receipt\"]"
post /api/inbox/lease "{\"consumer\":\"$run\"}"
is 'another lease of it' 200 "\"id\":\"$pulled\"" '"attempt":2'
post /api/ack "{\"receipts\":[\"$(field receipt)\"]}"
is 'an acknowledgement by receipt' 200 '"acknowledged":1' '"not_found":[]'
ask GET "/api/deliveries?consumer=$run"
is 'its delivery' 200 "\"event_id\":\"$pulled\"" "\"consumer\":\"$run\"" '"status":"delivered"' '"endpoint_id":null'
ask POST "/api/deliveries/$(field id)/discard"
is 'what was delivered is not discarded' 409 '"code":"already_ended"'
post /api/inbox/lease '{"lease_s":86400}'
is 'a lease of a day' 422 '"field":"lease_s"'
ask DELETE "/api/consumers/$run"
is 'the consumer is removed' 204
undo=''
ask GET "/api/consumers/$run"
is 'the consumer is gone' 404 '"code":"consumer_not_found"'

# ---- Keys
post /api/keys "{\"name\":\"$run\",\"scopes\":[\"ingest\"]}"
is 'another key' 201 '"api_key":"rly_live_' '"key_id":"'
made=$(field key_id)
: "${made:=$zero}"
undo="$undo /api/keys/$made"
header "$other" X-API-Key "$(field api_key)"
call GET /api/inbox --header "@$other"
is 'it may only post' 403 '"code":"insufficient_scope"'
ask DELETE "/api/keys/$made"
is 'it is revoked' 204
left=5
while call GET /api/keys --header "@$other" && [ "$status" = 200 ] && [ "$left" -gt 0 ]; do
    left=$((left - 1))
    sleep 1
done
is 'it opens nothing any more' 401 '"code":"invalid_api_key"'
post /api/keys "{\"name\":\"$run\"}"
is 'a key to replace' 201 '"key_id":"'
header "$other" X-API-Key "$(field api_key)"
call POST /api/keys/rotate --header "@$other"
is 'its successor' 200 '"api_key":"rly_live_' '"previous_expires_at":"'
made=$(field key_id)
: "${made:=$zero}"
undo="$undo /api/keys/$made"
ask DELETE "/api/keys/$made"
is 'which is revoked too' 204
ask DELETE "/api/keys/$zero"
is 'a key that is not there' 404 '"code":"key_not_found"'

# ---- A large rejected body, which costs the rest of the free tier's burst: 1 for each 4 KiB
{
    printf '{"type":"%s","payload":"' "$type"
    head -c 300000 /dev/zero | tr '\0' 'x'
    printf '"}'
} > "$work/large"
ask POST /api/events --header 'Content-Type: application/json' --data-binary "@$work/large"
is 'a payload that is too large' 413 '"code":"payload_too_large"'

if [ "$failed" -gt 0 ]; then
    echo "$failed of $((passed + failed)) steps failed"
    exit 1
fi
undo=''
echo "all $passed steps passed"
