//! A data plane that is flooded, one kind of datagram after the other as fast as one thread sends them: what that costs it,
//! what it sends out for it, and what its honest peers notice.

use crate::measuring::resident_mib;
use crate::played::{
    DATA_PORT, NETWORK, PSK, Played, TAP, address, keys, peer_there, start_holder, upsert,
};
use crate::processor_time;
use anyhow::{Context, Result, ensure};
use cli::lab::{Host, Lab, Machine};
use overlay_types::{Candidate, DataKeys};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tunnel::engine::{Command, Event};
use tunnel::io::DataPlane;
use tunnel::packet_buf::PacketBuf;
use tunnel::path::{ControlMessage, RelayOffer};
use tunnel::relay::{RelayLimits, message};
use tunnel::session::{
    Cookie, Established, HandshakeError, Initiator, LocalKeys, RecvLane, SendLane, SessionSlot,
    challenge,
};
use tunnel::stun::NatBehaviour;
use tunnel::wire::datagram::{
    COOKIE_REPLY, DataHeader, INITIATION, RELAY_HEADER_BYTES, RESPONSE, RelayHeader,
};
use tunnel::wire::extension;
use tunnel::wire::handshake::{HANDSHAKE_HEADER_BYTES, HandshakeHeader, INITIATION_BYTES};
use zerocopy::IntoBytes;

/// Of the engine's thread, as a part of one processor.
const ENGINE_MAX: f64 = 0.5;
/// The same where it relays: that is work it offers, up to the relay's rates.
const ENGINE_RELAYING_MAX: f64 = 0.9;
const GROWTH_MAX_MIB: f64 = 16.0;
/// The longest time without an answer to one of the honest peers, who ask ten times a second.
const GAP_MAX: Duration = Duration::from_secs(2);

/// Who pings all the time.
const HONEST: u16 = 3;
/// The first of those who come while it is being flooded.
const NEWCOMER: u16 = 10;
/// The member who floods.
const FLOODER: u16 = 100;

const PING_EVERY: Duration = Duration::from_millis(100);
/// From the beginning of a flood until the newcomer's.
const NEWCOMER_AFTER: Duration = Duration::from_millis(150);
/// How long answers may be late.
const LATE: Duration = Duration::from_millis(300);
/// How long a flood goes on where a newcomer has no session yet: on a busy machine its datagrams may have been lost, and it
/// takes a second or more until it tries again.
const NEWCOMER_WITHIN: Duration = Duration::from_secs(5);
/// Sockets of the flooder's: what comes from many ports comes from these.
const SOCKETS: usize = 64;
/// Until everybody has a session, or a place at the relay; hangs only.
const PATIENCE: Duration = Duration::from_secs(20);

/// What there is too much of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flood {
    /// For comparison.
    Nothing,
    Candidates,
    Probes,
    BoundRequests,
    StrangeRequests,
    Relayed,
    UnknownSessions,
    Stun,
    PathChallenges,
    Initiations,
    JunkInitiations,
}

impl Flood {
    /// The handshakes at last: after them it takes a cookie to begin anew.
    pub(crate) const ALL: [Self; 11] = [
        Self::Nothing,
        Self::Candidates,
        Self::Probes,
        Self::BoundRequests,
        Self::StrangeRequests,
        Self::Relayed,
        Self::UnknownSessions,
        Self::Stun,
        Self::PathChallenges,
        Self::Initiations,
        Self::JunkInitiations,
    ];
}

impl fmt::Display for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "reference: none",
            Self::Candidates => "a member's lists of 16 other candidates, to be punched",
            Self::Probes => "a member's probes, from 64 ports",
            Self::BoundRequests => "relay requests of a member with a place",
            Self::StrangeRequests => "relay requests of strangers",
            Self::Relayed => "what a member with a place has relayed",
            Self::UnknownSessions => "control datagrams of unknown sessions",
            Self::Stun => "STUN questions",
            Self::PathChallenges => "path challenges with a right mac",
            Self::Initiations => "a member's initiations",
            Self::JunkInitiations => "initiations of nobody",
        })
    }
}

/// What one flood did.
pub(crate) struct Outcome {
    pub(crate) flood: Flood,
    took: Duration,
    datagrams: u64,
    bytes_in: f64,
    bytes_out: f64,
    /// Of one processor.
    engine: f64,
    workers: f64,
    growth_mib: f64,
    noticed: Noticed,
}

/// What honest peers noticed.
struct Noticed {
    pings: usize,
    lost: usize,
    gap: Duration,
    ended: usize,
    /// From the start of a peer that had no session until its first answer.
    newcomer: Option<Duration>,
}

impl Outcome {
    pub(crate) const HEADING: [&str; 2] = [
        "| flood | a second | engine | worker | resident | out per byte in | pings lost | longest gap | a newcomer's first ping |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ];

    pub(crate) fn row(&self) -> String {
        let ms = |d: Duration| format!("{} ms", d.as_millis());
        let per_byte = if self.datagrams == 0 {
            "-".to_owned()
        } else {
            format!("{:.4}", self.bytes_out / self.bytes_in)
        };
        format!(
            "| {} | {:.0} | {:.1} % | {:.1} % | {:+.1} MiB | {per_byte} | {} of {} | {} | {} |",
            self.flood,
            self.datagrams as f64 / self.took.as_secs_f64(),
            self.engine * 100.0,
            self.workers * 100.0,
            self.growth_mib,
            self.noticed.lost,
            self.noticed.pings,
            ms(self.noticed.gap),
            self.noticed.newcomer.map_or("none".to_owned(), ms),
        )
    }

    /// Which bounds it broke, that of processor time included.
    pub(crate) fn breaches(&self) -> Vec<String> {
        let engine_max = match self.flood {
            Flood::Relayed => ENGINE_RELAYING_MAX,
            _ => ENGINE_MAX,
        };
        let is_busy = (self.engine > engine_max).then(|| self.broke("the engine's thread"));
        self.faults().into_iter().chain(is_busy).collect()
    }

    /// Which bounds it broke that hold on any machine, however slow.
    pub(crate) fn faults(&self) -> Vec<String> {
        // What is relayed goes to where its holder proved to be, and is as long as it was.
        let is_unproven = !matches!(self.flood, Flood::Nothing | Flood::Relayed);
        let checks = [
            (self.growth_mib > GROWTH_MAX_MIB, "memory"),
            (
                is_unproven && self.bytes_out > self.bytes_in,
                "bytes sent out",
            ),
            (self.noticed.gap > GAP_MAX, "a gap between pings"),
            (self.noticed.ended > 0, "an honest session ended"),
            (self.noticed.newcomer.is_none(), "a newcomer had no session"),
        ];
        let broken = checks.into_iter().filter(|(is_broken, _)| *is_broken);
        broken.map(|(_, what)| self.broke(what)).collect()
    }

    fn broke(&self, what: &str) -> String {
        format!("{}: {what}\n{}", self.flood, self.row())
    }
}

/// What is held to, for a page.
pub(crate) fn bounds() -> String {
    format!(
        "Bounds: the engine's thread under {:.0} % of a processor ({:.0} % where it relays), memory no more than {GROWTH_MAX_MIB} MiB above what it was \
         before the first flood, no more bytes sent to the flooder and to those it names than it sent itself (beside what is relayed, \
         which goes where its holder proved to be), no session of an \
         honest peer ended, no {} s without an answer to one of them, and whoever comes meanwhile has a session within {} s.",
        ENGINE_MAX * 100.0,
        ENGINE_RELAYING_MAX * 100.0,
        GAP_MAX.as_secs(),
        NEWCOMER_WITHIN.as_secs()
    )
}

/// One for each flood.
fn newcomers() -> std::ops::Range<u16> {
    NEWCOMER..NEWCOMER + Flood::ALL.len() as u16
}

/// The one that will be flooded, in the machine where this is called.
pub(crate) fn start_flooded(far: Ipv4Addr) -> Result<DataPlane> {
    let everybody = (0..=HONEST).chain(newcomers()).chain([FLOODER]);
    let data_plane = start_holder(everybody)?;
    for number in 1..=HONEST {
        data_plane.command(peer_there(number, far));
    }
    for number in newcomers().chain([FLOODER]) {
        data_plane.command(upsert(number, Vec::new(), false));
    }
    data_plane.command(Command::ServeRelay(Some(RelayLimits::default())));
    Ok(data_plane)
}

/// Four hosts: who is flooded, its honest peers, the flooder, and whom the flooder names.
pub(crate) struct Stage {
    pub(crate) near: Host,
    pub(crate) far: Host,
    rough: Host,
    named: Host,
}

impl Stage {
    pub(crate) fn build(lab: &Lab) -> Result<Self> {
        Ok(Self {
            near: lab.public_host("near")?,
            far: lab.public_host("far")?,
            rough: lab.public_host("rough")?,
            named: lab.public_host("named")?,
        })
    }

    /// Gives the flooded one's interface its address, and newcomers theirs.
    pub(crate) fn assign_addresses(&self) -> Result<()> {
        self.near
            .ip(&[&format!("address add {}/16 dev {TAP}", address(0))])?;
        for number in newcomers() {
            let line = format!("address add {}/16 dev eth0", newcomer_address(number));
            self.far.ip(&[&line])?;
        }
        Ok(())
    }

    /// Floods the process `pid`, of which [`start_flooded`] made one, with everything for so long each.
    pub(crate) fn flood_all(&self, pid: u32, span: Duration) -> Result<Vec<Outcome>> {
        let mut honest = (1..=HONEST)
            .map(|number| Played::start(number, &self.near, &self.far, self.far.address()))
            .collect::<Result<Vec<_>>>()?;
        let give_up = Instant::now() + PATIENCE;
        while honest.iter().any(|node| !node.is_answered()) {
            ensure!(Instant::now() < give_up, "honest peers had no answer");
            for node in &mut honest {
                node.turn()?;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let resident = resident_mib(pid, "VmRSS")?;
        let mut outcomes = Vec::new();
        for (flood, newcomer) in Flood::ALL.into_iter().zip(newcomers()) {
            let flooder = Flooder::start(flood, self)?;
            let outcome = self
                .flood(flooder, pid, resident, &mut honest, newcomer, span)
                .with_context(|| flood.to_string())?;
            println!("{}", outcome.row());
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    fn flood(
        &self,
        mut flooder: Flooder,
        pid: u32,
        resident: f64,
        honest: &mut [Played],
        newcomer: u16,
        span: Duration,
    ) -> Result<Outcome> {
        let phases = Phases::default();
        let bytes = || -> Result<(f64, f64)> {
            let sent = counted(&self.rough, "tx_bytes")?;
            let got = counted(&self.rough, "rx_bytes")? + counted(&self.named, "rx_bytes")?;
            Ok((sent, got))
        };
        let used = || -> Result<(f64, f64)> {
            let (mut engine, mut workers) = (0.0, 0.0);
            for (name, seconds) in processor_time::of_threads(pid)? {
                if name == "farlan-engine" {
                    engine += seconds;
                } else if name.starts_with("farlan-w") {
                    workers += seconds;
                }
            }
            Ok((engine, workers))
        };
        thread::scope(|scope| {
            let watching = scope.spawn(|| self.watch(honest, newcomer, &phases));
            let (bytes_before, used_before) = (bytes()?, used()?);
            phases.is_on.store(true, Ordering::Relaxed);
            let began = Instant::now();
            let datagrams = flooder.run(span, &phases.has_come);
            let (took, used_after) = (began.elapsed(), used()?);
            phases.is_over.store(true, Ordering::Relaxed);
            let noticed = watching.join().expect("it does not panic")?;
            let bytes_after = bytes()?;
            let seconds = took.as_secs_f64();
            Ok(Outcome {
                flood: flooder.flood,
                took,
                datagrams,
                bytes_in: bytes_after.0 - bytes_before.0,
                bytes_out: bytes_after.1 - bytes_before.1,
                engine: (used_after.0 - used_before.0) / seconds,
                workers: (used_after.1 - used_before.1) / seconds,
                growth_mib: resident_mib(pid, "VmHWM")? - resident,
                noticed,
            })
        })
    }

    /// Has honest peers ping from when it is on until it is over, and one more come meanwhile.
    fn watch(&self, honest: &mut [Played], number: u16, phases: &Phases) -> Result<Noticed> {
        while !phases.is_on.load(Ordering::Relaxed) {
            for node in &mut *honest {
                node.pump()?;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let began = Instant::now();
        let mut newcomer: Option<(Played, Instant)> = None;
        let mut pinged: Vec<Vec<(u16, Instant)>> = vec![Vec::new(); honest.len()];
        let (mut ping_at, mut first_answer, mut ended_at) = (began, None, None);
        loop {
            let now = Instant::now();
            if ended_at.is_none() && phases.is_over.load(Ordering::Relaxed) {
                ended_at = Some(now);
            }
            if ended_at.is_some_and(|at| now >= at + LATE) {
                break;
            }
            if newcomer.is_none() && now >= began + NEWCOMER_AFTER {
                let from = newcomer_address(number);
                let node = Played::start(number, &self.near, &self.far, from)?;
                newcomer = Some((node, now));
            }
            if now >= ping_at && ended_at.is_none() {
                ping_at += PING_EVERY;
                for (node, pinged) in honest.iter_mut().zip(&mut pinged) {
                    pinged.push((node.ping(now)?, now));
                }
                if let Some((node, _)) = &mut newcomer
                    && !node.is_answered()
                {
                    node.ping(now)?;
                }
            }
            for node in &mut *honest {
                node.pump()?;
            }
            // What is answered when the flood is over does not count.
            if let (Some((node, came_at)), None) = (&mut newcomer, ended_at) {
                node.pump()?;
                if first_answer.is_none() && node.is_answered() {
                    first_answer = Some(came_at.elapsed());
                    phases.has_come.store(true, Ordering::Relaxed);
                }
            }
            thread::sleep(Duration::from_millis(1));
        }
        let ended_at = ended_at.unwrap_or(began);
        let (mut lost, mut gap) = (0, Duration::ZERO);
        for (node, pinged) in honest.iter().zip(&pinged) {
            let mut last = began;
            for (sequence, at) in pinged {
                match node.guest().answered.get(sequence) {
                    Some(&rtt) => {
                        gap = gap.max((*at + rtt).saturating_duration_since(last));
                        last = *at + rtt;
                    }
                    None => lost += 1,
                }
            }
            gap = gap.max(ended_at.saturating_duration_since(last));
        }
        let ends = |node: &mut Played| {
            let events = std::mem::take(&mut node.node.events).into_iter();
            events
                .filter(|event| matches!(event, Event::SessionDown { .. }))
                .count()
        };
        Ok(Noticed {
            pings: pinged.iter().map(Vec::len).sum(),
            lost,
            gap,
            ended: honest.iter_mut().map(ends).sum(),
            newcomer: first_answer,
        })
    }
}

/// How far a flood is, as its two threads tell each other.
#[derive(Default)]
struct Phases {
    is_on: AtomicBool,
    /// The newcomer had an answer.
    has_come: AtomicBool,
    is_over: AtomicBool,
}

/// Newcomers have an address each, as strangers to each other have.
fn newcomer_address(number: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 9, 0).to_bits() + u32::from(number))
}

/// What an interface of this machine counted.
fn counted(machine: &Machine, what: &str) -> Result<f64> {
    let said = machine.run(&["cat", &format!("/sys/class/net/eth0/statistics/{what}")])?;
    Ok(said.trim().parse()?)
}

/// Writes the datagram of this number.
type Write = Box<dyn FnMut(u64, &mut Vec<u8>) + Send>;

/// One thread that sends.
struct Flooder {
    flood: Flood,
    sockets: Vec<UdpSocket>,
    write: Write,
}

impl Flooder {
    /// Makes ready what the flood needs: a session, or a place at the relay.
    fn start(flood: Flood, stage: &Stage) -> Result<Self> {
        let count = if flood == Flood::Probes { SOCKETS } else { 1 };
        let to = SocketAddr::from((stage.near.address(), DATA_PORT));
        let sockets = stage.rough.within(|| {
            let bind = |_| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.set_read_timeout(Some(Duration::from_millis(200)))?;
                socket.connect(to)?;
                Ok(socket)
            };
            (0..count).map(bind).collect::<std::io::Result<Vec<_>>>()
        })?;
        let member = || Member::shake_hands(&sockets[0]);
        let remote = keys(0).public();
        let mut rng = ChaCha20Rng::seed_from_u64(flood as u64);
        let write: Write = match flood {
            Flood::Nothing => Box::new(|_, _| {}),
            Flood::Candidates => {
                let (mut member, named) = (member()?, stage.named.address());
                Box::new(move |number, datagram| {
                    let port = |n| 1024 + ((number * 16 + n) % 60_000) as u16;
                    let list = (0..16).map(|n| Candidate::Host((named, port(n)).into()));
                    let message = ControlMessage::Candidates {
                        generation: number as u32 + 1,
                        punch: true,
                        nat: NatBehaviour::default(),
                        list: list.collect(),
                        relays: RelayOffer::None,
                    };
                    member.seal(&message, 0, datagram);
                })
            }
            Flood::Probes => {
                let mut member = member()?;
                Box::new(move |id, datagram| {
                    member.seal(&ControlMessage::Probe { id }, 0, datagram);
                })
            }
            Flood::BoundRequests => {
                let (index, key) = member()?.place(&sockets[0])?;
                Box::new(move |nonce, datagram| {
                    let request =
                        message::Message::new(message::REQUEST, index, nonce, [0; 16], &key);
                    datagram.extend(request.to_bytes());
                })
            }
            Flood::StrangeRequests => Box::new(move |nonce, datagram| {
                let index = rng.next_u32();
                let request =
                    message::Message::new(message::REQUEST, index, nonce, [0; 16], &[1; 32]);
                datagram.extend(request.to_bytes());
            }),
            Flood::Relayed => {
                let (index, key) = member()?.place(&sockets[0])?;
                bind_place(&sockets[0], index, &key)?;
                Box::new(move |number, datagram| {
                    datagram.resize(RELAY_HEADER_BYTES, 0);
                    datagram.copy_from_slice(RelayHeader::to(index).as_bytes());
                    let slot = SessionSlot::from_low_bits(number as u32);
                    datagram.extend(DataHeader::new(slot, 1, 0, number).as_bytes());
                    datagram.extend([0; 84]);
                })
            }
            Flood::UnknownSessions => Box::new(move |number, datagram| {
                let slot = SessionSlot::from_low_bits(rng.next_u32());
                datagram.extend(DataHeader::new(slot, 0, 0, number).as_bytes());
                datagram.extend([0; 48]);
            }),
            Flood::Stun => Box::new(move |number, datagram| {
                datagram.extend([0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42, 0, 0, 0, 0]);
                datagram.extend(number.to_be_bytes());
            }),
            Flood::PathChallenges => Box::new(move |number, datagram| {
                datagram.extend(challenge(NETWORK, &remote.x25519, number.to_be_bytes()));
            }),
            Flood::Initiations => {
                let local = keys(FLOODER);
                Box::new(move |number, datagram| {
                    let slot = SessionSlot::from_low_bits(number as u32);
                    let begun = begin(&local, &remote, slot, None, &mut rng);
                    datagram.extend(begun.expect("both have keys").1);
                })
            }
            Flood::JunkInitiations => {
                let header = HandshakeHeader::new(INITIATION, 1, 0, 7);
                Box::new(move |_, datagram| {
                    datagram.extend(header.as_bytes());
                    datagram.resize(INITIATION_BYTES, 0);
                    rng.fill_bytes(&mut datagram[HANDSHAKE_HEADER_BYTES..][..32]);
                })
            }
        };
        Ok(Self {
            flood,
            sockets,
            write,
        })
    }

    /// Sends for so long, and longer until the newcomer has come; returns how many datagrams.
    fn run(&mut self, span: Duration, has_come: &AtomicBool) -> u64 {
        let (mut datagram, mut number, mut sent) = (Vec::new(), 0, 0);
        let began = Instant::now();
        loop {
            let so_far = began.elapsed();
            if so_far >= span && (has_come.load(Ordering::Relaxed) || so_far >= NEWCOMER_WITHIN) {
                return sent;
            }
            if self.flood == Flood::Nothing {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            datagram.clear();
            (self.write)(number, &mut datagram);
            // What the other side's kernel says of an earlier one is no concern of this one.
            let socket = &self.sockets[number as usize % self.sockets.len()];
            sent += u64::from(socket.send(&datagram).is_ok());
            number += 1;
        }
    }
}

/// A session of the flooder's, in its own hands.
struct Member {
    send: SendLane,
    recv: RecvLane,
    buf: PacketBuf,
}

impl Member {
    fn shake_hands(socket: &UdpSocket) -> Result<Self> {
        let established = agree(socket)?;
        let mut member = Self {
            send: established.send_lane(0),
            recv: established.recv_lane(0),
            buf: PacketBuf::new(),
        };
        // Before it had a datagram, the other side does not use the session.
        let mut first = Vec::new();
        member.seal(&ControlMessage::Ping { id: 1 }, 200, &mut first);
        socket.send(&first)?;
        Ok(member)
    }

    /// Adds a sealed message with so much padding.
    fn seal(&mut self, message: &ControlMessage, padding: usize, datagram: &mut Vec<u8>) {
        let mut plaintext = vec![extension::CONTROL];
        plaintext.extend(message.encode());
        plaintext.resize(plaintext.len() + padding, 0);
        assert!(self.buf.fill(&plaintext), "messages are short");
        self.send
            .seal(&mut self.buf)
            .expect("a flood is shorter than the life of a key");
        datagram.extend(self.buf.payload());
    }

    /// Asks for a place at the other side's relay.
    fn place(&mut self, socket: &UdpSocket) -> Result<(u32, [u8; 32])> {
        let give_up = Instant::now() + PATIENCE;
        let mut buffer = [0; 2048];
        while Instant::now() < give_up {
            let mut question = Vec::new();
            self.seal(&ControlMessage::RelayAsk, 200, &mut question);
            socket.send(&question)?;
            while let Ok(len) = socket.recv(&mut buffer) {
                let Ok(plaintext) = self.recv.open(&mut buffer[..len]) else {
                    continue;
                };
                let message = plaintext.get(1..).and_then(ControlMessage::decode);
                if let Some(ControlMessage::RelayPlace { index, key }) = message {
                    return Ok((index, key));
                }
            }
        }
        anyhow::bail!("no place at the relay")
    }
}

/// Shakes hands, by a cookie if one is asked for.
fn agree(socket: &UdpSocket) -> Result<Established> {
    let mut rng = ChaCha20Rng::seed_from_u64(unix_ns());
    let (local, remote) = (keys(FLOODER), keys(0).public());
    let (give_up, mut cookie) = (Instant::now() + PATIENCE, None);
    let mut buffer = [0; 2048];
    while Instant::now() < give_up {
        let slot = SessionSlot::from_low_bits(rng.next_u32());
        let (mut initiator, initiation) = begin(&local, &remote, slot, cookie.as_ref(), &mut rng)?;
        socket.send(&initiation)?;
        while let Ok(len) = socket.recv(&mut buffer) {
            match buffer[0] {
                RESPONSE => match initiator.handle_response(&buffer[..len]) {
                    Ok(established) => return Ok(established),
                    Err((waiting, _)) => initiator = waiting,
                },
                COOKIE_REPLY => {
                    if let Ok(fresh) = initiator.handle_cookie_reply(&buffer[..len]) {
                        cookie = Some(fresh);
                        break;
                    }
                }
                _ => {}
            }
        }
    }
    anyhow::bail!("no handshake with the flooder")
}

fn begin(
    local: &LocalKeys,
    remote: &DataKeys,
    slot: SessionSlot,
    cookie: Option<&Cookie>,
    rng: &mut ChaCha20Rng,
) -> Result<(Initiator, Vec<u8>), HandshakeError> {
    let at = unix_ns();
    Initiator::start(local, remote, NETWORK, &PSK, slot, at, cookie, true, rng)
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("it is after 1970").as_nanos() as u64
}

/// Proves to the relay that the place's holder is here.
fn bind_place(socket: &UdpSocket, index: u32, key: &[u8; 32]) -> Result<()> {
    let give_up = Instant::now() + PATIENCE;
    let mut buffer = [0; 2048];
    for nonce in 0.. {
        ensure!(Instant::now() < give_up, "the place was not bound");
        let ask = |kind, token| message::Message::new(kind, index, nonce, token, key).to_bytes();
        socket.send(&ask(message::REQUEST, [0; 16]))?;
        while let Ok(len) = socket.recv(&mut buffer) {
            match message::Message::peek(&buffer[..len]) {
                Some(answer) if answer.kind == message::CHALLENGE => {
                    socket.send(&ask(message::CONFIRM, answer.token))?;
                }
                Some(answer) if answer.kind == message::BOUND => return Ok(()),
                _ => {}
            }
        }
    }
    Ok(())
}
