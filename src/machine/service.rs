//! The process as a service: what it tells the service manager (sd_notify(3)). Without `NOTIFY_SOCKET` all is silent.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::error::Error;

/// How long a service waits for its guest to power off, unless `--shutdown-timeout` says otherwise.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(60);
/// What the end of the process may take besides: devices are reset, and mappings of much memory undone.
const CLEAN_UP: Duration = Duration::from_secs(30);

/// The link to the service manager.
#[derive(Debug)]
pub struct Service {
    is_there: bool,
    watchdog: Option<Watchdog>,
    /// What was last said.
    status: String,
}

impl Service {
    /// The one that the process's environment names, if any.
    pub fn of_process() -> Service {
        let is_there = std::env::var_os("NOTIFY_SOCKET").is_some();
        let limit = sd_notify::watchdog_enabled().filter(|_| is_there);
        Service { is_there, watchdog: limit.map(Watchdog::new), status: String::new() }
    }

    /// Whether anybody listens.
    pub fn is_there(&self) -> bool {
        self.is_there
    }

    /// How long the guest has to power off on SIGTERM: what was asked for, or for a service a default.
    pub fn shutdown_limit(&self, asked: Option<Duration>) -> Duration {
        asked.unwrap_or(if self.is_there { SHUTDOWN_LIMIT } else { Duration::ZERO })
    }

    /// The guest runs.
    pub fn ready(&mut self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// What the process is at, in a line.
    pub fn status(&mut self, status: &str) {
        if self.is_there && self.status != status {
            self.tell(&[NotifyState::Status(status)]);
            status.clone_into(&mut self.status);
        }
    }

    /// The process is about to end, within `limit` and a clean-up. The manager waits that long, whatever the unit says.
    pub fn stopping(&mut self, limit: Duration) {
        let extent = u32::try_from((limit + CLEAN_UP).as_micros()).unwrap_or(u32::MAX);
        self.tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(extent)]);
    }

    /// The main loop goes round.
    pub fn alive(&mut self, now: Instant) {
        if self.watchdog.as_mut().is_some_and(|watchdog| watchdog.is_due(now)) {
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    /// When [`Service::alive`] has to be called next.
    pub fn next(&self) -> Option<Instant> {
        self.watchdog.as_ref().map(|watchdog| watchdog.next)
    }

    /// A manager that is not there any more is no reason to end.
    fn tell(&self, states: &[NotifyState]) {
        if self.is_there {
            let _ = sd_notify::notify(states);
        }
    }
}

/// Tells the service manager why the process ends.
pub fn failed(error: &Error) {
    Service::of_process().status(&format!("{}: {}", error.code(), error.cause()));
}

/// When the manager wants to hear: at half of the time after which it takes the process for hung.
#[derive(Debug)]
struct Watchdog {
    interval: Duration,
    next: Instant,
}

impl Watchdog {
    fn new(limit: Duration) -> Watchdog {
        // Not zero, or the loop would never wait.
        Watchdog { interval: (limit / 2).max(Duration::from_millis(1)), next: Instant::now() }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + self.interval;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_fed_at_half_of_its_time() {
        let mut watchdog = Watchdog::new(Duration::from_secs(30));
        let start = watchdog.next;
        let due: Vec<u64> = (0..=60).filter(|second| watchdog.is_due(start + Duration::from_secs(*second))).collect();
        assert_eq!(due, [0, 15, 30, 45, 60]);
        // After a pause it goes on from then, and does not catch up.
        assert!(watchdog.is_due(start + Duration::from_secs(100)));
        assert_eq!(watchdog.next, start + Duration::from_secs(115));
        assert!(!Watchdog::new(Duration::ZERO).interval.is_zero());
    }

    #[test]
    fn only_a_service_waits_unasked() {
        let service = |is_there| Service { is_there, watchdog: None, status: String::new() };
        let asked = Some(Duration::from_secs(7));
        assert_eq!(service(true).shutdown_limit(asked), Duration::from_secs(7));
        assert_eq!(service(false).shutdown_limit(asked), Duration::from_secs(7));
        assert_eq!(service(true).shutdown_limit(Some(Duration::ZERO)), Duration::ZERO);
        assert_eq!(service(false).shutdown_limit(None), Duration::ZERO);
        assert_eq!(service(true).shutdown_limit(None), SHUTDOWN_LIMIT);
    }
}
