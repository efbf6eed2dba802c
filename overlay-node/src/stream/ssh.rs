//! A stream through an SSH gateway: the system's `ssh -W` forwards its standard input and output to where we want, without a
//! shell or anything installed on the gateway. Keys, agents, jump hosts and known hosts are the user's own configuration.

use std::{
    io,
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader, Join, ReadBuf},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
};
use tracing::debug;

/// What ssh is told beside the user's configuration: to ask nobody, to notice a dead gateway within half a minute, and to use
/// a connection of its own, so that one stream does not wait for another.
const OPTIONS: [&str; 6] = [
    "BatchMode=yes",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
    "ConnectTimeout=10",
    "ControlMaster=no",
    "ControlPath=none",
];
/// Longer lines of its complaints are cut.
const COMPLAINT_BYTES_MAX: usize = 300;

/// A running `ssh -W`, ended when dropped.
pub(super) struct SshStream {
    stream: Join<ChildStdout, ChildStdin>,
    /// Killed when dropped.
    _child: Child,
    complaint: Complaint,
}

/// The last line that ssh wrote to its standard error.
#[derive(Clone, Default)]
pub(super) struct Complaint(Arc<Mutex<String>>);

impl Complaint {
    /// What it says, with `error` if it says nothing.
    pub(super) fn explain(&self, error: io::Error) -> io::Error {
        let line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if line.is_empty() {
            error
        } else {
            io::Error::new(error.kind(), format!("ssh: {line}"))
        }
    }

    async fn listen(self, stderr: ChildStderr) {
        let mut lines = BufReader::new(stderr).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            let line = String::from_utf8_lossy(&line);
            let line = line.trim();
            debug!(line, "ssh says");
            if !line.is_empty() {
                let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                *last = line.chars().take(COMPLAINT_BYTES_MAX).collect();
            }
        }
    }
}

impl SshStream {
    /// Starts ssh towards `destination`, to be connected from there to `to`, written `host:port`.
    ///
    /// # Errors
    /// When there is no ssh. That it cannot connect shows when the stream ends; [`Self::complaint`] says why.
    pub(super) fn open(destination: &str, to: &str) -> io::Result<Self> {
        let mut command = Command::new("ssh");
        command.args(["-T", "-a", "-x", "-W", to]);
        for option in OPTIONS {
            command.args(["-o", option]);
        }
        let mut child = command
            .args(["--", destination])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => io::Error::new(
                    error.kind(),
                    "there is no ssh here; install it (openssh-client)",
                ),
                _ => error,
            })?;
        let missing = || io::Error::other("ssh has no pipes");
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let complaint = Complaint::default();
        tokio::spawn(complaint.clone().listen(stderr));
        Ok(Self {
            stream: tokio::io::join(stdout, stdin),
            _child: child,
            complaint,
        })
    }

    /// What ssh complains of, now and later.
    pub(super) fn complaint(&self) -> Complaint {
        self.complaint.clone()
    }
}

impl AsyncRead for SshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for SshStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
