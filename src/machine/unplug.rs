//! Taking a device out of a slot, as a table of states and events (PCIe 6.7.1). Pure; [`super::hotplug`] does it.
//!
//! | state | event | next | what is done |
//! |---|---|---|---|
//! | idle | asked; the slot has no power | idle | the device goes |
//! | idle | asked, at once by force | idle | the device goes |
//! | idle | asked | waiting | the attention button is pressed |
//! | waiting | asked, at once by force | idle | the device goes |
//! | waiting | asked again, soon | waiting | refused: the guest is at it |
//! | waiting | asked again, later | waiting | the button is pressed again |
//! | waiting | the guest switches power off | idle | the device goes |
//! | waiting | the guest keeps the device | idle | told as the guest's error |
//! | waiting | the time is over | idle | by force: the device goes; else told as the guest's error |
//! | waiting | the guest resets | idle | the device goes |
//! | idle | any of these | idle | nothing |

use std::time::{Duration, Instant};

/// How long a request keeps others away: Linux waits 5 s after the button for a second press, which cancels.
pub const BUSY: Duration = Duration::from_secs(5);

/// A request that waits for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// When the button was pressed.
    pub since: Instant,
    /// When the guest's time is over.
    pub deadline: Option<Instant>,
    /// What is done then.
    pub force: bool,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants the device out.
    Asked {
        /// How long the guest has; `None`: as long as it likes, or no time at all with `force`.
        timeout: Option<Duration>,
        /// Take it away after that.
        force: bool,
        /// Whether the slot has power, so that the guest uses the device.
        powered: bool,
    },
    /// The guest has switched power and power indicator off.
    PoweredOff,
    /// The guest had begun to give the device up, and keeps it.
    Kept,
    /// The clock may have passed the deadline.
    Tick,
    /// The machine is reset.
    Reset,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Press the attention button.
    Press,
    /// Take the device out, whatever the guest does with it.
    Remove,
    /// Tell that the guest keeps it.
    GuestError,
    /// Refuse the request: one is pending.
    Busy,
}

/// The next state and what is done on the way.
pub fn step(waiting: Option<Waiting>, event: Event, now: Instant) -> (Option<Waiting>, Option<Action>) {
    match (waiting, event) {
        (_, Event::Asked { timeout: None, force: true, .. } | Event::Asked { powered: false, .. }) => {
            (None, Some(Action::Remove))
        }
        (Some(old), Event::Asked { .. }) if now < old.since + BUSY => (Some(old), Some(Action::Busy)),
        (_, Event::Asked { timeout, force, .. }) => {
            let deadline = timeout.and_then(|timeout| now.checked_add(timeout));
            (Some(Waiting { since: now, deadline, force }), Some(Action::Press))
        }
        (None, _) => (None, None),
        (Some(_), Event::PoweredOff | Event::Reset) => (None, Some(Action::Remove)),
        (Some(_), Event::Kept) => (None, Some(Action::GuestError)),
        (Some(old), Event::Tick) if old.deadline.is_none_or(|deadline| now < deadline) => (Some(old), None),
        (Some(old), Event::Tick) => (None, Some(if old.force { Action::Remove } else { Action::GuestError })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(timeout: Option<u64>, force: bool) -> Event {
        Event::Asked { timeout: timeout.map(Duration::from_millis), force, powered: true }
    }

    #[test]
    fn every_row_of_the_table() {
        let now = Instant::now();
        let soon = now + Duration::from_secs(1);
        let later = now + BUSY;
        let waits = |deadline: Option<u64>, force| Waiting {
            since: now,
            deadline: deadline.map(|ms| now + Duration::from_millis(ms)),
            force,
        };
        let unpowered = Event::Asked { timeout: None, force: false, powered: false };
        let patient = waits(None, false);
        let again = |since, deadline| Some(Waiting { since, deadline, force: false });
        for (state, event, at, next, action) in [
            (None, unpowered, now, None, Some(Action::Remove)),
            (None, ask(None, true), now, None, Some(Action::Remove)),
            (None, ask(None, false), now, Some(patient), Some(Action::Press)),
            (None, ask(Some(3000), true), now, Some(waits(Some(3000), true)), Some(Action::Press)),
            (Some(patient), ask(None, true), soon, None, Some(Action::Remove)),
            (Some(patient), ask(None, false), soon, Some(patient), Some(Action::Busy)),
            (Some(patient), ask(None, false), later, again(later, None), Some(Action::Press)),
            (Some(patient), unpowered, soon, None, Some(Action::Remove)),
            (Some(patient), Event::PoweredOff, soon, None, Some(Action::Remove)),
            (Some(patient), Event::Kept, soon, None, Some(Action::GuestError)),
            (Some(patient), Event::Tick, later, Some(patient), None),
            (Some(waits(Some(3000), false)), Event::Tick, soon, Some(waits(Some(3000), false)), None),
            (Some(waits(Some(3000), false)), Event::Tick, later, None, Some(Action::GuestError)),
            (Some(waits(Some(3000), true)), Event::Tick, later, None, Some(Action::Remove)),
            (Some(patient), Event::Reset, soon, None, Some(Action::Remove)),
            (None, Event::PoweredOff, now, None, None),
            (None, Event::Kept, now, None, None),
            (None, Event::Tick, now, None, None),
            (None, Event::Reset, now, None, None),
        ] {
            assert_eq!(step(state, event, at), (next, action), "{state:?} {event:?}");
        }
    }
}
