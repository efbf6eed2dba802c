//! Whether this process may make namespaces, and how it gets to where it may.

use anyhow::{Result, bail};
use rustix::process::geteuid;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The device that TAP interfaces come from.
const TUN_DEVICE: &str = "/dev/net/tun";

/// What this process may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Root, of the machine or of a user namespace: everything needed.
    Root,
    /// Not root, but a user namespace will do.
    UserNamespace,
    /// Not root, and no way there: why, and what to do.
    Lacking(String),
}

impl Privilege {
    /// Finds out.
    pub fn detect() -> Self {
        if geteuid().is_root() {
            return Self::Root;
        }
        if let Err(error) = File::options().read(true).write(true).open(TUN_DEVICE) {
            return Self::Lacking(format!(
                "{TUN_DEVICE} cannot be opened by this user ({error})"
            ));
        }
        let user = Command::new("id")
            .arg("-un")
            .output()
            .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
        let user = user.unwrap_or_default();
        let uid = geteuid().as_raw().to_string();
        for file in ["/etc/subuid", "/etc/subgid"] {
            let granted = fs::read_to_string(file).unwrap_or_default();
            if !granted.lines().any(|line| {
                line.split(':')
                    .next()
                    .is_some_and(|who| who == user || who == uid)
            }) {
                return Self::Lacking(format!(
                    "{file} grants {user} no ids (add them with usermod --add-subuids)"
                ));
            }
        }
        let probe = Command::new("unshare")
            .args(["--user", "--map-root-user", "--map-auto", "--net", "true"])
            .output();
        match probe {
            Ok(output) if output.status.success() => Self::UserNamespace,
            Ok(output) => Self::Lacking(format!(
                "a user namespace with this user's subordinate ids cannot be made ({}); the package uidmap may be missing",
                String::from_utf8_lossy(&output.stderr).trim()
            )),
            Err(error) => Self::Lacking(format!("unshare cannot be run ({error})")),
        }
    }

    /// Fails unless namespaces can be made from here.
    pub fn assure(&self) -> Result<()> {
        match self {
            Self::Root => Ok(()),
            Self::UserNamespace => bail!(
                "run this in a user namespace: unshare --user --map-root-user --map-auto COMMAND"
            ),
            Self::Lacking(why) => {
                bail!("network namespaces need root here: {why}. Run it with sudo")
            }
        }
    }

    /// Replaces this process by itself in a user namespace where it is root, if that is what is called for.
    /// Returns when there is nothing to do, or with the reason why it cannot be done.
    pub fn acquire(&self) -> Result<()> {
        if *self != Self::UserNamespace {
            return self.assure();
        }
        let error = Command::new("unshare")
            .args(["--user", "--map-root-user", "--map-auto", "--"])
            .arg(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .exec();
        bail!("start again in a user namespace: {error}")
    }
}
