//! A short flood of every kind over real sockets: bounded work and memory, nothing amplified, and honest peers hardly notice.

use crate::flooding::{Outcome, Stage, start_flooded};
use cli::lab::Lab;
use std::io;
use std::time::Duration;

const SPAN: Duration = Duration::from_millis(500);

#[test]
fn no_flood_costs_more_than_its_bounds_or_keeps_honest_peers_from_anything() {
    let lab = Lab::start("flood").unwrap();
    let stage = Stage::build(&lab).unwrap();
    let far = stage.far.address();
    let flooded = stage
        .near
        .within(|| start_flooded(far).map_err(io::Error::other));
    let _flooded = flooded.unwrap();
    stage.assign_addresses().unwrap();
    let outcomes = stage.flood_all(std::process::id(), SPAN).unwrap();
    let faults: Vec<String> = outcomes.iter().flat_map(Outcome::faults).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
