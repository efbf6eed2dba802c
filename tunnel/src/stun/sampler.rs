//! Where a NAT stands in giving out ports: asked from a fresh socket, whose mappings are the NAT's newest. What is foretold
//! from it is [`crate::path`]'s; what it says of the NAT, [`super::StunClient`]'s.

use super::codec::{Change, Transaction, decode_reply, encode_request};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The largest distance between ports that were handed out one after the other. Other hosts' connections may lie between.
pub(crate) const STEP_MAX: u32 = 16;

/// Servers asked from one socket. The distance of their answers tells the step, the last of them the place; each takes a
/// port of the NAT.
const QUESTIONS_MAX: usize = 3;

/// How long answers are waited for, and once there is one, the others.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
const OTHERS_WAIT: Duration = Duration::from_millis(150);

/// Sockets asked about at a time; more are answered with nothing.
const SAMPLES_MAX: usize = 64;

/// What servers saw of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// The socket's newest mapping.
    pub last: SocketAddr,
    /// The smallest distance between two that followed each other; `None` when there was no second one, or when they do
    /// not follow each other.
    pub step: Option<i16>,
    /// Whether there were two to compare.
    pub are_compared: bool,
}

/// Asks STUN servers once from each socket that it is told of.
#[derive(Debug)]
pub struct PortSampler {
    rng: ChaCha20Rng,
    samples: BTreeMap<u16, Sample>,
    transmits: VecDeque<(u16, SocketAddr, Vec<u8>)>,
    sampled: VecDeque<(u16, Option<Sampled>)>,
}

#[derive(Debug)]
struct Sample {
    /// In the order in which they left.
    questions: Vec<Question>,
    until: Instant,
}

#[derive(Debug)]
struct Question {
    server: SocketAddr,
    transaction: Transaction,
    seen: Option<SocketAddr>,
}

impl PortSampler {
    /// One that asks nothing yet.
    pub fn new(rng_seed: u64) -> Self {
        Self {
            rng: ChaCha20Rng::seed_from_u64(rng_seed),
            samples: BTreeMap::new(),
            transmits: VecDeque::new(),
            sampled: VecDeque::new(),
        }
    }

    /// Asks the first of these servers where they see this socket, which has sent nothing yet.
    pub fn sample(&mut self, socket: u16, servers: &[SocketAddr], now: Instant) {
        if servers.is_empty() || self.samples.len() == SAMPLES_MAX {
            return self.sampled.push_back((socket, None));
        }
        let mut questions = Vec::new();
        for &server in servers.iter().take(QUESTIONS_MAX) {
            let transaction: Transaction = self.rng.random();
            let bytes = encode_request(transaction, Change::default());
            self.transmits.push_back((socket, server, bytes));
            questions.push(Question {
                server,
                transaction,
                seen: None,
            });
        }
        let until = now + ANSWER_WAIT;
        self.samples.insert(socket, Sample { questions, until });
    }

    /// A STUN datagram came to a socket.
    pub fn handle_datagram(&mut self, socket: u16, from: SocketAddr, bytes: &[u8], now: Instant) {
        let (Some(sample), Some(reply)) = (self.samples.get_mut(&socket), decode_reply(bytes))
        else {
            return;
        };
        let question = sample
            .questions
            .iter_mut()
            .find(|q| q.transaction == reply.transaction && q.server == from);
        let Some(question) = question else { return };
        question.seen = reply.mapped;
        sample.until = sample.until.min(now + OTHERS_WAIT);
        if sample.questions.iter().all(|q| q.seen.is_some()) {
            sample.until = now;
        }
        self.handle_timeout(now);
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let over: Vec<u16> = self
            .samples
            .iter()
            .filter(|(_, sample)| sample.until <= now)
            .map(|(&socket, _)| socket)
            .collect();
        for socket in over {
            let sampled = self.samples.remove(&socket).and_then(|s| s.judge());
            self.sampled.push_back((socket, sampled));
        }
    }

    /// When to be called again, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let until = self.samples.values().map(|sample| sample.until).min();
        until.map(|at| (at, "judge what STUN servers saw of a socket"))
    }

    /// What to send next, and from which socket.
    pub fn poll_transmit(&mut self) -> Option<(u16, SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// What was seen of a socket; `None` for it when no server answered.
    pub fn poll_sampled(&mut self) -> Option<(u16, Option<Sampled>)> {
        self.sampled.pop_front()
    }
}

impl Sample {
    fn judge(&self) -> Option<Sampled> {
        let seen: Vec<SocketAddr> = self.questions.iter().filter_map(|q| q.seen).collect();
        let last = *seen.last()?;
        let steps = seen.windows(2).map(|pair| {
            let (before, after) = (pair[0], pair[1]);
            let step = i32::from(after.port()) - i32::from(before.port());
            (before.ip() == after.ip() && step != 0 && step.unsigned_abs() <= STEP_MAX)
                .then_some(step as i16)
        });
        Some(Sampled {
            last,
            step: steps.flatten().min_by_key(|step| step.unsigned_abs()),
            are_compared: seen.len() > 1,
        })
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;
    use crate::stun::server_answer;

    fn server(n: u8) -> SocketAddr {
        ([198, 51, 100, n], 3478).into()
    }

    /// Asks three servers, of which each sees this port, or does not answer.
    fn sampled(ports: [Option<u16>; 3]) -> (Duration, Option<Sampled>) {
        let (mut sampler, t0) = (PortSampler::new(1), Instant::now());
        let servers = [1, 2, 3, 4].map(server);
        sampler.sample(7, &servers, t0);
        let mut asked = Vec::new();
        while let Some((socket, to, bytes)) = sampler.poll_transmit() {
            assert_eq!(socket, 7);
            asked.push((to, bytes));
        }
        assert_eq!(
            asked.iter().map(|(to, _)| *to).collect::<Vec<_>>(),
            servers[..3]
        );
        for ((to, question), port) in asked.iter().zip(ports) {
            let Some(port) = port else { continue };
            let at = ([203, 0, 113, 1], port).into();
            let answer = server_answer(question, at, *to, server(9)).unwrap();
            sampler.handle_datagram(7, server(8), &answer.bytes, t0); // not from whom was asked
            sampler.handle_datagram(7, *to, &answer.bytes, t0);
        }
        let mut now = t0;
        while let Some((at, _)) = sampler.poll_timeout() {
            now = at;
            sampler.handle_timeout(now);
        }
        let (socket, sampled) = sampler.poll_sampled().unwrap();
        assert_eq!(socket, 7);
        (now - t0, sampled)
    }

    fn seen(port: u16, step: Option<i16>) -> Option<Sampled> {
        let last = ([203, 0, 113, 1], port).into();
        let are_compared = true;
        Some(Sampled {
            last,
            step,
            are_compared,
        })
    }

    #[test]
    fn three_answers_tell_place_and_step_at_once() {
        let (took, seen_there) = sampled([Some(5000), Some(5003), Some(5004)]);
        assert_eq!((took, seen_there), (Duration::ZERO, seen(5004, Some(1))));
        assert_eq!(
            sampled([Some(5000), Some(4998), Some(4996)]).1,
            seen(4996, Some(-2))
        );
    }

    #[test]
    fn a_lost_answer_is_not_waited_for_long() {
        let (took, seen_there) = sampled([Some(5000), None, None]);
        let alone = seen(5000, None).map(|seen| Sampled {
            are_compared: false,
            ..seen
        });
        assert_eq!((took, seen_there), (OTHERS_WAIT, alone));
        let (took, seen_there) = sampled([None; 3]);
        assert_eq!((took, seen_there), (ANSWER_WAIT, None));
    }

    #[test]
    fn ports_far_from_each_other_are_no_steps() {
        assert_eq!(
            sampled([Some(5000), Some(43_003), Some(20_000)]).1,
            seen(20_000, None)
        );
    }

    #[test]
    fn sockets_without_end_are_bounded() {
        let (mut sampler, t0) = (PortSampler::new(1), Instant::now());
        for socket in 1..=200 {
            sampler.sample(socket, &[server(1)], t0);
        }
        assert_eq!(sampler.samples.len(), SAMPLES_MAX);
        assert_eq!(sampler.poll_sampled(), Some((SAMPLES_MAX as u16 + 1, None)));
    }
}
