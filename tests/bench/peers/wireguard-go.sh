#!/usr/bin/env bash
# wireguard-go, of 2023 or later if it is to use GSO.
source "$(dirname "$0")/common.sh"
command -v wg >/dev/null || exit 1
[[ $1 != version ]] || version wireguard-go --version
side=$1 cidr=$2 peer=$4
other=$([[ $side == a ]] && echo b || echo a)
umask 077
wg genkey >"$PEER_DIR/key-$side"
wg pubkey <"$PEER_DIR/key-$side" >"$PEER_DIR/public-$side"
touch "$PEER_DIR/ready"
wireguard-go -f tunnel0 &
await "$PEER_DIR/public-$other"
for _ in $(seq 100); do
    wg set tunnel0 listen-port 51820 private-key "$PEER_DIR/key-$side" peer "$(cat "$PEER_DIR/public-$other")" \
        allowed-ips 10.77.0.0/24 endpoint "$peer:51820" 2>/dev/null && break
    sleep 0.05
done
address tunnel0 "$cidr" 1420 # what wg-quick sets
wait
