//! Attaching a LAN for real: a host `eth1` with an address and a default route, a router beyond it in a namespace of its own.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails where something is not as it should be"
)]

mod common;

use common::{in_namespace_async, run, succeeds};
use overlay_node::{
    host::Netlink,
    lan::{LanError, LanPorts},
};
use std::{fs, path::Path};

const PING: &str = "ping -c1 -W2 203.0.113.1";

/// `eth1` of this namespace with a LAN behind it, and `tap0`, whose other end is `guest` in this namespace's namespace "vm".
fn lan() {
    run("ip netns add router && ip netns add vm");
    run("ip link add eth1 type veth peer name lan netns router");
    run("ip link add tap0 type veth peer name guest netns vm");
    run(
        "ip addr add 192.168.1.5/24 brd + dev eth1; ip link set eth1 address 52:54:00:aa:00:05; ip link set eth1 up",
    );
    run("ip addr add 192.168.1.6/24 brd + dev eth1; ip -6 addr add fd01::5/64 dev eth1 nodad");
    run(
        "ip netns exec router sh -c 'ip addr add 192.168.1.1/24 dev lan; ip addr add 203.0.113.1/32 dev lo; ip link set lo up; ip link set lan up'",
    );
    run("ip netns exec vm sh -c 'ip addr add 192.168.1.77/24 dev guest; ip link set guest up'");
    run("ip route add default via 192.168.1.1 dev eth1 src 192.168.1.6 metric 100 proto dhcp");
    run("ip -6 route add fd02::/64 via fd01::1 dev eth1");
    run(PING);
}

/// All that attaching may change.
fn picture() -> String {
    let links = run("ip -br link | sed 's/@.*//; s/ .*//' | sort");
    links
        + &run(
            "ip -o addr show scope global | sed 's/^[0-9]*: //; s/valid_lft.*//' | sort; ip route; ip -6 route show proto boot; cat /proc/sys/net/ipv4/ip_forward",
        )
}

fn open(folder: &Path) -> LanPorts {
    LanPorts::open(Netlink::open().unwrap(), folder).unwrap()
}

#[test]
fn an_interface_is_attached_with_its_addresses_and_detached_as_it_was() {
    in_namespace_async(
        "an_interface_is_attached_with_its_addresses_and_detached_as_it_was",
        async {
            lan();
            let (before, folder) = (picture(), tempfile::tempdir().unwrap());
            let mut ports = open(folder.path());

            let attached = ports.attach("eth1", "tap0").await.unwrap();

            assert_eq!(
                (attached.bridge.as_str(), attached.bridge_made),
                ("fl-eth1", true)
            );
            run(PING);
            assert!(run("ip route get 203.0.113.1").contains("dev fl-eth1 src 192.168.1.6"));
            assert!(run("ip link show fl-eth1").contains("52:54:00:aa:00:05"));
            assert!(run("ip -6 route").contains("fd02::/64 via fd01::1 dev fl-eth1"));
            run("ip netns exec vm ping -c1 -W2 192.168.1.1"); // the guest is on the LAN
            run("ip netns exec vm ping -c1 -W2 192.168.1.5"); // and reaches the host
            assert!(matches!(
                ports.attach("eth1", "tap0").await,
                Err(LanError::AlreadyAttached(_))
            ));

            ports.detach("eth1").await.unwrap();

            assert_eq!(picture(), before);
            run(PING);
            assert!(matches!(
                ports.detach("eth1").await,
                Err(LanError::NotAttached(_))
            ));
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        },
    );
}

#[test]
fn what_a_crash_left_attached_is_undone() {
    in_namespace_async("what_a_crash_left_attached_is_undone", async {
        lan();
        let (before, folder) = (picture(), tempfile::tempdir().unwrap());
        open(folder.path()).attach("eth1", "tap0").await.unwrap();
        run(
            "ip link del tap0; ip link add tap0 type veth peer name guest2; ip addr add 192.168.1.8/24 dev fl-eth1",
        ); // the crashed node's TAP went with it

        let healed = open(folder.path()).heal().await.unwrap();

        assert_eq!(healed, ["eth1"]);
        run(PING);
        run("ip addr del 192.168.1.8/24 dev eth1"); // what was added meanwhile is kept
        run("ip link del tap0");
        assert!(!run("ip link").contains("fl-eth1"));
        assert_eq!(
            picture().replace("tap0\n", ""),
            before.replace("tap0\n", "")
        );
    });
}

#[test]
fn a_crash_half_way_is_undone_too() {
    in_namespace_async("a_crash_half_way_is_undone_too", async {
        lan();
        let (before, folder) = (picture(), tempfile::tempdir().unwrap());
        open(folder.path()).attach("eth1", "tap0").await.unwrap();
        // As if the node had died after it moved the first address: the rest is neither here nor there.
        run("ip addr flush dev fl-eth1 scope global; ip addr add 192.168.1.5/24 brd + dev fl-eth1");
        let journal = folder.path().join("eth1.json");
        let text = fs::read_to_string(&journal).unwrap();
        fs::write(
            &journal,
            text.replace("\"complete\": true", "\"complete\": false"),
        )
        .unwrap();

        open(folder.path()).heal().await.unwrap();

        assert_eq!(picture(), before);
        run(PING);
    });
}

#[test]
fn a_bridge_that_is_there_is_used_and_left_alone() {
    in_namespace_async("a_bridge_that_is_there_is_used_and_left_alone", async {
        lan();
        run("ip link add br0 type bridge; ip link set br0 up; ip link set eth1 master br0");
        let (before, folder) = (picture(), tempfile::tempdir().unwrap());
        let mut ports = open(folder.path());

        for iface in ["eth1", "br0"] {
            let attached = ports.attach(iface, "tap0").await.unwrap();
            assert_eq!(
                (attached.bridge.as_str(), attached.bridge_made),
                ("br0", false)
            );
            run("ip netns exec vm ping -c1 -W2 192.168.1.1");
            ports.detach(iface).await.unwrap();
            assert_eq!(picture(), before);
            assert!(!run("ip link show tap0").contains("master"));
        }
    });
}

#[test]
fn what_cannot_be_attached_is_refused_with_its_reason_and_nothing_changes() {
    in_namespace_async(
        "what_cannot_be_attached_is_refused_with_its_reason_and_nothing_changes",
        async {
            lan();
            let (before, folder, sysfs) = (
                picture(),
                tempfile::tempdir().unwrap(),
                tempfile::tempdir().unwrap(),
            );
            fs::create_dir_all(sysfs.path().join("class/net/eth1/phy80211")).unwrap();

            let mut ports = open(folder.path());
            assert!(
                matches!(ports.attach("nope", "tap0").await, Err(LanError::NoSuchInterface(name)) if name == "nope")
            );
            assert!(
                matches!(ports.attach("eth1", "nope").await, Err(LanError::NoSuchInterface(name)) if name == "nope")
            );
            assert!(matches!(
                ports.attach("lo", "tap0").await,
                Err(LanError::NotEthernet(_))
            ));
            let mut ports = open(folder.path()).with_sysfs(sysfs.path());
            assert!(matches!(
                ports.attach("eth1", "tap0").await,
                Err(LanError::Wireless(_))
            ));

            assert_eq!(picture(), before);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        },
    );
}

#[test]
fn a_gateway_routes_between_the_lan_and_the_overlay() {
    in_namespace_async("a_gateway_routes_between_the_lan_and_the_overlay", async {
        lan();
        run(
            "ip netns exec vm ip addr flush dev guest; ip netns exec vm ip addr add 10.77.0.9/16 dev guest",
        );
        run(
            "ip netns exec vm ip route add 192.168.1.0/24 via 10.77.0.2; ip addr add 10.77.0.2/16 dev tap0; ip link set tap0 up",
        );
        run("echo 0 > /proc/sys/net/ipv4/ip_forward");
        let (before, folder) = (picture(), tempfile::tempdir().unwrap());
        let mut ports = open(folder.path());

        let routed = ports
            .route("eth1", "10.77.0.0/16".parse().unwrap())
            .await
            .unwrap();

        assert_eq!(routed.lan, "192.168.1.0/24".parse().unwrap());
        assert!(
            !succeeds("ip netns exec vm ping -c1 -W1 192.168.1.1"),
            "the router does not know the way back yet"
        );
        run(&format!("ip netns exec router {}", routed.route_hint));
        run("ip netns exec vm ping -c1 -W2 192.168.1.1");
        assert!(matches!(
            ports.route("tap0", "10.0.0.0/8".parse().unwrap()).await,
            Err(LanError::Overlaps { .. })
        ));
        run("ip netns exec router ip route del 10.77.0.0/16");
        ports.detach("eth1").await.unwrap();
        assert_eq!(picture(), before);
    });
}
