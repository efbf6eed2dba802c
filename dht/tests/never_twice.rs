//! The promise of the lease protocol, over a network that loses, doubles, delays and reorders messages, with
//! registrars that crash and come back from their disks: no address is certified to two holders at overlapping times.

#![expect(
    clippy::disallowed_methods,
    reason = "one reading of the clock as the origin of virtual time"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use dht::identity::Identity;
use dht::lease::{
    Lease, LeaseCert, Previous, Refusal, Registrar, RegistrarEvent, RegistrarMessage, Reply,
    Subject, Transaction,
};
use dht::network::{Genesis, Group, Network};
use overlay_types::{DhcpMode, MacAddr, PeerId};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Virtual unix time at the start.
const UNIX: u64 = 1_800_000_000;
const LEASE_SECONDS: u32 = 300;

struct Host {
    identity: Identity,
    registrar: Option<Registrar>,
    disk: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Its clock runs ahead or behind by this, within what the protocol tolerates.
    skew: i64,
    back_at: Instant,
    /// When all that was given to the disk is there.
    written_at: Instant,
}

enum Delivery {
    Message(PeerId, usize, Box<RegistrarMessage>),
    /// Records reach the disk, in the order in which they were written; then the registrar hears of it, or dies before.
    Written {
        host: usize,
        life: u32,
        id: u64,
        records: Vec<(Vec<u8>, Vec<u8>)>,
        dies: bool,
    },
    /// The power goes while something is on its way to the disk.
    Died {
        host: usize,
        life: u32,
    },
}

struct World {
    rng: ChaCha20Rng,
    origin: Instant,
    now: Instant,
    network: Network,
    hosts: Vec<Host>,
    /// By time, then by number, so that a run repeats.
    deliveries: BTreeMap<(Instant, u64), Delivery>,
    count: u64,
    /// Which life of a host a persist confirmation belongs to.
    lives: Vec<u32>,
    holders: Vec<Identity>,
    certificates: Vec<LeaseCert>,
    refusals: BTreeMap<String, u32>,
    asked: u64,
    by_question: BTreeMap<u64, usize>,
}

impl World {
    fn new(seed: u64, voters: usize, holders: usize, subnet: &str) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let identities: Vec<_> = (0..voters).map(|_| Identity::generate(&mut rng)).collect();
        let owner = identities[0].peer_id();
        let mut genesis = Genesis::new(
            &mut rng,
            "lab".parse().unwrap(),
            subnet.parse().unwrap(),
            DhcpMode::Overlay,
            owner,
        );
        let mut ids: Vec<_> = identities.iter().map(Identity::peer_id).collect();
        ids.sort();
        genesis.registrars = Group {
            epoch: 1,
            voters: ids,
        };
        let mut network = Network::new(genesis).unwrap();
        let mut document = network.document().successor();
        document.lease_seconds = LEASE_SECONDS;
        let signatures = vec![dht::signed::Certified::sign(&document, &identities[0])];
        assert_eq!(
            network.apply(dht::signed::Certified {
                body: document,
                signatures
            }),
            Ok(true)
        );
        let origin = Instant::now();
        let holders = (0..holders).map(|_| Identity::generate(&mut rng)).collect();
        let hosts = identities
            .into_iter()
            .map(|identity| {
                let skew = i64::from(rng.next_u32() % 29) - 14;
                Host {
                    identity,
                    registrar: None,
                    disk: BTreeMap::new(),
                    skew,
                    back_at: origin,
                    written_at: origin,
                }
            })
            .collect();
        let mut world = Self {
            rng,
            origin,
            now: origin,
            network,
            hosts,
            deliveries: BTreeMap::new(),
            count: 0,
            lives: vec![0; voters],
            holders,
            certificates: Vec::new(),
            refusals: BTreeMap::new(),
            asked: 0,
            by_question: BTreeMap::new(),
        };
        for host in 0..voters {
            world.start(host, true);
        }
        world
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.per_mille(10 * percent)
    }

    fn per_mille(&mut self, n: u32) -> bool {
        self.rng.next_u32() % 1000 < n
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.rng.next_u64() % n as u64).unwrap()
    }

    fn unix(&self, skew: i64) -> u64 {
        (UNIX + (self.now - self.origin).as_secs())
            .checked_add_signed(skew)
            .unwrap()
    }

    fn start(&mut self, host: usize, fresh: bool) {
        let rng = ChaCha20Rng::seed_from_u64(self.rng.next_u64());
        let at = &mut self.hosts[host];
        let disk = at.disk.clone();
        let registrar = Registrar::new(
            at.identity.clone(),
            self.network.clone(),
            disk,
            fresh,
            rng,
            self.now,
        )
        .unwrap();
        at.registrar = Some(registrar);
        self.lives[host] += 1;
    }

    /// The power goes: what was not confirmed as written is lost, and so is all that was under way.
    fn crash(&mut self, host: usize) {
        let down = Duration::from_millis(self.rng.next_u64() % 8_000);
        self.hosts[host].registrar = None;
        self.hosts[host].back_at = self.now + down;
    }

    fn schedule(&mut self, delay: Duration, delivery: Delivery) {
        self.count += 1;
        self.deliveries
            .insert((self.now + delay, self.count), delivery);
    }

    /// Takes out of every registrar what it has to say.
    fn drain(&mut self) {
        for host in 0..self.hosts.len() {
            loop {
                let me = self.hosts[host].identity.peer_id();
                let Some(registrar) = &mut self.hosts[host].registrar else {
                    break;
                };
                let (transmit, event) = (registrar.poll_transmit(), registrar.poll_event());
                if transmit.is_none() && event.is_none() {
                    break;
                }
                if let Some((to, message)) = transmit {
                    let to = self
                        .hosts
                        .iter()
                        .position(|h| h.identity.peer_id() == to)
                        .unwrap();
                    for _ in 0..=u32::from(self.chance(10)) {
                        if !self.chance(15) {
                            let delay =
                                self.rng.next_u64() % if self.chance(5) { 3_000 } else { 120 };
                            self.schedule(
                                Duration::from_millis(delay),
                                Delivery::Message(me, to, Box::new(message.clone())),
                            );
                        }
                    }
                }
                match event {
                    Some(RegistrarEvent::Persist { id, records }) => {
                        // A crash may fall before, during or after the write; whatever the registrar says until then is heard.
                        let (now, life) = (self.now, self.lives[host]);
                        let slow = if self.chance(5) { 500 } else { 10 };
                        let delay = Duration::from_millis(self.rng.next_u64() % slow);
                        let written_at = self.hosts[host].written_at.max(now + delay);
                        self.hosts[host].written_at = written_at;
                        if self.per_mille(4) {
                            let half = (written_at - now) / 2;
                            self.schedule(half, Delivery::Died { host, life });
                        }
                        let dies = self.per_mille(2);
                        self.schedule(
                            written_at - now,
                            Delivery::Written {
                                host,
                                life,
                                id,
                                records,
                                dies,
                            },
                        );
                    }
                    Some(RegistrarEvent::Reply { id, reply }) => self.answer(id, *reply),
                    Some(RegistrarEvent::AskMembers) => {
                        let certificates = self.certificates.clone();
                        let unix = self.unix(self.hosts[host].skew);
                        let registrar = self.hosts[host].registrar.as_mut().unwrap();
                        registrar.handle_certificates(&certificates);
                        registrar.handle_members_asked(self.now, unix);
                    }
                    Some(RegistrarEvent::RolledBack) => panic!("no disk was set back"),
                    None => {}
                }
            }
        }
    }

    fn answer(&mut self, id: u64, reply: Reply) {
        let holder = self.by_question.remove(&id).unwrap();
        match reply {
            Reply::Lease(cert) => {
                assert_eq!(self.network.verify_lease(&cert), Ok(()));
                assert_eq!(cert.holder, self.holders[holder].peer_id());
                self.certificates.push(cert);
            }
            Reply::Refused(refusal) => {
                let word = format!("{refusal:?}");
                *self
                    .refusals
                    .entry(word.split([' ', '{']).next().unwrap().to_owned())
                    .or_default() += 1;
            }
            Reply::Released | Reply::Member(_) => {}
        }
    }

    fn ask(&mut self) {
        let host = self.below(self.hosts.len());
        let holder = self.below(self.holders.len());
        let peer = self.holders[holder].peer_id();
        let unix = self.unix(self.hosts[host].skew);
        let own: Vec<_> = self
            .certificates
            .iter()
            .filter(|c| c.holder == peer)
            .cloned()
            .collect();
        let live: Vec<_> = own
            .iter()
            .filter(|c| c.is_usable_at(unix))
            .cloned()
            .collect();
        let transaction = match self.rng.next_u32() % 10 {
            0..4 => Transaction::ClaimAddress {
                wanted: own.last().and_then(|c| match c.subject {
                    Subject::Address(address) => Some(address),
                    Subject::Block(_) => None,
                }),
                mac: peer.host_mac(),
                name: Some(format!("n{}", holder / 2).parse().unwrap()),
                unix,
            },
            4 => Transaction::ClaimAddress {
                wanted: None,
                mac: MacAddr([2, 0, 0, 0, 0, 1]),
                name: None,
                unix,
            },
            5 => Transaction::ClaimBlock {
                wanted: None,
                have: Vec::new(),
                unix,
            },
            6..9 => match live.last() {
                Some(cert) => Transaction::Renew {
                    cert: Box::new(cert.clone()),
                    unix,
                },
                None => return,
            },
            _ => match live.last() {
                Some(cert) => {
                    let release = cert.release(&self.holders[holder], unix);
                    // The holder stopped using every certificate of that generation.
                    Transaction::Release(release.signed().clone())
                }
                None => return,
            },
        };
        let now = self.now;
        let id = self.asked;
        let Some(registrar) = &mut self.hosts[host].registrar else {
            return;
        };
        self.asked += 1;
        self.by_question.insert(id, holder);
        registrar.handle_transaction(id, peer, transaction, now, unix);
    }

    fn step(&mut self) {
        self.drain();
        let ms = 1 + self.rng.next_u64() % 200;
        // Sometimes nothing happens for long, so that leases run out.
        let pause = Duration::from_millis(if self.chance(1) {
            60_000 * (ms % 8)
        } else {
            ms
        });
        let until = self.now + pause;
        loop {
            let delivery = self.deliveries.first_key_value().map(|((at, _), _)| *at);
            let timeout = self
                .hosts
                .iter()
                .filter_map(|h| h.registrar.as_ref()?.poll_timeout())
                .map(|(at, _)| at)
                .min();
            let Some(next) = delivery
                .into_iter()
                .chain(timeout)
                .min()
                .filter(|at| *at <= until)
            else {
                break;
            };
            self.now = self.now.max(next);
            if delivery == Some(next) {
                let (_, delivery) = self.deliveries.pop_first().unwrap();
                self.deliver(delivery);
            } else {
                for host in 0..self.hosts.len() {
                    let (now, unix) = (self.now, self.unix(self.hosts[host].skew));
                    if let Some(registrar) = &mut self.hosts[host].registrar {
                        registrar.handle_timeout(now, unix);
                    }
                }
            }
            self.drain();
        }
        self.now = until;
        for host in 0..self.hosts.len() {
            if self.hosts[host].registrar.is_none() && self.now >= self.hosts[host].back_at {
                self.start(host, false);
            } else if self.per_mille(2) {
                self.crash(host);
            }
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        let (host, now) = match &delivery {
            Delivery::Message(_, host, _)
            | Delivery::Written { host, .. }
            | Delivery::Died { host, .. } => (*host, self.now),
        };
        let unix = self.unix(self.hosts[host].skew);
        let alive = self.lives[host];
        let at = &mut self.hosts[host];
        let Some(registrar) = &mut at.registrar else {
            return; // and what was on its way to its disk is lost
        };
        match delivery {
            Delivery::Message(from, _, message) => {
                registrar.handle_message(from, *message, now, unix)
            }
            Delivery::Written {
                life,
                id,
                records,
                dies,
                ..
            } if life == alive => {
                at.disk.extend(records);
                if dies {
                    self.crash(host);
                } else {
                    registrar.handle_persisted(id, now, unix);
                }
            }
            Delivery::Died { life, .. } if life == alive => self.crash(host),
            Delivery::Written { .. } | Delivery::Died { .. } => {}
        }
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.ask();
            self.step();
        }
        for _ in 0..200 {
            self.step();
        }
    }

    /// Every pair of certificates, with no look at who issued them or when.
    fn assert_never_twice(&self) {
        for (i, a) in self.certificates.iter().enumerate() {
            for b in &self.certificates[..i] {
                if a.subject.overlaps(b.subject) && a.issued < b.expires && b.issued < a.expires {
                    let same = a.holder == b.holder && a.subject == b.subject && a.mac == b.mac;
                    let in_order =
                        succeeds(a, b) || succeeds(b, a) || chain(&self.certificates, a, b);
                    assert!(same || in_order, "two holders at once:\n{a:#?}\n{b:#?}");
                }
                if a.subject == b.subject
                    && a.generation == b.generation
                    && a.subject.overlaps(b.subject)
                {
                    assert_eq!(
                        (a.holder, a.mac),
                        (b.holder, b.mac),
                        "one generation, two holders"
                    );
                }
            }
        }
    }
}

/// Whether `later` embeds the release of `earlier`.
fn succeeds(later: &Lease, earlier: &Lease) -> bool {
    matches!(&later.previous, Some(Previous::Released(release))
        if release.claimed_author() == earlier.holder && later.subject == earlier.subject && later.generation == earlier.generation + 1)
}

/// Whether releases lead from one certificate to the other, through a certificate of each generation between.
fn chain(all: &[LeaseCert], a: &Lease, b: &Lease) -> bool {
    let (later, earlier) = if a.generation > b.generation {
        (a, b)
    } else {
        (b, a)
    };
    succeeds(later, earlier)
        || all.iter().any(|mid| {
            mid.subject == later.subject
                && mid.generation < later.generation
                && succeeds(later, mid)
                && chain(all, mid, earlier)
        })
}

fn check(voters: usize, seeds: std::ops::Range<u64>) {
    let (mut granted, mut holders) = (0, BTreeSet::new());
    for seed in seeds {
        let mut world = World::new(seed, voters, 12, "10.77.0.0/27");
        world.run(400);
        world.assert_never_twice();
        granted += world.certificates.len();
        holders.extend(world.certificates.iter().map(|cert| (seed, cert.holder)));
        assert!(
            world.certificates.len() > 20,
            "seed {seed}: only {} granted; refusals {:?}",
            world.certificates.len(),
            world.refusals
        );
    }
    assert!(granted > 0 && holders.len() > 1);
}

#[test]
fn one_registrar_never_certifies_an_address_to_two_holders() {
    check(1, 0..20);
}

#[test]
fn three_registrars_never_certify_an_address_to_two_holders() {
    check(3, 100..130);
}

#[test]
fn five_registrars_never_certify_an_address_to_two_holders() {
    check(5, 200..220);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut world = World::new(seed, 3, 6, "10.77.0.0/26");
        world.run(120);
        world.certificates
    };
    assert_eq!(run(7), run(7));
}

#[test]
fn a_registrar_whose_disk_was_set_back_finds_out_and_votes_no_more() {
    let mut world = World::new(1, 1, 2, "10.77.0.0/26");
    let before = world.hosts[0].disk.clone();
    while world.certificates.is_empty() {
        world.ask();
        world.step();
    }
    let (identity, network) = (world.hosts[0].identity.clone(), world.network.clone());
    let rng = ChaCha20Rng::seed_from_u64(1);
    let mut registrar = Registrar::new(identity, network, before, false, rng, world.now).unwrap();
    assert_eq!(registrar.poll_event(), Some(RegistrarEvent::AskMembers));

    registrar.handle_certificates(&world.certificates);
    registrar.handle_members_asked(world.now, UNIX);

    assert_eq!(registrar.poll_event(), Some(RegistrarEvent::RolledBack));
    registrar.handle_transaction(
        9,
        world.holders[0].peer_id(),
        Transaction::RenewMembership { unix: UNIX },
        world.now,
        UNIX,
    );
    let refused = RegistrarEvent::Reply {
        id: 9,
        reply: Box::new(Reply::Refused(Refusal::RolledBack)),
    };
    assert_eq!(registrar.poll_event(), Some(refused));
}
