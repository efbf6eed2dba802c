//! Joins contiguous pieces of one super-frame, as they come, into one again. It waits for nothing: whatever is not the next
//! piece ends what was joined so far, and so does the end of the shell's turn.

use super::{Layout, Offload, UDP_SEGMENTS_MAX};
use crate::wire::extension::PieceHeader;

/// The longest frame that IP's length field allows behind Ethernet and two VLAN tags.
const FRAME_BYTES_MAX: usize = 65_535 + 22;

/// Pieces being joined, in memory that is used again and again.
pub struct Joiner {
    buffer: Box<[u8]>,
    current: Option<Current>,
}

struct Current {
    source: u64,
    header: PieceHeader,
    offload: Offload,
    layout: Layout,
    len: usize,
    /// What the headers in the buffer say.
    len_in_headers: usize,
    next: u16,
    count: usize,
    is_full: bool,
}

/// What was joined.
#[derive(Debug)]
pub struct Joined<'a> {
    /// One whole frame.
    pub frame: &'a [u8],
    /// What is to be done to it.
    pub offload: Offload,
    /// The source that was given with its pieces.
    pub source: u64,
}

impl Default for Joiner {
    fn default() -> Self {
        Self::new()
    }
}

impl Joiner {
    /// One with nothing joined.
    pub fn new() -> Self {
        Self {
            buffer: vec![0; FRAME_BYTES_MAX].into_boxed_slice(),
            current: None,
        }
    }

    /// Takes a piece that continues what was joined; `false` when it does not, and must be begun with.
    #[must_use]
    pub fn append(&mut self, source: u64, header: &PieceHeader, frame: &[u8]) -> bool {
        let Some(current) = &mut self.current else {
            return false;
        };
        let is_next = !current.is_full
            && current.source == source
            && current.header.id() == header.id()
            && current.next == header.index()
            && current.offload == header.offload()
            && Layout::of(frame, &current.offload) == Some(current.layout);
        let Some(payload) = frame.get(current.layout.payload..).filter(|_| is_next) else {
            return false;
        };
        let size = current
            .offload
            .segmentation
            .map_or(0, |segmentation| usize::from(segmentation.size));
        let end = current.len + payload.len();
        if payload.is_empty() || payload.len() > size || end - current.layout.network > 65_535 {
            return false;
        }
        self.buffer[current.len..end].copy_from_slice(payload);
        if current
            .offload
            .checksum
            .is_some_and(|checksum| checksum.offset == super::layout::TCP_CHECKSUM_OFFSET)
        {
            // A stream's end and its pushes are said by the last segment.
            let flags = current.layout.transport + 13;
            self.buffer[flags] |= frame[flags];
        }
        current.len = end;
        current.next = current.next.wrapping_add(1);
        current.count += 1;
        let is_udp = current.offload.checksum.map(|checksum| checksum.offset)
            == Some(super::layout::UDP_CHECKSUM_OFFSET);
        current.is_full = payload.len() < size
            || header.is_last()
            || (is_udp && current.count == UDP_SEGMENTS_MAX);
        true
    }

    /// Begins with a piece, after [`Self::take`]; `false` when it is not what its header says.
    #[must_use]
    pub fn begin(&mut self, source: u64, header: &PieceHeader, frame: &[u8]) -> bool {
        let offload = header.offload();
        let (Some(layout), Some(segmentation)) =
            (Layout::of(frame, &offload), offload.segmentation)
        else {
            return false;
        };
        let size = usize::from(segmentation.size);
        let payload_bytes = frame.len() - layout.payload;
        if payload_bytes > size || frame.len() > self.buffer.len() {
            return false;
        }
        self.buffer[..frame.len()].copy_from_slice(frame);
        self.current = Some(Current {
            source,
            header: *header,
            offload,
            layout,
            len: frame.len(),
            len_in_headers: frame.len(),
            next: header.index().wrapping_add(1),
            count: 1,
            is_full: payload_bytes < size || header.is_last(),
        });
        true
    }

    /// Whether something waits to be taken.
    pub const fn is_empty(&self) -> bool {
        self.current.is_none()
    }

    /// Gives what was joined so far.
    pub fn take(&mut self) -> Option<Joined<'_>> {
        let current = self.current.take()?;
        let Current {
            mut offload,
            layout,
            len,
            len_in_headers,
            source,
            ..
        } = current;
        let frame = &mut self.buffer[..len];
        if len == len_in_headers {
            offload.segmentation = None; // one piece, which is an ordinary frame
        } else if let Some(checksum) = offload.checksum {
            layout.set_len(frame, checksum, len_in_headers, len);
        }
        Some(Joined {
            frame,
            offload,
            source,
        })
    }
}
