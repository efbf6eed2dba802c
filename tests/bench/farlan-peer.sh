#!/usr/bin/env bash
# One side of a tunnel for a benchmark that compares peers, as root in the side's own network namespace:
#     farlan-peer.sh SIDE INNER_CIDR OUTER_IP PEER_OUTER_IP
# $PEER_DIR is a directory that both sides share, empty at first; side `a` is started first and says `$PEER_DIR/ready` when
# side `b` may be. Side a has a fabric node beside it and owns the network, so a holds the subnet's first address and b the
# second, which is what INNER_CIDR must say. Stays in the foreground until SIGTERM. $FARLAN names the binary.
set -euo pipefail
(($# == 4)) || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
side=$1 cidr=$2 outer=$3
here=$(cd "$(dirname "$0")/../.." && pwd)
farlan=${FARLAN:-$here/target/release/farlan}
state=$PEER_DIR/$side
mkdir -p "$state"
options=(--no-mdns --dns off)

node() { "$farlan" "$@" --state "$state/node"; }
# What runs on ends with this script, however that ends.
held() { exec setpriv --pdeathsig TERM "$@"; }

if [[ $side == a ]]; then
    subnet=$(python3 -c 'import ipaddress, sys; print(ipaddress.ip_interface(sys.argv[1]).network)' "$cidr")
    held "$farlan" fabric --state "$state/fabric" --listen "$outer:4077" --no-mdns >"$state/fabric.log" 2>&1 &
    for _ in $(seq 100); do
        bootstrap=$(grep -m 1 -o '^/ip4/.*' "$state/fabric.log") && break
        sleep 0.05
    done
    held "$farlan" up "${options[@]}" --tap tunnel0 --state "$state/node" >"$state/log" 2>&1 &
    for _ in $(seq 100); do
        node status >/dev/null 2>&1 && break
        sleep 0.05
    done
    node network create bench --subnet "$subnet" --name a --tap tunnel0 --bootstrap "$bootstrap" >>"$state/log"
    node invite >"$PEER_DIR/invite"
    touch "$PEER_DIR/ready"
else
    for _ in $(seq 200); do
        [[ -e $PEER_DIR/ready ]] && break
        sleep 0.05
    done
    held "$farlan" up "${options[@]}" --name b --tap tunnel0 --invite - --state "$state/node" \
        <"$PEER_DIR/invite" >"$state/log" 2>&1 &
fi
trap 'kill $(jobs -p) 2>/dev/null || :' TERM INT EXIT
wait
