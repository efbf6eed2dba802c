//! Tells systemd-resolved, where it runs, to ask the node for the network's names, and only for them. What is set for a link goes
//! with the link, so that a crash leaves nothing behind.

use std::{net::IpAddr, time::Duration};
use tokio::time::timeout;
use zbus::Connection;

/// How long a stuck system bus may hold the node up.
const BUS_TIMEOUT: Duration = Duration::from_secs(5);
/// Address families as resolved spells them (`AF_INET`, `AF_INET6`).
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const RESOLVED: &str = "org.freedesktop.resolve1";

/// resolved did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ResolvedError {
    /// It refused, or the bus failed.
    #[error("systemd-resolved: {0}; names of the network will not resolve on this host")]
    Bus(#[from] zbus::Error),
    /// It does not answer.
    #[error("systemd-resolved does not answer; names of the network will not resolve on this host")]
    Silent,
}

/// A connection to systemd-resolved.
#[derive(Clone, Debug)]
pub struct Resolved {
    bus: Connection,
}

impl Resolved {
    /// Connects to the one that runs on this host, or gives `None`. It is not started for our sake: a host where it does not run
    /// resolves names in another way.
    pub async fn connect() -> Option<Self> {
        let bus = timeout(BUS_TIMEOUT, Connection::system())
            .await
            .ok()?
            .ok()?;
        Self::on(bus).await
    }

    /// The one on this bus.
    pub async fn on(bus: Connection) -> Option<Self> {
        let ask = bus.call_method(
            Some("org.freedesktop.DBus"),
            "/org/freedesktop/DBus",
            Some("org.freedesktop.DBus"),
            "NameHasOwner",
            &(RESOLVED,),
        );
        let runs: bool = timeout(BUS_TIMEOUT, ask)
            .await
            .ok()?
            .ok()?
            .body()
            .deserialize()
            .ok()?;
        runs.then_some(Self { bus })
    }

    /// Names under `domain` and the reverse zones `reverse` are asked of `servers`, through the link; where `bare`, single labels are
    /// tried under `domain` too. Nothing else is.
    ///
    /// # Errors
    /// [`ResolvedError`] when it refuses or is silent.
    pub async fn set_link(
        &self,
        index: u32,
        servers: &[IpAddr],
        domain: &str,
        reverse: &[String],
        bare: bool,
    ) -> Result<(), ResolvedError> {
        let index = i32::try_from(index).unwrap_or_default(); // the kernel's own type for it
        let servers: Vec<(i32, Vec<u8>)> = servers
            .iter()
            .map(|server| match server {
                IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
                IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
            })
            .collect();
        // "Routing only" domains are asked here but not appended to single labels.
        let mut domains = vec![(domain, !bare)];
        domains.extend(reverse.iter().map(|zone| (zone.as_str(), true)));
        self.call("SetLinkDNS", &(index, servers)).await?;
        self.call("SetLinkDomains", &(index, domains)).await?;
        self.call("SetLinkDefaultRoute", &(index, false)).await
    }

    /// Forgets all that was set for the link.
    ///
    /// # Errors
    /// [`ResolvedError`] when it refuses or is silent.
    pub async fn revert_link(&self, index: u32) -> Result<(), ResolvedError> {
        self.call("RevertLink", &(i32::try_from(index).unwrap_or_default(),))
            .await
    }

    async fn call<B: serde::Serialize + zbus::zvariant::DynamicType>(
        &self,
        method: &'static str,
        body: &B,
    ) -> Result<(), ResolvedError> {
        let call = self.bus.call_method(
            Some(RESOLVED),
            "/org/freedesktop/resolve1",
            Some("org.freedesktop.resolve1.Manager"),
            method,
            body,
        );
        timeout(BUS_TIMEOUT, call)
            .await
            .map_err(|_| ResolvedError::Silent)??;
        Ok(())
    }
}
