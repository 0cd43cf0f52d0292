//! A small client of QEMU's monitor (QMP, `docs/interop/qmp-spec`): one command, one answer.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long QEMU may take for one answer.
const LIMIT: Duration = Duration::from_secs(20);

/// A session.
pub struct Monitor {
    lines: BufReader<UnixStream>,
}

impl Monitor {
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(LIMIT))?;
        let mut monitor = Self { lines: BufReader::new(stream) };
        let greeting = monitor.line()?;
        if greeting.get("QMP").is_none() {
            bail!("not a monitor: {greeting}");
        }
        monitor.run("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Runs a command; events that arrive meanwhile are passed over.
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut text = json!({ "execute": command, "arguments": arguments }).to_string();
        text.push('\n');
        self.lines.get_mut().write_all(text.as_bytes())?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Waits for an event.
    pub fn event(&mut self, name: &str) -> Result<Value> {
        loop {
            let answer = self.line()?;
            if answer.get("event").and_then(Value::as_str) == Some(name) {
                return Ok(answer);
            }
        }
    }

    /// Runs a command of the human monitor, for what QMP does not have.
    pub fn human(&mut self, line: &str) -> Result<String> {
        let answer = self.run("human-monitor-command", json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line).context("QEMU's monitor")? == 0 {
            bail!("QEMU has closed its monitor");
        }
        Ok(serde_json::from_str(&line)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_events_and_errors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            let mut out = theirs.try_clone().unwrap();
            let mut lines = BufReader::new(theirs).lines();
            writeln!(out, r#"{{"QMP": {{}}}}"#).unwrap();
            lines.next().unwrap().unwrap();
            writeln!(out, r#"{{"return": {{}}}}"#).unwrap();
            lines.next().unwrap().unwrap();
            writeln!(out, r#"{{"event": "RESUME"}}"#).unwrap();
            writeln!(out, r#"{{"return": "hello"}}"#).unwrap();
            lines.next().unwrap().unwrap();
            writeln!(out, r#"{{"error": {{"desc": "no such device"}}}}"#).unwrap();
        });
        let mut monitor = Monitor::new(ours).unwrap();
        assert_eq!(monitor.human("info").unwrap(), "hello");
        let error = monitor.run("device_del", json!({"id": "x"})).unwrap_err().to_string();
        assert!(error.contains("no such device"), "{error}");
        server.join().unwrap();
    }
}
