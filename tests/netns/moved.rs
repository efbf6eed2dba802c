//! What befalls a node's own network while it is in use: none of it may break an ssh session inside, and it goes on soon.

use crate::overlay::{lab, path_kind, within};
use crate::reachability::moved::{Event, LAPTOP, NETWORK, PEER, Stage};
use crate::reachability::talk::Talk;
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
    let stage = Stage::build(&lab).unwrap();
    let talk = Talk::by_ssh(&stage.host, &stage.address).unwrap();
    let mut slow = Vec::new();
    for event in Event::ALL {
        talk.worst();
        stage.befall(event).unwrap();
        std::thread::sleep(SETTLED);
        let pause = talk.worst().saturating_sub(event.away());
        println!("{event}: {pause:?} beside {:?}", event.away());
        if pause > PAUSE_MAX {
            slow.push(format!("{event}: {pause:?}"));
        }
    }
    talk.end().unwrap();
    assert_eq!(slow, Vec::<String>::new());
    // After so many rounds at once, the next one waits its turn.
    for (node, other) in [(&stage.node, PEER), (&stage.peer, LAPTOP)] {
        within(NEXT_ROUND, || {
            let kind = path_kind(node, NETWORK, other)?;
            anyhow::ensure!(kind == "direct", "the path to {other} is {kind}");
            Ok(())
        })
        .unwrap();
    }
}
