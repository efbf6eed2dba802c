//! How sound bytes are broken, and the frames to break. What is fed with them is each target's.

use bolero::{TypeGenerator, produce};

/// One way to break bytes. Places are taken modulo the length, so every edit changes something.
#[derive(Clone, Debug, TypeGenerator)]
enum Edit {
    Set(u16, u8),
    Flip(u16, u8),
    /// To a value that lengths and counts are often wrong at.
    Extreme(u16, bool),
    CutAt(u16),
    Remove(u16, u8),
    Insert(
        u16,
        #[generator(produce::<Vec<u8>>().with().len(0..=16usize))] Vec<u8>,
    ),
    /// A piece appears once more.
    Repeat(u16, u8),
}

/// A few edits, or none: more leave nothing that a parser would read on.
#[derive(Clone, Debug, TypeGenerator)]
pub(crate) struct Edits(#[generator(produce::<Vec<Edit>>().with().len(0..=4usize))] Vec<Edit>);

/// `sound` with `edits` done to it.
pub(crate) fn broken(sound: &[u8], edits: &Edits) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for edit in &edits.0 {
        let len = bytes.len();
        let place = |at: u16| usize::from(at) % len.max(1);
        match *edit {
            Edit::Insert(at, ref more) => {
                let at = place(at);
                bytes.splice(at..at, more.iter().copied());
            }
            _ if len == 0 => {}
            Edit::Set(at, byte) => bytes[place(at)] = byte,
            Edit::Flip(at, bit) => bytes[place(at)] ^= 1 << (bit % 8),
            Edit::Extreme(at, high) => bytes[place(at)] = if high { 0xff } else { 0 },
            Edit::CutAt(at) => bytes.truncate(place(at)),
            Edit::Remove(at, n) => {
                let at = place(at);
                bytes.drain(at..len.min(at + usize::from(n)));
            }
            Edit::Repeat(at, n) => {
                let at = place(at);
                let piece = bytes[at..len.min(at + usize::from(n))].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

/// The one of `list` that `choice` means.
pub(crate) fn one<T>(list: &[T], choice: u8) -> &T {
    &list[usize::from(choice) % list.len()]
}

/// The one of `sound` that `choice` means, broken.
pub(crate) fn one_broken(sound: &[Vec<u8>], choice: u8, edits: &Edits) -> Vec<u8> {
    broken(one::<Vec<u8>>(sound, choice), edits)
}

/// A station in front of a node.
pub(crate) const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
/// A station behind another node.
pub(crate) const FAR: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
pub(crate) const GUEST_IP: [u8; 4] = [10, 77, 0, 10];
pub(crate) const FAR_IP: [u8; 4] = [10, 77, 0, 11];
const FAR_IP6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xb];
const GUEST_IP6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// A UDP packet in a frame.
pub(crate) fn udp(
    (from, from_ip, from_port): ([u8; 6], [u8; 4], u16),
    (to, to_ip, to_port): ([u8; 6], [u8; 4], u16),
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ipv4(from_ip, to_ip, 255)
        .udp(from_port, to_port)
        .write(&mut packet, payload)
        .unwrap();
    ethernet(to, from, 0x0800, &packet)
}

fn arp(operation: u8, from: ([u8; 6], [u8; 4]), to: ([u8; 6], [u8; 4])) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    let packet = [&head[..], &from.0, &from.1, &to.0, &to.1].concat();
    let destination = if operation == 1 { [0xff; 6] } else { to.0 };
    ethernet(destination, from.0, 0x0806, &packet)
}

fn icmpv6(kind: u8, target: [u8; 16], option: [u8; 8]) -> Vec<u8> {
    let message = [&[kind, 0, 0, 0, 0x60, 0, 0, 0][..], &target, &option].concat();
    let head = [0x60, 0, 0, 0, 0, message.len() as u8, 58, 255];
    let packet = [&head[..], &GUEST_IP6, &ALL_NODES, &message].concat();
    ethernet([0x33, 0x33, 0, 0, 0, 1], GUEST, 0x86dd, &packet)
}

/// DHCP, as far as the data plane reads it: addresses, cookie, message type and lease time.
fn dhcp(reply: bool, kind: u8) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[0] = if reply { 2 } else { 1 };
    message[1..3].copy_from_slice(&[1, 6]);
    message[16..20].copy_from_slice(&GUEST_IP);
    message[28..34].copy_from_slice(&GUEST);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind, 51, 4, 0, 0, 14, 16]);
    message.extend(*b"\x0c\x06vm-8-1\xff");
    if reply {
        udp((FAR, FAR_IP, 67), (GUEST, GUEST_IP, 68), &message)
    } else {
        udp((GUEST, [0; 4], 68), ([0xff; 6], [255; 4], 67), &message)
    }
}

/// One sound frame of every kind that anybody here looks into.
pub(crate) fn frames() -> Vec<Vec<u8>> {
    let guest = (GUEST, GUEST_IP);
    let far = (FAR, FAR_IP);
    vec![
        udp((GUEST, GUEST_IP, 7), (FAR, FAR_IP, 7), &[7; 1000]),
        udp((FAR, FAR_IP, 7), (GUEST, GUEST_IP, 7), &[7; 1400]),
        arp(1, guest, far),
        arp(1, guest, ([0; 6], [10, 77, 0, 99])),
        arp(1, guest, guest),
        arp(2, far, guest),
        icmpv6(135, FAR_IP6, [1, 1, 2, 0, 0, 0, 0, 0xa]),
        icmpv6(136, GUEST_IP6, [2, 1, 2, 0, 0, 0, 0, 0xa]),
        icmpv6(133, [0; 16], [1, 1, 2, 0, 0, 0, 0, 0xa]),
        dhcp(false, 1),
        dhcp(false, 3),
        dhcp(true, 5),
        ethernet(FAR, GUEST, 0x8100, &[0, 5, 8, 0, 0x45, 0, 0, 20]),
        ethernet(FAR, GUEST, 0x88cc, &[2; 60]),
    ]
}

/// A frame, sound or broken.
#[derive(Clone, Debug, TypeGenerator)]
pub(crate) struct AnyFrame(u8, Edits);

impl AnyFrame {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        thread_local!(static FRAMES: Vec<Vec<u8>> = frames());
        FRAMES.with(|frames| one_broken(frames, self.0, &self.1))
    }
}
