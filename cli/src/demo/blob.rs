//! The file that is downloaded: incompressible bytes, the same for a given size, with their checksum.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::thread::JoinHandle;

/// One gigabyte.
pub(super) const BLOB_BYTES: u64 = 1_000_000_000;

/// How much is made and hashed at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Writes the file on a thread of its own; joining it gives the SHA-256 in hexadecimal.
pub(super) fn write_in_background(path: &Path, bytes: u64) -> Result<JoinHandle<Result<String>>> {
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    std::thread::Builder::new()
        .name("demo-blob".into())
        .spawn(move || {
            write(&mut file, bytes).context("write the file to be downloaded (is the disk full?)")
        })
        .context("start the thread that writes the file to be downloaded")
}

fn write(out: &mut impl Write, bytes: u64) -> Result<String> {
    let mut hash = Sha256::new();
    let mut chunk = noise();
    let mut written = 0;
    while written < bytes {
        // The same noise again and again, but no two chunks alike: a piece lost, doubled or moved shows.
        chunk[..8].copy_from_slice(&written.to_le_bytes());
        let now =
            usize::try_from(bytes - written).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        hash.update(&chunk[..now]);
        out.write_all(&chunk[..now])?;
        written += now as u64;
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// A chunk from which no compressor gets anything, by Marsaglia's xorshift64.
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    while chunk.len() < CHUNK_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.extend(state.to_le_bytes());
    }
    chunk
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_bytes_written() {
        let mut out = Vec::new();

        let checksum = write(&mut out, CHUNK_BYTES as u64 + 77).unwrap();

        assert_eq!(out.len(), CHUNK_BYTES + 77);
        let expected: String = Sha256::digest(&out)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(checksum, expected);
    }
}
