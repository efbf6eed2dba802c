//! How this host resolves a network's names: by systemd-resolved where it runs, else by its hosts file.

use super::{HostsError, HostsFile, Resolved, ResolvedError};
use crate::dns::Names;
use overlay_types::Name;
use std::{net::IpAddr, path::PathBuf};
use tracing::warn;

/// Names of the network do not resolve on this host; all else works.
#[derive(Debug, thiserror::Error)]
pub enum HostNamesError {
    /// By systemd-resolved.
    #[error(transparent)]
    Resolved(#[from] ResolvedError),
    /// By the hosts file.
    #[error(transparent)]
    Hosts(#[from] HostsError),
}

/// The host's way of resolving names.
#[derive(Clone, Debug)]
pub struct HostNames {
    resolved: Option<Resolved>,
    hosts: HostsFile,
}

impl HostNames {
    /// Finds the host's way, and takes out of the hosts file what nodes that crashed left there.
    pub async fn open(hosts: PathBuf) -> Self {
        let this = Self {
            resolved: Resolved::connect().await,
            hosts: HostsFile::new(hosts),
        };
        if let Err(error) = this.hosts.heal() {
            warn!(%error, "hosts file not healed");
        }
        this
    }

    /// The hosts file whatever else runs, for hosts where resolved serves somebody else and for tests.
    pub const fn with_hosts_only(hosts: PathBuf) -> Self {
        Self {
            resolved: None,
            hosts: HostsFile::new(hosts),
        }
    }

    /// Whether systemd-resolved is asked, not the hosts file.
    pub const fn is_resolved(&self) -> bool {
        self.resolved.is_some()
    }

    /// Makes `names` resolve. Call it when they change; with resolved (which asks `servers` through interface `index`) only the first
    /// call matters.
    ///
    /// # Errors
    /// [`HostNamesError`]; the host's resolver is as it was then.
    pub async fn publish(
        &self,
        index: u32,
        servers: &[IpAddr],
        names: &Names,
    ) -> Result<(), HostNamesError> {
        if let Some(resolved) = &self.resolved {
            let set = resolved
                .set_link(
                    index,
                    servers,
                    &names.zone(),
                    &names.reverse_zones(),
                    names.is_bare(),
                )
                .await;
            if set.is_err() {
                let _ = resolved.revert_link(index).await; // all or nothing
            }
            return Ok(set?);
        }
        let line = |(name, address): (&Name, &IpAddr)| {
            let full = format!("{name}.{}", names.zone());
            (
                *address,
                if names.is_bare() {
                    vec![full, name.to_string()]
                } else {
                    vec![full]
                },
            )
        };
        let entries: Vec<_> = names
            .iter()
            .flat_map(|(name, addresses)| addresses.iter().map(move |address| (name, address)))
            .map(line)
            .collect();
        Ok(self.hosts.write(names.network(), &entries)?)
    }

    /// Leaves the host's resolver as it was found.
    ///
    /// # Errors
    /// [`HostNamesError`]; with resolved, what was set goes with the interface at the latest.
    pub async fn withdraw(&self, index: u32, network: &Name) -> Result<(), HostNamesError> {
        match &self.resolved {
            Some(resolved) => Ok(resolved.revert_link(index).await?),
            None => Ok(self.hosts.remove(network)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_types::NetworkId;

    #[tokio::test]
    async fn names_come_into_the_hosts_file_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        std::fs::write(&path, "127.0.0.1 localhost\n").unwrap();
        let host = HostNames::with_hosts_only(path.clone());
        let lab: Name = "lab".parse().unwrap();
        let mut names = Names::new(
            lab.clone(),
            NetworkId([7; 32]),
            "10.77.0.0/16".parse().unwrap(),
            true,
        );
        names.insert("vm-8-1".parse().unwrap(), "10.77.3.4".parse().unwrap());

        host.publish(1, &[], &names).await.unwrap();

        assert!(
            std::fs::read_to_string(&path)
                .unwrap()
                .contains("10.77.3.4\tvm-8-1.lab.farlan vm-8-1\n")
        );
        host.withdraw(1, &lab).await.unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "127.0.0.1 localhost\n"
        );
    }
}
