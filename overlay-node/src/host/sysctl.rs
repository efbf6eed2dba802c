//! Kernel settings under `/proc/sys` of the calling thread's network namespace.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// One setting, named with slashes: `net/ipv4/ip_forward`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl(PathBuf);

impl Sysctl {
    /// The setting of this name.
    pub fn new(name: &str) -> Self {
        Self(PathBuf::from("/proc/sys").join(name))
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its value, or `None` where the kernel has no such setting.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> io::Result<Option<String>> {
        match fs::read_to_string(&self.0) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets it, unless it has that value already (so that a read-only `/proc/sys` is no obstacle). Gives the old value.
    ///
    /// # Errors
    /// When it cannot be read or set.
    pub fn set(&self, value: &str) -> io::Result<Option<String>> {
        let old = self.read()?;
        if old.as_deref() != Some(value) {
            fs::write(&self.0, value)?;
        }
        Ok(old)
    }
}
