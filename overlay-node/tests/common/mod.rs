//! A network namespace of its own for each test: the test runs itself again inside, so that whatever it leaves behind, and
//! every process it started, ends with it.

#![allow(dead_code, reason = "each test program uses a part of this")]

use std::{env, process::Command};

const INSIDE: &str = "FARLAN_TEST_INSIDE";
/// A hang, not a measure of speed.
const HANG_SECONDS: &str = "120";

/// Runs `body` in fresh network, mount and process namespaces. `test` is the test's own full name.
pub(crate) fn in_namespace(test: &str, body: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    let exe = env::current_exe().expect("a test knows its program");
    let prepare = "mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /run && ip link set lo up && exec \"$@\"";
    let status = Command::new("timeout")
        .args([
            "--kill-after=5",
            HANG_SECONDS,
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .args(["sh", "-c", prepare, "sh"])
        .arg(exe)
        .args(["--exact", test, "--nocapture", "--include-ignored"])
        .env(INSIDE, "1")
        .status()
        .expect("timeout and unshare are part of every Linux");
    assert!(
        status.success(),
        "{test} failed in its namespace (it needs root): {status}"
    );
}

/// The same for asynchronous bodies.
pub(crate) fn in_namespace_async(test: &str, body: impl Future<Output = ()>) {
    in_namespace(test, || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(body);
    });
}

/// Runs a command line, and gives what it printed.
pub(crate) fn run(line: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", line])
        .output()
        .expect("a shell");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{line}: {out}{err}");
    out.into_owned()
}

/// Whether a command line succeeds.
pub(crate) fn succeeds(line: &str) -> bool {
    Command::new("sh")
        .args(["-c", line])
        .output()
        .expect("a shell")
        .status
        .success()
}
