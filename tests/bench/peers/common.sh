# What the scripts of the peers share. Each is one side of a tunnel, as farlan-peer.sh beside this directory says at its head;
# with the word `version` alone it tells the version, or fails where its programs are missing.
set -euo pipefail

# Waits for what the other side writes.
await() {
    for _ in $(seq 200); do
        [[ -s $1 ]] && return
        sleep 0.05
    done
    echo "$1 did not come" >&2
    exit 1
}

# Waits for an interface, whose name is the first that matches, and gives it the inner address.
address() {
    local device
    for _ in $(seq 200); do
        device=$(cd /sys/class/net && compgen -G "$1" | head -n 1) && break
        sleep 0.05
    done
    ip link set "$device" ${3:+mtu "$3"} up
    ip address replace "$2" dev "$device"
}

# Tells the version of a program by what it says itself.
version() {
    command -v "$1" >/dev/null || exit 1
    "$@" 2>&1 | grep -oE '[0-9]+(\.[0-9]+)*' | head -n 1
    exit 0
}
