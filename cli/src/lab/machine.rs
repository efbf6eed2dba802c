//! One machine of the lab: network, mount, UTS, IPC and process namespaces, and a view of the file system
//! in which what a machine writes is its own. How machines are wired together is the business of
//! [`super::Lab`] and [`super::Site`].

use super::process::{Process, Resident, only_child, residents};
use super::rules::{SILENCE, SILENCE_ENDS};
use super::{Capture, await_word};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a command in a machine may take before it counts as hung.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// How long it may take until every program of a machine stands still.
const SUSPENSION_TIMEOUT: Duration = Duration::from_secs(5);

/// The search path inside: the lab's own programs, then Debian's path for root.
const PATH: &str = "/run/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Directories that every machine has to itself, empty at first. `/run` and `/etc` are its own as well;
/// `/etc` begins as a copy of the real one.
const PRIVATE_DIRECTORIES: &[&str] = &["/root", "/tmp", "/var/tmp", "/var/lib", "/var/log"];

/// Variables of ours that programs inside should see; nothing else passes.
const PASSED_VARIABLES: &[&str] = &[
    "FARLAN_LOG",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "LLVM_PROFILE_FILE",
];

/// The machine's first process: makes its view of the file system, says `up`, and from then on reaps
/// orphans. Arguments: programs to offer inside, `--`, private directories. All that is private sits on one
/// tmpfs, which becomes `/run` before any directory is hidden that may hold a program or the lab itself.
const BOOT_SCRIPT: &str = r#"
set -e
mount -t tmpfs -o mode=755 farlan-lab "$LAB_VIEW"
mkdir -p "$LAB_VIEW/lab/bin" "$LAB_VIEW/lab/own/etc" "$LAB_VIEW/lock"
while [ "$1" != -- ]; do
    : > "$LAB_VIEW/lab/bin/${1##*/}"
    mount --bind "$1" "$LAB_VIEW/lab/bin/${1##*/}"
    shift
done
shift
mount --rbind "$LAB_VIEW" /run

own=/run/lab/own
cp -a /etc/. $own/etc/ 2>/dev/null || :
mount --bind $own/etc /etc
rm -f /etc/hostname /etc/hosts /etc/resolv.conf /etc/machine-id
echo "$LAB_HOST" > /etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost ip6-localhost\n' "$LAB_HOST" > /etc/hosts
: > /etc/resolv.conf
echo "$LAB_MACHINE_ID" > /etc/machine-id
for directory; do
    mkdir -p -m 755 "$own$directory"
    case $directory in
        /tmp | /var/tmp) chmod 1777 "$own$directory" ;;
        /root) chmod 700 "$own$directory" ;;
    esac
    [ ! -d "$directory" ] || mount --bind "$own$directory" "$directory"
done
mkdir -p /var/lib/dhcp /var/lib/misc

hostname "$LAB_HOST"
mount -t sysfs sysfs /sys 2>/dev/null || :
# A bridge here is a plain switch: what it forwards is not for the hooks of IP.
for hook in iptables ip6tables arptables; do
    { echo 0 > /proc/sys/net/bridge/bridge-nf-call-$hook; } 2>/dev/null || :
done
ip link set lo up
echo up
exec >/dev/null 2>&1
sleep infinity &
wait
"#;

/// What every machine of a lab sees besides its own files.
pub(super) struct View<'a> {
    pub(super) tools: &'a [PathBuf],
    pub(super) private_directories: &'a [PathBuf],
}

/// A handle on a machine; clones mean the same machine. The machine ends with its lab.
#[derive(Clone, Debug)]
pub struct Machine {
    name: String,
    init: Pid,
    lab_directory: PathBuf,
}

/// What a command said and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Whether it ended with status 0.
    pub fn is_success(&self) -> bool {
        self.status.success()
    }
}

impl Machine {
    /// Starts a machine inside the process namespace of the lab's init, so that it ends with it.
    pub(super) fn boot(
        name: &str,
        lab_init: Pid,
        lab_directory: &Path,
        view: &View<'_>,
    ) -> Result<(Self, Child)> {
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            || name.is_empty()
            || name.len() > 63
        {
            bail!("{name:?} cannot name a machine: letters, digits and hyphens are allowed");
        }
        let mount_point = lab_directory.join(format!("view-{name}"));
        fs::create_dir(&mount_point).with_context(|| {
            format!(
                "create {} (is there another machine {name}?)",
                mount_point.display()
            )
        })?;
        let errors = File::create(lab_directory.join("logs").join(format!("{name}.boot.log")))?;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", lab_init.as_raw_nonzero()))
            .args([
                "--pid", "--", "unshare", "--fork", "--pid", "--mount", "--uts", "--net", "--ipc",
            ])
            .args([
                "--mount-proc",
                "--propagation",
                "private",
                "--",
                "sh",
                "-c",
                BOOT_SCRIPT,
                "boot",
            ])
            .args(view.tools)
            .arg("--")
            .args(PRIVATE_DIRECTORIES)
            .args(view.private_directories)
            .env("LAB_VIEW", &mount_point)
            .env("LAB_HOST", name)
            .env("LAB_MACHINE_ID", machine_id(lab_directory, name))
            .env("PATH", PATH)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .process_group(0);
        let mut holder = command
            .spawn()
            .context("start a machine with nsenter and unshare")?;
        await_word(&mut holder, "up").with_context(|| {
            let said =
                fs::read_to_string(lab_directory.join("logs").join(format!("{name}.boot.log")));
            format!("boot machine {name}: {}", said.unwrap_or_default().trim())
        })?;
        let unshare = only_child(holder.id())?;
        let init = only_child(unshare.as_raw_nonzero().get().cast_unsigned())?;
        Ok((
            Self {
                name: name.to_owned(),
                init,
                lab_directory: lab_directory.to_owned(),
            },
            holder,
        ))
    }

    /// Its name, which is also its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Host process id of its first process.
    pub fn pid(&self) -> u32 {
        self.init.as_raw_nonzero().get().cast_unsigned()
    }

    /// The shell command by which the user who made the lab enters it.
    pub fn enter_command(&self) -> String {
        let as_root_of_the_lab = if is_in_user_namespace() {
            " -U --preserve-credentials"
        } else {
            ""
        };
        format!(
            "nsenter -t {}{as_root_of_the_lab} -m -u -i -n -p",
            self.pid()
        )
    }

    /// Ends everything in it at once, as a power cut would.
    pub fn power_off(&self) -> Result<()> {
        kill_process(self.init, Signal::KILL).with_context(|| format!("power off {}", self.name))
    }

    /// Puts the machine to sleep: its programs stand still, and what is sent to it is lost. Unlike on a laptop whose lid was
    /// closed, the monotonic clock goes on.
    pub fn suspend(&self) -> Result<()> {
        self.nft(SILENCE)?;
        // Whoever was just being born is met by the next look.
        let deadline = Instant::now() + SUSPENSION_TIMEOUT;
        loop {
            let awake: Vec<_> = self.residents().filter(|one| !one.is_stopped).collect();
            if awake.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{}: {} programs do not stand still",
                self.name,
                awake.len()
            );
            for one in awake {
                let _gone = kill_process(one.pid, Signal::STOP);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Wakes it from [`Machine::suspend`].
    pub fn resume(&self) -> Result<()> {
        self.nft(SILENCE_ENDS)?;
        for one in self.residents() {
            let _gone = kill_process(one.pid, Signal::CONT);
            // Whoever started it from outside stood still with it (nsenter does).
            if let Some(starter) = one.starter {
                let _gone = kill_process(starter, Signal::CONT);
            }
        }
        Ok(())
    }

    /// The programs that run inside, but for the first process.
    fn residents(&self) -> impl Iterator<Item = Resident> {
        residents(self.init)
    }

    /// `program`, to be run inside with the machine's own environment and no input.
    pub fn command(&self, program: &str) -> Command {
        self.command_in(None, program)
    }

    /// As [`Machine::command`], begun in a directory of the real file system; else in the machine's root.
    fn command_in(&self, directory: Option<&Path>, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.init.as_raw_nonzero()))
            .args(["--mount", "--uts", "--ipc", "--net", "--pid"])
            .args(directory.map(|directory| format!("--wd={}", directory.display())))
            .args(["--", program])
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("USER", "root")
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null())
            .process_group(0);
        for name in PASSED_VARIABLES {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    /// Runs a command to its end and returns what it said, whether or not it succeeded.
    pub fn try_run(&self, argv: &[&str]) -> Result<Output> {
        self.try_run_for(COMMAND_TIMEOUT, argv)
    }

    /// As [`Machine::try_run`], with a time limit of the caller's.
    pub fn try_run_for(&self, limit: Duration, argv: &[&str]) -> Result<Output> {
        let output = self
            .command("timeout")
            .args(["-k", "2", &format!("{}", limit.as_secs_f64())])
            .args(argv)
            .output()
            .with_context(|| format!("run {} in {}", argv.join(" "), self.name))?;
        if output.status.code() == Some(124) {
            bail!(
                "{}: {} took more than {} s",
                self.name,
                argv.join(" "),
                limit.as_secs()
            );
        }
        Ok(Output {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a command that has to succeed and returns its standard output.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        self.run_for(COMMAND_TIMEOUT, argv)
    }

    /// As [`Machine::run`], with a time limit of the caller's.
    pub fn run_for(&self, limit: Duration, argv: &[&str]) -> Result<String> {
        let output = self.try_run_for(limit, argv)?;
        if !output.is_success() {
            bail!(
                "{}: {} failed ({})\n{}{}",
                self.name,
                argv.join(" "),
                output.status,
                output.stdout,
                output.stderr
            );
        }
        Ok(output.stdout)
    }

    /// Runs a shell script that has to succeed.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.run(&["sh", "-ec", script])
    }

    /// Starts a program that goes on running. Its output goes to a log named after `label`.
    pub fn spawn(&self, label: &str, argv: &[&str]) -> Result<Process> {
        self.spawn_in(None, label, argv)
    }

    /// As [`Machine::spawn`], begun in a directory of the real file system, which the program reaches by
    /// relative paths: a way to hand a machine a file too large for its memory.
    pub fn spawn_at(&self, label: &str, directory: &Path, argv: &[&str]) -> Result<Process> {
        self.spawn_in(Some(directory), label, argv)
    }

    fn spawn_in(&self, directory: Option<&Path>, label: &str, argv: &[&str]) -> Result<Process> {
        let (program, arguments) = argv.split_first().context("a program to start")?;
        let mut command = self.command_in(directory, program);
        command.args(arguments);
        let log = self
            .lab_directory
            .join("logs")
            .join(format!("{}.{label}.log", self.name));
        Process::start(command, &format!("{label} on {}", self.name), log)
    }

    /// Gives `ip` several lines at once, as `ip -batch` reads them.
    pub fn ip(&self, lines: &[&str]) -> Result<()> {
        // Only the network namespace is entered: `netns PID` in a line then means a process of the host.
        let mut child = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.pid()))
            .args(["ip", "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ip")?;
        let text = lines.join("\n") + "\n";
        child
            .stdin
            .take()
            .context("ip has an input")?
            .write_all(text.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "{}: ip refused\n{text}{}",
                self.name,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// Loads an nftables ruleset.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        let mut child = self
            .command("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start nft")?;
        child
            .stdin
            .take()
            .context("nft has an input")?
            .write_all(ruleset.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "{}: nft refused\n{ruleset}{}",
                self.name,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// Makes a bridge of the given interfaces.
    pub fn bridge(&self, name: &str, members: &[&str]) -> Result<()> {
        self.ip(&[
            &format!("link add {name} type bridge mcast_snooping 0"),
            &format!("link set {name} up"),
        ])?;
        // Named, its Ethernet address stays, as a router's does; else it would be the lowest of its ports'.
        let address = self.read_file(&format!("/sys/class/net/{name}/address"))?;
        let address = String::from_utf8_lossy(&address);
        let mut lines = vec![format!("link set {name} address {}", address.trim())];
        lines.extend(
            members
                .iter()
                .map(|member| format!("link set {member} master {name} up")),
        );
        self.ip(&lines.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Sets a value below `/proc/sys`, named as there: `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(&["sh", "-ec", &format!("echo {value} > /proc/sys/{key}")])
            .map(drop)
    }

    /// Makes it a router.
    pub fn forward_packets(&self) -> Result<()> {
        self.sysctl("net/ipv4/ip_forward", "1")
    }

    /// IPv6 addresses of interfaces that are made from now on can be used at once: nobody has another's here. Else a router
    /// waits a second or two for objections to its own (RFC 4862 §5.4), and asks for nobody else's meanwhile.
    pub(super) fn trust_addresses(&self) -> Result<()> {
        let all = "cd /proc/sys/net/ipv6/conf || exit 0
             for which in all default; do echo 0 > $which/accept_dad; done";
        self.sh(all).map(drop)
    }

    /// Writes a file inside, its directories included.
    pub fn write_file(&self, path: &str, contents: impl AsRef<[u8]>) -> Result<()> {
        let outside = self.outside_path(path);
        if let Some(parent) = outside.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&outside, contents).with_context(|| format!("write {path} in {}", self.name))
    }

    /// Reads a file inside.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        fs::read(self.outside_path(path)).with_context(|| format!("read {path} in {}", self.name))
    }

    /// The path by which the host sees a path of the machine.
    pub fn outside_path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid()))
    }

    /// Runs `act` on a thread whose sockets belong to this machine; sockets it returns stay there.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid()))?;
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                    act()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A UDP socket of this machine.
    pub fn udp_socket(&self, local: impl Into<SocketAddr>) -> io::Result<UdpSocket> {
        let local = local.into();
        self.within(move || UdpSocket::bind(local))
    }

    /// A listening TCP socket of this machine.
    pub fn tcp_listener(&self, local: impl Into<SocketAddr>) -> io::Result<TcpListener> {
        let local = local.into();
        self.within(move || TcpListener::bind(local))
    }

    /// A TCP connection that begins at this machine.
    pub fn tcp_connect(
        &self,
        remote: impl Into<SocketAddr>,
        limit: Duration,
    ) -> io::Result<TcpStream> {
        let remote = remote.into();
        self.within(move || TcpStream::connect_timeout(&remote, limit))
    }

    /// Records what crosses an interface and matches a pcap filter, the first `snap` bytes of each frame.
    pub fn capture(&self, interface: &str, filter: &str, snap: u32) -> Result<Capture> {
        Capture::start(self, interface, filter, snap)
    }
}

/// Whether ids here are others than the machine's own (user_namespaces(7)).
fn is_in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().ne(["0", "0", "4294967295"])
}

/// 32 hexadecimal digits, different for every machine of every lab: what `/etc/machine-id` holds.
fn machine_id(lab_directory: &Path, name: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, lab_directory, name, std::time::SystemTime::now()).hash(&mut hasher);
        hasher.finish()
    };
    format!("{:016x}{:016x}", half(0), half(1))
}
