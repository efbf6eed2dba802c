//! The state directory: the identity, what each network needs after a restart, and the lock that keeps it to one node.
//! What the bytes mean is left to those who save them.
//!
//! A file here is complete or absent: it is written beside its name, synced and renamed, and the directory is synced.
//! The directory itself is the lock, so a start that fails leaves no lock file behind.

use overlay_types::NetworkId;
use rand::Rng;
use rustix::fs::{FlockOperation, flock};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};
use zeroize::Zeroizing;

/// The identity's file name. Its bytes are `dht`'s to read.
const IDENTITY: &str = "identity";
/// One subdirectory per network, named by its id.
const NETWORKS: &str = "networks";
/// Which ports were chosen at first start.
const PORTS: &str = "ports.toml";
/// Larger than any blob we keep; a file beyond it was not written by us.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Tries for a port that is free for UDP and TCP alike before the kernel's own choice is taken as it is.
const PORT_TRIES: usize = 64;
/// Chosen ports lie below Linux's ephemeral range (32768…), so that no outgoing connection takes them while we are down.
const CHOSEN_PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Why the state directory cannot be used or a file in it not read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another node runs on it.
    #[error("another node{} is using the state directory {path}; stop it with `farlan --state {path} down`, or give this one its own with --state DIR", holder.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who holds it, where the kernel tells.
        holder: Option<u32>,
    },
    /// The disk is full, so nothing was changed.
    #[error(
        "cannot write {path}: no space is left on that disk; free some and start again (nothing was changed)"
    )]
    Full {
        /// The file or directory.
        path: PathBuf,
    },
    /// Not ours to use.
    #[error(
        "cannot use {path}: permission denied; run as root, or give a directory of your own with --state DIR"
    )]
    Denied {
        /// The file or directory.
        path: PathBuf,
    },
    /// Others may read or write it.
    #[error(
        "{path} belongs to user {owner}, not to the user running this node; give another directory with --state DIR, or run as that user"
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner's uid.
        owner: u32,
    },
    /// A file is there but does not say what it should.
    #[error("{path} cannot be read ({why}); restore it from a backup, or remove it to begin anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Anything else.
    #[error("cannot use {path}: {source}; check the disk and the directory's permissions")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl StateError {
    fn from_io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::Denied { path }
            }
            _ => Self::Io { path, source },
        }
    }
}

/// Turns an I/O result on `path` into ours.
trait At<T> {
    fn at(self, path: &Path) -> Result<T, StateError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, path: &Path) -> Result<T, StateError> {
        self.map_err(|source| StateError::from_io(path, source.into()))
    }
}

/// The state directory, held by this process until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct State {
    dir: Dir,
    /// Holds the lock: `flock` on the directory itself.
    _lock: Arc<File>,
    /// Directories that this start made, innermost first; removed again when it fails before anything is kept in them.
    made: Vec<PathBuf>,
}

impl State {
    /// Makes the directory if need be (mode 0700), locks it, and clears what an interrupted write left.
    ///
    /// # Errors
    /// [`StateError::InUse`] when another node has it; else what stands in the way. Nothing new is left behind then.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        let made = make_dirs(root)?;
        Self::lock(root, &made)
            .inspect_err(|_| unmake(&made))
            .map(|(dir, lock)| Self {
                dir,
                _lock: Arc::new(lock),
                made,
            })
    }

    fn lock(root: &Path, made: &[PathBuf]) -> Result<(Dir, File), StateError> {
        let lock = File::open(root).at(root)?;
        let meta = lock.metadata().at(root)?;
        if !meta.is_dir() {
            return Err(StateError::Damaged {
                path: root.to_owned(),
                why: "it is not a directory".into(),
            });
        }
        if meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(StateError::NotOurs {
                path: root.to_owned(),
                owner: meta.uid(),
            });
        }
        if let Err(errno) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            return Err(match errno {
                rustix::io::Errno::WOULDBLOCK => StateError::InUse {
                    path: root.to_owned(),
                    holder: lock_holder(meta.dev(), meta.ino()),
                },
                other => StateError::from_io(root, other.into()),
            });
        }
        // A directory that somebody made for us is closed to others; one that holds other things too (`--state /tmp`) is
        // left as it is, our files in it being 0600 and our subdirectories 0700.
        let is_ours = root.join(IDENTITY).exists() || fs::read_dir(root).at(root)?.next().is_none();
        if made.is_empty() && is_ours && meta.mode() & 0o077 != 0 {
            fs::set_permissions(root, Permissions::from_mode(0o700)).at(root)?;
        }
        let dir = Dir {
            path: root.to_owned(),
        };
        dir.clear_interrupted()?;
        Ok((dir, lock))
    }

    /// The identity's bytes: those on disk, or those that `generate` makes, which are then on disk before they are used.
    ///
    /// # Errors
    /// [`StateError`]; when a first start fails here, the directories it made are removed again.
    pub fn identity(
        &self,
        generate: impl FnOnce() -> Zeroizing<Vec<u8>>,
    ) -> Result<Zeroizing<Vec<u8>>, StateError> {
        if let Some(bytes) = self.dir.load_bytes(IDENTITY)? {
            return Ok(bytes);
        }
        let bytes = generate();
        self.dir
            .save_bytes(IDENTITY, &bytes)
            .inspect_err(|_| unmake(&self.made))?;
        Ok(bytes)
    }

    /// The directory's own files, beside the identity.
    pub const fn dir(&self) -> &Dir {
        &self.dir
    }

    /// The networks that have a subdirectory, in the order of their ids.
    ///
    /// # Errors
    /// [`StateError`] when the directory cannot be listed.
    pub fn networks(&self) -> Result<Vec<NetworkId>, StateError> {
        let path = self.dir.path.join(NETWORKS);
        let entries = match fs::read_dir(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.at(&path)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            // A stray file is nobody's network and none of our business.
            if let Some(id) = entry
                .at(&path)?
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// One network's subdirectory, made if need be.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be made.
    pub fn network(&self, id: NetworkId) -> Result<Dir, StateError> {
        let path = self.network_path(id);
        make_dirs(&path)?;
        sync_dir(&self.dir.path.join(NETWORKS))?;
        let dir = Dir { path };
        dir.clear_interrupted()?;
        Ok(dir)
    }

    /// Forgets a network: its subdirectory and everything in it.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be removed.
    pub fn remove_network(&self, id: NetworkId) -> Result<(), StateError> {
        let path = self.network_path(id);
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => {
                other.at(&path)?;
                let networks = self.dir.path.join(NETWORKS);
                let _others = fs::remove_dir(&networks); // the last one takes the folder along
                sync_dir(if networks.exists() {
                    &networks
                } else {
                    &self.dir.path
                })
            }
        }
    }

    /// Removes what a start that failed has put beside the identity. Where networks are kept it removes nothing.
    ///
    /// # Errors
    /// [`StateError`] when something stays.
    pub fn abandon(&self) -> Result<(), StateError> {
        if self.networks()?.is_empty() {
            self.dir.remove(PORTS)
        } else {
            Ok(())
        }
    }

    fn network_path(&self, id: NetworkId) -> PathBuf {
        self.dir.path.join(NETWORKS).join(id.to_string())
    }

    /// The port to listen on for `purpose`: `wanted`, or when that is 0 the one of the last start if it is still free,
    /// else a free one which is then kept, so that peers and port forwards find the node again after a restart.
    ///
    /// # Errors
    /// [`StateError`] when the choice cannot be read or kept.
    pub fn port(&self, purpose: &str, wanted: u16) -> Result<u16, StateError> {
        if wanted != 0 {
            return Ok(wanted);
        }
        let mut ports: BTreeMap<String, u16> = self.dir.load_toml(PORTS)?.unwrap_or_default();
        if let Some(&kept) = ports.get(purpose).filter(|port| port_is_free(**port)) {
            return Ok(kept);
        }
        let mut rng = rand::rng();
        let mut candidates = (0..PORT_TRIES).map(|_| rng.random_range(CHOSEN_PORTS));
        let Some(chosen) =
            candidates.find(|port| !ports.values().any(|p| p == port) && port_is_free(*port))
        else {
            return Ok(0);
        };
        ports.insert(purpose.to_owned(), chosen);
        self.dir.save_toml(PORTS, &ports)?;
        Ok(chosen)
    }
}

/// One directory of state files.
#[derive(Clone, Debug)]
pub struct Dir {
    path: PathBuf,
}

impl Dir {
    /// Where `name` is or would be, for those who keep a database of their own there.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Replaces `name` by `bytes` (mode 0600): afterwards, and after a crash at any moment, it holds the old or the new whole.
    ///
    /// # Errors
    /// [`StateError`]; the old content stands then.
    pub fn save_bytes(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.path(name);
        let mut file = atomic_write_file::OpenOptions::new()
            .mode(0o600)
            .open(&path)
            .at(&path)?;
        file.write_all(bytes).at(&path)?;
        file.commit().at(&path) // syncs the file, renames it, syncs the directory
    }

    /// The bytes of `name`, or `None` where there is no such file. They are wiped from memory when dropped.
    ///
    /// # Errors
    /// [`StateError`] when the file is there but cannot be read.
    pub fn load_bytes(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
        let path = self.path(name);
        let mut file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.at(&path)?,
        };
        let len = file.metadata().at(&path)?.len();
        if len > FILE_BYTES_MAX {
            return Err(StateError::Damaged {
                path,
                why: format!("{len} bytes is more than any file of ours"),
            });
        }
        // Reserved at once, so that no copy of a secret is left behind by a growing buffer.
        let mut bytes = Zeroizing::new(Vec::with_capacity(len as usize + 1));
        file.read_to_end(&mut bytes).at(&path)?;
        Ok(Some(bytes))
    }

    /// Saves `value` in its compact form.
    ///
    /// # Errors
    /// [`StateError`]; the old content stands then.
    pub fn save<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let bytes = postcard::to_stdvec(value).map_err(|e| self.damaged(name, &e))?;
        self.save_bytes(name, &Zeroizing::new(bytes))
    }

    /// Loads what [`Self::save`] wrote, or `None` where there is none.
    ///
    /// # Errors
    /// [`StateError::Damaged`] when the bytes are not a whole `T`.
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let Some(bytes) = self.load_bytes(name)? else {
            return Ok(None);
        };
        let (value, rest) =
            postcard::take_from_bytes(&bytes).map_err(|e| self.damaged(name, &e))?;
        if rest.is_empty() {
            Ok(Some(value))
        } else {
            Err(self.damaged(name, &"bytes are left over"))
        }
    }

    /// Saves `value` as TOML, for what people may want to read.
    ///
    /// # Errors
    /// [`StateError`]; the old content stands then.
    pub fn save_toml<T: Serialize + ?Sized>(
        &self,
        name: &str,
        value: &T,
    ) -> Result<(), StateError> {
        let text = toml::to_string_pretty(value).map_err(|e| self.damaged(name, &e))?;
        self.save_bytes(name, text.as_bytes())
    }

    /// Loads what [`Self::save_toml`] wrote, or `None` where there is none.
    ///
    /// # Errors
    /// [`StateError::Damaged`] when the text does not say a `T`.
    pub fn load_toml<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let Some(bytes) = self.load_bytes(name)? else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&bytes).map_err(|e| self.damaged(name, &e))?;
        toml::from_str(text)
            .map(Some)
            .map_err(|e| self.damaged(name, &e.message()))
    }

    /// Removes `name`; it is no error when it is not there.
    ///
    /// # Errors
    /// [`StateError`] when it is there and stays.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.at(&path).and_then(|()| sync_dir(&self.path)),
        }
    }

    fn damaged(&self, name: &str, why: &dyn std::fmt::Display) -> StateError {
        StateError::Damaged {
            path: self.path(name),
            why: why.to_string(),
        }
    }

    /// Removes the temporaries of writes that a crash cut short: `.NAME.XXXXXX`, as `atomic-write-file` names them.
    fn clear_interrupted(&self) -> Result<(), StateError> {
        for entry in fs::read_dir(&self.path).at(&self.path)? {
            let entry = entry.at(&self.path)?;
            let name = entry.file_name();
            let is_temporary = name
                .to_str()
                .and_then(|n| n.strip_prefix('.'))
                .is_some_and(|n| {
                    n.rsplit_once('.').is_some_and(|(_, end)| {
                        end.len() == 6 && end.bytes().all(|b| b.is_ascii_alphanumeric())
                    })
                });
            if is_temporary && entry.file_type().at(&entry.path())?.is_file() {
                fs::remove_file(entry.path()).at(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Makes `path` and what is missing above it, mode 0700; returns what it made, innermost first.
fn make_dirs(path: &Path) -> Result<Vec<PathBuf>, StateError> {
    let missing: Vec<PathBuf> = path
        .ancestors()
        .take_while(|p| !p.as_os_str().is_empty() && !p.exists())
        .map(Path::to_owned)
        .collect();
    let mut made = Vec::new();
    for dir in missing.iter().rev() {
        match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => made.insert(0, dir.clone()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => {
                unmake(&made);
                return Err(StateError::from_io(dir, e));
            }
        }
    }
    Ok(made)
}

/// Removes directories made in vain; those that hold something stay.
fn unmake(made: &[PathBuf]) {
    for dir in made {
        let _ = fs::remove_dir(dir);
    }
}

fn sync_dir(path: &Path) -> Result<(), StateError> {
    File::open(path).and_then(|dir| dir.sync_all()).at(path)
}

/// Free for UDP and for TCP, in both families where the host has both.
fn port_is_free(port: u16) -> bool {
    let v4 = (Ipv4Addr::UNSPECIFIED, port);
    let v6 = (Ipv6Addr::UNSPECIFIED, port);
    let free =
        |result: io::Result<()>| !matches!(result, Err(e) if e.kind() == io::ErrorKind::AddrInUse);
    free(UdpSocket::bind(v4).map(drop))
        && free(TcpListener::bind(v4).map(drop))
        && free(UdpSocket::bind(v6).map(drop))
        && free(TcpListener::bind(v6).map(drop))
}

/// The process that holds the lock, as `/proc/locks` tells it: `1: FLOCK  ADVISORY  WRITE 4242 fe:01:131 0 EOF`.
fn lock_holder(dev: u64, ino: u64) -> Option<u32> {
    let place = format!(
        "{:02x}:{:02x}:{ino}",
        rustix::fs::major(dev),
        rustix::fs::minor(dev)
    );
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let kind = words.next()?;
        let pid = words.nth(2)?;
        (kind == "FLOCK" && words.next()? == place)
            .then(|| pid.parse().ok())
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> Zeroizing<Vec<u8>> {
        Zeroizing::new(vec![7; 64])
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_identity_is_made_once_and_only_its_owner_reads_it() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("a/farlan");

        let state = State::open(&root).unwrap();
        let first = state.identity(secret).unwrap();
        drop(state);
        let again = State::open(&root)
            .unwrap()
            .identity(|| panic!("it is there"))
            .unwrap();

        assert_eq!(first, again);
        assert_eq!((mode(&root), mode(&root.join(IDENTITY))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
    }

    #[test]
    fn a_second_node_on_the_same_directory_is_refused_until_the_first_is_gone() {
        let tmp = tempfile::tempdir().unwrap();
        let first = State::open(tmp.path()).unwrap();

        let refusal = State::open(tmp.path()).unwrap_err();
        let StateError::InUse { holder, .. } = &refusal else {
            panic!("{refusal}")
        };
        assert!(holder.is_none_or(|pid| pid == std::process::id()));
        assert!(!refusal.to_string().contains('\n'));

        drop(first);
        State::open(tmp.path()).unwrap();
    }

    #[test]
    fn what_was_saved_loads_and_what_was_cut_short_is_told() {
        let tmp = tempfile::tempdir().unwrap();
        let state = State::open(tmp.path()).unwrap();
        let id = NetworkId([3; 32]);
        let dir = state.network(id).unwrap();

        dir.save("lease", &(7_u32, "x")).unwrap();
        dir.save_toml("settings.toml", &BTreeMap::from([("a", 1)]))
            .unwrap();

        assert_eq!(
            dir.load::<(u32, String)>("lease").unwrap(),
            Some((7, "x".to_owned()))
        );
        assert_eq!(
            dir.load_toml::<BTreeMap<String, u8>>("settings.toml")
                .unwrap(),
            Some([("a".to_owned(), 1)].into())
        );
        assert_eq!(dir.load::<u32>("nothing").unwrap(), None);
        fs::write(dir.path("lease"), [7]).unwrap();
        assert!(matches!(
            dir.load::<(u32, String)>("lease"),
            Err(StateError::Damaged { .. })
        ));
        assert_eq!(state.networks().unwrap(), [id]);
        state.remove_network(id).unwrap();
        assert_eq!(state.networks().unwrap(), []);
    }

    #[test]
    fn the_temporary_of_an_interrupted_write_is_cleared_at_the_next_start() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join(".identity.aB3xYz"), b"half").unwrap();
        fs::write(tmp.path().join(".profile"), b"not ours").unwrap();

        State::open(tmp.path()).unwrap();

        assert!(!tmp.path().join(".identity.aB3xYz").exists());
        assert!(tmp.path().join(".profile").exists());
    }

    #[test]
    fn a_start_that_failed_leaves_the_identity_and_no_more_unless_there_are_networks() {
        let tmp = tempfile::tempdir().unwrap();
        let state = State::open(tmp.path()).unwrap();
        state.identity(secret).unwrap();
        state.port("data", 0).unwrap();
        let id = NetworkId([3; 32]);
        state.network(id).unwrap().save("lease", &7_u32).unwrap();

        state.abandon().unwrap();
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 3);
        state.remove_network(id).unwrap();
        state.abandon().unwrap();
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_chosen_port_is_kept_over_restarts() {
        let tmp = tempfile::tempdir().unwrap();
        let chosen = State::open(tmp.path()).unwrap().port("data", 0).unwrap();
        let state = State::open(tmp.path()).unwrap();
        assert_eq!(state.port("data", 0).unwrap(), chosen);
        assert_ne!(state.port("control", 0).unwrap(), chosen);
        assert_eq!(state.port("data", 9).unwrap(), 9);
    }

    /// Set for the half of the next test that runs on a disk of its own.
    const TINY_DISK: &str = "FARLAN_TEST_TINY_DISK";

    #[test]
    fn a_full_disk_is_one_clear_error_and_leaves_nothing_behind() {
        if let Some(disk) = std::env::var_os(TINY_DISK) {
            return on_a_full_disk(Path::new(&disk));
        }
        // The same test again, alone, where a tmpfs of 64 KiB can be mounted without touching the machine.
        let tmp = tempfile::tempdir().unwrap();
        let script = format!(
            "mount -t tmpfs -o size=64k tmpfs '{}' && exec \"$0\" --exact --nocapture \"$1\"",
            tmp.path().display()
        );
        let name = concat!(
            module_path!(),
            "::a_full_disk_is_one_clear_error_and_leaves_nothing_behind"
        );
        let name = name.split_once("::").unwrap().1;
        let as_root = match rustix::process::geteuid().is_root() {
            true => ["--mount"].as_slice(),
            false => &["--map-root-user", "--mount"],
        };
        let output = std::process::Command::new("unshare")
            .args(as_root)
            .args(["sh", "-c", &script])
            .args([std::env::current_exe().unwrap().as_os_str(), name.as_ref()])
            .env(TINY_DISK, tmp.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn on_a_full_disk(disk: &Path) {
        let ballast = disk.join("ballast");
        let filled = File::create(&ballast)
            .unwrap()
            .write_all(&[0; 1 << 20])
            .unwrap_err();
        assert_eq!(filled.kind(), io::ErrorKind::StorageFull);
        let root = disk.join("farlan/node");

        let state = State::open(&root).unwrap();
        let error = state.identity(secret).unwrap_err();

        assert!(matches!(error, StateError::Full { .. }), "{error}");
        assert!(!error.to_string().contains('\n'));
        drop(state);
        assert!(!disk.join("farlan").exists());
        fs::remove_file(&ballast).unwrap();
        State::open(&root).unwrap().identity(secret).unwrap();
    }
}
