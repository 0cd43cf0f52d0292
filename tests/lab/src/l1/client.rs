//! The L0 side of the agent: sends one request, waits for its answer.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::agent::protocol::{Answer, Op, Request, Response};

/// Characters of a request that an error shows.
const ASKED_SHOWN: usize = 300;

/// In the environment: what is waited for is told with the time that it took.
const TRACE: &str = "LAB_TRACE";
/// What takes less is not told.
const TRACED: Duration = Duration::from_millis(300);

/// Said when L1 no longer answers: a stall, which is worth another try.
#[derive(Debug)]
pub struct Stalled;

impl std::fmt::Display for Stalled {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("L1 does not answer any more")
    }
}

impl std::error::Error for Stalled {}

/// Tells what was waited for, if it took long and somebody wants to know.
pub fn trace(started: Instant, what: &str) {
    let took = started.elapsed();
    if took >= TRACED && std::env::var_os(TRACE).is_some() {
        eprintln!("lab: {:6.1} s {what}", took.as_secs_f32());
    }
}

/// A connection to the agent.
pub struct Client {
    lines: BufReader<UnixStream>,
    last: u64,
}

impl Client {
    pub fn new(stream: UnixStream) -> Self {
        Self { lines: BufReader::new(stream), last: 0 }
    }

    /// Asks and waits, in real time, for `limit` at most.
    ///
    /// # Errors
    /// [`Stalled`], with what was asked; or what the agent says.
    pub fn ask(&mut self, op: Op, limit: Duration) -> Result<Answer> {
        let asked = format!("{op:?}").chars().take(ASKED_SHOWN).collect::<String>();
        let started = Instant::now();
        let result = self.answer(op, limit);
        trace(started, &asked);
        if result.as_ref().is_err_and(|error| error.is::<Stalled>()) {
            return result.with_context(|| format!("no answer within {} s to {asked}", limit.as_secs()));
        }
        result
    }

    fn answer(&mut self, op: Op, limit: Duration) -> Result<Answer> {
        self.last += 1;
        let mut text = serde_json::to_string(&Request { id: self.last, op })?;
        text.push('\n');
        let stream = self.lines.get_mut();
        stream.set_read_timeout(Some(limit))?;
        if stream.write_all(text.as_bytes()).is_err() {
            bail!(Stalled);
        }
        loop {
            let mut line = String::new();
            match self.lines.read_line(&mut line) {
                Ok(0) => bail!(Stalled),
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    bail!(Stalled)
                }
                Err(e) if e.kind() == ErrorKind::ConnectionReset => bail!(Stalled),
                Err(e) => return Err(e.into()),
            }
            let response: Response = serde_json::from_str(&line)?;
            if response.id == self.last {
                return response.result.map_err(anyhow::Error::msg);
            }
        }
    }
}
