#!/bin/sh
# What one worker of a TPU VM does, asked over ssh by launch/tpu_vm.py:
#
#     sh worker.sh install | start COMMAND... | follow [LINES] | result | stop
#
# State lies in ~/ordem: code (the unpacked commit), env, command, log, pid while it runs, and exit,
# the code it ended with: 0 finished; 2 a user's mistake, told in the last line of the log: trying
# again is no use; 130 interrupted and 143 stopped; 137 killed, often for memory; anything else is a
# failure. The next start resumes the run from its newest checkpoint.
set -eu
state=$HOME/ordem
export ORDEM_ENV="$state/env" ORDEM_EXTRAS="${ORDEM_EXTRAS:-tpu}"
if [ -f "$state/python" ]; then ORDEM_PYTHON=$(cat "$state/python"); export ORDEM_PYTHON; fi

running() {
    [ ! -f "$state/exit" ] && [ -f "$state/pid" ] && kill -0 "$(cat "$state/pid")" 2>/dev/null
}

case ${1:-} in
install)
    code=0; sh "$state/code/launch/env.sh" true || code=$?
    if [ "$code" = 2 ]; then        # no usable Python: images of TPU VMs come with 3.10
        python3 -m pip install --quiet --user uv
        python3 -m uv python install --quiet 3.12
        python3 -m uv python find 3.12 > "$state/python"
        code=0; ORDEM_PYTHON=$(cat "$state/python") sh "$state/code/launch/env.sh" true || code=$?
    fi
    exit "$code";;
start)
    shift
    if running; then
        # This very command: go on following it.
        if printf '%s\n' "$@" | cmp -s - "$state/command"; then exit 0; fi
        echo "error: another command runs on $(hostname): $(tr '\n' ' ' < "$state/command")" >&2
        exit 3
    fi
    rm -f "$state/exit"
    printf '%s\n' "$@" > "$state/command"
    setsid sh "$state/worker.sh" supervise "$@" < /dev/null > "$state/log" 2>&1 &
    echo $! > "$state/pid";;
exec)
    shift
    cd "$state/code"
    exec sh launch/env.sh "$@";;
supervise)
    shift
    # A signal ends the command; this shell stays to write down how it ended.
    trap : INT TERM
    code=0; sh "$0" exec "$@" || code=$?
    echo "$code" > "$state/exit.new"
    mv "$state/exit.new" "$state/exit";;
follow)
    touch "$state/log"
    if running; then
        tail -n "+$((${2:-0} + 1))" -s 0.2 --pid="$(cat "$state/pid")" -f "$state/log"
    else
        tail -n "+$((${2:-0} + 1))" "$state/log"
    fi;;
result)
    if [ -f "$state/exit" ]; then echo "worker $(hostname): exit $(cat "$state/exit")"
    elif running; then echo "worker $(hostname): running"
    # Killed before it could write its code.
    elif [ -f "$state/command" ]; then echo "worker $(hostname): exit 137"
    else echo "worker $(hostname): idle"; fi;;
stop)
    if running; then
        pid=$(cat "$state/pid"); tries=0
        kill -TERM "-$pid"
        while [ ! -f "$state/exit" ] && [ "$tries" -lt 600 ]; do
            sleep 0.1; tries=$((tries + 1))
        done
        kill -KILL "-$pid" 2>/dev/null || true
    fi;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2;;
esac
