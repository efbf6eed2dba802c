//! How the up to four values of one slot travel in one DHT record: each with its length of two bytes before it.
//! Whether a value is any good is for [`crate::slot`] to say.

use crate::slot::{SLOT_VALUE_MAX, VALUES_PER_SLOT};

/// The record that a DHT node answers with. Takes at most [`VALUES_PER_SLOT`] values.
pub(super) fn encode<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bundle = Vec::new();
    for value in values
        .into_iter()
        .filter(|value| value.len() <= SLOT_VALUE_MAX)
        .take(VALUES_PER_SLOT)
    {
        let length = u16::try_from(value.len()).expect("a slot value is at most 4096 bytes");
        bundle.extend_from_slice(&length.to_be_bytes());
        bundle.extend_from_slice(value);
    }
    bundle
}

/// The values in a record that a DHT node answered with. What is cut off, too long or too many is left out.
pub fn parse_bundle(mut bundle: &[u8]) -> Vec<&[u8]> {
    let mut values = Vec::new();
    while values.len() < VALUES_PER_SLOT
        && let Some((length, rest)) = bundle.split_first_chunk()
        && let Some((value, rest)) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
        && value.len() <= SLOT_VALUE_MAX
    {
        values.push(value);
        bundle = rest;
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_back_in_order() {
        let bundle = encode([&b"first"[..], b"", b"third"]);
        assert_eq!(parse_bundle(&bundle), [&b"first"[..], b"", b"third"]);
    }

    #[test]
    fn a_fifth_value_is_left_out() {
        let five = vec![0; 5 * 2];
        assert_eq!(parse_bundle(&five).len(), VALUES_PER_SLOT);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_a_bounded_number_of_values(bytes: Vec<u8>) {
            let values = parse_bundle(&bytes);
            assert!(values.len() <= VALUES_PER_SLOT);
            assert!(values.iter().all(|value| value.len() <= SLOT_VALUE_MAX));
        }
    }
}
