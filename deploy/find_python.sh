#!/bin/sh
# Print the Python to build with: the one asked for, else the first of the usual names that is 3.11 or newer.
#
#   deploy/find_python.sh [PYTHON [FIRST...]]   FIRST: names to try before the usual ones
set -eu

recent_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

asked=${1:-}
[ $# -eq 0 ] || shift
if [ -n "$asked" ]; then
    recent_enough "$asked" || {
        echo "standoff: PYTHON=$asked is not a Python 3.11 or newer" >&2
        exit 1
    }
    set -- "$asked"
else
    set -- "$@" python3 python3.14 python3.13 python3.12 python3.11
fi
for name; do
    if recent_enough "$name"; then
        # Shims (pyenv, asdf) answer to a name too: what counts is the interpreter behind them.
        exec "$name" -c 'import sys; print(sys.executable)'
    fi
done
echo "standoff: no Python 3.11 or newer found; name one with PYTHON=/path/to/python3" >&2
exit 1
