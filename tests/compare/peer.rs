//! The tunnels that are compared, and the two machines between which each is measured.

use anyhow::{Context, Result, ensure};
use cli::lab::{Lab, Machine, Process};
use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

const OUTER: [&str; 2] = ["198.18.128.1", "198.18.128.2"];
const INNER: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// Longer than any tunnel takes to come up.
const PATIENCE: Duration = Duration::from_secs(45);

/// How long a tunnel is left alone when it is up, to find its path.
const SETTLING: Duration = Duration::from_secs(5);

/// One way from one machine to the other.
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) version: String,
    /// None for the bare cable.
    script: Option<PathBuf>,
}

/// The cable, us, and every tunnel that has a script in `tests/bench/peers` and its programs on this machine.
pub(crate) fn found() -> Vec<Peer> {
    let bench = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench");
    let said = |program: &Path, argument: &str| {
        let output = Command::new(program).arg(argument).output().ok()?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(version)
    };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut peers = vec![
        Peer {
            name: "cable".into(),
            version: format!("Linux {}", kernel.trim()),
            script: None,
        },
        Peer {
            name: "farlan".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            script: Some(bench.join("farlan-peer.sh")),
        },
    ];
    let mut scripts: Vec<PathBuf> = std::fs::read_dir(bench.join("peers"))
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| !path.ends_with("common.sh"))
        .collect();
    scripts.sort();
    for script in scripts {
        let name = script.file_stem().unwrap_or_default().to_string_lossy();
        match said(&script, "version") {
            Some(version) => peers.push(Peer {
                name: name.into(),
                version,
                script: Some(script),
            }),
            None => eprintln!("{name} is not on this machine"),
        }
    }
    peers
}

/// Two machines, the cable and the tunnel between them.
pub(crate) struct Rig {
    pub(crate) a: Machine,
    pub(crate) b: Machine,
    /// The far end's address by this way.
    pub(crate) target: String,
    /// What runs the tunnel.
    pub(crate) tunnels: Vec<Process>,
    _server: Option<Process>,
    lab: Lab,
}

impl Rig {
    /// Joins two machines and brings the tunnel up; without `offloads` the cable's ends cannot segment or sum up.
    pub(crate) fn start(peer: &Peer, offloads: bool) -> Result<Self> {
        let program = std::env::var("FARLAN").context("FARLAN names the binary")?;
        let lab = Lab::start_with("compare", &[Path::new(&program)], &[])?;
        let (a, b) = (lab.machine("a")?, lab.machine("b")?);
        lab.cable(&a, "phys0", &b, "phys0")?;
        for (machine, outer) in [&a, &b].into_iter().zip(OUTER) {
            machine.ip(&[&format!("address add {outer}/24 dev phys0")])?;
            if !offloads {
                machine.run(&[
                    "ethtool", "-K", "phys0", "tx", "off", "sg", "off", "tso", "off", "gso", "off",
                    "gro", "off",
                ])?;
            }
        }
        let mut rig = Self {
            a,
            b,
            target: OUTER[1].into(),
            tunnels: Vec::new(),
            _server: None,
            lab,
        };
        if let Some(script) = &peer.script {
            rig.bring_up(script)?;
        }
        let mut server = rig.b.spawn("iperf3", &["iperf3", "-s", "--forceflush"])?;
        server.wait_for_line("Server listening", PATIENCE)?;
        rig._server = Some(server);
        Ok(rig)
    }

    fn bring_up(&mut self, script: &Path) -> Result<()> {
        // A directory that both machines reach, by relative paths only: the rest of the lab's is hidden from them.
        let shared = self.lab.directory().join("peer");
        std::fs::create_dir_all(&shared)?;
        std::fs::copy(script, shared.join("peer.sh")).context("copy the tunnel's script")?;
        if let Some(common) = Some(script.with_file_name("common.sh")).filter(|path| path.exists())
        {
            std::fs::copy(common, shared.join("common.sh"))?;
        }
        for (side, machine, own, other) in [("a", &self.a, 0, 1), ("b", &self.b, 1, 0)] {
            let tunnel = machine.spawn_at(
                "tunnel",
                &shared,
                &[
                    "env",
                    "PEER_DIR=.",
                    "FARLAN=farlan",
                    "./peer.sh",
                    side,
                    &format!("{}/24", INNER[own]),
                    OUTER[own],
                    OUTER[other],
                ],
            )?;
            self.tunnels.push(tunnel);
            let ready = shared.join("ready");
            eventually(|| ready.exists()).context("side a did not begin")?;
        }
        self.target = INNER[1].into();
        let ping = ["ping", "-c1", "-W1", INNER[1]];
        eventually(|| self.a.try_run(&ping).is_ok_and(|said| said.is_success()))
            .context("no ping came through")?;
        thread::sleep(SETTLING);
        Ok(())
    }
}

fn eventually(is_so: impl Fn() -> bool) -> Result<()> {
    let began = Instant::now();
    while !is_so() {
        ensure!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
