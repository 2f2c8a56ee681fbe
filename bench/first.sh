#!/usr/bin/env bash
# A first measurement: `make run` in another terminal (with RELAY_RATE_LIMIT_ENTERPRISE=1000000000), then this.
# Needs wrk, curl and the virtual environment of `make run`. BASE and SECONDS_EACH may be set.
set -euo pipefail
base=${BASE:-http://127.0.0.1:8080}
each=${SECONDS_EACH:-10}
here=$(cd "$(dirname "$0")" && pwd)
python=$here/../.venv/bin/python
work=$(mktemp -d)
trap 'kill $(jobs -p) 2> /dev/null; rm -rf "$work"' EXIT

key() {
    curl -sS "$base/api/keys/generate" -H 'Content-Type: application/json' \
        -d "{\"organization_name\":\"$1\",\"tier\":\"enterprise\"}" | sed 's/.*"api_key":"\([^"]*\)".*/\1/'
}
load() { # URL KEY
    cat > "$work/post.lua" << LUA
wrk.method = "POST"
wrk.body = '{"type":"order.created","payload":{"id":123,"amount":45.6,"customer":"abc","items":[1,2,3,4,5,6,7,8,9]}}'
wrk.headers["Content-Type"] = "application/json"
wrk.headers["X-API-Key"] = "$2"
LUA
    wrk -t1 -c64 -d"${each}s" --latency -s "$work/post.lua" "$1" | grep -E '50%|99%|Requests/sec|Non-2xx' | tr -s ' \n' ' '
    echo
}
waiting() { curl -sS "$base/api/inbox?order=asc&limit=1" -H "X-API-Key: $1" | grep -c '"id"' || true; }

"$python" "$here/bare.py" 8901 201 &
"$python" "$here/bare.py" 8902 200 &
sleep 1
echo "bare callable:"; load http://127.0.0.1:8901/ none
pull=$(key pull); push=$(key push)
echo "durable events, no webhook:"; for _ in 1 2 3; do load "$base/api/events" "$pull"; done
curl -sS "$base/api/webhook/config" -H 'Content-Type: application/json' -H "X-API-Key: $push" \
    -d '{"webhook_url":"http://127.0.0.1:8902/"}' > /dev/null
echo "durable events, each pushed to a webhook meanwhile:"
begun=$(date +%s.%N)
load "$base/api/events" "$push" | tee "$work/pushed"
while [ "$(waiting "$push")" != 0 ]; do sleep 0.2; done
rate=$(sed -n 's|.*Requests/sec: *\([0-9.]*\).*|\1|p' "$work/pushed")
awk -v n="$rate" -v s="$each" -v t="$(date +%s.%N)" -v b="$begun" \
    'BEGIN { printf "all of about %d delivered %.1f s after the first was accepted: %d deliveries/s\n", n * s, t - b, n * s / (t - b) }'
