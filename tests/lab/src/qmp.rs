//! A client of the monitor protocol QMP (`docs/interop/qmp-spec` of QEMU): of QEMU on L0, and of passthru's control socket.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A session. Dropping it ends the connection.
pub struct Client {
    out: UnixStream,
    /// Filled by a thread that reads; ends with the connection.
    lines: Receiver<Value>,
    /// Events that nobody has waited for yet.
    events: VecDeque<Value>,
    /// The last command that was sent.
    last: u64,
    /// Commands that nobody has waited for yet, by number.
    sent: BTreeMap<u64, String>,
    /// Their answers, as far as they have come.
    answers: BTreeMap<u64, Value>,
}

impl Client {
    /// Waits for the greeting and negotiates, until `end`.
    pub fn new(stream: UnixStream, end: Instant) -> Result<Self> {
        let mut client = Self {
            out: stream.try_clone()?,
            lines: read(stream),
            events: VecDeque::new(),
            last: 0,
            sent: BTreeMap::new(),
            answers: BTreeMap::new(),
        };
        let greeting = client.line(end)?.context("no greeting came")?;
        if greeting.get("QMP").is_none() {
            bail!("this is no greeting: {greeting}");
        }
        client.run("qmp_capabilities", json!({}), end)?;
        Ok(client)
    }

    /// Runs a command and gives what it returns; an error of its is one here. Events that come meanwhile are kept.
    pub fn run(&mut self, command: &str, arguments: Value, end: Instant) -> Result<Value> {
        let number = self.begin(command, arguments)?;
        self.end(number, end)
    }

    /// Sends a command and gives its number.
    pub fn begin(&mut self, command: &str, arguments: Value) -> Result<u64> {
        self.last += 1;
        let mut text = json!({ "execute": command, "arguments": arguments, "id": self.last }).to_string();
        text.push('\n');
        self.out.write_all(text.as_bytes()).context("the VMM has closed its control socket")?;
        self.sent.insert(self.last, command.to_owned());
        Ok(self.last)
    }

    /// Waits for what a command returns; an error of its is one here.
    pub fn end(&mut self, number: u64, end: Instant) -> Result<Value> {
        let command = self.sent.remove(&number).context("no such command")?;
        let mut answer = loop {
            if let Some(answer) = self.answers.remove(&number) {
                break answer;
            }
            let line = self.line(end)?.with_context(|| format!("{command}: no answer came"))?;
            self.keep(line);
        };
        if let Some(error) = answer.get("error") {
            let word = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
            let code = error["data"]["code"].as_str().map(|code| format!(" ({code})")).unwrap_or_default();
            bail!("{command}: {}: {}{code}", word("class"), word("desc"));
        }
        answer.get_mut("return").map(Value::take).with_context(|| format!("{command}: this is no answer"))
    }

    /// Takes the first event of that name, if one has come or comes until `end`.
    pub fn event(&mut self, name: &str, end: Instant) -> Result<Option<Value>> {
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(at));
            }
            let Some(line) = self.line(end)? else { return Ok(None) };
            self.keep(line);
        }
    }

    fn keep(&mut self, line: Value) {
        if line.get("event").is_some() {
            self.events.push_back(line);
        } else if let Some(number) = line["id"].as_u64() {
            self.answers.insert(number, line);
        }
    }

    /// The next line; `None` when the time is over.
    fn line(&mut self, end: Instant) -> Result<Option<Value>> {
        match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(Some(line)),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the VMM has closed its control socket"),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The thread that reads has the socket open as well. QEMU serves one client at a time.
        let _ = self.out.shutdown(Shutdown::Both);
    }
}

fn read(stream: UnixStream) -> Receiver<Value> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let Ok(value) = serde_json::from_str(&line) else { return };
            if sender.send(value).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn events_are_kept_for_whoever_waits_for_them() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            let mut out = theirs.try_clone().unwrap();
            let mut lines = BufReader::new(theirs).lines();
            writeln!(out, r#"{{"QMP": {{}}}}"#).unwrap();
            for answer in [
                r#"{"return": {}, "id": 1}"#,
                "{\"event\": \"A\", \"data\": 1}\n{\"event\": \"B\"}\n{\"return\": 5, \"id\": 2}",
                r#"{"error": {"class": "GenericError", "desc": "no", "data": {"code": "PT035"}}, "id": 3}"#,
                "",
                "{\"return\": 6, \"id\": 5}\n{\"return\": 7, \"id\": 4}",
            ] {
                lines.next().unwrap().unwrap();
                if !answer.is_empty() {
                    writeln!(out, "{answer}").unwrap();
                }
            }
            lines.next().is_none()
        });
        let end = Instant::now() + Duration::from_secs(20);
        let mut client = Client::new(ours, end).unwrap();
        assert_eq!(client.run("x", json!({}), end).unwrap(), 5);
        assert!(client.event("B", end).unwrap().is_some());
        assert_eq!(client.event("A", end).unwrap().unwrap()["data"], 1);
        let error = client.run("y", json!({}), end).unwrap_err().to_string();
        assert_eq!(error, "y: GenericError: no (PT035)");
        let slow = client.begin("slow", json!({})).unwrap();
        assert_eq!(client.run("quick", json!({}), end).unwrap(), 6);
        assert_eq!(client.end(slow, end).unwrap(), 7);
        assert!(client.event("A", Instant::now()).unwrap().is_none());
        drop(client);
        assert!(server.join().unwrap(), "the connection is closed");
    }

    #[test]
    fn what_does_not_greet_is_refused() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        writeln!(&theirs, r#"{{"return": {{}}}}"#).unwrap();
        assert!(Client::new(ours, Instant::now() + Duration::from_secs(20)).is_err());
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let closed = Client::new(ours, Instant::now() + Duration::from_secs(20)).err().unwrap();
        assert_eq!(closed.to_string(), "the VMM has closed its control socket");
    }
}
