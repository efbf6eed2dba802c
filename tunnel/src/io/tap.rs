//! A TAP: where the guests of one port plug in, with a queue for each worker. The `tun` package configures it; it opens one
//! queue only, so that opening them is ours. Addresses and bridges are the node's business.
//!
//! Every frame has a [`VnetHeader`] in front, both ways. Which offloads the kernel hands over is agreed once, from the most
//! it may know down to none; it takes TCP super-frames in any case, and UDP's since Linux 6.2.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use overlay_types::MacAddr;
use tun::AbstractDevice;
use zerocopy::{FromBytes, IntoBytes};

use super::tap_ioctl;
use crate::offload::{Cutter, Layout, Offload, SegmentationKind};
use crate::wire::vnet::{VNET_HEADER_BYTES, VnetHeader};

/// The longest super-frame: what IP's length field allows, Ethernet, two VLAN tags, and the header in front.
const READ_BYTES_MAX: usize = VNET_HEADER_BYTES + 65_535 + 22;

/// A TAP that exists while this does (and while a data plane holds it).
#[derive(Debug)]
pub struct Tap {
    /// A worker each; the kernel gives all frames of a flow to one of them.
    queues: Vec<OwnedFd>,
    name: String,
    ifindex: u32,
    takes_uso: bool,
}

/// Why there is no TAP.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel has no TUN/TAP driver, or hides it.
    #[error(
        "/dev/net/tun is missing; load the driver with `modprobe tun`, or give the container that device"
    )]
    NoDriver,
    /// We may not.
    #[error(
        "not allowed to make a network interface; run as root, or grant CAP_NET_ADMIN and access to /dev/net/tun"
    )]
    NotPermitted,
    /// Somebody holds an interface of that name.
    #[error(
        "an interface named '{0}' is in use; choose another name, or delete it with `ip link del {0}`"
    )]
    NameTaken(String),
    /// Linux does not take that name.
    #[error("'{0}' cannot name an interface; use 1 to 15 letters, digits, '-' or '_'")]
    InvalidName(String),
    /// Anything else.
    #[error("cannot make a TAP: {0}; the kernel's log may say more (`dmesg`)")]
    Other(io::Error),
}

impl Tap {
    /// Makes a TAP with so many queues and brings it up. Without a `name` the kernel chooses `tapN`, without a `mac` one at
    /// random.
    ///
    /// # Errors
    /// Why it could not be made; nothing is left behind then.
    ///
    /// # Panics
    /// Without any queue.
    pub(super) fn create(
        name: Option<&str>,
        mac: Option<MacAddr>,
        mtu: u16,
        queues: u8,
    ) -> Result<Self, TapError> {
        let named = name.unwrap_or("tap%d");
        let sound = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_some_and(|name| name.is_empty() || name.len() > 15 || !name.chars().all(sound)) {
            return Err(TapError::InvalidName(named.to_owned()));
        }
        assert!(queues > 0, "a TAP has a queue");
        let is_multi = queues > 1;
        let open = |name: &str, is_first| {
            tap_ioctl::open_queue(name, is_first, is_multi).map_err(|error| explain(error, named))
        };
        let (first, name) = open(named, true)?;
        let mut queues_open = vec![first];
        for _ in 1..queues {
            queues_open.push(open(&name, false)?.0);
        }
        let takes_uso = tap_ioctl::set_offloads(&queues_open[0], &name) & tap_ioctl::USO != 0;
        if let Some(mac) = mac {
            tap_ioctl::set_mac(&name, mac).map_err(TapError::Other)?;
        }
        let ifindex = configure(&queues_open[0], &name, mtu)
            .map_err(|error| explain(into_io(error), named))?;
        Ok(Self {
            queues: queues_open,
            name,
            ifindex,
            takes_uso,
        })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's index.
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Another descriptor of the queue of worker `index`.
    pub(super) fn queue(&self, index: usize) -> io::Result<TapQueue> {
        let queue = self
            .queues
            .get(index)
            .ok_or_else(|| io::Error::other("it was made by a data plane with fewer workers"))?;
        Ok(TapQueue {
            fd: queue.try_clone()?,
            takes_uso: self.takes_uso,
        })
    }
}

/// Sets its MTU, brings it up, and tells its index.
fn configure(queue: &OwnedFd, name: &str, mtu: u16) -> tun::Result<u32> {
    let mut config = tun::Configuration::default();
    config
        .raw_fd(queue.as_raw_fd())
        .close_fd_on_drop(false)
        .layer(tun::Layer::L2)
        .tun_name(name);
    let mut device = tun::Device::new(&config)?;
    device.set_mtu(mtu)?;
    device.enabled(true)?;
    Ok(device.tun_index()?.unsigned_abs())
}

/// One thread's descriptor of a TAP.
#[derive(Debug)]
pub(super) struct TapQueue {
    fd: OwnedFd,
    takes_uso: bool,
}

/// Memory for one frame to be read into.
pub(super) struct ReadBuffer(Box<[u8]>);

impl ReadBuffer {
    pub(super) fn new() -> Self {
        Self(vec![0; READ_BYTES_MAX].into_boxed_slice())
    }
}

impl TapQueue {
    /// Whether the kernel takes super-frames of UDP.
    pub(super) const fn takes_uso(&self) -> bool {
        self.takes_uso
    }

    /// Reads one frame and what is to be done to it; none when there is none now.
    pub(super) fn read<'b>(
        &self,
        buffer: &'b mut ReadBuffer,
    ) -> io::Result<Option<(&'b mut [u8], Offload)>> {
        let len = loop {
            match rustix::io::read(&self.fd, &mut *buffer.0) {
                Ok(len) => break len,
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        let (header, frame) = buffer.0[..len].split_at_mut(VNET_HEADER_BYTES.min(len));
        // With a header that we do not know it is as good as no frame; the worker drops that as malformed, and counts it.
        let offload = VnetHeader::ref_from_bytes(header)
            .ok()
            .and_then(VnetHeader::offload);
        Ok(Some(match offload {
            Some(offload) => (frame, offload),
            None => (&mut [], Offload::NONE),
        }))
    }

    /// Writes one frame; false when the kernel did not take it (queue full, interface down, gone).
    #[must_use]
    pub(super) fn write(&self, frame: &[u8], offload: Offload) -> bool {
        let header_len = match offload.segmentation {
            None => 0,
            Some(segmentation) if segmentation.kind == SegmentationKind::Udp && !self.takes_uso => {
                return self.write_cut(frame, &offload);
            }
            Some(_) => Layout::of(frame, &offload).map_or(0, |layout| layout.payload),
        };
        let header = VnetHeader::new(offload, header_len as u16);
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(frame)];
        rustix::io::writev(&self.fd, &parts).is_ok()
    }

    /// UDP's super-frame for a kernel that does not know any.
    fn write_cut(&self, frame: &[u8], offload: &Offload) -> bool {
        let Ok(cutter) = Cutter::new(frame, offload, usize::MAX) else {
            return false;
        };
        (0..cutter.count())
            .map(|index| self.write(&cutter.segment_for_a_wire(frame, index), Offload::NONE))
            .fold(true, |all, written| all & written)
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn into_io(error: tun::Error) -> io::Error {
    match error {
        tun::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

fn explain(error: io::Error, name: &str) -> TapError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDriver,
        Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted,
        Some(libc::EBUSY | libc::EEXIST) => TapError::NameTaken(name.to_owned()),
        // The name is that of an interface of another kind.
        Some(libc::EINVAL) => TapError::NameTaken(name.to_owned()),
        _ => TapError::Other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::{PartialChecksum, Segmentation};
    use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    #[test]
    fn a_name_that_linux_would_not_take_is_refused_at_once() {
        for name in ["", "a-name-that-is-too-long", "a/b", "a b"] {
            assert!(
                matches!(
                    Tap::create(Some(name), None, 1500, 1),
                    Err(TapError::InvalidName(_))
                ),
                "{name}"
            );
        }
    }

    #[test]
    fn a_kernel_without_super_frames_of_udp_gets_each_datagram_with_its_checksum() {
        let (ours, kernels) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        let queue = TapQueue {
            fd: ours,
            takes_uso: false,
        };
        let payload: Vec<u8> = (0..250).collect();
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(5000, 6000)
            .write(&mut frame, &payload)
            .unwrap();
        // As a kernel leaves it: the sum of addresses, protocol and length.
        let pseudo: u16 = 0x0a00 + 1 + 0x0a00 + 2 + 17 + 258;
        frame[40..42].copy_from_slice(&pseudo.to_be_bytes());
        let offload = Offload {
            checksum: Some(PartialChecksum {
                start: 34,
                offset: 6,
            }),
            segmentation: Some(Segmentation {
                kind: SegmentationKind::Udp,
                size: 100,
                has_ecn: false,
            }),
        };
        assert!(queue.write(&frame, offload));

        let mut bytes = [0; 512];
        let mut seen = Vec::new();
        while let Ok(len) = rustix::io::read(&kernels, &mut bytes) {
            let (header, frame) = bytes[..len].split_at(VNET_HEADER_BYTES);
            assert_eq!(header, [0; VNET_HEADER_BYTES], "nothing left to be done");
            let packet = SlicedPacket::from_ethernet(frame).unwrap();
            let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) =
                (packet.net, packet.transport)
            else {
                panic!("no datagram")
            };
            let sum = udp
                .to_header()
                .calc_checksum_ipv4(&ip.header().to_header(), udp.payload());
            assert_eq!(udp.checksum(), sum.unwrap());
            seen.push(udp.payload().to_vec());
        }
        assert_eq!(
            seen.iter().map(Vec::len).collect::<Vec<_>>(),
            [100, 100, 50]
        );
        assert_eq!(seen.concat(), payload);
    }
}
