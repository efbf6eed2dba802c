//! Steers each lane's datagrams to the socket of the worker that owns it, in the kernel, before they are queued.
//! One that arrives elsewhere all the same is handed over by the worker; see [`super::worker_thread`].

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::wire::datagram::{DATA, FROM_PLACE, RELAY_HEADER_BYTES};

/// Loads the byte at a fixed place of the UDP payload.
const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const SUBTRACT: u16 = 0x14; // BPF_ALU | BPF_SUB | BPF_K
const MODULO: u16 = 0x94; // BPF_ALU | BPF_MOD | BPF_K
const RETURN_A: u16 = 0x16; // BPF_RET | BPF_A
const RETURN_K: u16 = 0x06; // BPF_RET | BPF_K

/// Attaches the program to a group of `workers` sockets that share a port, through one of them. The group counts its
/// sockets in the order in which they were bound. Without it everything still works, by more hand-overs.
pub(super) fn by_lane(socket: BorrowedFd<'_>, workers: u8) -> io::Result<()> {
    let mut program =
        program(workers).map(|(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k });
    let fprog = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `socket` is open for the length of the call, as a borrowed descriptor is; `fprog` is what this option takes,
    // its size is given, and its filter points at `program`, which outlives the call. The kernel copies both.
    #[expect(unsafe_code, reason = "no safe wrapper knows this option")]
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const fprog).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Classic BPF over the UDP payload, as (code, jump if true, jump if false, constant): the lane of a data header, bare
/// or in a relay's wrapper, less one, modulo the workers; anything else, lane 0 included, goes to worker 0.
const fn program(workers: u8) -> [(u16, u8, u8, u32); 12] {
    let relay = RELAY_HEADER_BYTES as u32;
    [
        (LOAD_BYTE, 0, 0, 0),
        (JUMP_IF_EQUAL, 0, 2, DATA as u32), // else to the question whether it is wrapped
        (LOAD_BYTE, 0, 0, 1),
        (JUMP_IF_EQUAL, 7, 4, 0), // lane 0 to the last line, others to the arithmetic
        (JUMP_IF_EQUAL, 0, 6, FROM_PLACE as u32),
        (LOAD_BYTE, 0, 0, relay),
        (JUMP_IF_EQUAL, 0, 4, DATA as u32),
        (LOAD_BYTE, 0, 0, relay + 1),
        (SUBTRACT, 0, 0, 1), // a wrapped lane 0 wraps around to some worker, which passes it on
        (MODULO, 0, 0, workers as u32),
        (RETURN_A, 0, 0, 0),
        (RETURN_K, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the few instructions that the program uses.
    fn run(workers: u8, payload: &[u8]) -> u32 {
        let program = program(workers);
        let (mut at, mut a) = (0, 0u32);
        loop {
            let (code, jt, jf, k) = program[at];
            at += 1;
            match code {
                LOAD_BYTE => match payload.get(k as usize) {
                    Some(byte) => a = u32::from(*byte),
                    None => return 0,
                },
                JUMP_IF_EQUAL => at += usize::from(if a == k { jt } else { jf }),
                SUBTRACT => a = a.wrapping_sub(k),
                MODULO => a %= k,
                RETURN_A => return a,
                _ => return k,
            }
        }
    }

    #[test]
    fn each_lane_goes_to_its_worker_bare_or_wrapped() {
        for lane in 1..=15u8 {
            let mut wrapped = vec![FROM_PLACE; RELAY_HEADER_BYTES];
            wrapped.extend([DATA, lane]);
            assert_eq!(run(4, &[DATA, lane, 0]), u32::from(lane - 1) % 4);
            assert_eq!(run(4, &wrapped), u32::from(lane - 1) % 4);
        }
    }

    #[test]
    fn everything_else_goes_to_the_first_worker() {
        for payload in [
            &[DATA, 0, 0][..],
            &[0x80, 3],
            &[0x00, 1],
            &[DATA],
            &[],
            &[FROM_PLACE, 0, 0, 0, 0, 0, 0, 0, 0x80, 4],
        ] {
            assert_eq!(run(4, payload), 0, "{payload:?}");
        }
    }
}
