//! The wire between a host and the internet: delay, jitter, loss, reordering, rate, and a queue before the rate.
//! Pure: it says when a datagram arrives, and the world delivers it then.

use rand::Rng;
use rand_chacha::ChaCha20Rng;
use std::time::{Duration, Instant};

/// What a link does, in each direction alike.
#[derive(Clone, Copy, Debug)]
pub struct LinkKind {
    /// One-way delay.
    pub delay: Duration,
    /// Random addition to the delay, up to this much. Order is kept unless `reordering` says otherwise.
    pub jitter: Duration,
    /// Share of datagrams lost, 0.0 to 1.0.
    pub loss: f64,
    /// Share of datagrams held back long enough to be overtaken, 0.0 to 1.0.
    pub reordering: f64,
    /// Bytes per second; `None` for no limit.
    pub rate: Option<u64>,
    /// Longest wait before the rate limit; datagrams that would wait longer are dropped.
    pub queue: Duration,
    /// Largest IP packet that passes.
    pub mtu: usize,
}

impl LinkKind {
    /// 10 ms each way, and nothing else.
    pub const FAST: Self = Self {
        delay: Duration::from_millis(10),
        jitter: Duration::ZERO,
        loss: 0.0,
        reordering: 0.0,
        rate: None,
        queue: Duration::from_millis(100),
        mtu: 1500,
    };

    /// The same link with this share of datagrams lost.
    pub const fn lossy(self, loss: f64) -> Self {
        Self { loss, ..self }
    }
}

/// One direction of a link.
#[derive(Debug)]
pub struct Link {
    kind: LinkKind,
    free_at: Option<Instant>,
    last_arrival: Option<Instant>,
    up: bool,
    /// Datagrams that never arrived: lost, too big, the queue full, or the link down.
    pub dropped: u64,
}

/// A round trip, and what TCP waits beyond it before it sends again.
const RETRANSMISSION: Duration = Duration::from_millis(500);

/// IPv4 and UDP headers, which the rate and the MTU count.
const HEADERS_BYTES: usize = 28;

impl Link {
    /// A link of this kind, up and idle.
    pub const fn new(kind: LinkKind) -> Self {
        Self {
            kind,
            free_at: None,
            last_arrival: None,
            up: true,
            dropped: 0,
        }
    }

    /// Cuts or mends it.
    pub const fn set_up(&mut self, up: bool) {
        self.up = up;
    }

    /// What it does.
    pub const fn kind(&self) -> LinkKind {
        self.kind
    }

    /// Changes what it does from now on.
    pub const fn set_kind(&mut self, kind: LinkKind) {
        self.kind = kind;
    }

    /// A datagram with `payload_bytes` of UDP payload enters: when it arrives, or `None` when it never does.
    pub fn send(
        &mut self,
        payload_bytes: usize,
        now: Instant,
        rng: &mut ChaCha20Rng,
    ) -> Option<Instant> {
        let arrival = self.arrival(payload_bytes + HEADERS_BYTES, now, rng);
        self.dropped += u64::from(arrival.is_none());
        arrival
    }

    /// The same by TCP, which cuts what is large and sends again what is lost. What follows does not wait for it, which is
    /// kinder than TCP.
    pub fn send_reliably(
        &mut self,
        payload_bytes: usize,
        now: Instant,
        rng: &mut ChaCha20Rng,
    ) -> Option<Instant> {
        let segment = (payload_bytes + HEADERS_BYTES).min(self.kind.mtu);
        let arrival = self.arrival(segment, now, rng);
        arrival.or_else(|| self.up.then(|| now + self.kind.delay + RETRANSMISSION))
    }

    fn arrival(&mut self, bytes: usize, now: Instant, rng: &mut ChaCha20Rng) -> Option<Instant> {
        if !self.up || bytes > self.kind.mtu || rng.random_bool(self.kind.loss) {
            return None;
        }
        let sent = match self.kind.rate {
            None => now,
            Some(rate) => {
                let start = self.free_at.map_or(now, |free| free.max(now));
                if start - now > self.kind.queue {
                    return None;
                }
                let done = start + Duration::from_secs_f64(bytes as f64 / rate as f64);
                self.free_at = Some(done);
                done
            }
        };
        let jitter = self.kind.jitter.mul_f64(rng.random::<f64>());
        let mut arrival = sent + self.kind.delay + jitter;
        if rng.random_bool(self.kind.reordering) {
            return Some(arrival + self.kind.delay);
        }
        if let Some(last) = self.last_arrival {
            arrival = arrival.max(last);
        }
        self.last_arrival = Some(arrival);
        Some(arrival)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn rng() -> ChaCha20Rng {
        ChaCha20Rng::seed_from_u64(3)
    }

    #[test]
    fn delay_is_kept_and_a_cut_link_carries_nothing() {
        let (mut link, t0) = (Link::new(LinkKind::FAST), Instant::now());
        assert_eq!(
            link.send(100, t0, &mut rng()),
            Some(t0 + LinkKind::FAST.delay)
        );
        link.set_up(false);
        assert_eq!(link.send(100, t0, &mut rng()), None);
        assert_eq!(link.dropped, 1);
    }

    #[test]
    fn jitter_keeps_order_and_reordering_does_not() {
        let t0 = Instant::now();
        let jittery = LinkKind {
            jitter: Duration::from_millis(20),
            ..LinkKind::FAST
        };
        let in_order = |kind| {
            let (mut link, mut rng) = (Link::new(kind), rng());
            let arrivals: Vec<_> = (0..200)
                .filter_map(|i| link.send(100, t0 + Duration::from_millis(i), &mut rng))
                .collect();
            arrivals.is_sorted()
        };
        assert!(in_order(jittery));
        assert!(!in_order(LinkKind {
            reordering: 0.2,
            ..jittery
        }));
    }

    #[test]
    fn the_rate_spaces_datagrams_and_the_queue_has_an_end() {
        let kind = LinkKind {
            rate: Some(100_000),
            queue: Duration::from_millis(50),
            ..LinkKind::FAST
        };
        let (mut link, t0, mut rng) = (Link::new(kind), Instant::now(), rng());
        let arrivals: Vec<_> = (0..20)
            .filter_map(|_| link.send(972, t0, &mut rng))
            .collect();
        assert_eq!(
            arrivals.len(),
            6,
            "50 ms of queue at 10 ms each, and the one being sent"
        );
        assert!(
            arrivals
                .windows(2)
                .all(|pair| pair[1] - pair[0] == Duration::from_millis(10))
        );
    }

    #[test]
    fn loss_loses_its_share_and_big_packets_do_not_fit() {
        let (mut link, t0, mut rng) = (Link::new(LinkKind::FAST.lossy(0.2)), Instant::now(), rng());
        let arrived = (0..10_000)
            .filter(|_| link.send(100, t0, &mut rng).is_some())
            .count();
        assert!((7_800..8_200).contains(&arrived), "{arrived}");
        assert_eq!(Link::new(LinkKind::FAST).send(1473, t0, &mut rng), None);
    }
}
