//! What happened in a run, line by line, and one digest over all of it: two runs of one seed must agree in every bit.

use sha2::{Digest, Sha256};
use std::{collections::VecDeque, fmt, time::Duration};

/// Lines kept for people; the digest covers those that were let go as well.
const LINES_MAX: usize = 20_000;

/// A run's timeline.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    digest: Sha256,
    lines: VecDeque<String>,
    count: u64,
}

impl Trace {
    /// Notes what happened `at` after the start; `bytes` (a datagram, say) go into the digest whole.
    pub fn note(&mut self, at: Duration, what: fmt::Arguments<'_>, bytes: &[u8]) {
        let line = format!("{:>12.6} {what}", at.as_secs_f64());
        self.digest.update(line.as_bytes());
        self.digest.update((bytes.len() as u64).to_be_bytes());
        self.digest.update(bytes);
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
        self.count += 1;
    }

    /// How many things happened.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// One number for the whole run.
    pub fn digest(&self) -> String {
        self.digest
            .clone()
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The last `count` lines, for the message of a failed assertion.
    pub fn tail(&self, count: usize) -> String {
        let skip = self.lines.len().saturating_sub(count);
        self.lines
            .iter()
            .skip(skip)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    }
}
