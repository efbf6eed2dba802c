//! One frame's buffer, with room in front for headers and behind for the tag, so that a frame is sealed where it lies.
//! Made once and used again: no allocation per frame.

/// Room in front of the frame: relay wrapper 8, header 16, extension 8, and the virtio header of a TAP with offloads.
pub const HEADROOM: usize = 128;
/// Room behind the frame: the tag.
pub const TAILROOM: usize = 32;
/// The largest frame that a TAP hands over: 9 KiB of payload, an Ethernet header and two VLAN tags.
pub const FRAME_BYTES_MAX: usize = 9 * 1024 + 22;

/// A reusable buffer that holds one frame, plain or sealed.
pub struct PacketBuf {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for PacketBuf {
    fn default() -> Self {
        Self::new()
    }
}

impl PacketBuf {
    /// An empty buffer for frames of up to [`FRAME_BYTES_MAX`].
    pub fn new() -> Self {
        let bytes = vec![0; HEADROOM + FRAME_BYTES_MAX + TAILROOM].into_boxed_slice();
        Self {
            bytes,
            start: HEADROOM,
            end: HEADROOM,
        }
    }

    /// Empties it and gives the headroom back.
    pub fn clear(&mut self) {
        self.start = HEADROOM;
        self.end = HEADROOM;
    }

    /// Empties it and gives the room for a frame, to be read into; [`Self::set_len`] tells how much was.
    pub fn spare(&mut self) -> &mut [u8] {
        self.clear();
        &mut self.bytes[HEADROOM..HEADROOM + FRAME_BYTES_MAX]
    }

    /// Says how many bytes were written into [`Self::spare`].
    ///
    /// # Panics
    /// When `len` exceeds [`FRAME_BYTES_MAX`].
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= FRAME_BYTES_MAX,
            "no more than the spare room was written"
        );
        self.start = HEADROOM;
        self.end = HEADROOM + len;
    }

    /// Replaces what it holds by `frame`; false when that is too large.
    #[must_use]
    pub fn fill(&mut self, frame: &[u8]) -> bool {
        if frame.len() > FRAME_BYTES_MAX {
            return false;
        }
        self.spare()[..frame.len()].copy_from_slice(frame);
        self.set_len(frame.len());
        true
    }

    /// What it holds: a plain frame, or a datagram once sealed.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The same, to be changed.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Puts `header` in front of what it holds.
    ///
    /// # Panics
    /// When the headroom is used up: the headers of one frame are a fixed, smaller set.
    pub fn push_front(&mut self, header: &[u8]) {
        let start = self
            .start
            .checked_sub(header.len())
            .expect("headroom fits every header that a frame gets");
        self.bytes[start..self.start].copy_from_slice(header);
        self.start = start;
    }

    /// Takes `count` bytes off the front; false when it holds fewer.
    #[must_use]
    pub fn trim_front(&mut self, count: usize) -> bool {
        if count > self.len() {
            return false;
        }
        self.start += count;
        true
    }

    /// Puts `trailer` behind what it holds.
    ///
    /// # Panics
    /// When the tailroom is used up: only a tag goes there.
    pub fn push_back(&mut self, trailer: &[u8]) {
        let end = self.end + trailer.len();
        assert!(end <= self.bytes.len(), "tailroom fits the tag");
        self.bytes[self.end..end].copy_from_slice(trailer);
        self.end = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_grow_in_front_and_the_tag_behind() {
        let mut buf = PacketBuf::new();
        assert!(buf.fill(b"frame"));
        buf.push_front(b"header ");
        buf.push_back(b" tag");
        assert_eq!(buf.payload(), b"header frame tag");
        assert!(buf.trim_front(7));
        assert_eq!(buf.payload(), b"frame tag");
        assert!(!buf.trim_front(10));
    }

    #[test]
    fn the_largest_frame_has_room_for_every_header_and_the_tag() {
        let mut buf = PacketBuf::new();
        assert!(buf.fill(&[7; FRAME_BYTES_MAX]));
        buf.push_front(&[1; HEADROOM]);
        buf.push_back(&[2; 16]);
        assert_eq!(buf.len(), HEADROOM + FRAME_BYTES_MAX + 16);
        assert!(!buf.fill(&[7; FRAME_BYTES_MAX + 1]));
    }
}
