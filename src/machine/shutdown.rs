//! How a guest is asked to end (SIGTERM), as a table of states and events. Pure; [`super::Machine`] does it.
//!
//! | state | event | next | what is done |
//! |---|---|---|---|
//! | idle | asked; no time is given, or the guest stands still | idle | the process ends |
//! | idle | asked | waiting | the power button is pressed |
//! | waiting | asked again | waiting | nothing |
//! | waiting | [`REPEAT`] has passed | waiting | the button is pressed again |
//! | waiting | the time is over | waiting | the process ends |
//! | idle | the clock | idle | nothing |

use std::time::{Duration, Instant};

/// After this time the button is pressed again: a guest that still boots when it is pressed first has no driver for it,
/// and Linux forgets what was pressed before it has.
pub const REPEAT: Duration = Duration::from_secs(10);

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until [`Shutdown::next`].
    Nothing,
    /// The power button is pressed.
    Press,
    /// The process ends.
    End,
}

/// The guest's way to its end.
#[derive(Debug, Clone, Copy)]
pub struct Shutdown {
    limit: Duration,
    waiting: Option<Waiting>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    press: Instant,
    deadline: Instant,
}

impl Shutdown {
    /// A guest that has `limit` to power off when it is asked to; zero: it is not asked.
    pub fn new(limit: Duration) -> Shutdown {
        Shutdown { limit, waiting: None }
    }

    /// How long the guest has; zero: it is not asked.
    pub fn limit(self) -> Duration {
        self.limit
    }

    /// Whether the guest was asked.
    pub fn is_under_way(self) -> bool {
        self.waiting.is_some()
    }

    /// The guest is to end; `runs`: its processors do.
    pub fn ask(&mut self, now: Instant, runs: bool) -> Step {
        if self.waiting.is_some() {
            return Step::Nothing;
        }
        if self.limit.is_zero() || !runs {
            return Step::End;
        }
        self.waiting = Some(Waiting { press: now + REPEAT, deadline: now + self.limit });
        Step::Press
    }

    /// The clock has come to `now`.
    pub fn tick(&mut self, now: Instant) -> Step {
        match &mut self.waiting {
            Some(waiting) if now >= waiting.deadline => Step::End,
            Some(waiting) if now >= waiting.press => {
                waiting.press = now + REPEAT;
                Step::Press
            }
            _ => Step::Nothing,
        }
    }

    /// When [`Shutdown::tick`] has something to do.
    pub fn next(self) -> Option<Instant> {
        self.waiting.map(|waiting| waiting.press.min(waiting.deadline))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_button_is_pressed_until_the_time_is_over() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut shutdown = Shutdown::new(Duration::from_secs(25));
        assert_eq!((shutdown.tick(at(0)), shutdown.next(), shutdown.is_under_way()), (Step::Nothing, None, false));
        assert_eq!(shutdown.ask(at(1), true), Step::Press);
        assert_eq!(shutdown.next(), Some(at(11)));
        assert_eq!(shutdown.ask(at(2), true), Step::Nothing, "one signal more changes nothing");
        for (now, step, next) in [
            (10, Step::Nothing, 11),
            (11, Step::Press, 21),
            (21, Step::Press, 26),
            (25, Step::Nothing, 26),
            (26, Step::End, 26),
            (90, Step::End, 26),
        ] {
            assert_eq!((shutdown.tick(at(now)), shutdown.next()), (step, Some(at(next))), "after {now} s");
        }
    }

    #[test]
    fn a_guest_that_cannot_hear_is_not_waited_for() {
        let now = Instant::now();
        assert_eq!(Shutdown::new(Duration::ZERO).ask(now, true), Step::End);
        let mut paused = Shutdown::new(Duration::from_secs(5));
        assert_eq!((paused.ask(now, false), paused.next()), (Step::End, None));
    }
}
