//! An infrastructure node in the simulated world: the real relay and the real STUN answers on two ports.
//! Granting places is the control plane's: [`crate::overlay`] models how long that takes.

use overlay_types::PathAddr;
use std::{net::SocketAddr, time::Instant};
use tunnel::{
    relay::{RelayLimits, RelayServer, Verdict},
    stun,
    wire::datagram::{DatagramKind, classify},
};

/// The port of relay and STUN.
pub const MAIN_PORT: u16 = 3478;
/// The second port, from which STUN shows what a NAT filters.
pub const ALTERNATE_PORT: u16 = 3479;

/// What runs on an infrastructure host.
pub struct Infrastructure {
    /// The relay.
    pub relay: RelayServer,
    main: SocketAddr,
    alternate: SocketAddr,
}

/// A datagram that it wants sent.
pub struct Answer {
    /// From which of its two sockets.
    pub from: SocketAddr,
    /// Where to.
    pub to: SocketAddr,
    /// All of it.
    pub bytes: Vec<u8>,
}

impl Infrastructure {
    /// Relay and STUN at `main`, with the second port beside it.
    pub fn new(seed: [u8; 32], main: SocketAddr, now: Instant) -> Self {
        Self {
            relay: RelayServer::new(seed, RelayLimits::default(), now),
            main,
            alternate: SocketAddr::new(main.ip(), ALTERNATE_PORT),
        }
    }

    /// A datagram from `from` arrives at `at`.
    pub fn handle_datagram(
        &mut self,
        from: SocketAddr,
        at: SocketAddr,
        mut bytes: Vec<u8>,
        now: Instant,
    ) -> Option<Answer> {
        let other = if at == self.main {
            self.alternate
        } else {
            self.main
        };
        if matches!(classify(&bytes), DatagramKind::Stun) {
            let answer = stun::server_answer(&bytes, from, at, other)?;
            let source = if answer.from_other { other } else { at };
            return Some(Answer {
                from: source,
                to: from,
                bytes: answer.bytes,
            });
        }
        match self
            .relay
            .handle_datagram(PathAddr::Direct(from), &mut bytes, now)
        {
            Verdict::Forward(to) => Some(Answer {
                from: at,
                to: to.socket_addr(),
                bytes,
            }),
            Verdict::Reply(reply) => Some(Answer {
                from: at,
                to: from,
                bytes: reply.to_vec(),
            }),
            Verdict::Drop => None,
        }
    }
}
