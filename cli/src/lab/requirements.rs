//! Which programs the lab needs, and in which packages they are.

use anyhow::{Result, bail};
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

/// A program and the Debian or Ubuntu package that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// The program's file name; a path for what is not a program.
    pub program: &'static str,
    /// The package.
    pub package: &'static str,
}

/// What every lab needs.
pub const LAB_TOOLS: &[Tool] = &[
    Tool {
        program: "ip",
        package: "iproute2",
    },
    Tool {
        program: "nft",
        package: "nftables",
    },
    Tool {
        program: "unshare",
        package: "util-linux",
    },
    Tool {
        program: "nsenter",
        package: "util-linux",
    },
    Tool {
        program: "mount",
        package: "mount",
    },
    Tool {
        program: "hostname",
        package: "hostname",
    },
    Tool {
        program: "timeout",
        package: "coreutils",
    },
    Tool {
        program: "tcpdump",
        package: "tcpdump",
    },
];

/// The programs that were not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingTools(pub Vec<Tool>);

impl fmt::Display for MissingTools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let programs: Vec<&str> = self.0.iter().map(|tool| tool.program).collect();
        let packages: BTreeSet<&str> = self.0.iter().map(|tool| tool.package).collect();
        let packages: Vec<&str> = packages.into_iter().collect();
        write!(
            f,
            "missing on this machine: {}. On Debian or Ubuntu: apt-get install --no-install-recommends {}",
            programs.join(", "),
            packages.join(" ")
        )
    }
}

impl std::error::Error for MissingTools {}

/// Fails, naming the packages to install, unless every tool is there.
pub fn require(tools: &[Tool]) -> Result<()> {
    let missing: Vec<Tool> = tools
        .iter()
        .copied()
        .filter(|tool| find(tool.program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(MissingTools(missing))
}

/// Looks a program up in `PATH` and in the directories for administrators, which a user's `PATH` may lack.
fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_packages_to_install() {
        let tools = [
            Tool {
                program: "sh",
                package: "dash",
            },
            Tool {
                program: "no-such-program",
                package: "some-package",
            },
            Tool {
                program: "/no/such/library.so",
                package: "other-package",
            },
        ];

        let error = require(&tools).unwrap_err().to_string();

        assert_eq!(
            error,
            "missing on this machine: no-such-program, /no/such/library.so. On Debian or Ubuntu: \
             apt-get install --no-install-recommends other-package some-package"
        );
    }
}
