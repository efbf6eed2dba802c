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
pub mod mss;

#[cfg(test)]
mod tests;

pub use crate::wire::offload::{Offload, PartialChecksum, Segmentation, SegmentationKind};
pub use cut::{CutError, Cutter};
pub use join::{Joined, Joiner};
pub use layout::Layout;

/// The most datagrams in a super-frame of UDP, as in Linux (`UDP_MAX_SEGMENTS`).
pub const UDP_SEGMENTS_MAX: usize = 128;

/// What may lie in front of a piece's payload when it is sealed from where it lies in the super-frame, or opened to there:
/// its own headers and the sealed extension. All fit but IPv6 with long extension headers, which are copied.
const FRONT_BYTES_MAX: usize = 160;

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

/// An ordinary frame as a super-frame, if it is a TCP segment with its checksum left to be completed: it may be cut, then,
/// where the path takes no frame of its length.
pub fn as_super_frame(frame: &[u8], checksum: PartialChecksum) -> Option<Offload> {
    [SegmentationKind::Tcp4, SegmentationKind::Tcp6]
        .into_iter()
        .map(|kind| Offload {
            checksum: Some(checksum),
            segmentation: Some(Segmentation {
                kind,
                size: u16::MAX,
                has_ecn: false,
            }),
        })
        .find(|offload| Layout::of(frame, offload).is_some())
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
