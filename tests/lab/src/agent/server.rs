//! The agent's loop: read a line, do it, answer.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::jobs::{self, Jobs};
use super::protocol::{Answer, Op, Request, Response};
use super::qmp::Sessions;
use super::{PORT, picture, waker};

/// Serves the port until the machine goes down.
pub fn serve() -> Result<()> {
    waker::start()?;
    let port = open_port()?;
    let mut answers = port.try_clone()?;
    let mut lines = BufReader::new(port);
    let mut jobs = Jobs::default();
    let mut sessions = Sessions::default();
    let mut line = String::new();
    loop {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            // The other side has closed the socket; it may come back.
            thread::sleep(Duration::from_millis(100));
            continue;
        }
        let Ok(request) = serde_json::from_str::<Request>(&line) else {
            eprintln!("lab agent: not a request: {line}");
            continue;
        };
        let response = Response {
            id: request.id,
            result: perform(request.op, &mut jobs, &mut sessions).map_err(|e| format!("{e:#}")),
        };
        let mut text = serde_json::to_string(&response)?;
        text.push('\n');
        answers.write_all(text.as_bytes())?;
    }
}

fn perform(op: Op, jobs: &mut Jobs, sessions: &mut Sessions) -> Result<Answer> {
    let limit = Duration::from_millis;
    Ok(match op {
        Op::Ping => Answer::Done,
        Op::Run { command, timeout_ms } => Answer::Ran(jobs::run(&command, Duration::from_millis(timeout_ms))?),
        Op::Start { command, name } => {
            let (job, pid) = jobs.start(&command, &name)?;
            Answer::Started { job, pid }
        }
        Op::Wait { job, timeout_ms } => Answer::Waited { code: jobs.wait(job, Duration::from_millis(timeout_ms))? },
        Op::Kill { job, signal } => {
            jobs.kill(job, Signal::try_from(signal).context("no such signal")?);
            Answer::Done
        }
        Op::QmpOpen { path, timeout_ms } => Answer::Session(sessions.open(&path, limit(timeout_ms))?),
        Op::QmpRun { session, command, arguments, timeout_ms } => {
            Answer::Json(Some(sessions.run(session, &command, arguments, limit(timeout_ms))?))
        }
        Op::QmpBegin { session, command, arguments } => {
            Answer::Json(Some(sessions.begin(session, &command, arguments)?.into()))
        }
        Op::QmpEnd { session, number, timeout_ms } => {
            Answer::Json(Some(sessions.end(session, number, limit(timeout_ms))?))
        }
        Op::QmpEvent { session, name, timeout_ms } => {
            Answer::Json(sessions.event(session, &name, limit(timeout_ms))?)
        }
        Op::Picture => Answer::Picture(picture::take(Path::new("/"))),
        Op::KillAll => {
            jobs.kill_all()?;
            Answer::Done
        }
    })
}

/// Finds the port by its name; udev, which would make a link, does not run in L1.
fn open_port() -> Result<File> {
    for _ in 0..100 {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == PORT {
                let device = Path::new("/dev").join(entry.file_name());
                return OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(&device)
                    .with_context(|| format!("cannot open {}", device.display()));
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
    bail!("no virtio-serial port named {PORT}")
}
