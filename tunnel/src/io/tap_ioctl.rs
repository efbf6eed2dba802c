//! What is asked of the TUN/TAP driver that no library asks: queues, offloads, a MAC before the interface is up.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use overlay_types::MacAddr;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tracing::debug;

const TSO: libc::c_uint = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
/// UDP's super-frames, of both IP versions.
pub(super) const USO: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Sets of offloads, the best first; older kernels refuse what they do not know.
const OFFLOADS: [libc::c_uint; 4] = [
    libc::TUN_F_CSUM | TSO | libc::TUN_F_TSO_ECN | USO,
    libc::TUN_F_CSUM | TSO | libc::TUN_F_TSO_ECN,
    libc::TUN_F_CSUM | TSO,
    0,
];

/// Opens a queue of a TAP, with a header in front of each frame that tells its offloads; gives the interface's name. The
/// first of them makes the interface, which nobody may have yet, and says whether others follow.
pub(super) fn open_queue(
    name: &str,
    is_first: bool,
    is_multi: bool,
) -> io::Result<(OwnedFd, String)> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if is_multi {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    if is_first {
        // Else we would become one more queue of somebody's TAP of that name.
        flags |= libc::IFF_TUN_EXCL;
    }
    let mut request = request(name);
    // The driver reads the low 16 bits.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open while `fd` lives; TUNSETIFF reads and writes an `ifreq` with a name that ends in a zero
    // byte and `ifru_flags` set, which `request` is, and keeps no reference to it.
    #[expect(unsafe_code, reason = "no safe wrapper opens a queue of a TAP")]
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request.ifr_name.iter().take_while(|c| **c != 0);
    let name = name.map(|c| char::from(c.to_ne_bytes()[0])).collect();
    Ok((fd, name))
}

/// Asks for the best offloads that the kernel knows; tells which those are.
pub(super) fn set_offloads(fd: &OwnedFd, name: &str) -> libc::c_uint {
    let offloads = best_taken(|&offloads| {
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
        result == 0
    });
    debug!(name, offloads, "a TAP's offloads");
    offloads
}

/// The first set that the kernel takes.
fn best_taken(takes: impl FnMut(&libc::c_uint) -> bool) -> libc::c_uint {
    OFFLOADS.into_iter().find(takes).unwrap_or(0)
}

/// Sets an interface's MAC before it comes up, so that its link-local address is made from the right one.
pub(super) fn set_mac(name: &str, mac: MacAddr) -> io::Result<()> {
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
    let mut request = request(name);
    request.ifr_ifru.ifru_hwaddr = address;
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

/// A request about the interface `name`.
fn request(name: &str) -> libc::ifreq {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
    };
    // The last byte stays zero: the kernel's own names are shorter than the field.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1]
        .iter_mut()
        .zip(name.bytes())
    {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_kernel_gets_what_it_knows() {
        let all = OFFLOADS[0];
        for (known, taken) in [
            (all, all),
            (all & !USO, all & !USO), // before Linux 6.2
            (libc::TUN_F_CSUM | TSO, libc::TUN_F_CSUM | TSO),
            (libc::TUN_F_CSUM, 0),
            (0, 0),
        ] {
            assert_eq!(best_taken(|asked| asked & !known == 0), taken, "{known:#x}");
        }
        assert_eq!(best_taken(|_| false), 0);
    }
}
