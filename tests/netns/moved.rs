//! What befalls a node's own network while a connection inside is in use: another default route, another address, a NAT that
//! forgets or is another one, a cable, a sleep. None of it may break the connection, and it goes on soon.

use crate::overlay::{
    await_path, eventually, fabric, founder, host_behind, lab, member, path_kind, ping, within,
};
use crate::talk::Talk;
use cli::lab::Nat;
use std::time::Duration;

/// The goal is 2 s beside the time that the network itself was away; a busy machine may take so much longer.
const PAUSE_MAX: Duration = Duration::from_secs(6);
/// While data goes through a relay, a better way is looked for every 45 s.
const NEXT_ROUND: Duration = Duration::from_secs(90);
/// After so long without a byte, the connection has gone on or never will.
const SETTLED: Duration = Duration::from_secs(8);

#[test]
fn connections_live_through_whatever_befalls_the_network_under_them() {
    let lab = lab("moved");
    let (_fabric, bootstrap) = fabric(&lab);
    let peer_host = host_behind(&lab, Nat::PortRestricted, "peer");
    let peer = founder(&peer_host, &bootstrap, "lab", &[]);
    let (home, cafe) = (
        lab.site("home", Nat::PortRestricted).unwrap(),
        lab.site("cafe", Nat::PortRestricted).unwrap(),
    );
    let host = home.host("laptop").unwrap();
    let wifi = cafe.second_uplink(host.machine(), "eth1").unwrap();
    let node = member(&host, &peer, "lab");
    let address = peer.address("lab").unwrap();
    eventually(|| ping(&host, &address)).unwrap();
    await_path(&node, "lab", "peer-host", "direct").unwrap();

    let talk = Talk::begin(host.machine(), peer.machine(), &address);
    let mut slow = Vec::new();
    let mut befall = |what: &str, away: Duration, act: &dyn Fn()| {
        talk.worst();
        act();
        std::thread::sleep(SETTLED);
        let pause = talk.worst().saturating_sub(away);
        println!("{what}: {pause:?} beside {away:?}");
        if pause > PAUSE_MAX {
            slow.push(format!("{what}: {pause:?}"));
        }
    };
    let none = Duration::ZERO;
    befall("the default route goes by the other uplink", none, &|| {
        wifi.make_default().unwrap();
    });
    befall("and back", none, &|| host.uplink().make_default().unwrap());
    befall("the NAT gets another outside address", none, &|| {
        home.renumber().unwrap();
    });
    let off = Duration::from_millis(500);
    befall("the NAT is restarted", off, &|| {
        home.reboot_router(off).unwrap()
    });
    let unplugged = Duration::from_secs(1);
    befall("the cable is pulled and put back", unplugged, &|| {
        host.uplink().down().unwrap();
        std::thread::sleep(unplugged);
        host.uplink().up().unwrap();
    });
    let asleep = Duration::from_secs(6);
    befall("the machine sleeps", asleep, &|| {
        host.suspend().unwrap();
        std::thread::sleep(asleep);
        host.resume().unwrap();
    });
    befall("the host gets another address", none, &|| {
        home.readdress(&host).unwrap();
    });
    talk.end();
    assert_eq!(slow, Vec::<String>::new());
    // After so many rounds at once, the next one waits its turn.
    within(NEXT_ROUND, || {
        let kind = path_kind(&node, "lab", "peer-host")?;
        anyhow::ensure!(kind == "direct", "the path is {kind}");
        Ok(())
    })
    .unwrap();
}
