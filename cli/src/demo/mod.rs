//! `farlan demo`: the whole system on this machine, in network namespaces.
//!
//! It shows what a user would do, by the commands a user would type, with real routers, DHCP servers and
//! clients, sshd, avahi and curl around them, and then proves that it works. What crosses from site to site
//! is invite strings; everything else the nodes learn from each other by way of the fabric node.
//!
//! `world` is the stage, `node` drives Farlan, `checks` are the proofs, `report` tells the user.

mod blob;
mod checks;
mod interrupt;
mod node;
mod report;
mod underlay;
mod world;

pub use node::Node;
pub use report::{Check, Outcome};

use crate::lab::{Lab, Privilege, kept_labs};
use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};
use interrupt::Interrupt;
use report::Report;
use std::path::Path;
use std::time::{Duration, Instant};
use underlay::Underlay;
use world::World;

/// Where the fabric node takes control connections; STUN and relay are on the ports after it.
const FABRIC_LISTEN_PORT: u16 = 4077;

/// The network that the home LAN is attached to: guests get addresses from the home router.
const HOME_NETWORK: &str = "home";

/// The network whose nodes serve addresses to their guests themselves.
const LAB_NETWORK: &str = "lab";

/// How often to look again for what should soon be so.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Runs the demo: builds, shows, proves, and takes everything down again, or with `keep` leaves it up.
/// With `json` the outcome is printed as JSON and the narration goes to standard error.
///
/// # Errors
/// When it cannot be run here, or when not every check holds.
pub fn run(keep: bool, json: bool) -> Result<()> {
    // Said first, so that a machine without the means is told before anything is begun.
    world::require_tools()?;
    Privilege::detect().acquire()?;
    let interrupt = Interrupt::watch()?;
    let program = std::env::current_exe().context("find the farlan program itself")?;
    let mut report = Report::new(json);
    for kept in kept_labs() {
        report.note(&format!(
            "an earlier demo is still up; to remove it: kill {}",
            kept.init
        ));
    }

    let mut lab = Lab::start_with("demo", &[&program], &[])?;
    interrupt.guard(&lab);
    let stage = play(&lab, &program, &mut report)
        .map_err(|error| report.check("demo-runs-to-its-end", Err(error)))
        .ok();
    if !report.outcome().ok {
        report.note(&lab.log_tails(LOG_LINES_SHOWN));
    }
    if keep {
        tell_how_to_enter(&lab, &report);
        stage.into_iter().for_each(Stage::leave_running);
        lab.keep()?;
    } else {
        drop(stage);
    }
    drop(lab);
    let outcome = report.finish()?;
    if !outcome.ok {
        let failed: Vec<&str> = outcome
            .checks
            .iter()
            .filter(|check| !check.ok)
            .map(|check| check.name)
            .collect();
        bail!(
            "the demo did not show: {}; the log above says what happened",
            failed.join(", ")
        );
    }
    Ok(())
}

/// How much of each log is shown when something went wrong.
const LOG_LINES_SHOWN: usize = 15;

/// The stage with its nodes running.
struct Stage<'lab> {
    world: World<'lab>,
    fabric: Node,
    gateway: Node,
    host_8: Node,
    host_9: Node,
}

impl Stage<'_> {
    fn leave_running(self) {
        for node in [self.fabric, self.gateway, self.host_8, self.host_9] {
            node.leave_running();
        }
        self.world.leave_running();
    }
}

/// Everything from the first cable to the last check. An error means that it could not go on.
fn play<'lab>(lab: &'lab Lab, program: &Path, report: &mut Report) -> Result<Stage<'lab>> {
    let program = program
        .file_name()
        .and_then(|name| name.to_str())
        .context("the program's own name")?;
    let blob_directory = lab.directory().join("www");
    std::fs::create_dir(&blob_directory)?;
    let blob = blob::write_in_background(&blob_directory.join("blob"), blob::BLOB_BYTES)?;

    report
        .step("three sites behind NAT routers around an internet, all of it in network namespaces");
    let mut world = World::build(lab)?;
    let underlay = Underlay::watch(lab)?;
    world.start_dnsmasq()?;
    let pc = world.pc.clone();
    let pc_address = world.start_udhcpc(&pc, "eth0")?;
    world.start_avahi(&pc, "eth0", true)?;
    report.note(&format!(
        "the LAN machine pc has {pc_address} from the home router's dnsmasq; it runs no Farlan"
    ));

    report.step("fabric: an infrastructure node with a public address");
    let listen = format!("{}:{FABRIC_LISTEN_PORT}", world.fabric.address());
    let (fabric, bootstrap) = Node::fabric(&world.fabric, program, &listen)?;
    report.note(&format!("farlan fabric --listen {listen}\n{bootstrap}"));

    report.step("gateway: makes two networks and puts the home LAN on one of them");
    let gateway = Node::up(&world.gateway, program)?;
    gateway.farlan(&[
        "network",
        "create",
        HOME_NETWORK,
        "--subnet",
        "10.78.0.0/16",
        "--dhcp",
        "lan",
        "--bootstrap",
        &bootstrap,
    ])?;
    gateway.farlan(&[
        "network",
        "create",
        LAB_NETWORK,
        "--subnet",
        "10.77.0.0/16",
        "--bootstrap",
        &bootstrap,
    ])?;
    gateway.farlan(&["lan", "attach", "eth0", "--network", HOME_NETWORK])?;
    report.note(&format!(
        "farlan network create {HOME_NETWORK} --dhcp lan --bootstrap …\nfarlan network create {LAB_NETWORK} --bootstrap …\n\
         farlan lan attach eth0 --network {HOME_NETWORK}"
    ));
    let home_invite = gateway.invite(HOME_NETWORK)?;
    let lab_invites = [gateway.invite(LAB_NETWORK)?, gateway.invite(LAB_NETWORK)?];

    report.step(
        "host-8 and host-9: join from their sites, each by an invite string and nothing else",
    );
    let began = Instant::now();
    let (host_8, ready_8) = Node::up_with_invite(&world.host_8, program, &lab_invites[0])?;
    let first = began.elapsed();
    let began = Instant::now();
    let (host_9, ready_9) = Node::up_with_invite(&world.host_9, program, &lab_invites[1])?;
    let second = began.elapsed();
    host_8.farlan(&["network", "join", &home_invite])?;
    report.note(&format!("host-8: {ready_8}\nhost-9: {ready_9}"));
    report.check(
        "nodes-join-by-invite",
        Ok(format!(
            "from `farlan up` to ready: host-8 {:.1} s, host-9 {:.1} s",
            first.as_secs_f64(),
            second.as_secs_f64()
        )),
    );
    report.check(
        "several-networks-in-one-node",
        checks::several_networks(&[&gateway, &host_8]),
    );

    report.step("guests: plugged in at their hosts, addressed by unmodified DHCP clients");
    host_8.farlan(&[
        "port",
        "add",
        "br-home",
        "--kind",
        "guest",
        "--network",
        HOME_NETWORK,
    ])?;
    host_8.farlan(&[
        "port",
        "add",
        "br-lab",
        "--kind",
        "guest",
        "--network",
        LAB_NETWORK,
    ])?;
    host_9.farlan(&["port", "add", "br-lab", "--kind", "guest"])?;
    let (vm_8_1, vm_9_1) = (world.vm_8_1.clone(), world.vm_9_1.clone());
    report.check(
        "guest-address-from-the-lan-across-the-tunnel",
        checks::address_from_lan(&mut world),
    );
    report.check(
        "guest-address-from-its-node",
        checks::addresses_from_nodes(&mut world, &host_8, &host_9),
    );
    let keys = [&pc, host_9.machine(), &vm_9_1]
        .into_iter()
        .map(World::make_ssh_key)
        .collect::<Result<String>>()?;
    world.start_sshd(&vm_8_1, &keys)?;

    let sample = Underlay::sample(lab)?;
    report.step("the home LAN: its machines see the far guest");
    report.check("lan-machine-pings-guest", checks::lan_machine_pings(&world));
    report.check("lan-machine-ssh-guest", checks::ssh(&pc, "vm-8-1.local"));
    world.start_avahi(&vm_8_1, "eth0", false)?;
    report.check(
        "mdns-query-of-one-site-answered-at-the-other",
        checks::mdns_across_sites(&world, pc_address),
    );
    report.step("the network with addresses from its nodes: a guest is reached by its bare name");
    report.check("member-ssh-guest", checks::ssh(host_9.machine(), "vm-8-1"));
    report.check("guest-ssh-guest", checks::ssh(&vm_9_1, "vm-8-1"));
    let sample = sample.stop()?;

    report.step("paths: hole punched where the NATs allow it, relayed where not");
    report.check("paths", checks::paths(&gateway));

    report.step("a download of 1 GB through the tunnel");
    let checksum = blob
        .join()
        .map_err(|_| anyhow::anyhow!("writing the file panicked"))??;
    world.start_httpd(&vm_8_1, &blob_directory)?;
    report.check(
        "download-1-gb",
        checks::download(&world, &gateway, &checksum),
    );

    report.step("the internet in between, as recorded");
    report.check(
        "underlay-shows-sealed-datagrams-only",
        underlay.judge(&sample),
    );
    let stage = Stage {
        world,
        fabric,
        gateway,
        host_8,
        host_9,
    };
    report.note(&node_table(&stage)?);
    Ok(stage)
}

/// The nodes, as they see themselves, and the gateway's path to each.
fn node_table(stage: &Stage<'_>) -> Result<String> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "NODE",
        "NETWORK",
        "ADDRESS",
        "SITE'S NAT",
        "NAT AS SEEN (MAPPING, FILTERING)",
        "PATH FROM GATEWAY",
        "RTT",
    ]);
    let rows = [
        (&stage.gateway, HOME_NETWORK, stage.world.home.nat()),
        (&stage.gateway, LAB_NETWORK, stage.world.home.nat()),
        (&stage.host_8, HOME_NETWORK, stage.world.remote.nat()),
        (&stage.host_8, LAB_NETWORK, stage.world.remote.nat()),
        (&stage.host_9, LAB_NETWORK, stage.world.third.nat()),
    ];
    for (node, network, nat) in rows {
        let status = node.status()?;
        let seen = |field: &str| {
            status["nat"][field]
                .as_str()
                .unwrap_or("unknown")
                .to_owned()
        };
        let name = node.machine().name();
        let (path, rtt) = match stage.gateway.peer(network, name) {
            Ok(peer) => (
                format!(
                    "{} {}",
                    peer["path"]["kind"].as_str().unwrap_or("none"),
                    peer["path"]["remote"].as_str().unwrap_or("")
                ),
                peer["path"]["rtt_us"]
                    .as_f64()
                    .map_or_else(|| "-".to_owned(), |us| format!("{:.2} ms", us / 1e3)),
            ),
            Err(_) => ("-".to_owned(), "-".to_owned()),
        };
        table.add_row([
            name.to_owned(),
            network.to_owned(),
            node.address(network).unwrap_or_else(|_| "-".to_owned()),
            nat.to_string(),
            format!("{}, {}", seen("mapping"), seen("filtering")),
            path,
            rtt,
        ]);
    }
    Ok(table.to_string())
}

/// After `--keep`: where everything is, and how it goes away.
fn tell_how_to_enter(lab: &Lab, report: &Report) {
    report.step("all of it stays up; to look around, as the user who started it:");
    for machine in lab.machines() {
        let what = world::role(machine.name());
        report.note(&format!(
            "{:<15} {}   # {what}",
            machine.name(),
            machine.enter_command()
        ));
    }
    report.note(&format!("logs: {}", lab.directory().join("logs").display()));
    report.note(&format!("to remove everything: kill {}", lab.init()));
}

/// Tries until it works or the time is up; then the last failure is the error.
fn eventually<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let give_up_at = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() >= give_up_at => {
                return Err(error.context(format!("not within {} s", limit.as_secs())));
            }
            Err(_) => std::thread::sleep(POLL_INTERVAL),
        }
    }
}
