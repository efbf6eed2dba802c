//! Joins contiguous pieces of one super-frame, as they come, into one again; and datagrams of one flow that come next to
//! each other into one of theirs, which spares the kernel most of its work per frame. It waits for nothing: whatever does
//! not continue what was joined so far ends it, and so does the end of the shell's turn.

use std::ops::Range;

use super::{
    FRONT_BYTES_MAX, Layout, Offload, PartialChecksum, Segmentation, SegmentationKind,
    UDP_SEGMENTS_MAX,
};
use crate::wire::extension::{PIECE_HEADER_BYTES, PieceHeader};

/// The longest frame that IP's length field allows behind Ethernet and two VLAN tags.
const FRAME_BYTES_MAX: usize = 65_535 + 22;

/// Pieces being joined, in memory that is made for the first and used again and again.
#[derive(Default)]
pub struct Joiner {
    /// The frame, and behind it what lay where [`Joiner::room_for_next`] is.
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
        let is_next = current.source == source
            && current.is_next(header)
            && current.layout.has_payload_where(&self.buffer, frame);
        is_next && current.put(&mut self.buffer, frame, header.is_last())
    }

    /// Where to open a datagram of `source` whose plaintext has `len` bytes, in case that it is the next piece: its payload
    /// comes to lie where it belongs then, and is not copied. What its headers cover of the piece before is kept, until
    /// [`Self::keep`] or [`Self::refuse`]. `None` when nothing is joined that such a piece could continue.
    pub fn room_for_next(&mut self, source: u64, len: usize) -> Option<&mut [u8]> {
        let current = self.current.as_ref()?;
        let front = current.front();
        let payload_bytes = len.checked_sub(front.len())?;
        let may_be_next = current.source == source
            && current.follows != Follows::Datagram
            && front.start >= current.layout.payload
            && front.len() <= FRONT_BYTES_MAX
            && current.has_room_for(payload_bytes);
        if !may_be_next {
            return None;
        }
        self.buffer.copy_within(front.clone(), FRAME_BYTES_MAX);
        Some(&mut self.buffer[front.start..front.start + len])
    }

    /// Joins what was opened in [`Self::room_for_next`] if it is the next piece; `false` when it is not, and was moved to
    /// `plaintext`, which has its length.
    #[must_use]
    pub fn keep(&mut self, plaintext: &mut [u8]) -> bool {
        let Some(current) = &mut self.current else {
            return false;
        };
        let front = current.front();
        let (joined, opened) = self.buffer.split_at_mut(front.start);
        let opened = &opened[..plaintext.len()];
        let next = PieceHeader::parse(opened).filter(|(header, frame)| {
            current.is_next(header) && current.layout.has_payload_where(joined, frame)
        });
        let is_kept = next.is_some();
        if let Some((header, frame)) = next {
            current.add(joined, frame, header.is_last());
        } else {
            plaintext.copy_from_slice(opened);
        }
        self.uncover(front);
        is_kept
    }

    /// What was to be opened in [`Self::room_for_next`] did not open.
    pub fn refuse(&mut self) {
        if let Some(current) = &self.current {
            let front = current.front();
            self.uncover(front);
        }
    }

    fn uncover(&mut self, front: Range<usize>) {
        let kept = FRAME_BYTES_MAX..FRAME_BYTES_MAX + front.len();
        self.buffer.copy_within(kept, front.start);
    }

    /// Begins with a piece, after [`Self::take`]; `false` when it is not what its header says.
    #[must_use]
    pub fn begin(&mut self, source: u64, header: &PieceHeader, frame: &[u8]) -> bool {
        let follows = Follows::piece(header);
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
            self.buffer = vec![0; FRAME_BYTES_MAX + FRONT_BYTES_MAX].into_boxed_slice();
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
    const fn piece(header: &PieceHeader) -> Self {
        Self::Piece {
            id: header.id(),
            index: header.index(),
        }
    }

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
    /// Whether a piece of the same source with this header comes next.
    fn is_next(&self, header: &PieceHeader) -> bool {
        self.follows == Follows::piece(header) && self.offload == header.offload()
    }

    /// Where the headers of a piece come to lie that is opened where its payload goes.
    const fn front(&self) -> Range<usize> {
        self.len
            .saturating_sub(PIECE_HEADER_BYTES + self.layout.payload)..self.len
    }

    const fn has_room_for(&self, payload_bytes: usize) -> bool {
        !self.is_full
            && payload_bytes > 0
            && payload_bytes <= self.size
            && self.len + payload_bytes - self.layout.network <= 65_535
    }

    /// Adds a part's payload; `false` when there is no room for it.
    fn put(&mut self, buffer: &mut [u8], frame: &[u8], is_last: bool) -> bool {
        let payload = &frame[self.layout.payload..];
        if !self.has_room_for(payload.len()) {
            return false;
        }
        buffer[self.len..self.len + payload.len()].copy_from_slice(payload);
        self.add(buffer, frame, is_last);
        true
    }

    /// Counts a part in whose payload is in its place; `joined` holds the headers.
    fn add(&mut self, joined: &mut [u8], frame: &[u8], is_last: bool) {
        let is_udp = self.offload.checksum.map(|checksum| checksum.offset)
            == Some(super::layout::UDP_CHECKSUM_OFFSET);
        if !is_udp {
            // A stream's end and its pushes are said by the last segment.
            let flags = self.layout.transport + 13;
            joined[flags] |= frame[flags];
        }
        let payload_bytes = frame.len() - self.layout.payload;
        self.len += payload_bytes;
        self.follows = self.follows.next();
        self.count += 1;
        self.is_full =
            payload_bytes < self.size || is_last || (is_udp && self.count == UDP_SEGMENTS_MAX);
    }
}
