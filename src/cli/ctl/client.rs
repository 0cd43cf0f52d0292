//! A client of a running guest's control socket (QMP).

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Code, Error, Result, explain_io};

/// For the answer to a command that is answered at once.
pub(in crate::cli) const LIMIT: Duration = Duration::from_secs(10);
/// The longest message that is read, bytes.
const MAX_MESSAGE: u64 = 16 << 20;

/// A session that has negotiated.
pub(in crate::cli) struct Client {
    stream: BufReader<UnixStream>,
    name: String,
    /// Events that came before somebody waited for them.
    events: VecDeque<Value>,
}

impl Client {
    /// Connects with the guest `name` by its socket; `None`: nobody listens there, or this user may not.
    ///
    /// # Errors
    /// [`Code::ControlFailed`] if the guest does not answer.
    pub(in crate::cli) fn connect(name: &str, socket: &Path) -> Result<Option<Client>> {
        let Ok(stream) = UnixStream::connect(socket) else { return Ok(None) };
        let mut client = Client { stream: BufReader::new(stream), name: name.to_owned(), events: VecDeque::new() };
        let end = Instant::now() + LIMIT;
        let greeting = client.message(Some(end))?;
        if greeting.get("QMP").is_none() {
            return Err(client.failed("it does not speak QMP"));
        }
        client.run("qmp_capabilities", &json!({}), Some(LIMIT))?;
        Ok(Some(client))
    }

    /// Runs a command and gives what it returns; `limit` is for the answer, `None`: however long it takes.
    ///
    /// # Errors
    /// [`Code::ControlFailed`] without an answer; what the guest's process says, with its code if that has one.
    pub(in crate::cli) fn run(&mut self, command: &str, arguments: &Value, limit: Option<Duration>) -> Result<Value> {
        let end = limit.map(|limit| Instant::now() + limit);
        let request = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        let sent = self.stream.get_mut().write_all(request.as_bytes());
        sent.map_err(|error| self.failed(&explain_io(&error)))?;
        loop {
            let mut message = self.message(end)?;
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else if let Some(error) = message.get("error") {
                return Err(refused(command, error));
            } else {
                return Ok(message.get_mut("return").map(Value::take).unwrap_or_default());
            }
        }
    }

    /// The next event; `None`: none came until `end`, or the guest has ended.
    pub(in crate::cli) fn event(&mut self, end: Option<Instant>) -> Option<Value> {
        self.events.pop_front().or_else(|| self.message(end).ok())
    }

    fn message(&mut self, end: Option<Instant>) -> Result<Value> {
        let mut line = Vec::new();
        let read = self.line(&mut line, end);
        match read {
            Ok(0) => Err(self.failed("it has closed the connection")),
            Ok(_) => serde_json::from_slice(&line).map_err(|error| self.failed(&error.to_string())),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(self.failed("no answer came in time"))
            }
            Err(error) => Err(self.failed(&explain_io(&error))),
        }
    }

    fn line(&mut self, line: &mut Vec<u8>, end: Option<Instant>) -> io::Result<usize> {
        // Zero would mean no limit.
        let left = end.map(|end| end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        self.stream.get_ref().set_read_timeout(left)?;
        (&mut self.stream).take(MAX_MESSAGE).read_until(b'\n', line)
    }

    fn failed(&self, why: &str) -> Error {
        Error::new(Code::ControlFailed, format!("{} does not answer", self.name)).evidence(why)
    }
}

/// What the guest's process says as an error of ours: with the code that it has there.
fn refused(command: &str, error: &Value) -> Error {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let said = error.get("desc").and_then(text).unwrap_or_default();
    let data = error.get("data");
    let code = data.and_then(|data| data.get("code")?.as_str()).and_then(Code::parse);
    let Some((data, code)) = data.zip(code) else {
        return Error::new(Code::CommandRefused, format!("{command} is refused")).evidence(said);
    };
    let evidence = data.get("evidence").and_then(Value::as_array).into_iter().flatten().filter_map(text);
    let error = evidence.fold(Error::new(code, said), Error::evidence);
    match data.get("mend").and_then(text) {
        Some(fix) => error.fix(fix),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// A guest's process that says `lines`, each after a request.
    fn guest(lines: &'static [&'static str]) -> (tempfile::TempDir, Result<Option<Client>>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut requests = BufReader::new(stream.try_clone().unwrap()).lines();
            for line in ["{\"QMP\": {}}", "{\"return\": {}}"].iter().chain(lines) {
                (&stream).write_all(format!("{line}\r\n").as_bytes()).unwrap();
                requests.next();
            }
        });
        let client = Client::connect("router", &path);
        (folder, client)
    }

    #[test]
    fn events_between_are_kept_and_the_end_is_told() {
        let (_folder, client) = guest(&["{\"event\": \"STOP\"}\r\n{\"return\": 7}"]);
        let mut client = client.unwrap().unwrap();
        assert_eq!(client.run("x", &json!({}), Some(LIMIT)).unwrap(), 7);
        assert_eq!(client.event(None).unwrap()["event"], "STOP");
        assert!(client.event(Some(Instant::now())).is_none());
        let error = client.run("x", &json!({}), Some(LIMIT)).unwrap_err();
        assert_eq!(error.code(), Code::ControlFailed);
    }

    #[test]
    fn a_refusal_keeps_its_code() {
        let plain = json!({ "class": "GenericError", "desc": "why" });
        assert_eq!(refused("quit", &plain).code(), Code::CommandRefused);
        let ours = json!({ "desc": "why", "data": { "code": "PT035", "evidence": ["seen"], "mend": "do" } });
        let error = refused("device_add", &ours);
        assert_eq!((error.code(), error.cause(), error.fix_text()), (Code::NoHotplug, "why", Some("do")));
        assert_eq!(error.evidence_lines(), ["seen"]);
    }

    #[test]
    fn nobody_there_is_no_failure() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Client::connect("a", &folder.path().join("none")).unwrap().is_none());
    }
}
