//! A cable that delays and loses, for kernels that have no emulation of their own: two TAPs and threads in between.

use anyhow::{Result, anyhow};
use cli::lab::Machine;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::io::{self, Read, Write};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Frames on their way; a sender that is further ahead waits.
const UNDERWAY_MAX: usize = 65_536;

/// Joins two machines by an interface of this name in each, which knows no offloads. Each way takes `delay`, and loses this
/// share of the frames. It ends with the machines.
pub(crate) fn lay(
    (a, b): (&Machine, &Machine),
    interface: &str,
    delay: Duration,
    loss: f64,
) -> Result<()> {
    let (from_a, to_a) = end(a, interface)?;
    let (from_b, to_b) = end(b, interface)?;
    carry(from_a, to_b, delay, loss);
    carry(from_b, to_a, delay, loss);
    Ok(())
}

type End = (Box<dyn Read + Send>, Box<dyn Write + Send>);

fn end(machine: &Machine, interface: &str) -> Result<End> {
    let device = machine.within(|| {
        let mut config = tun::Configuration::default();
        config
            .layer(tun::Layer::L2)
            .tun_name(interface)
            .mtu(1500)
            .up();
        tun::create(&config).map_err(io::Error::other)
    });
    let (reader, writer) = device
        .map_err(|error| anyhow!("a TAP in {}: {error}", machine.name()))?
        .split();
    Ok((Box::new(reader), Box::new(writer)))
}

/// One direction.
fn carry(
    mut from: Box<dyn Read + Send>,
    mut to: Box<dyn Write + Send>,
    delay: Duration,
    loss: f64,
) {
    let (underway, arriving) = mpsc::sync_channel::<(Instant, Vec<u8>)>(UNDERWAY_MAX);
    let mut rng = ChaCha20Rng::from_os_rng();
    thread::spawn(move || {
        let mut frame = vec![0; 2048];
        // The interface is gone when its machine is, and then reading fails.
        while let Ok(bytes) = from.read(&mut frame) {
            let is_lost = rng.random_bool(loss);
            if !is_lost
                && underway
                    .send((Instant::now() + delay, frame[..bytes].to_vec()))
                    .is_err()
            {
                return;
            }
        }
    });
    thread::spawn(move || {
        while let Ok((due, frame)) = arriving.recv() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // A frame that an interface does not take is lost, too.
            let _ = to.write(&frame);
        }
    });
}
