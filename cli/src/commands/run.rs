//! `up`, `fabric`, `down`: this process becomes a node, and says so once it is one; or another is stopped.

use super::{
    detach::{self, Detached},
    networks::ready_line,
};
use crate::{
    args::{Fabric, Global, Up},
    client::Client,
    invite::read_token,
    output::{note, say},
};
use anyhow::Context;
use overlay_node::{
    config::{self, ConfigFile, FabricConfig, FabricFlags, Invite, RunConfig, RunFlags},
    node,
};
use overlay_types::{Name, api::Status};
use rustix::process::Pid;
use std::{collections::BTreeSet, future::Future, path::PathBuf, time::Duration};
use tokio::{signal::unix, sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

/// How often a starting node is asked whether it is ready, at first and later.
const ASK_EAGERLY: Duration = Duration::from_millis(30);
const ASK_LATER: Duration = Duration::from_secs(1);
const EAGER_FOR: Duration = Duration::from_secs(10);
/// How long a node may take to stop: it says goodbye to peers and gives its interfaces back.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// `farlan up`.
pub(super) async fn up(global: &Global, flags: Up) -> anyhow::Result<()> {
    if flags.detach {
        return detach::run(state_of(global, flags.config.as_deref())?).await;
    }
    let detached = flags.detached.then(Detached::begin).transpose()?;
    let result = run_member(global, flags, detached.as_ref()).await;
    Detached::tell_failure(detached.as_ref(), &result);
    result
}

async fn run_member(global: &Global, flags: Up, detached: Option<&Detached>) -> anyhow::Result<()> {
    log_to_stderr();
    let file = flags
        .config
        .as_deref()
        .map(ConfigFile::load)
        .transpose()?
        .unwrap_or_default();
    let invite = flags.invite.as_deref().map(read_token).transpose()?;
    let flags = RunFlags {
        state: global.state.clone(),
        socket: global.socket.clone(),
        network: global.network.clone(),
        invite: invite.as_deref().map(Invite::new),
        name: flags.name,
        tap: flags.tap,
        workers: flags.workers,
        listen_data: flags.listen_data,
        listen_control: flags.listen_control,
        no_mdns: flags.no_mdns,
        no_port_mapping: flags.no_port_mapping,
        no_relay: flags.no_relay,
        stun: flags.stun,
        via: flags.via,
        dns: flags.dns,
        hosts_file: flags.hosts_file,
        bootstrap: flags.bootstrap,
    };
    let config = RunConfig::resolve(flags, file)?;
    let stop = config.stop.clone();
    stop_on_signals(stop.clone())?;
    let (tell, told) = oneshot::channel();
    let announcements = announce_member(told, Client::at(&config.socket), detached);
    let node = node::run(config, move |status| {
        let _ = tell.send(status.clone()); // nobody listens any more only when the node is being stopped
    });
    run_announced(async { Ok(node.await?) }, announcements, stop).await
}

/// `farlan fabric`.
pub(super) async fn fabric(global: &Global, flags: Fabric) -> anyhow::Result<()> {
    if flags.detach {
        return detach::run(
            global
                .state
                .clone()
                .unwrap_or_else(config::default_fabric_state_dir),
        )
        .await;
    }
    let detached = flags.detached.then(Detached::begin).transpose()?;
    let result = run_fabric(global, flags, detached.as_ref()).await;
    Detached::tell_failure(detached.as_ref(), &result);
    result
}

async fn run_fabric(
    global: &Global,
    flags: Fabric,
    detached: Option<&Detached>,
) -> anyhow::Result<()> {
    log_to_stderr();
    let config = FabricConfig::resolve(FabricFlags {
        state: global.state.clone(),
        socket: global.socket.clone(),
        listen: flags.listen,
        service_port: flags.service_port,
        stream_port: flags.stream_port,
        relay_rate: flags.relay_rate,
        relay_rate_member: flags.relay_rate_member,
        external: flags.external,
        bootstrap: flags.bootstrap,
        no_mdns: flags.no_mdns,
    })?;
    let stop = config.stop.clone();
    stop_on_signals(stop.clone())?;
    let node = node::run_fabric(config, |id, addresses| {
        // The addresses that go into `--bootstrap`, and then the word that scripts wait for.
        addresses.iter().for_each(|address| say(address));
        say(&format!("ready {id}"));
        notify_service_manager();
        Detached::let_go(detached);
    });
    run_announced(async { Ok(node.await?) }, std::future::ready(()), stop).await
}

/// Runs a node to its end, and its announcements beside it.
async fn run_announced(
    node: impl Future<Output = anyhow::Result<()>>,
    announcements: impl Future<Output = ()>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut node = std::pin::pin!(node);
    tokio::select! {
        ended = &mut node => return ended,
        () = announcements => {}
        () = stop.cancelled() => {}
    }
    let out_of_patience = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_PATIENCE).await;
    };
    tokio::select! {
        ended = &mut node => ended,
        () = out_of_patience => anyhow::bail!(
            "the node did not stop within {} s and was ended as it was; look for interfaces left behind with `ip link`",
            STOP_PATIENCE.as_secs()
        ),
    }
}

/// SIGTERM and Ctrl-C stop the node in order; the same again ends the process at once.
fn stop_on_signals(stop: CancellationToken) -> anyhow::Result<()> {
    let mut term = unix::signal(unix::SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut int = unix::signal(unix::SignalKind::interrupt()).context("cannot catch SIGINT")?;
    tokio::spawn(async move {
        loop {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            if stop.is_cancelled() {
                std::process::exit(1);
            }
            stop.cancel();
        }
    });
    Ok(())
}

/// Prints `ready NAME ADDRESS…` for each network once its interface carries the address. Networks that come later are
/// announced by the command that brings them.
async fn announce_member(
    told: oneshot::Receiver<Status>,
    client: Client,
    detached: Option<&Detached>,
) {
    let Ok(mut status) = told.await else { return };
    notify_service_manager();
    if status.networks.is_empty() {
        say(
            "running, in no network yet; next: `farlan network create NAME` or `farlan network join TOKEN`",
        );
    }
    let began = Instant::now();
    let mut announced = BTreeSet::<Name>::new();
    loop {
        for network in status.networks.iter().filter(|n| n.state == "ready") {
            if announced.insert(network.name.clone()) {
                say(&ready_line(network));
            }
        }
        if status.networks.iter().all(|n| announced.contains(&n.name)) {
            break;
        }
        // Networks of earlier runs that still wait for the fabric or a registrar.
        tokio::time::sleep(if began.elapsed() < EAGER_FOR {
            ASK_EAGERLY
        } else {
            ASK_LATER
        })
        .await;
        if let Ok(now) = client.get::<Status>("/v1/status").await {
            status = now;
        }
    }
    Detached::let_go(detached);
}

/// Tells systemd that the node runs (sd_notify(3), `Type=notify`).
fn notify_service_manager() {
    use std::os::{linux::net::SocketAddrExt, unix::net};
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match path.as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => net::SocketAddr::from_abstract_name(name),
        None => net::SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|to| net::UnixDatagram::unbound()?.send_to_addr(b"READY=1", &to));
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot tell the service manager that the node runs");
    }
}

/// Logs go to standard error; `FARLAN_LOG` says how much, as `info,overlay_node=debug`.
fn log_to_stderr() {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("FARLAN_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,cli=info,overlay_node=info,tunnel=info,dht=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

fn state_of(global: &Global, config: Option<&std::path::Path>) -> anyhow::Result<PathBuf> {
    let file = config
        .map(ConfigFile::load)
        .transpose()?
        .unwrap_or_default();
    Ok(global
        .state
        .clone()
        .or_else(|| file.state().map(Into::into))
        .unwrap_or_else(config::default_state_dir))
}

/// `farlan down`: returns once the node is gone.
pub(super) async fn down(client: &Client) -> anyhow::Result<()> {
    let status: Status = client.get("/v1/status").await?;
    let pid = i32::try_from(status.node.pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("the node told no process id")?;
    let () = client.post("/v1/down", &()).await?;
    let began = Instant::now();
    while is_there(pid) {
        anyhow::ensure!(
            began.elapsed() < STOP_PATIENCE + Duration::from_secs(5),
            "the node (process {0}) is still there after {1} s; end it with `kill -9 {0}`",
            status.node.pid,
            began.elapsed().as_secs()
        );
        tokio::time::sleep(ASK_EAGERLY).await;
    }
    note("the node has stopped");
    Ok(())
}

/// Runs still; a zombie, whose parent has not looked yet, does not.
fn is_there(pid: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with('Z'))
    })
}
