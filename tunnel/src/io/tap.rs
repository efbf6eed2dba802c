//! A TAP: where the guests of one port plug in. The `tun` package makes and configures it; its descriptor is ours, for
//! epoll and offloads. Addresses and bridges are the node's business.
//!
//! Every frame has a [`VnetHeader`] in front, both ways. Which offloads the kernel hands over is agreed once, from the most
//! it may know down to none; it takes TCP super-frames in any case, and UDP's since Linux 6.2.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use overlay_types::MacAddr;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tracing::debug;
use tun::AbstractDevice;
use zerocopy::{FromBytes, IntoBytes};

use crate::offload::{Cutter, Layout, Offload, SegmentationKind};
use crate::wire::vnet::{VNET_HEADER_BYTES, VnetHeader};

/// The longest super-frame: what IP's length field allows, Ethernet, two VLAN tags, and the header in front.
const READ_BYTES_MAX: usize = VNET_HEADER_BYTES + 65_535 + 22;

const TSO: libc::c_uint = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
const USO: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Sets of offloads, the best first; older kernels refuse what they do not know.
const OFFLOADS: [libc::c_uint; 4] = [
    libc::TUN_F_CSUM | TSO | libc::TUN_F_TSO_ECN | USO,
    libc::TUN_F_CSUM | TSO | libc::TUN_F_TSO_ECN,
    libc::TUN_F_CSUM | TSO,
    0,
];

/// A TAP that exists while this does (and while a data plane holds it).
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
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
    /// Makes a TAP and brings it up. Without a `name` the kernel chooses `tapN`, without a `mac` one at random.
    ///
    /// # Errors
    /// Why it could not be made; nothing is left behind then.
    pub fn create(name: Option<&str>, mac: Option<MacAddr>, mtu: u16) -> Result<Self, TapError> {
        let named = name.unwrap_or("tap%d");
        let sound = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_some_and(|name| name.is_empty() || name.len() > 15 || !name.chars().all(sound)) {
            return Err(TapError::InvalidName(named.to_owned()));
        }
        let mut config = tun::Configuration::default();
        config.layer(tun::Layer::L2).tun_name(named).mtu(mtu);
        config.platform_config(|linux| {
            linux.vnet_hdr(true);
        });
        let explain = |error: tun::Error| explain(into_io(error), named);
        let mut device = tun::Device::new(&config).map_err(explain)?;
        let name = device.tun_name().map_err(explain)?;
        let ifindex = device.tun_index().map_err(explain)?.unsigned_abs();
        if let Some(mac) = mac {
            set_mac(&name, mac).map_err(TapError::Other)?;
        }
        device.enabled(true).map_err(explain)?;

        let raw = device.into_raw_fd();
        // SAFETY: `into_raw_fd` gives up its open descriptor to us, and nothing else closes it.
        #[expect(unsafe_code, reason = "`tun` hands its descriptor over as a number")]
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let flags = fcntl_getfl(&fd).map_err(|errno| TapError::Other(errno.into()))?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK)
            .map_err(|errno| TapError::Other(errno.into()))?;
        let takes_uso = set_offloads(&fd, &name) & USO != 0;
        Ok(Self {
            fd,
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

    /// Another descriptor of the same single queue: one worker reads it, all may write.
    pub(super) fn share(&self) -> io::Result<TapQueue> {
        Ok(TapQueue {
            fd: self.fd.try_clone()?,
            takes_uso: self.takes_uso,
        })
    }
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
    ) -> io::Result<Option<(&'b [u8], Offload)>> {
        let len = loop {
            match rustix::io::read(&self.fd, &mut *buffer.0) {
                Ok(len) => break len,
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        let read = VnetHeader::ref_from_prefix(&buffer.0[..len])
            .ok()
            .and_then(|(header, frame)| Some((frame, header.offload()?)));
        // With a header that we do not know it is as good as no frame; the worker drops that as malformed, and counts it.
        Ok(Some(read.unwrap_or((&[], Offload::NONE))))
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
            .map(|index| self.write(&cutter.segment_for_a_wire(index), Offload::NONE))
            .fold(true, |all, written| all & written)
    }
}

/// Asks for the best offloads that the kernel knows; tells which those are.
fn set_offloads(fd: &OwnedFd, name: &str) -> libc::c_uint {
    use std::os::fd::AsRawFd;
    for offloads in OFFLOADS {
        // SAFETY: the descriptor is open while `fd` lives; TUNSETOFFLOAD takes its argument by value and keeps no
        // reference to anything of ours.
        #[expect(unsafe_code, reason = "no safe wrapper sets a TAP's offloads")]
        let result = unsafe {
            libc::ioctl(
                fd.as_raw_fd(),
                libc::TUNSETOFFLOAD as _,
                libc::c_ulong::from(offloads),
            )
        };
        if result == 0 {
            debug!(name, offloads, "a TAP's offloads");
            return offloads;
        }
    }
    0
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Sets an interface's MAC before it comes up, so that its link-local address is made from the right one.
fn set_mac(name: &str, mac: MacAddr) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    use std::os::fd::AsRawFd;
    let control = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut address = libc::sockaddr {
        sa_family: libc::ARPHRD_ETHER,
        sa_data: [0; 14],
    };
    for (to, from) in address.sa_data.iter_mut().zip(mac.0) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_hwaddr: address,
        },
    };
    // The last byte stays zero: the kernel's own names are shorter than the field.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1]
        .iter_mut()
        .zip(name.bytes())
    {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: the descriptor is open while `control` lives; SIOCSIFHWADDR reads an `ifreq` with a name that ends in a
    // zero byte and `ifru_hwaddr` set, which `request` is; the kernel keeps no reference to it.
    #[expect(unsafe_code, reason = "no safe wrapper sets a MAC without netlink")]
    let result = unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            libc::SIOCSIFHWADDR as _,
            &raw const request,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
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

    #[test]
    fn a_name_that_linux_would_not_take_is_refused_at_once() {
        for name in ["", "a-name-that-is-too-long", "a/b", "a b"] {
            assert!(
                matches!(
                    Tap::create(Some(name), None, 1500),
                    Err(TapError::InvalidName(_))
                ),
                "{name}"
            );
        }
    }
}
