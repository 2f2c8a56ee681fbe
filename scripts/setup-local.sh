#!/bin/sh
# Prepares a machine for work on relay: reports missing programs, and creates .venv from the locks.
#
#   scripts/setup-local.sh            PYTHON=python3.12 scripts/setup-local.sh for another Python
#
# It changes nothing outside this folder. A second run does only what is left.
set -eu
cd "$(dirname "$0")/.."

need() { # a command, and what it is for
    command -v "$1" > /dev/null && return
    echo "missing: $1, $2" >&2
    missing=yes
}
want() { # a command, the folders where it may be beside PATH, the package that Debian calls it by, what it is for
    PATH="$PATH:$2" command -v "$1" > /dev/null || echo "not here: $1 (Debian: $3): $4"
}

missing=''
python=${PYTHON:-python3}
need make 'which knows every step'
need "$python" 'Python 3.11 or newer: name another one by PYTHON=...'
need curl 'for scripts/smoke.sh'
[ -z "$missing" ] || exit 1
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$("$python" -V) is too old: relay needs 3.11 or newer, name another one by PYTHON=..." >&2
    exit 1
fi

# Other programs that tests use. Without them some tests are skipped, and say so.
want redis-server "" redis-server 'tests of limits that machines share skip'
want pgbouncer /usr/sbin pgbouncer 'tests behind a transaction pooler skip'
want initdb /usr/lib/postgresql/15/bin postgresql-15 'tests on PostgreSQL 15 skip'
want promtool "" prometheus 'tests of alerts skip'
want faketime "" faketime 'tests of clocks that jump skip'
want shellcheck "" shellcheck 'scripts are not looked at'

make PYTHON="$python" setup

cat <<'END'

make run      everything on this machine, and one curl line to paste
make check    lint, types and all tests, as CI does
make help     the rest
scripts/smoke.sh http://127.0.0.1:8080    the whole contract, against what make run started
END
