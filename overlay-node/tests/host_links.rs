//! Links, addresses, routes and name resolution of a real kernel, in a namespace.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails where something is not as it should be"
)]

mod common;

use common::{in_namespace_async, run};
use overlay_node::host::{HostsFile, Netlink, NetlinkError, NetworkWatch, Resolved, Route};
use overlay_types::MacAddr;
use std::{collections::BTreeSet, fs, net::IpAddr, path::PathBuf, time::Duration};
use tokio::time::timeout;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn links_and_addresses_become_what_is_asked() {
    in_namespace_async("links_and_addresses_become_what_is_asked", async {
        let netlink = Netlink::open().unwrap();
        run("ip link add ea type veth peer name eb");
        let mac: MacAddr = "52:54:00:00:00:09".parse().unwrap();
        let a = netlink.link("ea").await.unwrap();
        netlink.set_mac(a.index, mac).await.unwrap();
        netlink.set_mtu(a.index, 1400).await.unwrap();
        netlink.set_up(a.index, true).await.unwrap();
        for _ in 0..2 {
            netlink
                .add_address(a.index, ip("10.77.0.2"), 16)
                .await
                .unwrap(); // twice is no error
            netlink
                .add_address(a.index, ip("fd00::2"), 64)
                .await
                .unwrap();
        }

        let a = netlink.link("ea").await.unwrap();
        assert_eq!(
            (a.mac, a.mtu, a.up, a.kind.as_deref()),
            (Some(mac), 1400, true, Some("veth"))
        );
        let v6 = netlink
            .addresses(Some(a.index))
            .await
            .unwrap()
            .into_iter()
            .find(|x| x.address == ip("fd00::2"))
            .unwrap();
        assert!(
            v6.usable,
            "an IPv6 address does not wait for duplicate address detection"
        );
        assert!(run("ip addr show dev ea").contains("inet 10.77.0.2/16 brd 10.77.255.255"));

        let bridge = netlink
            .create_bridge("br0", Some("52:54:00:00:00:0a".parse().unwrap()))
            .await
            .unwrap();
        assert!(matches!(
            netlink.create_bridge("br0", None).await,
            Err(NetlinkError::Exists(_))
        ));
        netlink
            .set_controller(a.index, Some(bridge.index))
            .await
            .unwrap();
        assert_eq!(
            netlink.link("ea").await.unwrap().controller,
            Some(bridge.index)
        );
        assert_eq!(
            netlink.link("br0").await.unwrap().mac,
            "52:54:00:00:00:0a".parse().ok()
        );
        netlink.set_controller(a.index, None).await.unwrap();
        assert_eq!(netlink.link("ea").await.unwrap().controller, None);

        for _ in 0..2 {
            netlink
                .remove_address(a.index, ip("10.77.0.2"), 16)
                .await
                .unwrap();
            netlink.delete_link(bridge.index).await.unwrap();
        }
        assert!(!run("ip addr").contains("10.77.0.2"));
        assert!(matches!(
            netlink.link("br0").await,
            Err(NetlinkError::NoSuchLink(_))
        ));
        assert!(matches!(
            netlink.link("a-name-longer-than-the-kernel-allows").await,
            Err(NetlinkError::NoSuchLink(_))
        ));
    });
}

#[test]
fn routes_are_read_moved_and_removed() {
    in_namespace_async("routes_are_read_moved_and_removed", async {
        let netlink = Netlink::open().unwrap();
        run("ip link add ea type veth peer name eb; ip link set ea up; ip link set eb up");
        run("ip addr add 192.168.1.5/24 dev ea; ip -6 addr add fd01::5/64 dev ea nodad");
        let a = netlink.link("ea").await.unwrap().index;
        let lan = Route {
            destination: ip("0.0.0.0"),
            prefix_len: 0,
            gateway: Some(ip("192.168.1.1")),
            index: a,
            metric: Some(7),
            source: Some(ip("192.168.1.5")),
            protocol: 16,
        };
        let v6 = Route {
            destination: ip("fd02::"),
            prefix_len: 64,
            gateway: Some(ip("fd01::1")),
            index: a,
            metric: Some(1024),
            source: None,
            protocol: 4,
        };

        netlink.add_route(&lan).await.unwrap();
        netlink.add_route(&v6).await.unwrap();

        assert!(
            run("ip route")
                .contains("default via 192.168.1.1 dev ea proto dhcp src 192.168.1.5 metric 7")
        );
        let routes = netlink.routes().await.unwrap();
        assert!(routes.contains(&lan) && routes.contains(&v6), "{routes:?}");
        for _ in 0..2 {
            netlink.remove_route(&lan).await.unwrap();
            netlink.remove_route(&v6).await.unwrap();
        }
        assert!(!run("ip route; ip -6 route").contains("via"));
    });
}

#[test]
fn the_hosts_own_networks_and_addresses_are_known() {
    in_namespace_async("the_hosts_own_networks_and_addresses_are_known", async {
        let netlink = Netlink::open().unwrap();
        run("ip link add ea type veth peer name eb; ip link set ea up; ip link set eb up");
        run("ip addr add 192.168.1.5/24 dev ea; ip -6 addr add 2001:db8::5/64 dev ea nodad");
        run(
            "ip link add virbr0 type bridge; ip addr add 192.168.122.1/24 dev virbr0; ip link set virbr0 up",
        );
        run(
            "ip link add farlan0 type bridge; ip addr add 10.77.0.2/16 dev farlan0; ip link set farlan0 up",
        );
        run("ip route add 10.99.0.0/16 via 192.168.1.1");
        let ours = BTreeSet::from(["farlan0".to_owned()]);

        assert_eq!(
            netlink.host_addresses(&ours).await.unwrap(),
            [ip("192.168.1.5"), ip("2001:db8::5")]
        );
        let overlapping = async |subnet: &str| {
            netlink
                .overlapping(subnet.parse().unwrap(), &ours)
                .await
                .unwrap()
        };
        assert_eq!(
            overlapping("192.168.0.0/16")
                .await
                .map(|(iface, _)| iface)
                .as_deref(),
            Some("ea")
        );
        assert_eq!(
            overlapping("10.99.3.0/24").await,
            Some(("ea".into(), "10.99.0.0/16".into()))
        );
        assert_eq!(
            overlapping("10.77.0.0/16").await,
            None,
            "its own interface is no obstacle"
        );
    });
}

#[test]
fn a_change_of_address_is_told() {
    in_namespace_async("a_change_of_address_is_told", async {
        run("ip link add ea type veth peer name eb; ip link set ea up");
        let mut watch = NetworkWatch::open().unwrap();
        let quiet = timeout(Duration::from_millis(200), watch.changed()).await;
        assert!(quiet.is_err());

        run("ip addr add 192.168.1.5/24 dev ea");

        timeout(Duration::from_secs(10), watch.changed())
            .await
            .expect("a change")
            .expect("a socket");
    });
}

#[test]
fn a_hosts_file_that_is_a_mount_point_is_written_in_place() {
    in_namespace_async(
        "a_hosts_file_that_is_a_mount_point_is_written_in_place",
        async {
            let folder = tempfile::tempdir().unwrap();
            let (path, under) = (folder.path().join("hosts"), folder.path().join("under"));
            fs::write(&path, "").unwrap();
            fs::write(&under, "127.0.0.1 localhost\n").unwrap();
            run(&format!(
                "mount --bind {} {}",
                under.display(),
                path.display()
            ));
            let hosts = HostsFile::new(path.clone());
            let lab = "lab".parse().unwrap();

            hosts
                .write(&lab, &[(ip("10.77.0.2"), vec!["vm-8-1".into()])])
                .unwrap();
            assert!(
                fs::read_to_string(&under)
                    .unwrap()
                    .contains("10.77.0.2\tvm-8-1\n")
            );
            hosts.remove(&lab).unwrap();

            assert_eq!(fs::read_to_string(&under).unwrap(), "127.0.0.1 localhost\n");
            run(&format!("umount {}", path.display()));
        },
    );
}

/// A system bus of our own, with a stand-in for systemd-resolved that writes down what it is told.
mod resolved {
    use super::*;
    use futures::StreamExt;
    use std::sync::{Arc, Mutex};
    use zbus::{Connection, MessageStream, connection, message::Type};

    async fn bus() -> Connection {
        let config = "/run/bus.conf";
        fs::write(
            config,
            "<busconfig><type>system</type><listen>unix:path=/run/bus</listen><auth>EXTERNAL</auth><policy context='default'>\
             <allow send_destination='*'/><allow receive_sender='*'/><allow own='*'/></policy></busconfig>",
        )
        .unwrap();
        run(&format!(
            "dbus-daemon --config-file={config} --fork >/dev/null 2>&1"
        ));
        for _ in 0..100 {
            if PathBuf::from("/run/bus").exists() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        connection::Builder::address("unix:path=/run/bus")
            .build()
            .await
            .unwrap()
    }

    #[test]
    fn resolved_is_told_of_our_names_only_and_forgets_them() {
        in_namespace_async(
            "resolved::resolved_is_told_of_our_names_only_and_forgets_them",
            async {
                let client = bus().await;
                assert!(
                    Resolved::on(client.clone()).await.is_none(),
                    "where it does not run it is left alone"
                );
                let server = connection::Builder::address("unix:path=/run/bus")
                    .build()
                    .await
                    .unwrap();
                server
                    .request_name("org.freedesktop.resolve1")
                    .await
                    .unwrap();
                let calls = Arc::new(Mutex::new(Vec::new()));
                let (told, mut stream) = (calls.clone(), MessageStream::from(&server));
                tokio::spawn(async move {
                    while let Some(Ok(message)) = stream.next().await {
                        if message.message_type() == Type::MethodCall {
                            let header = message.header();
                            let method = header.member().unwrap().to_string();
                            let signature = message.body().signature().to_string_no_parens();
                            told.lock().unwrap().push((method, signature));
                            server.reply(&header, &()).await.unwrap();
                        }
                    }
                });
                let resolved = Resolved::on(client).await.expect("it runs");

                let reverse = ["77.10.in-addr.arpa".to_owned()];
                resolved
                    .set_link(
                        7,
                        &[ip("10.77.0.2"), ip("fd00::2")],
                        "lab.farlan",
                        &reverse,
                        true,
                    )
                    .await
                    .unwrap();
                resolved.revert_link(7).await.unwrap();

                // The signatures of org.freedesktop.resolve1(5).
                let expected = [
                    ("SetLinkDNS", "ia(iay)"),
                    ("SetLinkDomains", "ia(sb)"),
                    ("SetLinkDefaultRoute", "ib"),
                    ("RevertLink", "i"),
                ];
                let calls = calls.lock().unwrap();
                let calls: Vec<_> = calls
                    .iter()
                    .map(|(method, signature)| (method.as_str(), signature.as_str()))
                    .collect();
                assert_eq!(calls, expected);
            },
        );
    }
}
