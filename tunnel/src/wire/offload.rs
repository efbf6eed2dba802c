//! What is said about a frame that is not finished: by a kernel in front of it, by a member in the extension behind which it
//! travels. Doing what is left to be done is [`crate::offload`]'s.

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
