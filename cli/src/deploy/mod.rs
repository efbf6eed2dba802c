//! `farlan deploy apply`: nodes on many hosts at once, over plain SSH. A second run changes only what differs.
//!
//! [`hosts`] reads who, [`plan`] decides what, [`ssh`] does it, [`report`] tells.

mod hosts;
mod plan;
mod report;
mod ssh;

use crate::{
    args::{Apply, Global, Role},
    client::Client,
    invite::{make_invite, read_token},
};
use anyhow::{Context, ensure};
use hosts::Host;
use overlay_types::{NetworkId, api::Status};
use plan::{Goal, plan};
use report::{HostReport, Progress, Report};
use sha2::{Digest, Sha256};
use ssh::{Done, Job, Ssh};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::{OnceCell, Semaphore},
    task::JoinSet,
    time::Instant,
};

/// How long an invite that we make ourselves can be used: as long as a large roll-out may take.
const INVITE_EXPIRES: Duration = Duration::from_secs(6 * 3600);
/// More than any build of this program.
const BINARY_BYTES_MAX: u64 = 2 << 30;

/// What all hosts share.
struct Deployment {
    flags: Apply,
    ssh: Ssh,
    binary: Vec<u8>,
    binary_sha256: String,
    /// The local node's network, where the invite is ours to make.
    network: Option<NetworkId>,
    /// The invite; made when the first host needs it, with a use for each.
    invite: OnceCell<String>,
    client: Client,
    uses: u32,
    progress: Progress,
}

/// `farlan deploy apply`.
pub(crate) async fn apply(global: &Global, flags: Apply) -> anyhow::Result<()> {
    let path = flags.hosts.display().to_string();
    let text =
        std::fs::read_to_string(&flags.hosts).with_context(|| format!("cannot read {path}"))?;
    let hosts = hosts::parse(&text).with_context(|| format!("{path} is no hosts file"))?;
    let client = Client::new(global)?;
    let (network, invite) = match &flags.invite {
        Some(token) => (None, OnceCell::new_with(Some(read_token(token)?))),
        None => (Some(local_network(&client, global).await?), OnceCell::new()),
    };
    let binary = read_binary(&flags)?;
    let control_dir = tempfile::Builder::new()
        .prefix("farlan-")
        .tempdir()
        .context("cannot make a temporary directory")?;
    let deployment = Arc::new(Deployment {
        ssh: Ssh::new(&flags, control_dir.path()),
        binary_sha256: sha256_hex(&binary),
        binary,
        network,
        invite,
        client,
        uses: u32::try_from(hosts.len())?,
        progress: Progress::new(hosts.len()),
        flags,
    });
    let report = run_all(&deployment, hosts).await?;
    deployment.progress.finish();
    report.print(deployment.flags.json)?;
    let failed = report.failed();
    ensure!(
        failed == 0,
        "{failed} of {} hosts failed; mend what the report says and run the same command again",
        report.len()
    );
    Ok(())
}

/// The network that this machine's node would invite to.
async fn local_network(client: &Client, global: &Global) -> anyhow::Result<NetworkId> {
    let status: Status = client
        .get("/v1/status")
        .await
        .context("no --invite was given and none can be made here")?;
    let wanted = |n: &&overlay_types::api::NetworkStatus| {
        global
            .network
            .as_ref()
            .map_or(n.default, |name| &n.name == name)
    };
    let network = status.networks.iter().find(wanted);
    let network = network.context(
        "the node on this machine is not in that network; give --invite TOKEN or --network NAME",
    )?;
    Ok(network.id)
}

fn read_binary(flags: &Apply) -> anyhow::Result<Vec<u8>> {
    let path: PathBuf = match &flags.binary {
        Some(path) => path.clone(),
        None => std::env::current_exe()
            .context("cannot find this program's own file; give it with --binary FILE")?,
    };
    let shown = path.display();
    let len = path
        .metadata()
        .with_context(|| format!("cannot read {shown}"))?
        .len();
    ensure!(
        len <= BINARY_BYTES_MAX,
        "{shown} is too large to be this program"
    );
    std::fs::read(&path).with_context(|| format!("cannot read {shown}"))
}

async fn run_all(deployment: &Arc<Deployment>, hosts: Vec<Host>) -> anyhow::Result<Report> {
    let slots = Arc::new(Semaphore::new(usize::from(deployment.flags.parallel)));
    let mut running = JoinSet::new();
    let total = hosts.len();
    for (number, host) in hosts.into_iter().enumerate() {
        let (deployment, slots) = (Arc::clone(deployment), Arc::clone(&slots));
        running.spawn(async move {
            let _slot = slots.acquire_owned().await;
            (number, run_one(&deployment, &host, number).await)
        });
    }
    let mut reports: Vec<Option<HostReport>> = (0..total).map(|_| None).collect();
    while let Some(finished) = running.join_next().await {
        let (number, report) = finished.context("a host's task ended early")?;
        reports[number] = Some(report);
    }
    Ok(Report::new(reports.into_iter().flatten().collect()))
}

async fn run_one(deployment: &Deployment, host: &Host, number: usize) -> HostReport {
    let began = Instant::now();
    let mut report = HostReport::new(host);
    deployment
        .progress
        .say(number, &host.to_string(), "connecting");
    let work = deploy(deployment, host, number, &mut report);
    let result = match tokio::time::timeout(deployment.flags.timeout, work).await {
        Ok(result) => result,
        Err(_) => Err(anyhow::anyhow!(
            "not done after {} s; give it longer with --timeout",
            deployment.flags.timeout.as_secs()
        )),
    };
    report.seconds = began.elapsed().as_secs_f64();
    match result {
        Ok(()) => report.ok = true,
        Err(error) => report.error = Some(crate::output::explain(&error)),
    }
    deployment.progress.done(number, &report);
    report
}

async fn deploy(
    deployment: &Deployment,
    host: &Host,
    number: usize,
    report: &mut HostReport,
) -> anyhow::Result<()> {
    let flags = &deployment.flags;
    let mut goal = Goal {
        arch: std::env::consts::ARCH.into(),
        binary: deployment.binary_sha256.clone(),
        dir: host.dir.clone().unwrap_or_else(|| flags.dir.clone()),
        state: host.state.clone().or_else(|| flags.remote_state.clone()),
        service: host.service.unwrap_or(flags.service),
        network: deployment.network,
    };
    let mut session = deployment.ssh.connect(host, number).await?;
    let facts = session.probe(&goal).await?;
    let was_in: Vec<NetworkId> = facts
        .status
        .iter()
        .flat_map(|s| &s.networks)
        .map(|n| n.id)
        .collect();
    for step in plan(&facts, &goal).map_err(anyhow::Error::msg)? {
        deployment
            .progress
            .say(number, &host.to_string(), step.doing());
        let invite = if step == plan::Step::Join {
            deployment.invite().await?
        } else {
            ""
        };
        let binary = if step == plan::Step::PushBinary {
            deployment.binary.clone()
        } else {
            Vec::new()
        };
        let tap = host.tap.as_ref().map(overlay_node::config::IfName::as_str);
        let job = Job {
            goal: &goal,
            binary,
            invite,
            name: host.name.as_ref(),
            tap,
        };
        let done = session.perform(step, &job).await?;
        report.changed |= step.changes();
        match done {
            Done::Yes => {}
            Done::Joined(network) => {
                report.changed |= !was_in.contains(&network.id);
                goal.network = Some(network.id);
            }
            Done::Ready(status, network) => report.describe(&status, &network),
        }
    }
    Ok(())
}

impl Deployment {
    async fn invite(&self) -> anyhow::Result<&str> {
        let make = async || {
            let invite = make_invite(&self.client, Role::Member, INVITE_EXPIRES, self.uses).await;
            anyhow::Ok(invite.context("cannot make an invite")?.token)
        };
        Ok(self.invite.get_or_try_init(make).await?)
    }
}

/// SHA-256 in hex, as `sha256sum` prints it.
fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
