#!/usr/bin/env bash
# ZeroTier with its built-in controller and side a as its only root.
source "$(dirname "$0")/common.sh"
[[ $1 != version ]] || version zerotier-one -v
side=$1 cidr=$2 outer=$3
home=$PEER_DIR/$side
mkdir -p "$home/moons.d"
zerotier-one -i generate "$home/identity.secret" "$home/identity.public"
echo '{"settings":{"portMappingEnabled":false,"allowTcpFallbackRelay":false,"softwareUpdate":"disable"}}' >"$home/local.conf"
if [[ $side == a ]]; then
    zerotier-one -i initmoon "$home/identity.public" | python3 -c '
import json, sys
moon = json.load(sys.stdin)
moon["roots"][0]["stableEndpoints"] = [sys.argv[1] + "/9993"]
json.dump(moon, sys.stdout)' "$outer" >"$PEER_DIR/moon.json"
    (cd "$PEER_DIR" && zerotier-one -i genmoon moon.json)
    head -c 10 "$home/identity.public" >"$PEER_DIR/controller"
    touch "$PEER_DIR/ready"
fi
await "$PEER_DIR/controller"
cp "$PEER_DIR"/*.moon "$home/moons.d/"
zerotier-one -p9993 "$home" &
network=$(cat "$PEER_DIR/controller")000001
ask() {
    for _ in $(seq 200); do
        python3 - "$home/authtoken.secret" "$1" "$2" 2>/dev/null <<'END' && return
import sys, urllib.request as u
token = open(sys.argv[1]).read().strip()
u.urlopen(u.Request("http://127.0.0.1:9993/" + sys.argv[2], sys.argv[3].encode(), {"X-ZT1-Auth": token}), timeout=5).read()
END
        sleep 0.05
    done
    exit 1
}
[[ $side == b ]] || ask "controller/network/$network" '{"name":"bench","private":false}'
ask "network/$network" '{}'
address 'zt*' "$cidr"
wait
