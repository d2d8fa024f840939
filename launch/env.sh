#!/bin/sh
# Makes Ordem's environment once, then runs the given command in it:
#
#     sh launch/env.sh python -m studies.quickstart
#     sh launch/env.sh python -m pytest
#
# The environment holds what Ordem runs with, and those extras of setup.py that were asked for:
# pytest brings `test` along, ruff, mypy, codespell and pre-commit `dev`, mkdocs `docs`, and
# ORDEM_EXTRAS names others (ORDEM_EXTRAS=gpu,hf). What is missing is added to what is there, and
# nothing is ever removed.
#
# Needs CPython 3.11 to 3.13 and a shell. ORDEM_PYTHON chooses the interpreter, ORDEM_ENV the
# environment's folder (default: .venv), ORDEM_CONSTRAINTS a constraints file. ORDEM_UV=1 installs
# with uv, which does not read pip's settings; else pip does.
set -eu
cd "$(dirname "$0")/.."
env=${ORDEM_ENV:-.venv}
known=core,dev,docs,encoders,engines,examples,fuzz,gpu,harness,hf,reference,test,tpu,tpu-compile,trackers

fail() { echo "error: $1" >&2; exit 2; }
has() { case ",$1," in *",$2,"*) return 0;; *) return 1;; esac; }      # whether a list has a name

# MB to download for each extra: Linux x86_64, CPython 3.11, the newest releases of November 2026.
size_of() {
    case $1 in
    core) echo 216;; test) echo 12;; dev) echo 34;; docs) echo 25;; hf) echo 60;; fuzz) echo 33;;
    tpu) echo 220;; tpu-compile) echo 130;; gpu) echo 3060;; reference) echo 2900;;
    examples) echo 15;; trackers) echo 155;; harness) echo 100;; encoders) echo 3080;;
    engines) echo 85;;
    esac
}

# The extras that are wanted, and those that are there.
wanted=${ORDEM_EXTRAS:-}
tool=${1:-}
if [ "$tool" = python ] && [ "${2:-}" = -m ]; then tool=${3:-}; fi
case $tool in
pytest) wanted=$wanted,test;;
ruff | mypy | codespell | pre-commit | pre_commit) wanted=$wanted,dev;;
mkdocs) wanted=$wanted,docs;;
esac
present=$(sed -n 2p "$env/ordem.stamp" 2>/dev/null || true)
extras=$present
added=
for extra in $(echo "$wanted" | tr ',' ' '); do
    has "$known" "$extra" || fail "ORDEM_EXTRAS has '$extra': expected some of $known"
    if ! has "$extras" "$extra"; then
        extras=${extras:+$extras,}$extra
        added="$added $extra"
    fi
done
if has "$extras" gpu && has "$extras" tpu; then
    if has "$wanted" gpu && has "$wanted" tpu; then
        fail "ORDEM_EXTRAS is $ORDEM_EXTRAS: gpu and tpu exclude each other"
    fi
    fail "ORDEM_EXTRAS adds$added to $env, which has $present: gpu and tpu exclude each other; \
give the other one a folder: ORDEM_ENV=.venv-2"
fi

python=${ORDEM_PYTHON:-}
if [ -z "$python" ]; then
    right='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
    for candidate in python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c "$right" 2>/dev/null; then python=$candidate; break; fi
    done
fi
if [ -z "$python" ]; then
    fail "no CPython 3.11 to 3.13 found; install one, or name it: ORDEM_PYTHON=/path/to/python3"
fi

install() {
    package=.${extras:+[$extras]}
    if [ "$uv" = 1 ]; then
        uv venv --quiet --allow-existing --python "$python" "$env" &&
            uv pip install --quiet --python "$env/bin/python" --compile-bytecode -e "$package" \
                ${ORDEM_CONSTRAINTS:+-c "$ORDEM_CONSTRAINTS"} >&2
    else
        "$python" -m venv "$env" &&
            "$env/bin/python" -m pip install --quiet --disable-pip-version-check -e "$package" \
                ${ORDEM_CONSTRAINTS:+-c "$ORDEM_CONSTRAINTS"} >&2
    fi
}

# Leaves no half of an environment behind, and keeps one that was there before.
give_up() {
    code=$?
    trap - EXIT INT TERM HUP
    if [ "$new" = 1 ]; then
        rm -rf "$env"
        echo "error: the environment could not be made; $env is removed again" >&2
    else
        echo "error: the environment could not be changed; nothing was removed from $env" >&2
    fi
    if [ "$code" -lt 128 ]; then code=1; fi
    exit "$code"
}

# What the environment was made from; when it changes, install again.
source=$( { cat setup.py "${ORDEM_CONSTRAINTS:-/dev/null}"; pwd; "$python" -VV; } | cksum)
made_from=$(sed -n 1p "$env/ordem.stamp" 2>/dev/null || true)
if [ "$made_from" != "$source" ] || [ -n "$added" ]; then
    uv=${ORDEM_UV:-0}
    case $uv in
    0)  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            fail "$python has no venv or ensurepip; on Debian and Ubuntu: apt install python3-venv"
        fi;;
    1)  command -v uv >/dev/null || fail "ORDEM_UV is 1, and there is no uv: pip install uv";;
    *)  fail "ORDEM_UV is $uv: expected 0 (pip) or 1 (uv)";;
    esac

    new=1
    if [ -e "$env" ] || [ -L "$env" ]; then new=0; fi
    if [ "$new" = 1 ]; then added="core $added"; fi
    megabytes=0
    for extra in $added; do megabytes=$((megabytes + $(size_of "$extra"))); done
    if [ "$new" = 1 ]; then
        echo "Making the environment in $env: about $megabytes MB to download, once ..." >&2
    elif [ "$made_from" = "$source" ]; then
        echo "Adding$added to the environment in $env: \
about $megabytes MB to download, once ..." >&2
    else
        echo "Bringing the environment in $env up to date ..." >&2
    fi

    trap give_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    install
    printf '%s\n%s\n' "$source" "$extras" > "$env/ordem.stamp"
    trap - EXIT INT TERM HUP
fi
PATH="$(cd "$env" && pwd)/bin:$PATH"
export PATH
exec "$@"
