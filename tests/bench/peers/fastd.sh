#!/usr/bin/env bash
# fastd, bridging Ethernet with its fastest method.
source "$(dirname "$0")/common.sh"
[[ $1 != version ]] || version fastd --version
side=$1 cidr=$2 outer=$3 peer=$4
other=$([[ $side == a ]] && echo b || echo a)
umask 077
secret=$(fastd --generate-key --machine-readable)
config=$PEER_DIR/fastd-$side.conf
echo "secret \"$secret\";" >"$config"
fastd -c "$config" --show-key --machine-readable >"$PEER_DIR/public-$side"
touch "$PEER_DIR/ready"
await "$PEER_DIR/public-$other"
remote=
[[ $side == a ]] || remote="remote $peer:10000;"
cat >>"$config" <<END
mode tap;
interface "tunnel0";
method "aes128-ctr+umac";
bind $outer:10000;
mtu 1426;
log level warn;
peer "other" { key "$(cat "$PEER_DIR/public-$other")"; $remote }
END
fastd -c "$config" &
address tunnel0 "$cidr"
wait
