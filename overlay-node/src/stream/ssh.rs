//! A stream through an SSH gateway: the system's `ssh -W` forwards its standard input and output to where we want, without a
//! shell or anything installed on the gateway. Keys, agents, jump hosts and known hosts are the user's own configuration.

use std::{
    io,
    pin::Pin,
    process::Stdio,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, BufReader, Join, ReadBuf},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::watch,
    time::timeout,
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
/// Of longer lines of its complaints the beginning counts.
const COMPLAINT_BYTES_MAX: u64 = 300;
/// How long after its stream ended ssh may take to say why: the two come by different pipes. A jump host's ssh may hold the
/// second one open.
const COMPLAINT_WITHIN: Duration = Duration::from_millis(500);

/// A running `ssh -W`, ended when dropped.
pub(super) struct SshStream {
    stream: Join<ChildStdout, ChildStdin>,
    /// Killed when dropped.
    _child: Child,
}

/// The last line that ssh wrote to its standard error; closed when there will be no more.
pub(super) struct Complaint(watch::Receiver<String>);

impl Complaint {
    /// What `stderr` will say.
    fn listen(stderr: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let (last, complaint) = watch::channel(String::new());
        tokio::spawn(async move {
            let (mut stderr, mut line) = (BufReader::new(stderr), Vec::new());
            loop {
                let goes_on = line.last().is_some_and(|byte| *byte != b'\n');
                line.clear();
                let mut piece = (&mut stderr).take(COMPLAINT_BYTES_MAX);
                if !matches!(piece.read_until(b'\n', &mut line).await, Ok(1..)) {
                    return;
                }
                let line = String::from_utf8_lossy(&line);
                let line = line.trim();
                debug!(line, "ssh says");
                if !goes_on && !line.is_empty() {
                    last.send_replace(line.to_owned());
                }
            }
        });
        Self(complaint)
    }

    /// What it says of the end of its stream, with `error` if it says nothing.
    pub(super) async fn explain(mut self, error: io::Error) -> io::Error {
        let all = async { while self.0.changed().await.is_ok() {} };
        let _silent = timeout(COMPLAINT_WITHIN, all).await;
        let line = self.0.borrow();
        if line.is_empty() {
            error
        } else {
            io::Error::new(error.kind(), format!("ssh: {}", *line))
        }
    }
}

impl SshStream {
    /// Starts ssh towards `destination`, to be connected from there to `to`, written `host:port`.
    ///
    /// # Errors
    /// When there is no ssh. That it cannot connect shows when the stream ends; the [`Complaint`] says why.
    pub(super) fn open(destination: &str, to: &str) -> io::Result<(Self, Complaint)> {
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
        let stream = Self {
            stream: tokio::io::join(stdout, stdin),
            _child: child,
        };
        Ok((stream, Complaint::listen(stderr)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    fn ended() -> io::Error {
        io::ErrorKind::UnexpectedEof.into()
    }

    #[tokio::test]
    async fn a_complaint_that_comes_after_the_end_of_the_stream_is_heard() {
        let (mut stderr, heard) = tokio::io::duplex(64);
        let explained = tokio::spawn(Complaint::listen(heard).explain(ended()));
        stderr.write_all(b"Warning: known now\n").await.unwrap();
        tokio::time::sleep(COMPLAINT_WITHIN / 10).await;
        stderr.write_all(b"Permission denied\r\n").await.unwrap();
        drop(stderr);
        let error = explained.await.unwrap();
        assert_eq!(error.to_string(), "ssh: Permission denied");
    }

    #[tokio::test]
    async fn a_complaint_is_not_waited_for_forever() {
        let (mut stderr, heard) = tokio::io::duplex(64);
        let complaint = Complaint::listen(heard);
        stderr.write_all(b"still there\n").await.unwrap();
        let error = complaint.explain(ended()).await;
        assert_eq!(error.to_string(), "ssh: still there");
    }

    #[tokio::test]
    async fn of_a_line_without_an_end_the_beginning_is_heard() {
        let long = tokio::io::repeat(b'x').take(10 * COMPLAINT_BYTES_MAX + 5);
        let error = Complaint::listen(long).explain(ended()).await;
        let beginning = "x".repeat(COMPLAINT_BYTES_MAX as usize);
        assert_eq!(error.to_string(), format!("ssh: {beginning}"));
    }

    #[tokio::test]
    async fn where_ssh_says_nothing_the_stream_has_the_word() {
        let error = Complaint::listen(tokio::io::empty()).explain(ended()).await;
        assert_eq!(error.to_string(), ended().to_string());
    }
}
