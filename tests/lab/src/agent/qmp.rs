//! Sessions with the control sockets of guests in L1.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Sessions, by number.
#[derive(Default)]
pub struct Sessions {
    open: BTreeMap<u64, Session>,
    last: u64,
}

struct Session {
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
        let mut session = Session {
            out: stream.try_clone()?,
            lines: read(stream),
            events: VecDeque::new(),
            last: 0,
            sent: BTreeMap::new(),
            answers: BTreeMap::new(),
        };
        let greeting = session.line(end)?.context("no greeting came")?;
        if greeting.get("QMP").is_none() {
            bail!("this is no greeting: {greeting}");
        }
        let number = session.begin("qmp_capabilities", json!({}))?;
        session.end(number, end)?;
        self.last += 1;
        self.open.insert(self.last, session);
        Ok(self.last)
    }

    /// Runs a command and gives what it returns; an error of its is one here.
    pub fn run(&mut self, session: u64, command: &str, arguments: Value, limit: Duration) -> Result<Value> {
        let number = self.begin(session, command, arguments)?;
        self.end(session, number, limit)
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
        let session = self.find(session)?;
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = session.events.iter().position(|event| event["event"] == name) {
                return Ok(session.events.remove(at));
            }
            let Some(line) = session.line(end)? else { return Ok(None) };
            session.keep(line);
        }
    }

    fn find(&mut self, session: u64) -> Result<&mut Session> {
        self.open.get_mut(&session).context("no such session")
    }
}

impl Session {
    fn begin(&mut self, command: &str, arguments: Value) -> Result<u64> {
        self.last += 1;
        let mut text = json!({ "execute": command, "arguments": arguments, "id": self.last }).to_string();
        text.push('\n');
        self.out.write_all(text.as_bytes()).context("the VMM has closed its control socket")?;
        self.sent.insert(self.last, command.to_owned());
        Ok(self.last)
    }

    fn end(&mut self, number: u64, end: Instant) -> Result<Value> {
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
    use std::os::unix::net::UnixListener;

    #[test]
    fn events_are_kept_for_whoever_waits_for_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut out = stream.try_clone().unwrap();
            let mut lines = BufReader::new(stream).lines();
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
        });
        let limit = Duration::from_secs(20);
        let mut sessions = Sessions::default();
        let session = sessions.open(path.to_str().unwrap(), limit).unwrap();
        assert_eq!(sessions.run(session, "x", json!({}), limit).unwrap(), 5);
        assert!(sessions.event(session, "B", limit).unwrap().is_some());
        assert_eq!(sessions.event(session, "A", limit).unwrap().unwrap()["data"], 1);
        let error = sessions.run(session, "y", json!({}), limit).unwrap_err().to_string();
        assert_eq!(error, "y: GenericError: no (PT035)");
        let slow = sessions.begin(session, "slow", json!({})).unwrap();
        assert_eq!(sessions.run(session, "quick", json!({}), limit).unwrap(), 6);
        assert_eq!(sessions.end(session, slow, limit).unwrap(), 7);
        server.join().unwrap();
        assert!(sessions.event(session, "A", limit).is_err(), "closed");
    }
}
