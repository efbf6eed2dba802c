//! `farlan demo`, as a script runs it.

use crate::overlay::program;
use std::process::Command;

#[test]
fn every_check_of_the_demo_holds() {
    let output = Command::new(program())
        .args(["demo", "--json"])
        .output()
        .unwrap();

    let errors = String::from_utf8_lossy(&output.stderr);
    let outcome: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}\n{errors}"));
    assert_eq!(outcome["ok"], true, "{outcome:#}\n{errors}");
    assert!(
        outcome["checks"]
            .as_array()
            .is_some_and(|checks| checks.len() >= 10),
        "{outcome:#}"
    );
    assert_eq!(output.status.code(), Some(0));
}
