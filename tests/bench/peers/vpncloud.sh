#!/usr/bin/env bash
# VpnCloud, bridging Ethernet with the cipher that it finds fastest.
source "$(dirname "$0")/common.sh"
[[ $1 != version ]] || version vpncloud --version
side=$1 cidr=$2 outer=$3 peer=$4
ip route add default via "$peer" # it insists on one
touch "$PEER_DIR/ready"
[[ $side == a ]] || set -- --peer "$peer:3210"
[[ $side == b ]] || set --
vpncloud --type tap --mode switch --device tunnel0 --password benchmark --listen "$outer:3210" --no-port-forwarding --quiet "$@" &
address tunnel0 "$cidr"
wait
