//! One host over the system's OpenSSH: one connection, many commands. What to do there is [`super::plan`]'s.

use super::{
    hosts::Host,
    plan::{BINARY, Facts, Goal, Step, UNIT_PATH, unit},
};
use crate::{args::Apply, output::explain};
use anyhow::{Context, bail, ensure};
use overlay_types::{
    Name,
    api::{NetworkStatus, Status},
};
use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::Instant,
};

/// How long ssh may take to connect and log in.
const CONNECT_SECONDS: u32 = 20;
/// How long an address may take once the node has joined.
const VERIFY_PATIENCE: Duration = Duration::from_secs(60);
const VERIFY_EVERY: Duration = Duration::from_millis(500);
/// ssh's own exit status for trouble that is not the remote command's.
const SSH_FAILED: i32 = 255;
/// More than any answer of ours; what a broken host prints beyond it is not read.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;

/// How to reach every host.
#[derive(Clone, Debug)]
pub(crate) struct Ssh {
    options: Vec<String>,
    control_dir: PathBuf,
}

impl Ssh {
    /// `control_dir` is private and short: the control sockets' paths go into `sun_path`.
    pub(crate) fn new(flags: &Apply, control_dir: &Path) -> Self {
        let mut options = vec![
            "-oBatchMode=yes".to_owned(),
            format!("-oConnectTimeout={CONNECT_SECONDS}"),
            "-oServerAliveInterval=10".into(),
        ];
        if let Some(file) = &flags.identity {
            options.extend([
                format!("-oIdentityFile={}", file.display()),
                "-oIdentitiesOnly=yes".into(),
            ]);
        }
        if let Some(file) = &flags.known_hosts {
            options.push(format!("-oUserKnownHostsFile={}", file.display()));
            options.extend([
                "-oGlobalKnownHostsFile=none".into(),
                "-oStrictHostKeyChecking=accept-new".into(),
            ]);
        }
        options.extend(flags.ssh_options.iter().map(|option| format!("-o{option}")));
        Self {
            options,
            control_dir: control_dir.to_owned(),
        }
    }

    fn command(&self, host: &Host) -> Command {
        let mut command = Command::new("ssh");
        command.args(&self.options).kill_on_drop(true);
        if let Some(port) = host.port {
            command.arg(format!("-p{port}"));
        }
        command
    }

    /// Logs in. The connection is a child of this process and ends with it.
    pub(crate) async fn connect(&self, host: &Host, number: usize) -> anyhow::Result<Session> {
        let control = self.control_dir.join(number.to_string());
        let mut master = self
            .command(host)
            .args(["-oControlMaster=yes", "-oControlPersist=no", "-N", "-S"])
            .arg(&control)
            .args(["--", &host.destination])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run ssh; install OpenSSH's client")?;
        while !control.exists() {
            if let Some(status) = master.try_wait()? {
                let mut why = String::new();
                if let Some(stderr) = master.stderr.take() {
                    stderr
                        .take(OUTPUT_BYTES_MAX)
                        .read_to_string(&mut why)
                        .await?;
                }
                bail!(
                    "ssh cannot log in: {}",
                    last_line(&why).unwrap_or(&status.to_string())
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut command = self.command(host);
        command
            .args(["-oControlMaster=no", "-S"])
            .arg(&control)
            .args(["--", &host.destination]);
        Ok(Session {
            _master: master,
            command: command.as_std().get_args().map(Into::into).collect(),
            prefix: "",
        })
    }
}

/// A logged-in host.
#[derive(Debug)]
pub(crate) struct Session {
    _master: Child,
    command: Vec<std::ffi::OsString>,
    /// `sudo -n ` where the login is not root's.
    prefix: &'static str,
}

/// What a step brought to light.
#[derive(Debug)]
pub(crate) enum Done {
    /// It was done.
    Yes,
    /// The invite was used, or the node was in already.
    Joined(Box<NetworkStatus>),
    /// The network is ready there.
    Ready(Box<Status>, Box<NetworkStatus>),
}

impl Session {
    /// Looks at the host without changing it.
    pub(crate) async fn probe(&mut self, goal: &Goal) -> anyhow::Result<Facts> {
        let binary = goal.dir.join(BINARY);
        let script = format!(
            r#"echo "arch $(uname -m)"
sudo=
if [ "$(id -u)" = 0 ]; then echo root yes; elif sudo -n true 2>/dev/null; then echo sudo yes; sudo="sudo -n"; fi
[ -d /run/systemd/system ] && echo systemd yes
[ -c /dev/net/tun ] && echo tun yes
[ -f {binary} ] && echo "binary $(sha256sum < {binary} | cut -d' ' -f1)"
[ -f {UNIT_PATH} ] && echo "unit $(sha256sum < {UNIT_PATH} | cut -d' ' -f1)"
[ -x {binary} ] && echo "status $($sudo {farlan} status --json 2>/dev/null | tr -d '\n')"
exit 0
"#,
            binary = quote(&binary),
            farlan = farlan(goal),
        );
        let output = self
            .run("sh", script.into_bytes())
            .await
            .context("cannot look at the host")?;
        let facts = read_facts(&output);
        if !facts.root {
            self.prefix = "sudo -n ";
        }
        Ok(facts)
    }

    /// Does one step.
    pub(crate) async fn perform(&self, step: Step, job: &Job<'_>) -> anyhow::Result<Done> {
        let (goal, prefix) = (job.goal, self.prefix);
        match step {
            Step::PushBinary => {
                self.put(job.binary.clone(), &goal.dir.join(BINARY), "0755")
                    .await
                    .context("cannot push the binary")?;
                let version = format!("{} --version", quote(&goal.dir.join(BINARY)));
                self.run(&version, Vec::new())
                    .await
                    .context("the binary does not run there; build it for that system (static, with musl) and give it with --binary FILE")?;
            }
            Step::InstallUnit => {
                self.put(unit(goal).into_bytes(), Path::new(UNIT_PATH), "0644")
                    .await
                    .context("cannot install the unit")?;
                self.run(&format!("{prefix}systemctl daemon-reload"), Vec::new())
                    .await?;
            }
            Step::Stop => {
                self.run(&format!("{prefix}{} down", farlan(goal)), Vec::new())
                    .await
                    .context("cannot stop the old node")?;
            }
            Step::StartService => {
                let start = format!(
                    "{prefix}systemctl enable farlan.service && {prefix}systemctl restart farlan.service"
                );
                self.run(&start, Vec::new())
                    .await
                    .context("the node does not start; see `journalctl -u farlan` there")?;
            }
            Step::StartDetached => {
                let start = format!("{prefix}{} up --detach", farlan(goal));
                self.run(&start, Vec::new())
                    .await
                    .context("the node does not start")?;
            }
            Step::Join => {
                let mut join = format!("{prefix}{} network join - --json", farlan(goal));
                for (flag, value) in [("--name", job.name.map(Name::as_str)), ("--tap", job.tap)] {
                    if let Some(value) = value {
                        join.push_str(&format!(" {flag} {value}"));
                    }
                }
                // On standard input, so that the host's process list does not show it.
                let answer = self.run(&join, job.invite.as_bytes().to_vec()).await?;
                return Ok(Done::Joined(Box::new(
                    serde_json::from_str(&answer).context("the node's answer is not understood")?,
                )));
            }
            Step::Verify => return self.verify(job).await,
        }
        Ok(Done::Yes)
    }

    async fn verify(&self, job: &Job<'_>) -> anyhow::Result<Done> {
        let began = Instant::now();
        loop {
            let answer = self
                .run(
                    &format!("{}{} status --json", self.prefix, farlan(job.goal)),
                    Vec::new(),
                )
                .await;
            let state = match answer.and_then(|text| Ok(serde_json::from_str::<Status>(&text)?)) {
                Ok(mut status) => {
                    let found = status
                        .networks
                        .iter()
                        .position(|n| Some(n.id) == job.goal.network);
                    match found.map(|index| status.networks.swap_remove(index)) {
                        Some(network) if network.state == "ready" => {
                            return Ok(Done::Ready(Box::new(status), Box::new(network)));
                        }
                        Some(network) => network.state,
                        None => "it is not in the network".into(),
                    }
                }
                Err(error) => explain(&error),
            };
            ensure!(
                began.elapsed() < VERIFY_PATIENCE,
                "the node has no address after {} s: {state}",
                VERIFY_PATIENCE.as_secs()
            );
            tokio::time::sleep(VERIFY_EVERY).await;
        }
    }

    /// Writes a file beside its name and renames it, so that a cut connection never leaves half a binary to be run.
    async fn put(&self, bytes: Vec<u8>, path: &Path, mode: &str) -> anyhow::Result<()> {
        let dir = quote(path.parent().unwrap_or(Path::new("/")));
        let (path, temporary) = (
            quote(path),
            quote(&path.with_extension(format!("new.{}", std::process::id()))),
        );
        let script = format!(
            "mkdir -p {dir} && trap \"rm -f {temporary}\" EXIT && cat > {temporary} && chmod {mode} {temporary} && mv {temporary} {path}"
        );
        let command = if self.prefix.is_empty() {
            script
        } else {
            format!("{}sh -c '{script}'", self.prefix)
        };
        self.run(&command, bytes).await.map(drop)
    }

    /// Runs a shell command there with `input`, and returns what it printed.
    async fn run(&self, command: &str, input: Vec<u8>) -> anyhow::Result<String> {
        let mut child = Command::new("ssh")
            .args(&self.command)
            .arg(command)
            .kill_on_drop(true)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run ssh")?;
        let mut stdin = child.stdin.take().context("ssh has no input")?;
        let feed = async move {
            // A command that ends early closes its input; its exit status says why.
            let _ = stdin.write_all(&input).await;
        };
        let (out, err) = (
            child.stdout.take().context("ssh has no output")?,
            child.stderr.take().context("ssh has no output")?,
        );
        let (mut output, mut errors) = (String::new(), String::new());
        let (mut out, mut err) = (out.take(OUTPUT_BYTES_MAX), err.take(OUTPUT_BYTES_MAX));
        let ((), read, _) = tokio::join!(
            feed,
            out.read_to_string(&mut output),
            err.read_to_string(&mut errors)
        );
        read.context("the host's answer is not text")?;
        let status = child.wait().await?;
        if status.success() {
            return Ok(output);
        }
        let why = last_line(&errors)
            .or(last_line(&output))
            .unwrap_or("no reason given");
        match status.code() {
            Some(SSH_FAILED) => bail!("the connection broke: {why}"),
            _ => bail!("{}", why.trim_start_matches("farlan: ")),
        }
    }
}

/// What every step on a host needs to know.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) goal: &'a Goal,
    pub(crate) binary: Vec<u8>,
    pub(crate) invite: &'a str,
    pub(crate) name: Option<&'a Name>,
    pub(crate) tap: Option<&'a str>,
}

/// The remote command up to its own name: the binary and which node is meant.
fn farlan(goal: &Goal) -> String {
    let binary = quote(&goal.dir.join(BINARY));
    match &goal.state {
        Some(state) => format!("{binary} --state {}", quote(state)),
        None => binary,
    }
}

/// One word to a shell. Paths from a hosts file are plain already; those from flags may not be. Double quotes, because
/// the whole may stand in single ones for sudo.
fn quote(path: &Path) -> String {
    let mut quoted = String::from("\"");
    for c in path.display().to_string().chars() {
        if matches!(c, '"' | '$' | '`' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted + "\""
}

fn last_line(text: &str) -> Option<&str> {
    text.lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty())
}

/// Reads the probe's answer; lines it does not know (a login banner) are skipped.
fn read_facts(output: &str) -> Facts {
    let mut facts = Facts::default();
    for (key, value) in output.lines().filter_map(|line| line.split_once(' ')) {
        match key {
            "arch" => facts.arch = value.into(),
            "root" => facts.root = true,
            "sudo" => facts.sudo = true,
            "systemd" => facts.systemd = true,
            "tun" => facts.tun = true,
            "binary" => facts.binary = Some(value.into()),
            "unit" => facts.unit = Some(value.into()),
            "status" => facts.status = serde_json::from_str(value).ok(),
            _ => {}
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_to_the_shell() {
        assert_eq!(quote(Path::new("/a b/$x\"`")), r#""/a b/\$x\"\`""#);
    }

    #[test]
    fn the_probe_s_answer_is_read_and_banners_are_not() {
        let facts =
            read_facts("Welcome to arch!\narch x86_64\nroot yes\ntun yes\nbinary abc\nstatus \n");
        let expected = Facts {
            arch: "x86_64".into(),
            root: true,
            tun: true,
            binary: Some("abc".into()),
            ..Facts::default()
        };
        assert_eq!(facts, expected);
    }
}
