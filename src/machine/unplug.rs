//! Taking a device out of a slot, as a table of states and events (PCIe 6.7.1). Pure; [`super::hotplug`] does it.
//!
//! | state | event | next | what is done |
//! |---|---|---|---|
//! | any | asked; the slot has no power | idle | the device goes |
//! | any | asked, at once by force | idle | the device goes |
//! | idle | asked while the guest takes the device in | deferred | nothing: it may not listen yet |
//! | idle | asked | waiting | the attention button is pressed |
//! | deferred | the guest has taken the device in | waiting | the button is pressed |
//! | deferred, waiting | asked again, soon | the same | refused: the guest is at it |
//! | waiting | asked again, later | waiting | the button is pressed again |
//! | late | asked, soon after the button | waiting | nothing: a second press would cancel |
//! | late | asked, later | waiting | the button is pressed again |
//! | deferred, waiting, late | wanted back by the host | the same, by force | nothing; a deadline that there is stays |
//! | deferred, waiting, late | the guest switches power off | idle | the device goes |
//! | waiting, by force | the guest keeps the device | the same | nothing: the device goes when the time is over |
//! | waiting | the guest keeps the device | idle | told as the guest's error |
//! | late | the guest keeps the device | idle | nothing: it was told |
//! | deferred, waiting | the time is over, by force | idle | the device goes |
//! | deferred | the time is over | idle | told as the guest's error |
//! | waiting | the time is over | late | told as the guest's error; it may still give the device up |
//! | any but idle | the guest resets | idle | the device goes |
//! | any | all else | the same | nothing |

use std::time::{Duration, Instant};

/// How long a request keeps others away: Linux waits 5 s after the button for a second press, which cancels.
pub const BUSY: Duration = Duration::from_secs(5);

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The button is to be pressed when the guest has taken the device in.
    Deferred,
    /// The button was pressed.
    Pressed,
    /// It was pressed and the time is over, which was told.
    Late,
}

/// A request that waits for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// How far it is.
    pub stage: Stage,
    /// When the button was pressed, or the request deferred.
    pub since: Instant,
    /// When the guest's time is over.
    pub deadline: Option<Instant>,
    /// What is done then.
    pub force: bool,
}

impl Waiting {
    /// Whether the device will be out some time, whatever the guest does.
    pub fn is_certain(self) -> bool {
        self.force && self.deadline.is_some()
    }
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
        /// What the guest does with the slot.
        slot: SlotState,
    },
    /// The host wants it back, and a request is pending.
    WantedBack {
        /// How long the guest has from now on.
        timeout: Duration,
    },
    /// The guest has switched the card on and is done with it.
    TakenIn,
    /// The guest has switched power and power indicator off.
    PoweredOff,
    /// The guest had begun to give the device up, and keeps it.
    Kept,
    /// The clock may have passed the deadline.
    Tick,
    /// The machine is reset.
    Reset,
}

/// What the guest does with a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotState {
    /// It has no power: the guest does not use what is in it.
    Off,
    /// The guest switches it on and looks what is there.
    TakingIn,
    /// The guest uses it.
    On,
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
        (_, Event::Asked { timeout: None, force: true, .. } | Event::Asked { slot: SlotState::Off, .. }) => {
            (None, Some(Action::Remove))
        }
        (old, Event::Asked { timeout, force, slot }) => asked(old, timeout, force, slot, now),
        (None, _) => (None, None),
        (Some(old), Event::WantedBack { .. }) if old.is_certain() => (Some(old), None),
        (Some(_), Event::WantedBack { timeout: Duration::ZERO }) => (None, Some(Action::Remove)),
        (Some(old), Event::WantedBack { timeout }) => {
            (Some(Waiting { deadline: now.checked_add(timeout), force: true, ..old }), None)
        }
        (Some(old), Event::TakenIn) if old.stage == Stage::Deferred => {
            (Some(Waiting { stage: Stage::Pressed, since: now, ..old }), Some(Action::Press))
        }
        (Some(old), Event::TakenIn) => (Some(old), None),
        (Some(_), Event::PoweredOff | Event::Reset) => (None, Some(Action::Remove)),
        // By force the host has it at the deadline all the same.
        (Some(old), Event::Kept) if old.is_certain() => (Some(old), None),
        (Some(old), Event::Kept) => (None, (old.stage != Stage::Late).then_some(Action::GuestError)),
        (Some(old), Event::Tick) if old.deadline.is_none_or(|deadline| now < deadline) => (Some(old), None),
        (Some(Waiting { force: true, .. }), Event::Tick) => (None, Some(Action::Remove)),
        (Some(old), Event::Tick) => {
            let late = Waiting { stage: Stage::Late, deadline: None, ..old };
            ((old.stage == Stage::Pressed).then_some(late), Some(Action::GuestError))
        }
    }
}

/// A request that leaves the guest time, for a device that the guest has.
fn asked(
    old: Option<Waiting>,
    timeout: Option<Duration>,
    force: bool,
    slot: SlotState,
    now: Instant,
) -> (Option<Waiting>, Option<Action>) {
    let new =
        |stage, since| Waiting { stage, since, deadline: timeout.and_then(|timeout| now.checked_add(timeout)), force };
    let soon = old.filter(|old| now < old.since + BUSY);
    match (soon, slot) {
        (Some(old), _) if old.stage == Stage::Late => (Some(new(Stage::Pressed, old.since)), None),
        (Some(old), _) => (Some(old), Some(Action::Busy)),
        (None, SlotState::TakingIn) => (Some(new(Stage::Deferred, now)), None),
        (None, _) => (Some(new(Stage::Pressed, now)), Some(Action::Press)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(timeout: Option<u64>, force: bool, slot: SlotState) -> Event {
        Event::Asked { timeout: timeout.map(Duration::from_millis), force, slot }
    }

    #[test]
    fn every_row_of_the_table() {
        use SlotState::{Off, On, TakingIn};
        let now = Instant::now();
        let soon = now + Duration::from_secs(1);
        let later = now + BUSY;
        let waits = |stage, since: Instant, deadline: Option<u64>, force| {
            let deadline = deadline.map(|ms| now + Duration::from_millis(ms));
            Some(Waiting { stage, since, deadline, force })
        };
        let deferred = waits(Stage::Deferred, now, None, false);
        let patient = waits(Stage::Pressed, now, None, false);
        let polite = waits(Stage::Pressed, now, Some(3000), false);
        let certain = waits(Stage::Pressed, now, Some(3000), true);
        let late = waits(Stage::Late, now, None, false);
        let wanted = |ms| Event::WantedBack { timeout: Duration::from_millis(ms) };
        for (state, event, at, next, action) in [
            (None, ask(None, false, Off), now, None, Some(Action::Remove)),
            (patient, ask(None, false, Off), soon, None, Some(Action::Remove)),
            (None, ask(None, true, On), now, None, Some(Action::Remove)),
            (deferred, ask(None, true, TakingIn), soon, None, Some(Action::Remove)),
            (patient, ask(None, true, On), soon, None, Some(Action::Remove)),
            (None, ask(None, false, TakingIn), now, deferred, None),
            (None, ask(None, false, On), now, patient, Some(Action::Press)),
            (None, ask(Some(3000), true, On), now, certain, Some(Action::Press)),
            (deferred, Event::TakenIn, soon, waits(Stage::Pressed, soon, None, false), Some(Action::Press)),
            (deferred, ask(None, false, TakingIn), soon, deferred, Some(Action::Busy)),
            (deferred, ask(None, false, TakingIn), later, waits(Stage::Deferred, later, None, false), None),
            (patient, Event::TakenIn, soon, patient, None),
            (patient, ask(None, false, On), soon, patient, Some(Action::Busy)),
            (patient, ask(None, false, On), later, waits(Stage::Pressed, later, None, false), Some(Action::Press)),
            (late, ask(Some(3000), true, On), now, certain, None),
            (late, ask(None, false, On), later, waits(Stage::Pressed, later, None, false), Some(Action::Press)),
            (deferred, wanted(3000), now, waits(Stage::Deferred, now, Some(3000), true), None),
            (patient, wanted(3000), now, certain, None),
            (polite, wanted(2000), soon, certain, None),
            (late, wanted(3000), now, waits(Stage::Late, now, Some(3000), true), None),
            (certain, wanted(20_000), soon, certain, None),
            (patient, wanted(0), now, None, Some(Action::Remove)),
            (patient, Event::PoweredOff, soon, None, Some(Action::Remove)),
            (late, Event::PoweredOff, later, None, Some(Action::Remove)),
            (patient, Event::Kept, soon, None, Some(Action::GuestError)),
            (certain, Event::Kept, soon, certain, None),
            (late, Event::Kept, soon, None, None),
            (patient, Event::Tick, later, patient, None),
            (polite, Event::Tick, soon, polite, None),
            (polite, Event::Tick, later, late, Some(Action::GuestError)),
            (waits(Stage::Deferred, now, Some(3000), false), Event::Tick, later, None, Some(Action::GuestError)),
            (certain, Event::Tick, later, None, Some(Action::Remove)),
            (late, Event::Tick, later, late, None),
            (deferred, Event::Reset, soon, None, Some(Action::Remove)),
            (late, Event::Reset, soon, None, Some(Action::Remove)),
            (None, wanted(3000), now, None, None),
            (None, Event::TakenIn, now, None, None),
            (None, Event::PoweredOff, now, None, None),
            (None, Event::Kept, now, None, None),
            (None, Event::Tick, now, None, None),
            (None, Event::Reset, now, None, None),
        ] {
            assert_eq!(step(state, event, at), (next, action), "{state:?} {event:?}");
        }
    }
}
