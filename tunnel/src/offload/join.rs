//! Joins contiguous pieces of one super-frame, as they come, into one again; and datagrams of one flow that come next to
//! each other into one of theirs, which spares the kernel most of its work per frame. It waits for nothing: whatever does
//! not continue what was joined so far ends it, and so does the end of the shell's turn.

use super::{Layout, Offload, PartialChecksum, Segmentation, SegmentationKind, UDP_SEGMENTS_MAX};
use crate::wire::extension::PieceHeader;

/// The longest frame that IP's length field allows behind Ethernet and two VLAN tags.
const FRAME_BYTES_MAX: usize = 65_535 + 22;

/// Pieces being joined, in memory that is made for the first and used again and again.
#[derive(Default)]
pub struct Joiner {
    buffer: Box<[u8]>,
    current: Option<Current>,
    datagrams_max: usize,
}

struct Current {
    source: u64,
    follows: Follows,
    offload: Offload,
    layout: Layout,
    /// Bytes of payload in each part but the last.
    size: usize,
    len: usize,
    /// What the headers in the buffer say.
    len_in_headers: usize,
    count: usize,
    is_full: bool,
}

/// What may come next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follows {
    /// The piece with this index of this super-frame.
    Piece { id: u16, index: u16 },
    /// A datagram with the same headers.
    Datagram,
}

/// What was joined.
#[derive(Debug)]
pub struct Joined<'a> {
    /// One whole frame.
    pub frame: &'a [u8],
    /// What is to be done to it.
    pub offload: Offload,
}

impl Joiner {
    /// One with nothing joined, which joins pieces only.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many datagrams of one flow that come next to each other are to be joined too, into what a kernel takes as one
    /// super-frame of UDP; no more than that takes.
    pub fn set_datagrams_max(&mut self, max: usize) {
        self.datagrams_max = max.min(UDP_SEGMENTS_MAX);
    }

    /// Takes a piece that continues what was joined; `false` when it does not, and must be begun with.
    #[must_use]
    pub fn append(&mut self, source: u64, header: &PieceHeader, frame: &[u8]) -> bool {
        let Some(current) = &mut self.current else {
            return false;
        };
        let here = Follows::Piece {
            id: header.id(),
            index: header.index(),
        };
        let is_next = current.source == source
            && current.follows == here
            && current.offload == header.offload()
            && current.layout.has_payload_where(&self.buffer, frame);
        is_next && current.put(&mut self.buffer, frame, header.is_last())
    }

    /// Begins with a piece, after [`Self::take`]; `false` when it is not what its header says.
    #[must_use]
    pub fn begin(&mut self, source: u64, header: &PieceHeader, frame: &[u8]) -> bool {
        let follows = Follows::Piece {
            id: header.id(),
            index: header.index(),
        };
        self.start(source, follows, header.offload(), header.is_last(), frame)
    }

    /// Takes a frame with a partial checksum that is the next datagram of the flow that was joined; `false` when it is not.
    #[must_use]
    pub fn append_datagram(
        &mut self,
        source: u64,
        checksum: PartialChecksum,
        frame: &[u8],
    ) -> bool {
        let Some(current) = &mut self.current else {
            return false;
        };
        let is_next = current.source == source
            && current.follows == Follows::Datagram
            && current.count < self.datagrams_max
            && current.offload.checksum == Some(checksum)
            && current.layout.is_same_flow(&self.buffer, frame);
        is_next && current.put(&mut self.buffer, frame, false)
    }

    /// Begins with a frame with a partial checksum, after [`Self::take`]; `false` when it is not a datagram that others could
    /// be joined to.
    #[must_use]
    pub fn begin_datagram(&mut self, source: u64, checksum: PartialChecksum, frame: &[u8]) -> bool {
        let payload = usize::from(checksum.start) + super::layout::UDP_BYTES;
        if self.datagrams_max < 2 || frame.len() <= payload {
            return false;
        }
        let offload = Offload {
            checksum: Some(checksum),
            segmentation: Some(Segmentation {
                kind: SegmentationKind::Udp,
                size: (frame.len() - payload).min(usize::from(u16::MAX)) as u16,
                has_ecn: false,
            }),
        };
        Layout::of(frame, &offload).is_some_and(|layout| layout.is_one_datagram(frame))
            && self.start(source, Follows::Datagram, offload, false, frame)
    }

    fn start(
        &mut self,
        source: u64,
        follows: Follows,
        offload: Offload,
        is_last: bool,
        frame: &[u8],
    ) -> bool {
        let (Some(layout), Some(segmentation)) =
            (Layout::of(frame, &offload), offload.segmentation)
        else {
            return false;
        };
        let size = usize::from(segmentation.size);
        let payload_bytes = frame.len() - layout.payload;
        if payload_bytes > size || frame.len() > FRAME_BYTES_MAX {
            return false;
        }
        if self.buffer.is_empty() {
            self.buffer = vec![0; FRAME_BYTES_MAX].into_boxed_slice();
        }
        self.buffer[..frame.len()].copy_from_slice(frame);
        self.current = Some(Current {
            source,
            follows: follows.next(),
            offload,
            layout,
            size,
            len: frame.len(),
            len_in_headers: frame.len(),
            count: 1,
            is_full: payload_bytes < size || is_last,
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
            ..
        } = current;
        let frame = &mut self.buffer[..len];
        if len == len_in_headers {
            offload.segmentation = None; // one piece, which is an ordinary frame
        } else if let Some(checksum) = offload.checksum {
            layout.set_len(frame, checksum, len_in_headers, len);
        }
        Some(Joined { frame, offload })
    }
}

impl Follows {
    const fn next(self) -> Self {
        match self {
            Self::Piece { id, index } => Self::Piece {
                id,
                index: index.wrapping_add(1),
            },
            Self::Datagram => Self::Datagram,
        }
    }
}

impl Current {
    /// Adds a part's payload; `false` when there is no room for it.
    fn put(&mut self, buffer: &mut [u8], frame: &[u8], is_last: bool) -> bool {
        let payload = &frame[self.layout.payload..];
        let end = self.len + payload.len();
        let fits = !self.is_full
            && !payload.is_empty()
            && payload.len() <= self.size
            && end - self.layout.network <= 65_535;
        if !fits {
            return false;
        }
        buffer[self.len..end].copy_from_slice(payload);
        let is_udp = self.offload.checksum.map(|checksum| checksum.offset)
            == Some(super::layout::UDP_CHECKSUM_OFFSET);
        if !is_udp {
            // A stream's end and its pushes are said by the last segment.
            let flags = self.layout.transport + 13;
            buffer[flags] |= frame[flags];
        }
        self.len = end;
        self.follows = self.follows.next();
        self.count += 1;
        self.is_full =
            payload.len() < self.size || is_last || (is_udp && self.count == UDP_SEGMENTS_MAX);
        true
    }
}
