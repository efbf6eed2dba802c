//! Tells systemd-resolved, where it runs, to ask the node for the network's names, and only for them.

use std::net::IpAddr;

/// resolved refused.
#[derive(Debug, thiserror::Error)]
#[error("systemd-resolved: {0}")]
pub struct ResolvedError(#[from] zbus::Error);

/// A connection to systemd-resolved.
#[derive(Clone, Debug)]
pub struct Resolved {
    connection: zbus::Connection,
}

impl Resolved {
    /// Connects, or `None` where resolved is not running.
    pub async fn connect() -> Option<Self> {
        let connection = zbus::Connection::system().await.ok()?;
        Some(Self { connection })
    }
    /// Names under `domain` (and, where `bare`, single labels) are asked of `servers`, through the link.
    #[expect(clippy::unused_async, reason = "skeleton")]
    pub async fn set_link(
        &self,
        index: u32,
        servers: &[IpAddr],
        domain: &str,
        bare: bool,
    ) -> Result<(), ResolvedError> {
        let _ = (&self.connection, index, servers, domain, bare);
        Ok(())
    }
    /// Forgets all that was set for the link.
    #[expect(clippy::unused_async, reason = "skeleton")]
    pub async fn revert_link(&self, index: u32) -> Result<(), ResolvedError> {
        let _ = index;
        Ok(())
    }
}
