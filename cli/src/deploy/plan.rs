//! What is to be done on one host, decided from what was found there. How it is done over ssh is [`super::ssh`]'s.

use crate::args::Service;
use overlay_types::{NetworkId, api::Status};
use std::path::{Path, PathBuf};

/// The binary's name in its directory.
pub(crate) const BINARY: &str = "farlan";
/// The unit that keeps a deployed node running.
pub(crate) const UNIT_PATH: &str = "/etc/systemd/system/farlan.service";
/// The unit for a binary in [`UNIT_DIR`] with the default state directory.
const UNIT: &str = include_str!("../../../deploy/systemd/farlan.service");
const UNIT_DIR: &str = "/usr/local/bin";
const UNIT_STATE: &str = "/var/lib/farlan";

/// What a host shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Goal {
    /// This program's processor, as `uname -m` names it.
    pub(crate) arch: String,
    /// SHA-256 of the binary, in hex.
    pub(crate) binary: String,
    /// Where the binary goes.
    pub(crate) dir: PathBuf,
    /// The node's state directory, unless it is the default one.
    pub(crate) state: Option<PathBuf>,
    /// What keeps the node running.
    pub(crate) service: Service,
    /// Which network it shall be in, where that is known before the invite is used.
    pub(crate) network: Option<NetworkId>,
}

/// What a host has.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Facts {
    /// `uname -m`.
    pub(crate) arch: String,
    /// Whether the login is root's.
    pub(crate) root: bool,
    /// Whether it may become root without a password.
    pub(crate) sudo: bool,
    /// Whether systemd runs.
    pub(crate) systemd: bool,
    /// Whether `/dev/net/tun` is there.
    pub(crate) tun: bool,
    /// SHA-256 of the binary that is there.
    pub(crate) binary: Option<String>,
    /// SHA-256 of the unit that is there.
    pub(crate) unit: Option<String>,
    /// What the running node says.
    pub(crate) status: Option<Status>,
}

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Copy the binary, and see that it runs there.
    PushBinary,
    /// Write the systemd unit.
    InstallUnit,
    /// Stop the node that runs.
    Stop,
    /// Start the node under systemd.
    StartService,
    /// Start the node as a process of its own.
    StartDetached,
    /// Use the invite.
    Join,
    /// Wait until the network is ready there.
    Verify,
}

impl Step {
    /// For people: what is being done.
    pub(crate) const fn doing(self) -> &'static str {
        match self {
            Self::PushBinary => "pushing the binary",
            Self::InstallUnit => "installing the unit",
            Self::Stop => "stopping the old node",
            Self::StartService | Self::StartDetached => "starting the node",
            Self::Join => "joining",
            Self::Verify => "waiting for its address",
        }
    }

    /// Whether the host differs afterwards; joining tells by itself.
    pub(crate) const fn changes(self) -> bool {
        !matches!(self, Self::Join | Self::Verify)
    }
}

/// The steps that lead from `facts` to `goal`, none where it is reached but to join and verify.
///
/// # Errors
/// One line saying why there are none.
pub(crate) fn plan(facts: &Facts, goal: &Goal) -> Result<Vec<Step>, String> {
    if facts.arch != goal.arch {
        return Err(format!(
            "its processor is {} and this binary is for {}; give one for it with --binary FILE",
            facts.arch, goal.arch
        ));
    }
    if !facts.root && !facts.sudo {
        return Err("the login is not root and sudo asks for a password; log in as root, or allow sudo without one".into());
    }
    if !facts.tun {
        return Err("it has no /dev/net/tun; load the module with `modprobe tun`, or allow the device to the container".into());
    }
    let by_systemd = match goal.service {
        Service::Auto => facts.systemd,
        Service::Detach => false,
        Service::Systemd if facts.systemd => true,
        Service::Systemd => return Err("systemd does not run there; use service=detach".into()),
    };
    let mut steps = Vec::new();
    let same_binary = facts.binary.as_ref() == Some(&goal.binary);
    if !same_binary {
        steps.push(Step::PushBinary);
    }
    let same_unit = !by_systemd
        || facts.unit.as_deref() == Some(super::sha256_hex(unit(goal).as_bytes()).as_str());
    if !same_unit {
        steps.push(Step::InstallUnit);
    }
    let runs = facts.status.is_some();
    if runs && !(same_binary && same_unit) {
        steps.push(Step::Stop);
    }
    if !(runs && same_binary && same_unit) {
        steps.push(if by_systemd {
            Step::StartService
        } else {
            Step::StartDetached
        });
    }
    let is_member = |status: &Status| status.networks.iter().any(|n| Some(n.id) == goal.network);
    if !facts.status.as_ref().is_some_and(is_member) {
        steps.push(Step::Join);
    }
    steps.push(Step::Verify);
    Ok(steps)
}

/// The unit for this host's directories.
pub(crate) fn unit(goal: &Goal) -> String {
    let binary = |dir: &Path| dir.join(BINARY).display().to_string();
    let mut unit = UNIT.replace(&binary(Path::new(UNIT_DIR)), &binary(&goal.dir));
    if let Some(state) = &goal.state {
        let state = state.display().to_string();
        unit = unit.replace(
            &format!("--state {UNIT_STATE}"),
            &format!("--state {state}"),
        );
        unit = unit.replace(
            "StateDirectory=farlan\n",
            &format!("ReadWritePaths={state}\n"),
        );
    }
    unit
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_types::{
        PeerId,
        api::{FabricStatus, NatStatus, NetworkStatus, NodeStatus},
    };

    const NETWORK: NetworkId = NetworkId([4; 32]);

    fn goal() -> Goal {
        Goal {
            arch: "x86_64".into(),
            binary: "new".into(),
            dir: "/usr/local/bin".into(),
            state: None,
            service: Service::Auto,
            network: Some(NETWORK),
        }
    }

    fn bare() -> Facts {
        Facts {
            arch: "x86_64".into(),
            root: true,
            tun: true,
            ..Facts::default()
        }
    }

    fn status(networks: &[NetworkId]) -> Status {
        let node = NodeStatus {
            id: PeerId([1; 32]),
            version: "0".into(),
            pid: 1,
            uptime_s: 1,
        };
        let networks = networks.iter().map(|id| NetworkStatus {
            id: *id,
            name: "lab".parse().unwrap(),
            subnet: "10.77.0.0/16".parse().unwrap(),
            dhcp: Default::default(),
            mtu: 1500,
            default: true,
            state: "ready".into(),
            node_name: "a".parse().unwrap(),
            address: None,
            address6: None,
            tap: None,
            peers: 0,
            roles: vec![],
            warnings: vec![],
        });
        Status {
            node,
            nat: NatStatus::default(),
            fabric: FabricStatus::default(),
            relay: overlay_types::api::RelayStatus::default(),
            networks: networks.collect(),
            name: None,
            address: None,
            address6: None,
        }
    }

    #[test]
    fn a_bare_host_gets_everything() {
        use Step::*;
        assert_eq!(
            plan(&bare(), &goal()).unwrap(),
            [PushBinary, StartDetached, Join, Verify]
        );
        let with_systemd = Facts {
            systemd: true,
            ..bare()
        };
        assert_eq!(
            plan(&with_systemd, &goal()).unwrap(),
            [PushBinary, InstallUnit, StartService, Join, Verify]
        );
    }

    #[test]
    fn a_host_that_has_everything_is_only_looked_at() {
        let facts = Facts {
            binary: Some("new".into()),
            status: Some(status(&[NETWORK])),
            ..bare()
        };
        assert_eq!(plan(&facts, &goal()).unwrap(), [Step::Verify]);
    }

    #[test]
    fn a_new_binary_restarts_the_node_and_keeps_its_membership() {
        use Step::*;
        let facts = Facts {
            binary: Some("old".into()),
            status: Some(status(&[NETWORK])),
            ..bare()
        };
        assert_eq!(
            plan(&facts, &goal()).unwrap(),
            [PushBinary, Stop, StartDetached, Verify]
        );
    }

    #[test]
    fn a_member_of_another_network_joins_this_one_too() {
        let facts = Facts {
            binary: Some("new".into()),
            status: Some(status(&[NetworkId([5; 32])])),
            ..bare()
        };
        assert_eq!(plan(&facts, &goal()).unwrap(), [Step::Join, Step::Verify]);
    }

    #[test]
    fn what_stands_in_the_way_is_said_before_anything_is_done() {
        for facts in [
            Facts {
                arch: "aarch64".into(),
                ..bare()
            },
            Facts {
                root: false,
                ..bare()
            },
            Facts {
                tun: false,
                ..bare()
            },
        ] {
            assert!(plan(&facts, &goal()).is_err());
        }
        let forced = Goal {
            service: Service::Systemd,
            ..goal()
        };
        assert!(plan(&bare(), &forced).is_err());
    }

    #[test]
    fn the_unit_follows_the_host_s_directories() {
        assert_eq!(unit(&goal()), UNIT);
        let moved = unit(&Goal {
            dir: "/opt/f".into(),
            state: Some("/srv/f".into()),
            ..goal()
        });
        assert!(
            moved.contains("ExecStart=/opt/f/farlan --state /srv/f up"),
            "{moved}"
        );
        assert!(
            moved.contains("ReadWritePaths=/srv/f\n") && !moved.contains(UNIT_STATE),
            "{moved}"
        );
    }
}
