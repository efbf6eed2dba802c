//! The `farlan` command: reads what was typed, runs a node or asks a running one, and says how it went.
//!
//! Exit status: 0 done, 1 failed (or, from `doctor`, something is wrong), 2 wrong usage. A failure is one line on standard
//! error.

pub mod args;
mod client;
mod commands;
pub mod demo;
mod deploy;
mod invite;
pub mod lab;
mod output;

use clap::Parser;
use std::{io::Write, process::ExitCode};

/// Threads of the control plane. Frames never pass through them; one can wait on the disk while the other answers.
const CONTROL_THREADS: usize = 2;

/// The whole program.
pub fn main() -> ExitCode {
    let typed = args::Args::parse(); // answers --help and --version, and exits with 2 on wrong usage
    let runtime = if typed.command.runs_a_node() {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(CONTROL_THREADS)
            .enable_all()
            .build()
    } else {
        // No thread beside this one: the demo makes namespaces, which the kernel grants to single-threaded processes.
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
    };
    let done = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(commands::run(typed)));
    match done {
        Ok(status) => status,
        Err(error) => {
            // One line, whatever the causes hold; and no panic where standard error is closed.
            let line = output::explain(&error);
            let _ = writeln!(std::io::stderr(), "farlan: {line}");
            ExitCode::FAILURE
        }
    }
}
