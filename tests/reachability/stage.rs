//! A lab with two places of every kind, one fabric node and one SSH gateway; and one try of one cell in it, with nodes that
//! never ran before.

use super::kinds::{Cell, Kind, expectation};
use crate::overlay::{FARLAN, eventually, path_kind, ssh_key, sshd};
use anyhow::{Context, Result};
use cli::demo::Node;
use cli::lab::{Host, Lab, Nat, Outbound, Process, SiteOptions, Stack};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// The network that two nodes make for one try.
const NETWORK: &str = "lab";

/// The UDP port of the echo inside the overlay, by which data is seen to arrive.
const ECHO_PORT: u16 = 7;

/// How often data is sent until some arrives.
const SEND_EVERY: Duration = Duration::from_millis(10);

/// How long data may take to arrive, and the path to become what it should be. Hang limits; the goals are a second and three.
const DATA_TIMEOUT: Duration = Duration::from_secs(30);
const PATH_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a node is asked by which path it reaches its peer.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Where nodes keep their state.
const STATE: &str = "/var/lib/farlan";

/// Everything that a cell needs.
pub(crate) struct Stage {
    bootstraps: Vec<String>,
    places: BTreeMap<Kind, [Place; 2]>,
    _fabric: Node,
    daemons: Vec<Process>,
}

/// Where a node runs, and what it has to be told to get out of there.
struct Place {
    host: Host,
    options: Vec<String>,
}

impl Place {
    /// Where nothing has to be told.
    fn plain(host: Host) -> Self {
        Self {
            host,
            options: Vec::new(),
        }
    }

    /// Where the only way out has to be named.
    fn via(host: Host, url: String) -> Self {
        Self {
            host,
            options: vec!["--via".to_owned(), url],
        }
    }

    fn options(&self) -> Vec<&str> {
        self.options.iter().map(String::as_str).collect()
    }
}

/// What one try of a cell gave.
#[derive(Clone, Debug)]
pub(crate) struct Tried {
    /// From when both were up until data had gone there and back.
    pub(crate) first_data: Duration,
    /// From when both were up until both used a path of the kind that they settled on.
    pub(crate) settled: Duration,
    /// That kind, as `farlan peers` says it.
    pub(crate) path: String,
}

impl Stage {
    /// Builds it, with what these cells need.
    pub(crate) fn build(lab: &Lab, cells: &[Cell]) -> Result<Self> {
        let host = lab.public_host_with("fabric", Stack::Dual)?;
        let (fabric, bootstraps) = Node::fabric_everywhere(&host, FARLAN)?;
        let gateway = lab.public_host("gateway")?;
        let mut stage = Self {
            bootstraps,
            places: BTreeMap::new(),
            _fabric: fabric,
            daemons: Vec::new(),
        };
        for kind in cells.iter().flat_map(|(a, b)| [*a, *b]) {
            if !stage.places.contains_key(&kind) {
                let places = stage.settle(lab, kind, &gateway)?;
                stage.places.insert(kind, places);
            }
        }
        let keys = stage.places.get(&Kind::SshOnly).into_iter().flatten();
        let keys: String = keys.map(|place| ssh_key(&place.host)).collect();
        stage.daemons.push(sshd(&gateway, &keys));
        Ok(stage)
    }

    /// Two hosts of a kind, `KIND-a` and `KIND-b`.
    fn settle(&mut self, lab: &Lab, kind: Kind, gateway: &Host) -> Result<[Place; 2]> {
        let name = kind.to_string().replace(' ', "-").to_lowercase();
        let [a, b] = ["a", "b"].map(|side| format!("{name}-{side}"));
        let [site_a, site_b] = ["a", "b"].map(|side| format!("{name}-site-{side}"));
        let apart = |nat: Nat, options: SiteOptions| -> Result<[Host; 2]> {
            Ok([
                lab.site_with(&site_a, nat, options.clone())?.host(&a)?,
                lab.site_with(&site_b, nat, options)?.host(&b)?,
            ])
        };
        let together = |options: SiteOptions| -> Result<[Host; 2]> {
            let site = lab.site_with(&site_a, Nat::PortRestricted, options)?;
            Ok([site.host(&a)?, site.host(&b)?])
        };
        let usual = SiteOptions::default();
        let with_stack = |stack: Stack| SiteOptions {
            stack,
            ..SiteOptions::default()
        };
        let letting_out = |outbound: Outbound| SiteOptions {
            outbound,
            ..SiteOptions::default()
        };
        let isolated = |hairpins: bool| SiteOptions {
            hairpins,
            isolates_hosts: true,
            ..SiteOptions::default()
        };
        // Customers of a carrier have addresses that RFC 6598 sets aside for that.
        let carrier = |site: &str, number: u8, hairpins: bool| {
            let options = SiteOptions {
                lan_prefix: Some([100, 64, number]),
                hairpins,
                ..SiteOptions::default()
            };
            lab.site_with(site, Nat::PortRestricted, options)
        };
        let hosts = match kind {
            Kind::Public => Ok([
                lab.public_host_with(&a, Stack::Dual)?,
                lab.public_host_with(&b, Stack::Dual)?,
            ]),
            Kind::FullCone => apart(Nat::FullCone, usual),
            Kind::AddressRestricted => apart(Nat::AddressRestricted, usual),
            Kind::PortRestricted => apart(Nat::PortRestricted, usual),
            Kind::SymmetricIncremental => apart(Nat::SymmetricIncremental, usual),
            Kind::SymmetricRandom => apart(Nat::Symmetric, usual),
            Kind::OpenRouter => apart(Nat::MasqueradeOpen, usual),
            Kind::DoubleNat => {
                let left = carrier("carrier-a", 1, false)?;
                let right = carrier("carrier-b", 2, false)?;
                Ok([
                    left.site(&site_a, Nat::PortRestricted)?.host(&a)?,
                    right.site(&site_b, Nat::PortRestricted)?.host(&b)?,
                ])
            }
            Kind::OneCarrier => {
                let both = carrier("carrier", 3, true)?;
                Ok([
                    both.site(&site_a, Nat::PortRestricted)?.host(&a)?,
                    both.site(&site_b, Nat::PortRestricted)?.host(&b)?,
                ])
            }
            Kind::Hairpin => together(isolated(true)),
            Kind::NoHairpin => together(isolated(false)),
            Kind::SameLan => together(usual),
            Kind::UdpBlocked => apart(Nat::Masquerade, letting_out(Outbound::Tcp443)),
            Kind::SshOnly => {
                let options = letting_out(Outbound::Ssh(gateway.address()));
                let url = format!("ssh://root@{}", gateway.address());
                let hosts = apart(Nat::Masquerade, options)?;
                return Ok(hosts.map(|host| Place::via(host, url.clone())));
            }
            Kind::ProxyOnly => {
                let mut place = |site: &str, name: &str| -> Result<Place> {
                    let options = letting_out(Outbound::HttpProxy);
                    let site = lab.site_with(site, Nat::Masquerade, options)?;
                    let (proxy, at) = site.http_proxy()?;
                    self.daemons.push(proxy);
                    Ok(Place::via(site.host(name)?, format!("http://{at}")))
                };
                return Ok([place(&site_a, &a)?, place(&site_b, &b)?]);
            }
            Kind::Ipv6Only => apart(Nat::PortRestricted, with_stack(Stack::Ipv6)),
            Kind::DualStack => apart(Nat::PortRestricted, with_stack(Stack::Dual)),
        };
        hosts.map(|hosts| hosts.map(Place::plain))
    }

    /// Where a cell's two nodes run.
    fn places(&self, cell: Cell) -> Result<[&Place; 2]> {
        let of = |kind: Kind| {
            let places = self.places.get(&kind);
            places.with_context(|| format!("the stage has no {kind}"))
        };
        Ok([&of(cell.0)?[0], &of(cell.1)?[1]])
    }

    /// Tries a cell once: two nodes without any state make a network, and everything is measured from when both have their
    /// addresses in it.
    pub(crate) fn attempt(&self, cell: Cell) -> Result<Tried> {
        let [left, right] = self.places(cell)?;
        for place in [left, right] {
            place.host.run(&["rm", "-rf", STATE])?;
        }
        let mut first = Node::up_with(&left.host, FARLAN, &left.options())?;
        let mut create = vec!["network", "create", NETWORK];
        for bootstrap in &self.bootstraps {
            create.extend(["--bootstrap", bootstrap]);
        }
        first.farlan(&create)?;
        let near = eventually(|| first.address(NETWORK))?;
        let invite = first.invite(NETWORK)?;
        let echo = left.host.udp_socket((near.parse::<IpAddr>()?, ECHO_PORT))?;
        let (mut second, ready) =
            Node::up_with_invite_and(&right.host, FARLAN, &invite, &right.options())?;
        let up_at = Instant::now();
        let far = ready
            .split_whitespace()
            .find_map(|word| word.trim_end_matches(',').parse::<Ipv4Addr>().ok());
        let far = far.with_context(|| format!("no address in {ready:?}"))?;
        let asking = right.host.udp_socket((far, 0))?;
        let tried = measure(cell, [&first, &second], [&asking, &echo], up_at);
        thread::scope(|scope| {
            scope.spawn(|| first.process().terminate());
            second.process().terminate()
        })?;
        tried.with_context(|| {
            let logs = [&mut first, &mut second].map(|node| node.process().log());
            format!("{} with {}:\n{}", cell.0, cell.1, logs.join("\n---\n"))
        })
    }
}

/// Tries cells, so many at a time as long as no two of them need the same host, and hands over what each gave.
pub(crate) fn tour(
    stage: &Stage,
    cells: Vec<Cell>,
    at_once: usize,
    heard: impl Fn(Cell, Result<Tried>) + Sync,
) {
    let waiting_and_running = Mutex::new((cells, Vec::<Cell>::new()));
    let next = || {
        let mut guard = waiting_and_running.lock().unwrap();
        let (waiting, running) = &mut *guard;
        let is_free = |cell: &Cell| {
            running
                .iter()
                .all(|other| other.0 != cell.0 && other.1 != cell.1)
        };
        let at = waiting.iter().position(is_free);
        let cell = at.map(|at| waiting.remove(at));
        running.extend(cell);
        (cell, waiting.is_empty())
    };
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    match next() {
                        (Some(cell), _) => {
                            heard(cell, stage.attempt(cell));
                            let (_, running) = &mut *waiting_and_running.lock().unwrap();
                            running.retain(|other| *other != cell);
                        }
                        (None, true) => return,
                        (None, false) => thread::sleep(ASK_EVERY),
                    }
                }
            });
        }
    });
}

/// What two nodes give that are both up since `up_at`; the second one's socket asks the first one's.
fn measure(
    cell: Cell,
    [first, second]: [&Node; 2],
    [asking, echo]: [&UdpSocket; 2],
    up_at: Instant,
) -> Result<Tried> {
    until_echoed(asking, echo)?;
    let first_data = up_at.elapsed();
    let (way, _) = expectation(cell.0, cell.1);
    let names = [first, second].map(|node| node.machine().name().to_owned());
    let began = Instant::now();
    loop {
        let paths = [(first, &names[1]), (second, &names[0])]
            .map(|(node, peer)| path_kind(node, NETWORK, peer).unwrap_or_default());
        let waited = began.elapsed();
        let path = common_kind(&paths);
        let is_final = path == "direct" || !way.may_improve() || waited > IMPROVEMENT_TIME;
        if way.is_kept_by(path) && is_final || waited > PATH_TIMEOUT {
            return Ok(Tried {
                first_data,
                settled: up_at.elapsed(),
                path: path.to_owned(),
            });
        }
        // One run by chance in fifty meets nothing, and only a pair that goes on talking makes another.
        let _no_route = asking.send_to(b"farlan?", echo.local_addr()?);
        thread::sleep(ASK_EVERY);
    }
}

/// By what two nodes reach each other, of what each says; `mixed` while they disagree. One behind a stream to the relay may
/// well have a peer that sends datagrams there.
fn common_kind([one, other]: &[String; 2]) -> &str {
    match (one.as_str(), other.as_str()) {
        ("stream", "relay") | ("relay", "stream") => "stream",
        ("", "") => "none",
        (one, other) if one == other => one,
        _ => "mixed",
    }
}

/// How long a path that may become direct, and need not, is watched.
const IMPROVEMENT_TIME: Duration = Duration::from_secs(3);

/// Sends from one socket to the other, which sends back what it gets, until something is back.
fn until_echoed(asking: &UdpSocket, echo: &UdpSocket) -> Result<()> {
    let to = echo.local_addr()?;
    for socket in [asking, echo] {
        socket.set_read_timeout(Some(SEND_EVERY))?;
    }
    let give_up_at = Instant::now() + DATA_TIMEOUT;
    let mut bytes = [0; 16];
    while Instant::now() < give_up_at {
        let _no_route_yet = asking.send_to(b"farlan?", to);
        if let Some(from) = received(echo, &mut bytes)? {
            let _no_route_yet = echo.send_to(b"farlan!", from);
        }
        if received(asking, &mut bytes)?.is_some() {
            return Ok(());
        }
    }
    anyhow::bail!("no data passed within {DATA_TIMEOUT:?}")
}

fn received(socket: &UdpSocket, bytes: &mut [u8]) -> Result<Option<SocketAddr>> {
    match socket.recv_from(bytes) {
        Ok((_, from)) => Ok(Some(from)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
