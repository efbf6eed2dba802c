//! How long a NAT keeps a mapping that nothing passes (RFC 5780 §4.6). Two sockets beside the data port: the quiet one
//! makes a mapping and then says nothing; after a while the asking one has the server send its answer to the quiet one's
//! mapping (RESPONSE-PORT). What arrives shows that the mapping lives. The waits grow until one is too long.

use super::codec::{Change, Transaction, decode_reply, encode_request, encode_request_for_port};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The waits that are tried, in seconds. RFC 4787 asks for two minutes at least and Linux grants 30 s to a mapping that was
/// answered once; beyond the last one nothing is kept alive any more seldom.
const WAITS_S: [u64; 7] = [15, 20, 28, 40, 55, 80, 120];

/// More often nothing is kept alive, however short-lived mappings are.
const KEEPALIVE_MIN: Duration = Duration::from_secs(10);

/// First wait for an answer, doubled by each try, and the tries.
const ANSWER_WAIT: Duration = Duration::from_millis(500);
const TRIES_MAX: u32 = 4;

/// Which of the two sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeSocket {
    /// Whose mapping is watched.
    Quiet,
    /// The other.
    Asking,
}

/// One measurement at one server; [`Self::poll_timeout`] is `None` when it is over.
#[derive(Debug)]
pub struct LifetimeProbe {
    rng: ChaCha20Rng,
    server: SocketAddr,
    step: Step,
    /// The longest wait that the mapping survived, in [`WAITS_S`] from 1.
    survived: usize,
    transaction: Transaction,
    tries: u32,
    next_at: Instant,
    transmits: VecDeque<(ProbeSocket, SocketAddr, Vec<u8>)>,
    lifetime: Option<MappingLifetime>,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingLifetime {
    /// The mapping lived for so long at least.
    pub at_least: Duration,
    /// And was gone after so long; `None` when the longest wait was not too long.
    pub less_than: Option<Duration>,
}

impl MappingLifetime {
    /// How often a mapping must be used so that it stays: a tenth sooner than what it is known to survive.
    pub fn keepalive(&self) -> Duration {
        (self.at_least * 9 / 10).max(KEEPALIVE_MIN)
    }
}

/// open ──mapped──▶ wait ──▶ look ──alive──▶ open (with a longer wait)
///                                └─silence──▶ check ──the server answers──▶ done
///  any ──silence, refusal──▶ done, with what is known
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The quiet socket asks where it is.
    Open,
    /// Nothing passes the mapping.
    Wait {
        port: u16,
    },
    /// The server sends to the mapping.
    Look {
        port: u16,
    },
    /// Nothing came: does the server still answer at all?
    Check,
    Done,
}

impl LifetimeProbe {
    /// Begins a measurement with the help of `server`.
    pub fn new(rng_seed: u64, server: SocketAddr, now: Instant) -> Self {
        let mut probe = Self {
            rng: ChaCha20Rng::seed_from_u64(rng_seed),
            server,
            step: Step::Done,
            survived: 0,
            transaction: [0; 12],
            tries: 0,
            next_at: now,
            transmits: VecDeque::new(),
            lifetime: None,
        };
        probe.go(Step::Open, now);
        probe.handle_timeout(now);
        probe
    }

    /// What is known so far: nothing before the first wait was survived, or while a shorter one may have been.
    pub const fn lifetime(&self) -> Option<MappingLifetime> {
        self.lifetime
    }

    /// A datagram arrived at one of the sockets.
    pub fn handle_datagram(
        &mut self,
        at: ProbeSocket,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
    ) {
        let Some(reply) = decode_reply(bytes) else {
            return;
        };
        if from != self.server || reply.transaction != self.transaction {
            return;
        }
        match (self.step, at, reply.mapped) {
            (Step::Open, ProbeSocket::Quiet, Some(mapped)) => {
                self.step = Step::Wait {
                    port: mapped.port(),
                };
                self.next_at = now + self.wait();
            }
            (Step::Look { .. }, ProbeSocket::Quiet, Some(_)) => {
                self.survived += 1;
                let at_least = Duration::from_secs(WAITS_S[self.survived - 1]);
                self.lifetime = Some(MappingLifetime {
                    at_least,
                    less_than: None,
                });
                let is_last = self.survived == WAITS_S.len();
                self.go(if is_last { Step::Done } else { Step::Open }, now);
            }
            (Step::Check, ProbeSocket::Asking, Some(_)) => {
                let at_least = self.lifetime.map_or(Duration::ZERO, |known| known.at_least);
                self.lifetime = Some(MappingLifetime {
                    at_least,
                    less_than: Some(self.wait()),
                });
                self.step = Step::Done;
            }
            // The server cannot: what is known is all that will be.
            (_, ProbeSocket::Asking, None) => self.step = Step::Done,
            _ => {}
        }
        self.handle_timeout(now);
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.step == Step::Done || now < self.next_at {
            return;
        }
        match self.step {
            Step::Wait { port } => self.go(Step::Look { port }, now),
            Step::Look { .. } if self.tries == TRIES_MAX => self.go(Step::Check, now),
            Step::Open | Step::Check if self.tries == TRIES_MAX => self.step = Step::Done,
            _ => {}
        }
        let plain = || encode_request(self.transaction, Change::default());
        let (socket, bytes) = match self.step {
            Step::Open => (ProbeSocket::Quiet, plain()),
            Step::Look { port } => (
                ProbeSocket::Asking,
                encode_request_for_port(self.transaction, port),
            ),
            Step::Check => (ProbeSocket::Asking, plain()),
            Step::Wait { .. } | Step::Done => return,
        };
        self.transmits.push_back((socket, self.server, bytes));
        self.next_at = now + ANSWER_WAIT * (1 << self.tries);
        self.tries += 1;
    }

    /// When to be called again, and what for; `None` when it is over.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        (self.step != Step::Done).then_some((self.next_at, "measure a mapping's lifetime"))
    }

    /// What to send next, from which socket.
    pub fn poll_transmit(&mut self) -> Option<(ProbeSocket, SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    fn go(&mut self, step: Step, now: Instant) {
        (self.step, self.tries, self.next_at) = (step, 0, now);
        self.transaction = self.rng.random();
    }

    fn wait(&self) -> Duration {
        Duration::from_secs(WAITS_S[self.survived.min(WAITS_S.len() - 1)])
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::super::server_answer;
    use super::*;

    const SERVER: &str = "198.51.100.1:3478";
    const OTHER: &str = "198.51.100.1:3479";
    const QUIET: u16 = 40_000;
    const ASKING: u16 = 40_001;

    /// A NAT that forgets the quiet socket's mapping after `timeout`, and a server with or without RESPONSE-PORT.
    struct World {
        timeout: Duration,
        lose_every: usize,
        serves_ports: bool,
        is_up: bool,
    }

    fn outside(port: u16) -> SocketAddr {
        ([203, 0, 113, 1], port).into()
    }

    impl World {
        fn measure(&self) -> (Option<MappingLifetime>, Duration) {
            let (server, other) = (SERVER.parse().unwrap(), OTHER.parse().unwrap());
            let began = Instant::now();
            let mut now = began;
            let mut probe = LifetimeProbe::new(1, server, now);
            let (mut used_at, mut sent) = (now, 0);
            loop {
                while let Some((socket, to, bytes)) = probe.poll_transmit() {
                    assert_eq!(to, server);
                    sent += 1;
                    let source = match socket {
                        ProbeSocket::Quiet => {
                            used_at = now;
                            outside(QUIET)
                        }
                        ProbeSocket::Asking => outside(ASKING),
                    };
                    if !self.is_up || sent % self.lose_every == 0 {
                        continue;
                    }
                    let mut answer = server_answer(&bytes, source, server, other).unwrap();
                    if !self.serves_ports && answer.to != source {
                        answer = refused(&bytes, source);
                    }
                    let lives = now - used_at < self.timeout;
                    let at = match answer.to.port() {
                        QUIET if lives => ProbeSocket::Quiet,
                        ASKING => ProbeSocket::Asking,
                        _ => continue,
                    };
                    probe.handle_datagram(at, server, &answer.bytes, now);
                }
                let Some((at, _)) = probe.poll_timeout() else {
                    return (probe.lifetime(), now - began);
                };
                now = now.max(at);
                probe.handle_timeout(now);
            }
        }
    }

    fn refused(question: &[u8], to: SocketAddr) -> super::super::StunAnswer {
        let request = super::super::codec::decode_request(question).unwrap();
        super::super::StunAnswer {
            bytes: super::super::codec::encode_refusal(request.transaction, &[0x27]),
            from_other: false,
            to,
        }
    }

    fn seconds(at_least: u64, less_than: Option<u64>) -> Option<MappingLifetime> {
        Some(MappingLifetime {
            at_least: Duration::from_secs(at_least),
            less_than: less_than.map(Duration::from_secs),
        })
    }

    const GOOD: World = World {
        timeout: Duration::from_secs(30),
        lose_every: usize::MAX,
        serves_ports: true,
        is_up: true,
    };

    #[test]
    fn a_lifetime_is_told_between_two_waits_and_a_long_one_from_below() {
        for (timeout, told) in [
            (10, seconds(0, Some(15))),
            (30, seconds(28, Some(40))),
            (60, seconds(55, Some(80))),
            (300, seconds(120, None)),
        ] {
            let timeout = Duration::from_secs(timeout);
            let (lifetime, took) = World { timeout, ..GOOD }.measure();
            assert_eq!(lifetime, told, "{timeout:?}");
            assert!(took < Duration::from_secs(400), "{took:?}");
        }
    }

    #[test]
    fn lost_datagrams_do_not_make_a_lifetime_shorter() {
        for lose_every in [2, 3] {
            assert_eq!(
                World { lose_every, ..GOOD }.measure().0,
                seconds(28, Some(40))
            );
        }
    }

    #[test]
    fn a_server_that_is_silent_or_cannot_leaves_it_unknown() {
        for world in [
            World {
                is_up: false,
                ..GOOD
            },
            World {
                serves_ports: false,
                ..GOOD
            },
        ] {
            let (lifetime, took) = world.measure();
            assert_eq!(lifetime, None);
            assert!(took < Duration::from_secs(40), "{took:?}");
        }
    }

    #[test]
    fn an_answer_from_elsewhere_is_not_believed() {
        let now = Instant::now();
        let server = SERVER.parse().unwrap();
        let mut probe = LifetimeProbe::new(1, server, now);
        let (_, _, bytes) = probe.poll_transmit().unwrap();
        let answer = server_answer(&bytes, outside(QUIET), server, OTHER.parse().unwrap()).unwrap();
        probe.handle_datagram(
            ProbeSocket::Quiet,
            OTHER.parse().unwrap(),
            &answer.bytes,
            now,
        );
        probe.handle_datagram(ProbeSocket::Asking, server, &answer.bytes, now);
        assert_eq!(probe.step, Step::Open);
    }
}
