#!/bin/sh
# Runs a command once on each of N hosts that are network namespaces with an address and a name of their own, joined by a bridge:
#
#   unshare -n -m sh tests/runtime/hosts.sh N COMMAND ...
#
# From there no address of the machine itself can be reached. The command finds RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
# Exit code: that of the first host that failed, 77 where the machine does not allow it.
n=$1
shift
names=$(mktemp)
holders=
trap 'kill $holders 2>/dev/null; rm -f "$names"' EXIT
{
    set -e
    ip link set lo up
    ip link add bridge0 type bridge
    ip link set bridge0 up
    echo 127.0.0.1 localhost > "$names"
    for i in $(seq 0 $((n - 1))); do
        unshare -n sleep 3600 &
        holders="$holders $!"
        while [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do :; done
        ip link add veth$i type veth peer name eth0 netns $!
        ip link set veth$i master bridge0 up
        nsenter -t $! -n sh -c "ip link set lo up; ip addr add 10.77.0.$((i + 1))/24 dev eth0; ip link set eth0 up"
        echo 10.77.0.$((i + 1)) host$i >> "$names"
    done
    set +e
} || exit 77
running=
i=0
for holder in $holders; do
    RANK=$i WORLD_SIZE=$n MASTER_ADDR=10.77.0.1 MASTER_PORT=4321 NAMES=$names nsenter -t $holder -n unshare -m -u \
        sh -c 'hostname host$RANK; mount --bind "$NAMES" /etc/hosts; exec "$@"' sh "$@" &
    running="$running $!"
    i=$((i + 1))
done
code=0
for process in $running; do
    wait $process
    found=$?
    [ $code -ne 0 ] || code=$found
done
exit $code
