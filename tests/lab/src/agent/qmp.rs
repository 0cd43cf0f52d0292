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
        let mut session = Session { out: stream.try_clone()?, lines: read(stream), events: VecDeque::new() };
        let greeting = session.line(end)?.context("no greeting came")?;
        if greeting.get("QMP").is_none() {
            bail!("this is no greeting: {greeting}");
        }
        session.run("qmp_capabilities", json!({}), end)?;
        self.last += 1;
        self.open.insert(self.last, session);
        Ok(self.last)
    }

    /// Runs a command and gives what it returns; an error of its is one here.
    pub fn run(&mut self, session: u64, command: &str, arguments: Value, limit: Duration) -> Result<Value> {
        self.find(session)?.run(command, arguments, Instant::now() + limit)
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
    fn run(&mut self, command: &str, arguments: Value, end: Instant) -> Result<Value> {
        let mut text = json!({ "execute": command, "arguments": arguments }).to_string();
        text.push('\n');
        self.out.write_all(text.as_bytes()).context("the VMM has closed its control socket")?;
        loop {
            let mut line = self.line(end)?.with_context(|| format!("{command}: no answer came"))?;
            if let Some(error) = line.get("error") {
                let word = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
                let code = error["data"]["code"].as_str().map(|code| format!(" ({code})")).unwrap_or_default();
                bail!("{command}: {}: {}{code}", word("class"), word("desc"));
            }
            if let Some(value) = line.get_mut("return") {
                return Ok(value.take());
            }
            self.keep(line);
        }
    }

    fn keep(&mut self, line: Value) {
        if line.get("event").is_some() {
            self.events.push_back(line);
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
                r#"{"return": {}}"#,
                "{\"event\": \"A\", \"data\": 1}\n{\"event\": \"B\"}\n{\"return\": 5}",
                r#"{"error": {"class": "GenericError", "desc": "no", "data": {"code": "PT035"}}}"#,
            ] {
                lines.next().unwrap().unwrap();
                writeln!(out, "{answer}").unwrap();
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
        server.join().unwrap();
        assert!(sessions.event(session, "A", limit).is_err(), "closed");
    }
}
