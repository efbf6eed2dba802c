//! What must be undone, on disk before it is done: one small file for each attached interface.

use super::LanError;
use crate::host::Route;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::DirBuilderExt;
use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    net::IpAddr,
    path::{Path, PathBuf},
};

/// An interface that is attached, or is about to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) iface: String,
    /// Which run of the kernel: a reboot undoes everything by itself, and configures interfaces anew.
    boot: String,
    pub(super) kind: Kind,
}

/// How it is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// The TAP is a port of a bridge that was there.
    Joined { bridge: String, tap: String },
    /// The interface and the TAP are ports of a bridge of ours, which has the interface's addresses and routes.
    Bridged {
        bridge: String,
        tap: String,
        was_up: bool,
        complete: bool,
        addresses: Vec<(IpAddr, u8)>,
        routes: Vec<Route>,
    },
    /// The host forwards between the interface and the overlay.
    Routed { forwarding_before: Option<String> },
}

impl Entry {
    pub(super) fn new(iface: &str, kind: Kind) -> Self {
        Self {
            iface: iface.to_owned(),
            boot: boot_id(),
            kind,
        }
    }
}

#[derive(Debug)]
pub(super) struct Journal {
    folder: PathBuf,
    /// Done by this process.
    own: BTreeMap<String, Entry>,
    /// Done by one that is gone.
    left: BTreeMap<String, Entry>,
}

impl Journal {
    pub(super) fn open(folder: &Path) -> Result<Self, LanError> {
        let cannot = |source| LanError::Io {
            path: folder.to_owned(),
            source,
        };
        let mut left = BTreeMap::new();
        let entries = match fs::read_dir(folder) {
            // Made when the first interface is attached.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            entries => Some(entries.map_err(cannot)?),
        };
        for file in entries.into_iter().flatten() {
            let path = file.map_err(cannot)?.path();
            // What is no entry is not ours to judge; each is written whole or not at all.
            let Some(entry) = fs::read(&path)
                .ok()
                .and_then(|bytes| serde_json::from_slice::<Entry>(&bytes).ok())
            else {
                continue;
            };
            if entry.boot == boot_id() {
                left.insert(entry.iface.clone(), entry);
            } else {
                fs::remove_file(&path).map_err(|source| LanError::Io { path, source })?;
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            own: BTreeMap::new(),
            left,
        })
    }

    pub(super) fn leftovers(&self) -> Vec<Entry> {
        self.left.values().cloned().collect()
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        self.own.values().cloned().collect()
    }

    pub(super) fn get(&self, iface: &str) -> Option<Entry> {
        self.own.get(iface).cloned()
    }

    pub(super) fn write(&mut self, entry: &Entry) -> Result<(), LanError> {
        let path = self.path(&entry.iface);
        let bytes = serde_json::to_vec_pretty(entry).map_err(io::Error::other);
        let written = bytes.and_then(|bytes| {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.folder)?;
            let mut file = atomic_write_file::AtomicWriteFile::open(&path)?;
            file.write_all(&bytes)?;
            file.commit()
        });
        written.map_err(|source| LanError::Io { path, source })?;
        self.own.insert(entry.iface.clone(), entry.clone());
        Ok(())
    }

    /// Everything that `entry` says is done.
    pub(super) fn complete(&mut self, mut entry: Entry) -> Result<(), LanError> {
        if let Kind::Bridged { complete, .. } = &mut entry.kind {
            *complete = true;
        }
        self.write(&entry)
    }

    pub(super) fn remove(&mut self, iface: &str) -> Result<(), LanError> {
        let path = self.path(iface);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(LanError::Io { path, source });
            }
            _ => {}
        }
        self.own.remove(iface);
        self.left.remove(iface);
        Ok(())
    }

    fn path(&self, iface: &str) -> PathBuf {
        // The kernel allows neither '/' nor '.' nor '..' as an interface's name.
        self.folder.join(format!("{iface}.json"))
    }
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}
