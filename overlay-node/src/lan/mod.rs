//! Puts an interface of the host, with the LAN behind it, on a network; and takes it off again without a trace.

use crate::host::{Netlink, NetlinkError};
use overlay_types::Subnet;
use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

/// Attaches and detaches; remembers in a journal on disk what must be undone.
#[derive(Clone, Debug)]
pub struct LanPorts {
    netlink: Netlink,
    journal: PathBuf,
    sysfs: PathBuf,
}

/// An interface that is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The interface on the LAN.
    pub iface: String,
    /// The bridge that carries it and the TAP.
    pub bridge: String,
    /// Whether that bridge is ours.
    pub bridge_made: bool,
    /// What the user should know: the host's firewall may drop bridged traffic.
    pub warning: Option<String>,
}

/// A gateway that routes between the LAN and the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed {
    /// The interface on the LAN.
    pub iface: String,
    /// The LAN's subnet there.
    pub lan: Subnet,
    /// Our address in it.
    pub address: Ipv4Addr,
    /// The static route that the LAN's router needs.
    pub route_hint: String,
}

/// Why an interface cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum LanError {
    /// There is none of that name.
    #[error("there is no interface {0}; `ip link` lists those that exist")]
    NoSuchInterface(String),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl LanPorts {
    /// Keeps its journal in `journal` (a directory).
    pub fn new(netlink: Netlink, journal: &Path) -> Self {
        Self {
            netlink,
            journal: journal.to_owned(),
            sysfs: PathBuf::from("/sys"),
        }
    }
    /// Joins `iface` and `tap` in a bridge: `iface` itself if it is one, the one it is in, or one of ours.
    #[expect(clippy::unused_async, reason = "skeleton")]
    pub async fn attach(&self, iface: &str, tap: &str) -> Result<Attached, LanError> {
        let _ = (&self.netlink, &self.journal, &self.sysfs, tap);
        Err(LanError::NoSuchInterface(iface.to_owned()))
    }
    /// Routes between `iface`'s subnet and the overlay's instead of bridging them.
    #[expect(clippy::unused_async, reason = "skeleton")]
    pub async fn route(&self, iface: &str, overlay: Subnet) -> Result<Routed, LanError> {
        let _ = overlay;
        Err(LanError::NoSuchInterface(iface.to_owned()))
    }
    /// Undoes an attach or a route; nothing to undo is no error.
    #[expect(clippy::unused_async, reason = "skeleton")]
    pub async fn detach(&self, iface: &str) -> Result<(), LanError> {
        let _ = iface;
        Ok(())
    }
    /// Undoes what processes that are gone left attached; gives the interfaces.
    #[expect(clippy::unused_async, reason = "skeleton")]
    pub async fn heal(&self) -> Result<Vec<String>, LanError> {
        Ok(Vec::new())
    }
}
