//! The Internet checksum (RFC 1071).

/// The checksum of `parts` taken as one run of bytes; every part but the last has an even length.
pub fn internet(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        let mut words = part.chunks_exact(2);
        for word in &mut words {
            sum += u32::from(u16::from_be_bytes([word[0], word[1]]));
        }
        if let [last] = words.remainder() {
            sum += u32::from(*last) << 8;
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_with_its_checksum_in_place_sums_to_zero() {
        let mut header = [
            0x45, 0, 0, 0x54, 0, 0, 0x40, 0, 0x40, 1, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2,
        ];
        let sum = internet(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(internet(&[&header]), 0);
    }
}
