//! `farlan demo`, as a script runs it, and as a user who is not root does.

use crate::overlay::program;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

#[test]
fn every_check_of_the_demo_holds() {
    assert_every_check(
        &Command::new(program())
            .args(["demo", "--json"])
            .output()
            .unwrap(),
    );
}

/// A machine with a user who has subordinate ids, and a `/dev/net/tun` that everybody may open, as distributions have it.
/// Nothing of the real machine is changed: `/etc` and `/dev/net` are private copies.
const AS_USER: &str = r#"
    set -e
    cp -a /etc "$1"
    mount --bind "$1/etc" /etc
    echo 'farlan-user:x:54321:54321::/tmp:/bin/sh' >> /etc/passwd
    echo 'farlan-user:x:54321:' >> /etc/group
    for file in /etc/subuid /etc/subgid; do echo 'farlan-user:300000:65536' >> $file; done
    mount -t tmpfs -o mode=755 tmpfs /dev/net
    mknod /dev/net/tun c 10 200
    chmod 666 /dev/net/tun
    cd /
    exec env HOME=/tmp setpriv --reuid=54321 --regid=54321 --clear-groups --inh-caps=-all "$1/farlan" demo --json
"#;

#[test]
fn the_demo_needs_no_root() {
    let ids = fs::read_to_string("/proc/self/uid_map").unwrap();
    if ids.split_whitespace().nth(1) != Some("0") {
        return; // these tests run without root themselves: the demo above did as well
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(program(), dir.path().join("farlan")).unwrap();

    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", AS_USER])
        .arg("sh")
        .arg(dir.path())
        .output()
        .unwrap();

    assert_every_check(&output);
}

fn assert_every_check(output: &Output) {
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
