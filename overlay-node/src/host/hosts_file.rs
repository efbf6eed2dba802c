//! A block of names in `/etc/hosts`, for hosts without systemd-resolved. Only what stands between our own markers is touched.
//!
//! The markers name the process that wrote the block, so that what a crash left behind is told from a
//! neighbour's that still runs.

use overlay_types::Name;
use rustix::fs::FlockOperation;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    process,
};

/// A hosts file beyond this size is not ours to copy about.
const BYTES_MAX: u64 = 4 << 20;

/// The hosts file cannot be changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot change {path}: {source}; names of the network will not resolve on this host", path = path.display())]
pub struct HostsError {
    path: PathBuf,
    source: io::Error,
}

/// The hosts file.
#[derive(Clone, Debug)]
pub struct HostsFile {
    path: PathBuf,
}

impl HostsFile {
    /// The file at `path`, `/etc/hosts` outside tests.
    pub const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Replaces a network's block: each address with its names.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn write(
        &self,
        network: &Name,
        entries: &[(IpAddr, Vec<String>)],
    ) -> Result<(), HostsError> {
        let lines: String = entries
            .iter()
            .map(|(address, names)| format!("{address}\t{}\n", names.join(" ")))
            .collect();
        let block = format!(
            "{}\n{lines}{}\n",
            begin(network.as_str(), process::id()),
            end(network.as_str())
        );
        self.edit(|text| {
            let mut kept = without(text, |found, _| found == network.as_str());
            if !kept.is_empty() && !kept.ends_with('\n') {
                kept.push('\n');
            }
            kept + &block
        })
    }

    /// Removes a network's block.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn remove(&self, network: &Name) -> Result<(), HostsError> {
        self.edit(|text| without(text, |found, _| found == network.as_str()))
    }

    /// Removes the blocks of processes that are gone.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn heal(&self) -> Result<(), HostsError> {
        self.edit(|text| {
            without(text, |_, pid| {
                pid != process::id() && !Path::new(&format!("/proc/{pid}")).exists()
            })
        })
    }

    /// Several nodes may share the host, so that reading and writing is one step, under a lock on the folder (the file itself is replaced).
    fn edit(&self, change: impl FnOnce(&str) -> String) -> Result<(), HostsError> {
        let failed = |source| HostsError {
            path: self.path.clone(),
            source,
        };
        // A symbolic link (as NixOS has) is followed, not replaced.
        let path = fs::canonicalize(&self.path).map_err(failed)?;
        let folder = File::open(path.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
        rustix::fs::flock(&folder, FlockOperation::LockExclusive)
            .map_err(|errno| failed(errno.into()))?;
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut text))
            .map_err(failed)?;
        if text.len() as u64 > BYTES_MAX {
            return Err(failed(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "larger than 4 MiB",
            )));
        }
        // A byte that is no UTF-8 stands in somebody else's comment; better no names than a damaged file.
        let text = String::from_utf8(text)
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        let changed = change(&text);
        if changed == text {
            Ok(())
        } else {
            replace(&path, changed.as_bytes()).map_err(failed)
        }
    }
}

/// Replaces the file at once, with its mode and owner. Where it is a mount point (containers, `ip netns exec`) a rename is refused
/// and it is written in place.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let renamed = atomic_write_file::AtomicWriteFile::open(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.commit()
    });
    match renamed {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ResourceBusy
                    | io::ErrorKind::CrossesDevices
                    | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            let mut file = OpenOptions::new().write(true).open(path)?;
            file.write_all(bytes)?;
            file.set_len(bytes.len() as u64)?;
            file.sync_all()
        }
        other => other,
    }
}

const BEGIN: &str = "# farlan begin ";
const END: &str = "# farlan end ";

fn begin(network: &str, pid: u32) -> String {
    format!("{BEGIN}{network} (process {pid}; removed when it stops, please leave as it is)")
}

fn end(network: &str) -> String {
    format!("{END}{network}")
}

/// `text` without the blocks that `unwanted` names by network and process. A block whose end is missing is only its first line: what
/// follows may be anybody's.
fn without(text: &str, unwanted: impl Fn(&str, u32) -> bool) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((line, tail)) = next_line(rest) {
        match read_begin(line) {
            Some((network, pid)) if unwanted(network, pid) => {
                rest = after_end(tail, network).unwrap_or(tail)
            }
            _ => {
                kept.push_str(line);
                rest = tail;
            }
        }
    }
    kept
}

fn next_line(text: &str) -> Option<(&str, &str)> {
    let len = text.find('\n').map_or(text.len(), |at| at + 1);
    (len > 0).then(|| text.split_at(len))
}

fn read_begin(line: &str) -> Option<(&str, u32)> {
    let (network, rest) = line.strip_prefix(BEGIN)?.split_once(" (process ")?;
    let pid = rest.split(';').next()?.parse().ok()?;
    Some((network, pid))
}

/// What follows the block's end, unless another block begins before.
fn after_end<'a>(mut text: &'a str, network: &str) -> Option<&'a str> {
    while let Some((line, tail)) = next_line(text) {
        if line.trim_end() == end(network) {
            return Some(tail);
        }
        if line.starts_with(BEGIN) {
            return None;
        }
        text = tail;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    const ORIGINAL: &str = "127.0.0.1 localhost\n# mine\n10.0.0.1\trouter\n";

    fn file(text: &str) -> (tempfile::TempDir, HostsFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        fs::write(&path, text).unwrap();
        (folder, HostsFile::new(path))
    }

    fn entry(address: &str, names: &[&str]) -> (IpAddr, Vec<String>) {
        (
            address.parse().unwrap(),
            names.iter().map(ToString::to_string).collect(),
        )
    }

    #[test]
    fn the_block_comes_changes_and_goes_and_the_rest_stays_as_it_was() {
        let (_folder, hosts) = file(ORIGINAL);
        fs::set_permissions(&hosts.path, fs::Permissions::from_mode(0o604)).unwrap();
        let (lab, home) = ("lab".parse().unwrap(), "home".parse().unwrap());

        hosts
            .write(
                &lab,
                &[entry("10.77.0.2", &["vm-8-1", "vm-8-1.lab.farlan"])],
            )
            .unwrap();
        hosts.write(&home, &[entry("10.78.0.2", &["nas"])]).unwrap();
        hosts
            .write(&lab, &[entry("10.77.0.3", &["vm-8-2"])])
            .unwrap();

        let text = fs::read_to_string(&hosts.path).unwrap();
        assert!(text.starts_with(ORIGINAL));
        assert!(
            text.contains("10.77.0.3\tvm-8-2\n")
                && text.contains("nas")
                && !text.contains("vm-8-1")
        );
        hosts.remove(&lab).unwrap();
        hosts.remove(&home).unwrap();
        assert_eq!(fs::read_to_string(&hosts.path).unwrap(), ORIGINAL);
        assert_eq!(
            fs::metadata(&hosts.path).unwrap().permissions().mode() & 0o777,
            0o604
        );
        assert_eq!(
            fs::read_dir(hosts.path.parent().unwrap()).unwrap().count(),
            1,
            "nothing else is left behind"
        );
    }

    #[test]
    fn what_a_crash_left_is_removed_but_not_a_running_neighbours() {
        let gone = u32::MAX; // beyond pid_max
        let left = format!("{}\n10.77.0.2\tvm\n{}\n", begin("lab", gone), end("lab"));
        let alive = format!("{}\n10.78.0.2\tnas\n{}\n", begin("home", 1), end("home"));
        let (_folder, hosts) = file(&format!("{ORIGINAL}{left}{alive}"));

        hosts.heal().unwrap();

        assert_eq!(
            fs::read_to_string(&hosts.path).unwrap(),
            format!("{ORIGINAL}{alive}")
        );
    }

    #[test]
    fn a_block_without_its_end_costs_nobody_else_a_line() {
        let torn = format!("{ORIGINAL}{}\n10.9.9.9 other\n", begin("lab", 1));
        let (_folder, hosts) = file(&torn);

        hosts.remove(&"lab".parse().unwrap()).unwrap();

        assert_eq!(
            fs::read_to_string(&hosts.path).unwrap(),
            format!("{ORIGINAL}10.9.9.9 other\n")
        );
    }

    #[test]
    fn a_symbolic_link_is_followed() {
        let (folder, hosts) = file(ORIGINAL);
        let link = HostsFile::new(folder.path().join("link"));
        std::os::unix::fs::symlink(&hosts.path, &link.path).unwrap();

        link.write(&"lab".parse().unwrap(), &[entry("10.77.0.2", &["vm"])])
            .unwrap();

        assert!(fs::symlink_metadata(&link.path).unwrap().is_symlink());
        assert!(fs::read_to_string(&hosts.path).unwrap().contains("vm"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))] // each case syncs to disk four times
        #[test]
        fn any_text_comes_back_unharmed(text in "([a-z0-9 .#\n\r\t]|# farlan begin |# farlan end |lab|home)*") {
            let mut text = text;
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            let (_folder, hosts) = file(&text);
            let name = "zz".parse().unwrap();
            hosts.write(&name, &[entry("10.77.0.2", &["vm"])]).unwrap();
            hosts.remove(&name).unwrap();
            prop_assert_eq!(fs::read_to_string(&hosts.path).unwrap(), text);
        }
    }
}
