//! Two of these, on two machines, are one Ethernet: everything that the control plane would find out is given by hand.
//!
//! ```text
//! static_peer 1 [::]:7777 198.51.100.2:7777      on the first machine
//! static_peer 2 [::]:7777 198.51.100.1:7777      on the second
//! ip address add 10.77.0.1/24 dev farlan0        10.77.0.2/24 on the second
//! ```
//!
//! Keys come from the machine's number, so this is for trying the data plane out, not for use. It runs until its input ends.

use std::error::Error;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use overlay_types::{Binding, Candidate, DhcpMode, Location, NetworkId, PeerId, PortId, PortKind};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use tunnel::engine::Command;
use tunnel::io::{DataPlane, DataPlaneConfig};
use tunnel::session::LocalKeys;
use zeroize::Zeroizing;

const NETWORK: NetworkId = NetworkId([7; 32]);
const PORT: PortId = PortId(1);

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [number, listen, remote, rest @ ..] = args.as_slice() else {
        return Err("usage: static_peer 1|2 LISTEN REMOTE [WORKERS]".into());
    };
    let me: u8 = number.parse()?;
    let other = 3 - me;
    let workers = rest.first().map_or(Ok(1), |workers| workers.parse())?;
    let seed = [me; 32];
    let data_plane = DataPlane::start(
        DataPlaneConfig {
            listen: listen.parse()?,
            workers,
            seed,
        },
        Box::new(|event| println!("{event:?}")),
    )?;

    let tap = data_plane.make_tap(Some("farlan0"), Some(peer(me).host_mac()), 1500)?;
    data_plane.command(Command::AddNetwork {
        id: NETWORK,
        me: peer(me),
        keys: keys(me),
        psk: Zeroizing::new([9; 32]),
        dhcp: DhcpMode::Off,
        mtu: 1500,
    });
    data_plane.add_port(
        NETWORK,
        PORT,
        PortKind::Host,
        vec![peer(me).host_mac()],
        tap,
    );
    let bindings = [me, other].map(|number| Binding {
        ip: IpAddr::V4(Ipv4Addr::new(10, 77, 0, number)),
        mac: peer(number).host_mac(),
        location: if number == me {
            Location::Port(PORT)
        } else {
            Location::Peer(peer(number))
        },
    });
    data_plane.command(Command::SetBindings {
        network: NETWORK,
        bindings: bindings.to_vec(),
    });
    let remote: SocketAddr = remote.parse()?;
    data_plane.command(Command::UpsertPeer {
        network: NETWORK,
        peer: peer(other),
        keys: keys(other).public(),
        candidates: vec![Candidate::Host(remote)],
        eager: true,
        paid: u64::MAX,
    });

    std::io::stdin().read_to_end(&mut Vec::new())?;
    for (counter, count) in data_plane.counters().iter().filter(|(_, count)| *count > 0) {
        println!("{} {count}", counter.name());
    }
    data_plane.stop();
    Ok(())
}

fn peer(number: u8) -> PeerId {
    PeerId([number; 32])
}

fn keys(number: u8) -> LocalKeys {
    LocalKeys::generate(&mut ChaCha20Rng::seed_from_u64(u64::from(number)))
}
