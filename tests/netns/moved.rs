//! What befalls the way between two nodes while it is in use: none of it may break an ssh session inside, and it goes on
//! soon.

use crate::overlay::{lab, path_kind, within};
use crate::reachability::moved::{Event, LAPTOP, NETWORK, PEER, Scene, Stage};
use crate::reachability::talk::Talk;
use anyhow::{Result, ensure};
use std::thread;
use std::time::Duration;

/// The goal is 2 s beside the time that the network itself was away; a busy machine may take so much longer.
const PAUSE_MAX: Duration = Duration::from_secs(6);
/// While data goes through a relay, a better way is looked for every 45 s.
const NEXT_ROUND: Duration = Duration::from_secs(90);
/// After so long without a byte, the connection has gone on or never will.
const SETTLED: Duration = Duration::from_secs(8);

/// All that happens in a scene, with what took too long.
fn play(scene: Scene) -> Result<Vec<String>> {
    let lab = lab(&format!("moved-{scene:?}").to_lowercase());
    let mut stage = Stage::build(&lab, scene)?;
    let talk = Talk::by_ssh(&stage.host, &stage.address)?;
    let mut slow = Vec::new();
    for event in scene.events() {
        stage.prepare(*event)?;
        talk.worst();
        stage.befall(*event)?;
        thread::sleep(SETTLED);
        let pause = talk.worst().saturating_sub(event.away());
        let told = format!(
            "{}: {pause:?} beside {:?}",
            scene.tells(*event),
            event.away()
        );
        println!("{told}");
        if pause > PAUSE_MAX {
            slow.push(told);
        }
    }
    talk.end()?;
    let ends_straight = scene.events().last() != Some(&Event::UdpCloses);
    // After so many rounds at once, the next one waits its turn.
    for (node, other) in [(&stage.node, PEER), (&stage.peer, LAPTOP)] {
        within(NEXT_ROUND, || {
            let kind = path_kind(node, NETWORK, other)?;
            ensure!(
                (kind == "direct") == ends_straight,
                "the path to {other} is {kind}"
            );
            Ok(())
        })?;
    }
    Ok(slow)
}

#[test]
fn connections_live_through_whatever_befalls_the_network_under_them() {
    // Each waits most of its time, so they do at once.
    let slow: Vec<String> = thread::scope(|scope| {
        let played = Scene::ALL.map(|scene| scope.spawn(move || play(scene).unwrap()));
        played
            .into_iter()
            .flat_map(|scene| scene.join().unwrap())
            .collect()
    });
    assert_eq!(slow, Vec::<String>::new());
}
