//! Super-frames: TCP and UDP frames of up to 64 KiB that a kernel hands over whole, to be cut later (TSO, USO), with
//! checksums left to be completed later. Here they are cut into pieces that fit the path, and joined again.
//!
//! ```text
//! TAP ──super-frame──▶ Cutter ──pieces, each a whole frame──▶ sealed, sent ──▶ opened ──▶ Joiner ──super-frame──▶ TAP
//! ```
//!
//! No checksum over a payload is computed on the way: a piece carries the pseudo-header's sum, as a kernel's own segments do
//! between the stack and a network card, and whoever puts it onto a wire completes it. A piece that is lost costs itself
//! alone. [`checksum::complete`] and [`Cutter`] together are what a card would do, for frames that leave our hands.

pub mod checksum;
mod cut;
mod join;
mod layout;

#[cfg(test)]
mod tests;

pub use cut::{CutError, Cutter};
pub use join::{Joined, Joiner};
pub use layout::Layout;

/// The most datagrams in a super-frame of UDP, as in Linux (`UDP_MAX_SEGMENTS`).
const UDP_SEGMENTS_MAX: usize = 128;

/// What was left to be done to a frame before it may go onto a wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offload {
    /// Which checksum is to be completed.
    pub checksum: Option<PartialChecksum>,
    /// How the frame is to be cut; none for an ordinary one.
    pub segmentation: Option<Segmentation>,
}

impl Offload {
    /// Nothing: the frame is as it would be on a wire.
    pub const NONE: Self = Self {
        checksum: None,
        segmentation: None,
    };
}

/// A checksum field that holds the sum of the pseudo-header only (`CHECKSUM_PARTIAL` in Linux).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartialChecksum {
    /// From here to the end of the frame is to be summed.
    pub start: u16,
    /// How far behind `start` the field lies.
    pub offset: u16,
}

/// How a super-frame is to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segmentation {
    /// What it carries.
    pub kind: SegmentationKind,
    /// Bytes of payload in each segment but the last.
    pub size: u16,
    /// Whether CWR stands for the first segment only (RFC 3168 §6.1.2).
    pub has_ecn: bool,
}

/// What a super-frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentationKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams, which must stay what they are.
    Udp,
}

/// The length of the longest frame that `frame` becomes on a wire; `None` when it is not what `offload` says.
pub fn longest_segment(frame: &[u8], offload: &Offload) -> Option<usize> {
    match offload.segmentation {
        None => Some(frame.len()),
        Some(segmentation) => {
            let layout = Layout::of(frame, offload)?;
            Some(
                frame
                    .len()
                    .min(layout.payload + usize::from(segmentation.size)),
            )
        }
    }
}

/// An ordinary frame as it would be on a wire. A super-frame comes back uncut.
pub fn for_a_wire(frame: &[u8], offload: &Offload) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Some(checksum) = offload.checksum {
        // A field outside the frame is nobody's checksum.
        let _ = checksum::complete(&mut frame, checksum);
    }
    frame
}
