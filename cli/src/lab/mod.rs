//! A laboratory on one machine: an "internet", public hosts, and sites behind NAT routers, each machine
//! of it in namespaces of its own. It knows nothing of Farlan; the demo and the real-kernel tests run on it.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use cli::lab::{Lab, Nat};
//! let lab = Lab::start("example")?;
//! let server = lab.public_host("server")?;
//! let home = lab.site("home", Nat::PortRestricted)?;
//! let laptop = home.host("laptop")?;
//! laptop.run(&["ping", "-c1", &server.address().to_string()])?;
//! # Ok(()) }
//! ```
//!
//! Nothing of a lab has a name outside it: namespaces are anonymous and hang off one process, the lab's
//! init, which ends when the program that made the lab is gone, however it went. The kernel then ends
//! every process inside and removes every interface. Only a directory of logs can be left behind by a
//! crash; the next lab to start removes it.

mod capture;
mod machine;
mod nat;
mod privilege;
mod process;
mod requirements;
mod rules;
mod site;
mod uplink;

pub use capture::{Capture, CapturedFrame, UdpView};
pub use machine::{Machine, Output};
pub use nat::{HTTP_PROXY_PORT, Nat, Outbound};
pub use privilege::Privilege;
pub use process::Process;
pub use requirements::{LAB_TOOLS, MissingTools, Tool, require};
pub use site::{Site, SiteOptions};
pub use uplink::{Host, Stack, Uplink};

use anyhow::{Context, Result, bail};
use machine::View;
use rustix::process::{Pid, Signal, kill_process};
use std::cell::{Cell, RefCell};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use uplink::Leg;

/// The bridge that is the internet, in the internet's namespace.
pub const INTERNET_BRIDGE: &str = "internet";

/// Public hosts and the outside of routers live in 198.18.0.0/15, set aside by RFC 2544 for test networks.
const INTERNET_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// Where there is IPv6, public hosts and the outside of routers live in 2001:db8::/64, and the LANs behind them in
/// 2001:db8:1:N::/64: documentation addresses (RFC 3849), which Farlan takes for public ones.
const INTERNET_ADDRESS6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Every lab directory begins with this, under the system's directory for temporary files.
const DIRECTORY_PREFIX: &str = "farlan-lab-";

/// A running laboratory; dropping it ends every process inside and removes every trace.
pub struct Lab {
    name: String,
    directory: PathBuf,
    /// `unshare`, whose only child is the lab's init.
    holder: Child,
    /// Host process id of the lab's init.
    init: Pid,
    internet: RefCell<Option<Machine>>,
    tools: Vec<PathBuf>,
    private_directories: Vec<PathBuf>,
    public_hosts: Cell<u8>,
    sites: Cell<u8>,
    has_ipv6: Cell<bool>,
    machines: RefCell<Vec<(Machine, Child)>>,
    kept: Cell<bool>,
}

/// The first process of the lab. It reaps orphans, ends when its input does (its maker is gone), and
/// outlives its maker only when told `keep`; then SIGTERM makes it tidy up.
const INIT_SCRIPT: &str = r#"
trap 'rm -rf -- "$LAB_DIRECTORY"; exit 0' TERM
exec 3<&0 </dev/null
{ read -r word <&3; [ "$word" = keep ] && exec sleep infinity; } &
echo up
wait $!
"#;

impl Lab {
    /// Starts a lab with its internet; `name` appears in its directory's name.
    pub fn start(name: &str) -> Result<Self> {
        Self::start_with(name, &[], &[])
    }

    /// Starts a lab in whose machines `programs` can be called by their file names, and in which each
    /// machine has `private` directories of its own besides the usual ones (see [`Machine`]).
    pub fn start_with(name: &str, programs: &[&Path], private: &[&Path]) -> Result<Self> {
        require(LAB_TOOLS)?;
        Privilege::detect().assure()?;
        remove_stale();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let serial = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!(
            "{DIRECTORY_PREFIX}{name}-{}-{serial}",
            std::process::id()
        ));
        fs::create_dir(&directory)
            .with_context(|| format!("create the lab's directory {}", directory.display()))?;
        fs::create_dir(directory.join("logs"))?;
        let me = Pid::from_raw(std::process::id().cast_signed()).context("our own process id")?;
        fs::write(directory.join("owner"), ProcessIdentity::of(me).to_string())?;

        let mut holder = Command::new("unshare")
            .args(["--fork", "--pid", "--", "sh", "-c", INIT_SCRIPT])
            .env("LAB_DIRECTORY", &directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(directory.join("logs/init.log"))?)
            .current_dir("/")
            .process_group(0)
            .spawn()
            .context("start the lab's init with unshare")?;
        await_word(&mut holder, "up").with_context(|| {
            let said = fs::read_to_string(directory.join("logs/init.log")).unwrap_or_default();
            format!("make a process namespace with unshare: {}", said.trim())
        })?;
        let init = process::only_child(holder.id())?;
        fs::write(
            directory.join("init"),
            ProcessIdentity::of(init).to_string(),
        )?;

        let lab = Self {
            name: name.to_owned(),
            directory,
            holder,
            init,
            internet: RefCell::new(None),
            tools: programs.iter().map(|p| p.to_path_buf()).collect(),
            private_directories: private.iter().map(|p| p.to_path_buf()).collect(),
            public_hosts: Cell::new(0),
            sites: Cell::new(0),
            has_ipv6: Cell::new(false),
            machines: RefCell::new(Vec::new()),
            kept: Cell::new(false),
        };
        let internet = lab.machine("internet")?;
        internet.trust_addresses()?;
        // Its Ethernet address stays whoever is plugged in: hosts that have asked for it do not ask again for half a minute.
        internet.bridge(INTERNET_BRIDGE, &[])?;
        internet.ip(&[&format!(
            "addr add {INTERNET_ADDRESS}/16 dev {INTERNET_BRIDGE}"
        )])?;
        internet.forward_packets()?;
        *lab.internet.borrow_mut() = Some(internet);
        Ok(lab)
    }

    /// The name given at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where logs are, one file per process; removed with the lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Host process id of the lab's init: ending it ends the lab.
    pub fn init(&self) -> u32 {
        self.init.as_raw_nonzero().get().cast_unsigned()
    }

    /// The internet's own machine: a bridge called [`INTERNET_BRIDGE`] and nothing else.
    pub fn internet(&self) -> Machine {
        self.internet
            .borrow()
            .clone()
            .expect("set when the lab started")
    }

    /// Every machine, in the order in which they were made.
    pub fn machines(&self) -> Vec<Machine> {
        self.machines
            .borrow()
            .iter()
            .map(|(machine, _)| machine.clone())
            .collect()
    }

    /// A machine with a loopback interface and nothing else; see [`Lab::cable`].
    pub fn machine(&self, name: &str) -> Result<Machine> {
        let view = View {
            tools: &self.tools,
            private_directories: &self.private_directories,
        };
        let (machine, holder) = Machine::boot(name, self.init, &self.directory, &view)?;
        self.machines.borrow_mut().push((machine.clone(), holder));
        Ok(machine)
    }

    /// Joins two machines by a cable, interface to interface. Both ends are up.
    pub fn cable(&self, a: &Machine, a_end: &str, b: &Machine, b_end: &str) -> Result<()> {
        let (a_end, b_end) = (interface_name(a_end)?, interface_name(b_end)?);
        a.ip(&[
            &format!(
                "link add {a_end} type veth peer name {b_end} netns {}",
                b.pid()
            ),
            &format!("link set {a_end} up"),
        ])?;
        b.ip(&[&format!("link set {b_end} up")])
    }

    /// A host with a public IPv4 address on `eth0`.
    pub fn public_host(&self, name: &str) -> Result<Host> {
        self.public_host_with(name, Stack::Ipv4)
    }

    /// A host with public addresses of these IP versions on `eth0`.
    pub fn public_host_with(&self, name: &str, stack: Stack) -> Result<Host> {
        let index = next(&self.public_hosts, "public hosts")?;
        let machine = self.machine_with(name, stack)?;
        self.plug_into_internet(&machine, "eth0", &format!("p{index}"))?;
        let last = 9 + index;
        let v4 = Leg {
            address: Ipv4Addr::new(198, 18, 0, last),
            prefix_len: 16,
            gateway: INTERNET_ADDRESS,
        };
        let v6 = Leg {
            address: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()),
            prefix_len: 64,
            gateway: INTERNET_ADDRESS6,
        };
        let uplink = Uplink::new(
            &machine,
            "eth0",
            stack.has_ipv4().then_some(v4),
            stack.has_ipv6().then_some(v6),
        );
        uplink.up()?;
        Ok(Host::new(machine, uplink))
    }

    /// A site of its own private network behind a router that does `nat`.
    pub fn site(&self, name: &str, nat: Nat) -> Result<Site<'_>> {
        self.site_with(name, nat, SiteOptions::default())
    }

    /// A site with other than the usual options.
    pub fn site_with(&self, name: &str, nat: Nat, options: SiteOptions) -> Result<Site<'_>> {
        Site::build(self, name, nat, options, None)
    }

    /// A machine whose interfaces will have these IP versions.
    fn machine_with(&self, name: &str, stack: Stack) -> Result<Machine> {
        let machine = self.machine(name)?;
        if stack.has_ipv6() {
            self.assure_ipv6()?;
            machine.trust_addresses()?;
        }
        Ok(machine)
    }

    /// Plugs an interface of `machine` into the internet.
    fn plug_into_internet(&self, machine: &Machine, inside: &str, outside: &str) -> Result<()> {
        let internet = self.internet();
        self.cable(machine, inside, &internet, outside)?;
        internet.ip(&[&format!("link set {outside} master {INTERNET_BRIDGE}")])
    }

    /// Gives the internet IPv6, when somebody first asks for it: not every kernel has it.
    fn assure_ipv6(&self) -> Result<()> {
        if self.has_ipv6.replace(true) {
            return Ok(());
        }
        let internet = self.internet();
        internet.ip(&[&format!(
            "addr add {INTERNET_ADDRESS6}/64 dev {INTERNET_BRIDGE} nodad"
        )])?;
        internet.sysctl("net/ipv6/conf/all/forwarding", "1")
    }

    /// Lets the lab outlive this program; [`Lab::init`] is what to end then.
    pub fn keep(&mut self) -> Result<()> {
        let input = self
            .holder
            .stdin
            .as_mut()
            .context("the lab's init has no input")?;
        input
            .write_all(b"keep\n")
            .context("tell the lab's init to stay")?;
        fs::write(self.directory.join("kept"), "")?;
        self.kept.set(true);
        Ok(())
    }

    /// What a signal handler needs to take the lab down from another thread.
    pub fn emergency_stop(&self) -> EmergencyStop {
        EmergencyStop {
            init: self.init,
            directory: self.directory.clone(),
        }
    }

    /// The last lines of every log, for a report of what went wrong.
    pub fn log_tails(&self, lines: usize) -> String {
        let mut out = String::new();
        let mut paths: Vec<PathBuf> = fs::read_dir(self.directory.join("logs"))
            .map(|entries| entries.flatten().map(|e| e.path()).collect())
            .unwrap_or_default();
        paths.sort();
        for path in paths {
            let bytes = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            if all.is_empty() {
                continue;
            }
            out.push_str(&format!(
                "==> {}\n",
                path.file_name().unwrap_or_default().to_string_lossy()
            ));
            for line in &all[all.len().saturating_sub(lines)..] {
                out.push_str(line);
                out.push('\n');
            }
        }
        out
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.kept.get() {
            return;
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log_tails(30));
        }
        self.emergency_stop().stop();
        for (_, holder) in self.machines.get_mut() {
            let _ = holder.wait();
        }
        let _ = self.holder.wait();
    }
}

/// Takes a lab down from anywhere, without the [`Lab`] at hand.
#[derive(Clone, Debug)]
pub struct EmergencyStop {
    init: Pid,
    directory: PathBuf,
}

impl EmergencyStop {
    /// Ends the lab's init, and with it every process of the lab, and removes the lab's directory.
    pub fn stop(&self) {
        let _ = kill_process(self.init, Signal::KILL);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A lab that was told to outlive its maker and still runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptLab {
    /// Its directory.
    pub directory: PathBuf,
    /// What to end to take it down.
    pub init: u32,
}

/// The labs that earlier runs were told to leave up.
pub fn kept_labs() -> Vec<KeptLab> {
    lab_directories()
        .into_iter()
        .filter(|directory| directory.join("kept").exists())
        .filter_map(|directory| {
            let init =
                ProcessIdentity::read(&directory.join("init")).filter(ProcessIdentity::is_alive)?;
            Some(KeptLab {
                directory,
                init: init.pid.as_raw_nonzero().get().cast_unsigned(),
            })
        })
        .collect()
}

/// Removes what labs left behind whose maker is gone, and that were not meant to stay.
fn remove_stale() {
    for directory in lab_directories() {
        // A directory without an owner file may be one that is being made right now.
        let Some(owner) = ProcessIdentity::read(&directory.join("owner")) else {
            continue;
        };
        let init = ProcessIdentity::read(&directory.join("init")).filter(ProcessIdentity::is_alive);
        if owner.is_alive() || (init.is_some() && directory.join("kept").exists()) {
            continue;
        }
        if let Some(init) = init {
            let _ = kill_process(init.pid, Signal::KILL);
        }
        let _ = fs::remove_dir_all(&directory);
    }
}

fn lab_directories() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|e| {
            e.file_name()
                .to_string_lossy()
                .starts_with(DIRECTORY_PREFIX)
        })
        .map(|e| e.path())
        .collect();
    found.sort();
    found
}

/// A process id with the process's start time, so that a reused id is not mistaken for it.
struct ProcessIdentity {
    pid: Pid,
    started: u64,
}

impl ProcessIdentity {
    fn of(pid: Pid) -> Self {
        Self {
            pid,
            started: process::start_time(pid).unwrap_or(0),
        }
    }

    fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let (pid, started) = text.split_once(' ')?;
        Some(Self {
            pid: Pid::from_raw(pid.parse().ok()?)?,
            started: started.trim().parse().ok()?,
        })
    }

    fn is_alive(&self) -> bool {
        process::start_time(self.pid) == Some(self.started)
    }
}

impl std::fmt::Display for ProcessIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pid.as_raw_nonzero(), self.started)
    }
}

/// Reads one line from a process's output and checks it.
fn await_word(child: &mut Child, word: &str) -> Result<()> {
    let mut output = child
        .stdout
        .take()
        .context("the process has no output to read")?;
    let mut seen = Vec::new();
    let mut byte = [0u8];
    while seen.last() != Some(&b'\n') && output.read(&mut byte)? == 1 {
        seen.push(byte[0]);
    }
    let seen = String::from_utf8_lossy(&seen);
    if seen.trim() == word {
        return Ok(());
    }
    bail!(
        "expected {word:?}, got {:?} ({})",
        seen.trim(),
        child.wait()?
    )
}

/// Linux allows 15 bytes.
fn interface_name(name: &str) -> Result<&str> {
    if name.is_empty() || name.len() > 15 {
        bail!("{name:?} cannot name an interface: 1 to 15 bytes are allowed");
    }
    Ok(name)
}

fn next(counter: &Cell<u8>, what: &str) -> Result<u8> {
    let index = counter.get() + 1;
    if index > 200 {
        bail!("a lab has at most 200 {what}");
    }
    counter.set(index);
    Ok(index)
}
