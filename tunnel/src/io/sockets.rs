//! The sockets beside the data port's, as the threads hold them: the engine's opens and closes them, every worker sends on
//! them, the first one receives. Why there are any is [`crate::path`]'s matter.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use tracing::debug;

use super::udp::UdpPort;
use super::worker_thread::{ToWorker, WorkerLink};
use crate::engine::SocketChange;
use crate::worker::Hop;

/// Extra sockets by their number.
#[derive(Default)]
pub(super) struct Sockets {
    open: BTreeMap<u16, Extra>,
    /// Whether these are the receiver's.
    is_receiver: bool,
}

struct Extra {
    socket: Arc<UdpPort>,
    /// Datagrams that waited in vain in the socket, as far as they were counted.
    dropped_told: u32,
}

impl Sockets {
    /// Those of the engine's thread: does what the engine wants, and tells the workers, in one message for many.
    pub(super) fn follow(
        &mut self,
        changes: &[SocketChange],
        beside: &UdpPort,
        workers: &[WorkerLink],
    ) {
        let mut done = Vec::new();
        for &change in changes {
            match change {
                SocketChange::Open(number) => match beside.bind_beside() {
                    Ok(socket) => done.push((number, Some(Arc::new(socket)))),
                    // What is sent from it is counted as unsent, and the search fails like any other.
                    Err(error) => debug!(%error, "no further socket"),
                },
                SocketChange::Close(number) => done.push((number, None)),
            }
        }
        if done.is_empty() {
            return;
        }
        for (number, socket) in &done {
            self.set(*number, socket.clone());
        }
        for worker in workers {
            worker.tell(ToWorker::Sockets(done.clone()));
        }
    }

    /// Opens or closes one.
    fn set(&mut self, number: u16, socket: Option<Arc<UdpPort>>) {
        if let Some(socket) = socket {
            let dropped_told = 0;
            self.open.insert(
                number,
                Extra {
                    socket,
                    dropped_told,
                },
            );
        } else {
            self.open.remove(&number);
        }
    }

    /// Those of a worker. With an `epoll` it is the one that receives; `name` says what epoll is to call a socket.
    pub(super) fn apply(
        &mut self,
        changes: Vec<(u16, Option<Arc<UdpPort>>)>,
        epoll: Option<(impl AsFd, impl Fn(u16) -> u64)>,
    ) {
        self.is_receiver = epoll.is_some();
        for (number, socket) in changes {
            if let Some((epoll, name)) = &epoll {
                if let Some(socket) = &socket {
                    let name = EventData::new_u64(name(number));
                    if let Err(errno) = epoll::add(epoll, socket.socket(), name, EventFlags::IN) {
                        debug!(%errno, "cannot wait for a further socket");
                    }
                } else if let Some(socket) = self.get(number) {
                    // Other threads may hold it open for a moment longer.
                    let _ = epoll::delete(epoll, socket.socket());
                }
            }
            self.set(number, socket);
        }
    }

    /// One of them.
    pub(super) fn get(&self, number: u16) -> Option<&Arc<UdpPort>> {
        self.open.get(&number).map(|extra| &extra.socket)
    }

    /// How many datagrams the kernel dropped since the last call because nobody received them in time.
    pub(super) fn newly_dropped(&mut self) -> u32 {
        if !self.is_receiver {
            return 0; // counted once
        }
        let newly = |extra: &mut Extra| {
            let dropped = extra.socket.dropped();
            dropped.wrapping_sub(std::mem::replace(&mut extra.dropped_told, dropped))
        };
        self.open.values_mut().map(newly).sum()
    }

    /// The socket that a hop begins at: usually `main`, the data port's.
    pub(super) fn of<'a>(&'a self, hop: Hop, main: &'a UdpPort) -> Option<&'a UdpPort> {
        if hop.socket == 0 {
            return Some(main);
        }
        self.get(hop.socket).map(AsRef::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_further_socket_has_a_port_of_its_own_until_it_is_closed() {
        let main = UdpPort::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut sockets = Sockets::default();
        sockets.follow(&[SocketChange::Open(3)], &main, &[]);
        let to = receiver.local_addr().unwrap();
        let came_from = |sockets: &Sockets, socket| {
            let hop = Hop { socket, to };
            sockets.of(hop, &main)?.send_run(to, b"hello", 5).unwrap();
            Some(receiver.recv_from(&mut [0; 8]).unwrap().1)
        };
        let further = sockets.get(3).unwrap().local_addr().unwrap();
        assert_eq!(came_from(&sockets, 0), main.local_addr().ok());
        assert_eq!(came_from(&sockets, 3), Some(further));
        assert_ne!(further, main.local_addr().unwrap());
        sockets.follow(&[SocketChange::Close(3)], &main, &[]);
        assert_eq!(came_from(&sockets, 3), None);
    }
}
