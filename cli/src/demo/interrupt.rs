//! Ctrl-C, SIGTERM and SIGHUP: the lab is taken down, wherever the demo is.

use crate::lab::{EmergencyStop, Lab};
use anyhow::{Context, Result};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::signal::unix::{SignalKind, signal};

/// Status of a program that was interrupted, as shells count it: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

/// Watches for signals from the moment it is made.
pub(super) struct Interrupt {
    lab: Arc<Mutex<Option<EmergencyStop>>>,
}

impl Interrupt {
    pub(super) fn watch() -> Result<Self> {
        let lab: Arc<Mutex<Option<EmergencyStop>>> = Arc::default();
        let at_hand = Arc::clone(&lab);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name("demo-signals".into())
            .spawn(move || {
                runtime.block_on(async {
                    let watched = [
                        SignalKind::interrupt(),
                        SignalKind::terminate(),
                        SignalKind::hangup(),
                    ]
                    .map(signal);
                    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = watched else {
                        return;
                    };
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hangup.recv() => {}
                    }
                    eprintln!("\ninterrupted: taking everything down");
                    // Whoever narrates waits here from now on: what fails next fails because of this.
                    let _quiet = (std::io::stdout().lock(), std::io::stderr().lock());
                    if let Some(stop) = at_hand
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .take()
                    {
                        stop.stop();
                    }
                    std::process::exit(INTERRUPTED);
                });
            })
            .context("start the thread that waits for signals")?;
        Ok(Self { lab })
    }

    /// From here on an interrupt takes this lab down.
    pub(super) fn guard(&self, lab: &Lab) {
        *self.lab.lock().unwrap_or_else(PoisonError::into_inner) = Some(lab.emergency_stop());
    }
}
