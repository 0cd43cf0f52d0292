//! Sessions with the control sockets of guests in L1.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::qmp::Client;

/// Sessions, by number.
#[derive(Default)]
pub struct Sessions {
    open: BTreeMap<u64, Client>,
    last: u64,
}

impl Sessions {
    /// Connects, which may take until the VMM has made its socket, and negotiates.
    pub fn open(&mut self, path: &str, limit: Duration) -> Result<u64> {
        let end = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() >= end => return Err(e).with_context(|| format!("cannot connect to {path}")),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        let client = Client::new(stream, end)?;
        self.last += 1;
        self.open.insert(self.last, client);
        Ok(self.last)
    }

    /// Runs a command and gives what it returns; an error of its is one here.
    pub fn run(&mut self, session: u64, command: &str, arguments: Value, limit: Duration) -> Result<Value> {
        self.find(session)?.run(command, arguments, Instant::now() + limit)
    }

    /// Sends a command and gives its number.
    pub fn begin(&mut self, session: u64, command: &str, arguments: Value) -> Result<u64> {
        self.find(session)?.begin(command, arguments)
    }

    /// Waits for what a command returns; an error of its is one here.
    pub fn end(&mut self, session: u64, number: u64, limit: Duration) -> Result<Value> {
        self.find(session)?.end(number, Instant::now() + limit)
    }

    /// Takes the first event of that name, if one has come or comes in time.
    pub fn event(&mut self, session: u64, name: &str, limit: Duration) -> Result<Option<Value>> {
        self.find(session)?.event(name, Instant::now() + limit)
    }

    fn find(&mut self, session: u64) -> Result<&mut Client> {
        self.open.get_mut(&session).context("no such session")
    }
}
