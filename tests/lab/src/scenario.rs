//! A scenario: what is done on which machine, and what must be seen.

use std::time::Duration;

use anyhow::Result;

use crate::l0::machines::{self, Machine};
use crate::l1::{L1, Stalled};
use crate::server::Server;

/// Limit of a scenario that names none.
const LIMIT: Duration = Duration::from_secs(400);

/// What a scenario works with.
pub struct Lab<'a> {
    pub l1: &'a mut L1,
    /// The server on L0 that guests fetch from.
    pub server: &'a Server,
    /// Results of its own, which count instead of the scenario's.
    pub parts: &'a mut Vec<Part>,
}

impl Lab<'_> {
    /// Notes one result of several; a failure does not end the scenario.
    ///
    /// # Errors
    /// A stall, after which the whole scenario is run again.
    pub fn part(&mut self, subject: &'static str, step: &'static str, result: Result<()>) -> Result<()> {
        match result {
            Err(e) if e.is::<Stalled>() => Err(e),
            result => {
                self.parts.push(Part { subject, step, result });
                Ok(())
            }
        }
    }
}

/// One result of a scenario that has several: a cell of a table.
pub struct Part {
    /// Row of the table.
    pub subject: &'static str,
    /// Column of the table.
    pub step: &'static str,
    pub result: Result<()>,
}

/// One scenario. Scenarios of the same machine share one boot of L1 unless marked exclusive.
pub struct Scenario {
    pub name: &'static str,
    pub machine: &'static Machine,
    pub exclusive: bool,
    /// Runs with `--long` only.
    pub long: bool,
    /// Real time for all of it.
    pub limit: Duration,
    /// Whether it has any use for passthru.
    pub needs_passthru: bool,
    pub run: fn(&mut Lab) -> Result<()>,
}

impl Scenario {
    /// A scenario on the default machine.
    pub const fn new(name: &'static str, run: fn(&mut Lab) -> Result<()>) -> Self {
        Self {
            name,
            machine: &machines::DEFAULT,
            exclusive: false,
            long: false,
            limit: LIMIT,
            needs_passthru: true,
            run,
        }
    }

    /// On another machine.
    pub const fn on(mut self, machine: &'static Machine) -> Self {
        self.machine = machine;
        self
    }

    /// Gets an L1 of its own.
    pub const fn exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// Takes too long for every run.
    pub const fn long(mut self) -> Self {
        self.long = true;
        self
    }

    /// Real-time limit in seconds.
    pub const fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// Proves the lab, not passthru.
    pub const fn without_passthru(mut self) -> Self {
        self.needs_passthru = false;
        self
    }
}

/// Said by a scenario that cannot run here.
#[derive(Debug)]
pub struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skip {}
