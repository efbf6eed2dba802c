//! Notices that the machine slept (suspend, hibernation): clocks that pause then do not show it, and no timer fires for it.

use rustix::{
    io::Errno,
    time::{
        ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec,
        clock_gettime, timerfd_create, timerfd_settime,
    },
};
use std::{io, time::Duration};
use tokio::net::unix::pipe;

/// Shorter pauses harm nothing: no NAT forgets a mapping so soon.
const MATTERS: Duration = Duration::from_secs(2);
/// A timer this far away is never due; its cancellation is what is waited for.
const NEVER: Timespec = Timespec {
    tv_sec: i64::MAX / 2_000_000_000,
    tv_nsec: 0,
};

/// Tells when the machine woke up.
#[derive(Debug)]
pub struct SleepWatch {
    /// A timer, which reads like a pipe. The kernel cancels it whenever the wall clock jumps, as it does at every resume
    /// (timerfd_create(2)).
    timer: pipe::Receiver,
    /// How long the machine had slept in all.
    before: Duration,
}

impl SleepWatch {
    /// Watches from now on.
    ///
    /// # Errors
    /// When the kernel gives no timer.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open() -> io::Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Realtime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        Ok(Self {
            timer: pipe::Receiver::from_owned_fd_unchecked(timer)?,
            before: slept_in_all(),
        })
    }

    /// Waits until the machine has slept; gives for how long. Setting the clock is no sleep.
    ///
    /// # Errors
    /// When the timer fails.
    pub async fn slept(&mut self) -> io::Result<Duration> {
        loop {
            let at = Itimerspec {
                it_interval: Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                },
                it_value: NEVER,
            };
            let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
            match timerfd_settime(&self.timer, flags, &at) {
                Ok(_) | Err(Errno::CANCELED) => {} // told of a jump since the last call; it is armed all the same
                Err(error) => return Err(error.into()),
            }
            if let Some(slept) = slept_since(&mut self.before, slept_in_all()) {
                return Ok(slept);
            }
            self.timer.readable().await?;
            // ECANCELED is what is waited for; reading it is what lets the timer be armed anew.
            let _cancelled = self.timer.try_read(&mut [0; 8]);
        }
    }
}

/// What of the machine's sleep is new since `before`, if it matters.
fn slept_since(before: &mut Duration, in_all: Duration) -> Option<Duration> {
    let slept = in_all.saturating_sub(std::mem::replace(before, in_all));
    (slept >= MATTERS).then_some(slept)
}

/// The clock that counts while the machine sleeps, less the one that does not.
fn slept_in_all() -> Duration {
    let read = |clock| {
        let time = clock_gettime(clock);
        Duration::new(
            time.tv_sec.try_into().unwrap_or(0),
            time.tv_nsec.try_into().unwrap_or(0),
        )
    };
    // Read in this order: what passes between the two makes it shorter, never longer.
    let boot = read(ClockId::Boottime);
    boot.saturating_sub(read(ClockId::Monotonic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn time_that_passes_awake_is_no_sleep() {
        let mut watch = SleepWatch::open().unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(300), watch.slept()).await;
        assert!(waited.is_err(), "it woke up without having slept");
    }

    #[test]
    fn a_sleep_is_told_once_and_a_wink_never() {
        let (mut before, ten) = (Duration::from_secs(5), Duration::from_secs(15));
        assert_eq!(slept_since(&mut before, ten), Some(Duration::from_secs(10)));
        assert_eq!(slept_since(&mut before, ten), None);
        assert_eq!(
            slept_since(&mut before, ten + Duration::from_millis(1)),
            None
        );
    }
}
