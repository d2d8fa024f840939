#!/bin/sh
# Makes Ordem's environment once, then runs the given command in it:
#
#     sh launch/env.sh python -m studies.quickstart
#     sh launch/env.sh python -m pytest
#
# Needs CPython 3.11 to 3.13 and a shell. ORDEM_PYTHON chooses the interpreter, ORDEM_EXTRAS the extras (default: test),
# ORDEM_ENV the environment's folder (default: .venv), ORDEM_CONSTRAINTS a pip constraints file.
set -eu
cd "$(dirname "$0")/.."
env=${ORDEM_ENV:-.venv}
extras=${ORDEM_EXTRAS:-test}
case ",$extras," in *,gpu,*) case ",$extras," in *,tpu,*)
    echo "error: ORDEM_EXTRAS is $extras: gpu and tpu exclude each other" >&2; exit 2;; esac;; esac

python=${ORDEM_PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            python=$candidate; break
        fi
    done
fi
if [ -z "$python" ]; then
    echo "error: no CPython 3.11 to 3.13 found; install one, or name it: ORDEM_PYTHON=/path/to/python3" >&2; exit 2
fi

# What the environment was made from; when it changes, install again.
stamp=$( { cat setup.py "${ORDEM_CONSTRAINTS:-/dev/null}"; echo "$extras"; pwd; "$python" -VV; } | cksum)
if [ "$(cat "$env/ordem.stamp" 2>/dev/null || true)" != "$stamp" ]; then
    echo "Making the environment in $env (a few minutes, once) ..." >&2
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "error: $python has no venv or ensurepip; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2
    fi
    "$python" -m venv "$env"
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[$extras]" \
        ${ORDEM_CONSTRAINTS:+--constraint "$ORDEM_CONSTRAINTS"} >&2
    echo "$stamp" > "$env/ordem.stamp"
fi
PATH="$(cd "$env" && pwd)/bin:$PATH"
export PATH
exec "$@"
