//! The Unix socket that the API is served on: only its owner reaches it, and a dead node's socket is in nobody's way.

use super::{NodeApi, NodeControl, routes};
use axum::Router;
use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// How long questions under way may take to be answered once the node stops.
const GRACE: Duration = Duration::from_secs(1);

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ApiStartError {
    /// Somebody answers there.
    #[error(
        "another node answers at {0}; stop it with `farlan --socket {0} down`, or give this one its own with --socket PATH"
    )]
    InUse(PathBuf),
    /// Something that is no socket has the name.
    #[error("{0} is there and is not a socket; remove it, or give another path with --socket PATH")]
    NotASocket(PathBuf),
    /// Anything else.
    #[error(
        "cannot listen at {path}: {source}; check that its directory exists and is writable, or give --socket PATH"
    )]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A bound socket; dropping it removes the file.
#[derive(Debug)]
pub struct ApiServer {
    listener: UnixListener,
    file: SocketFile,
}

/// Removes the socket, unless another has taken its name.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl ApiServer {
    /// Binds `path` with mode 0600, replacing a socket that nobody answers at.
    ///
    /// # Errors
    /// [`ApiStartError`] when somebody does, or when the path cannot be bound.
    pub async fn bind(path: &Path) -> Result<Self, ApiStartError> {
        clear_stale(path).await?;
        let failed = |source| ApiStartError::Io {
            path: path.to_owned(),
            source,
        };
        // Closed to others before it gets its name: between bind and chmod under the real name anybody could connect.
        let unnamed = path.with_extension(format!("{}", std::process::id()));
        let _ = fs::remove_file(&unnamed);
        let listener = UnixListener::bind(&unnamed).map_err(failed)?;
        let named = fs::set_permissions(&unnamed, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&unnamed, path))
            .and_then(|()| fs::symlink_metadata(path));
        match named {
            Ok(meta) => Ok(Self {
                listener,
                file: SocketFile {
                    path: path.to_owned(),
                    inode: meta.ino(),
                },
            }),
            Err(source) => {
                let _ = fs::remove_file(&unnamed);
                Err(failed(source))
            }
        }
    }

    /// Answers a member's questions until `stop`.
    pub async fn serve<A: NodeApi>(self, api: Arc<A>, stop: CancellationToken) {
        self.run(routes::member(api), stop).await;
    }

    /// Answers an infrastructure node's questions until `stop`.
    pub async fn serve_fabric<A: NodeControl>(self, api: Arc<A>, stop: CancellationToken) {
        self.run(routes::fabric(api), stop).await;
    }

    async fn run(self, router: Router, stop: CancellationToken) {
        let Self { listener, file } = self;
        let served =
            axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
        let grace = async {
            stop.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            result = served => if let Err(error) = result {
                tracing::error!(%error, "the local API ended");
            },
            () = grace => {}
        }
        drop(file);
    }
}

async fn clear_stale(path: &Path) -> Result<(), ApiStartError> {
    let failed = |source| ApiStartError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ApiStartError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(ApiStartError::InUse(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("farlan.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap()); // leaves its file behind, as a crash does

        let server = ApiServer::bind(&path).await.unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(matches!(
            ApiServer::bind(&path).await,
            Err(ApiStartError::InUse(_))
        ));

        drop(server);
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_file_of_somebody_else_is_left_alone() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("precious");
        fs::write(&path, "x").unwrap();
        assert!(matches!(
            ApiServer::bind(&path).await,
            Err(ApiStartError::NotASocket(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }
}
