//! Every two kinds of site: nodes there reach each other, and by the way that RFC 4787 leaves to them.

use crate::overlay::lab;
use crate::reachability::kinds::{Cell, MATRIX, Way, cells, expectation};
use crate::reachability::stage::{Stage, Tried, tour};
use std::sync::Mutex;
use std::time::Duration;

/// The goals are a second and three; a machine that is busy with other things may take so much longer.
const FIRST_DATA_MAX: Duration = Duration::from_secs(3);
const DIRECT_MAX: Duration = Duration::from_secs(9);

/// Cells tried at the same time: a try waits for timers and processes more than it computes.
const AT_ONCE: usize = 2;

/// What is wrong with a try, if anything is.
fn fault(cell: Cell, tried: &Tried) -> Option<String> {
    let (way, why) = expectation(cell.0, cell.1);
    if !way.is_kept_by(&tried.path) {
        return Some(format!("goes by {}, not {way} ({why})", tried.path));
    }
    if tried.first_data > FIRST_DATA_MAX {
        return Some(format!("first data after {:?}", tried.first_data));
    }
    if way == Way::Direct && tried.settled > DIRECT_MAX {
        return Some(format!("direct after {:?}", tried.settled));
    }
    None
}

#[test]
fn a_try_by_another_way_or_too_late_is_a_fault() {
    use crate::reachability::kinds::Kind::{PortRestricted, SymmetricRandom};
    let tried = |path: &str, first_data: Duration, settled: Duration| Tried {
        first_data,
        settled,
        path: path.to_owned(),
    };
    let (soon, late) = (Duration::from_millis(100), Duration::from_secs(10));
    let (straight, relayed) = (
        (PortRestricted, PortRestricted),
        (SymmetricRandom, SymmetricRandom),
    );

    assert_eq!(fault(straight, &tried("direct", soon, soon)), None);
    assert!(fault(straight, &tried("relay", soon, soon)).is_some());
    assert!(fault(straight, &tried("direct", late, late)).is_some());
    assert!(fault(straight, &tried("direct", soon, late)).is_some());
    assert_eq!(fault(relayed, &tried("relay", soon, late)), None);
    assert!(fault(relayed, &tried("direct", soon, soon)).is_some());
    assert!(fault(relayed, &tried("stream", soon, soon)).is_some());
}

#[test]
fn the_matrix_has_every_pair_once() {
    let all = cells();
    let unordered = |(a, b): Cell| (a.min(b), a.max(b));
    let different: std::collections::BTreeSet<_> = all.iter().copied().map(unordered).collect();

    assert_eq!(different.len(), all.len());
    assert_eq!(
        all.iter()
            .take(66)
            .filter(|(_, b)| MATRIX.contains(b))
            .count(),
        66
    );
}

#[test]
fn nodes_at_any_two_kinds_of_site_reach_each_other() {
    let lab = lab("matrix");
    let cells = cells();
    let stage = Stage::build(&lab, &cells).unwrap();
    let (count, faults) = (cells.len(), Mutex::new(Vec::new()));

    tour(&stage, cells, AT_ONCE, |cell, tried| {
        let name = format!("{} with {}", cell.0, cell.1);
        println!("{name}: {tried:?}");
        let fault = match tried {
            Ok(tried) => fault(cell, &tried),
            Err(error) => Some(format!("{error:#}")),
        };
        let mut faults = faults.lock().unwrap();
        faults.extend(fault.map(|fault| format!("{name}: {fault}")));
    });

    let faults = faults.into_inner().unwrap();
    assert!(
        faults.is_empty(),
        "{} of {count} cells:\n{}",
        faults.len(),
        faults.join("\n")
    );
}
