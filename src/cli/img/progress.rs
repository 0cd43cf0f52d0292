//! How far a copy is.

use std::io::{IsTerminal, Write};

/// Writes percentages to standard error: over and over on one line of a terminal, else every tenth.
pub struct Progress {
    total: u64,
    /// The last that was written, in steps of [`Progress::step`] percent.
    last: Option<u64>,
    step: u64,
    on: bool,
}

impl Progress {
    /// Of `total` bytes; nothing is written unless `on`.
    pub fn new(total: u64, on: bool) -> Progress {
        let step = if std::io::stderr().is_terminal() { 1 } else { 10 };
        Progress { total: total.max(1), last: None, step, on }
    }

    /// `done` bytes are.
    pub fn at(&mut self, done: u64) {
        let percent = u128::from(done.min(self.total)) * 100 / u128::from(self.total);
        let step = percent as u64 / self.step;
        if !self.on || self.last == Some(step) {
            return;
        }
        self.last = Some(step);
        let end = if self.step == 1 && percent < 100 { '\r' } else { '\n' };
        // Nobody is left to tell if standard error itself cannot be written.
        let _ = write!(std::io::stderr().lock(), "    ({percent}/100%){end}");
    }
}
