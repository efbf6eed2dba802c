//! Completing a checksum that was left partial, and changing a partial one when a length changes (RFC 1071, RFC 1624).

use super::PartialChecksum;
use crate::wire::checksum::internet;

/// Completes the checksum of `frame`, which then is as it would be on a wire. `false`, and nothing changed, when the field
/// lies outside the frame.
#[must_use]
pub fn complete(frame: &mut [u8], checksum: PartialChecksum) -> bool {
    let (start, at) = places(checksum);
    if at + 2 > frame.len() {
        return false;
    }
    // The field holds the pseudo-header's sum, so summing over it adds that.
    let mut sum = internet(&[&frame[start..]]);
    // In UDP zero means "no checksum", and the two zeros of ones' complement are the same number (RFC 768).
    if sum == 0 && checksum.offset == super::layout::UDP_CHECKSUM_OFFSET {
        sum = 0xffff;
    }
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    true
}

/// The pseudo-header of `frame` says another length now: changes the partial checksum accordingly.
pub(super) fn change_length(frame: &mut [u8], checksum: PartialChecksum, from: usize, to: usize) {
    let (_, at) = places(checksum);
    let field = &mut frame[at..at + 2];
    let old = u32::from(u16::from_be_bytes([field[0], field[1]]));
    let sum = old + u32::from(!fold(from as u32)) + u32::from(fold(to as u32));
    field.copy_from_slice(&fold(sum).to_be_bytes());
}

/// Writes `word` at `at` and changes the checksum at `sum_at`, which covers it, accordingly: equation 3 of RFC 1624. A
/// checksum that was wrong stays wrong.
pub(super) fn change_word(header: &mut [u8], at: usize, word: u16, sum_at: usize) {
    let before = u16::from_be_bytes([header[at], header[at + 1]]);
    header[at..at + 2].copy_from_slice(&word.to_be_bytes());
    change_sum(header, sum_at, before, word);
}

/// Changes the checksum at `sum_at` as one word of what it covers changes.
pub(super) fn change_sum(header: &mut [u8], sum_at: usize, before: u16, after: u16) {
    let sum = u16::from_be_bytes([header[sum_at], header[sum_at + 1]]);
    let sum = u32::from(!sum) + u32::from(!before) + u32::from(after);
    header[sum_at..sum_at + 2].copy_from_slice(&(!fold(sum)).to_be_bytes());
}

fn places(checksum: PartialChecksum) -> (usize, usize) {
    let start = usize::from(checksum.start);
    (start, start + usize::from(checksum.offset))
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
