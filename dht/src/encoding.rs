//! Postcard on our wire: canonical on the way out, bounded and without leftovers on the way in.

use serde::{Serialize, de::DeserializeOwned};

/// The bytes of `value`.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("our types have known lengths and a Vec always has room")
}

/// The value that `bytes` are, if they are at most `max` long and nothing is left over.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, Undecodable> {
    if bytes.len() > max {
        return Err(Undecodable::TooLarge {
            size: bytes.len(),
            max,
        });
    }
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(Undecodable::Malformed),
    }
}

/// The bytes are not what they should be; the caller drops them and counts.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Undecodable {
    /// Longer than anything of the kind may be.
    #[error("{size} bytes, where {max} are the most")]
    TooLarge {
        /// How long they are.
        size: usize,
        /// How long they may be.
        max: usize,
    },
    /// Not the encoding of such a value.
    #[error("malformed")]
    Malformed,
}
