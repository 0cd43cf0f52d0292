//! QEMU's monitor on L0.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::qmp::Client;

/// How long QEMU may take for one answer, or an event.
const LIMIT: Duration = Duration::from_secs(20);

/// A session.
pub struct Monitor(Client);

impl Monitor {
    pub fn new(stream: UnixStream) -> Result<Self> {
        Client::new(stream, end()).context("QEMU's monitor").map(Self)
    }

    /// Runs a command.
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.0.run(command, arguments, end())
    }

    /// Waits for an event.
    pub fn event(&mut self, name: &str) -> Result<Value> {
        self.0.event(name, end())?.with_context(|| format!("QEMU's event {name} did not come"))
    }

    /// Runs a command of the human monitor, for what QMP does not have.
    pub fn human(&mut self, line: &str) -> Result<String> {
        let answer = self.run("human-monitor-command", json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }
}

fn end() -> Instant {
    Instant::now() + LIMIT
}
