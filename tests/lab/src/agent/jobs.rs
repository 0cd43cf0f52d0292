//! Commands that the agent runs: each in a process group of its own, so that a
//! time limit or the end of a scenario ends its children too.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::protocol::{Command, Output};

/// How often a running command is looked at.
const TICK: Duration = Duration::from_millis(10);
/// How long output may still come after the command has ended: on a busy L0 its reader may be late, and a child may keep
/// the pipe for ever.
const LINGER: Duration = Duration::from_secs(3);

/// Runs a command to its end or to the time limit.
pub fn run(command: &Command, limit: Duration) -> Result<Output> {
    let mut child = spawn(command)?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    if let (Some(mut pipe), Some(text)) = (child.stdin.take(), command.stdin.clone()) {
        thread::spawn(move || pipe.write_all(text.as_bytes()));
    }
    let status = wait(&mut child, limit)?;
    let (status, timed_out) = match status {
        Some(status) => (status, false),
        None => {
            signal_group(&child, Signal::SIGKILL);
            (child.wait()?, true)
        }
    };
    let end = Instant::now() + LINGER;
    Ok(Output { code: code(status), stdout: gather(&stdout, end), stderr: gather(&stderr, end), timed_out })
}

/// Background commands, by number.
#[derive(Default)]
pub struct Jobs {
    running: BTreeMap<u64, Job>,
    ended: BTreeMap<u64, i32>,
    last: u64,
}

/// A command that runs, and the threads that write down what it says.
struct Job {
    child: Child,
    writers: [JoinHandle<()>; 2],
}

impl Jobs {
    /// Starts a command; standard output and error go to `/share/jobs/NAME.out`.
    pub fn start(&mut self, command: &Command, name: &str) -> Result<(u64, u32)> {
        std::fs::create_dir_all("/share/jobs")?;
        let path = format!("/share/jobs/{name}.out");
        // Two writers: without append mode one would write over what the other has written meanwhile.
        let file = File::options().create(true).append(true).open(path)?;
        let mut child = spawn(command)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        if let (Some(mut pipe), Some(text)) = (child.stdin.take(), command.stdin.clone()) {
            thread::spawn(move || pipe.write_all(text.as_bytes()));
        }
        let writers = [write_down(stdout, file.try_clone()?), write_down(stderr, file)];
        self.last += 1;
        let pid = child.id();
        self.running.insert(self.last, Job { child, writers });
        Ok((self.last, pid))
    }

    /// The exit code, or `None` if the command still runs after `limit`. What an ended command has said is written down.
    pub fn wait(&mut self, job: u64, limit: Duration) -> Result<Option<i32>> {
        if let Some(code) = self.ended.get(&job) {
            return Ok(Some(*code));
        }
        let Job { child, writers } = self.running.get_mut(&job).context("no such job")?;
        let Some(status) = wait(child, limit)? else {
            return Ok(None);
        };
        let end = Instant::now() + LINGER;
        while writers.iter().any(|writer| !writer.is_finished()) && Instant::now() < end {
            thread::sleep(TICK);
        }
        self.running.remove(&job);
        self.ended.insert(job, code(status));
        Ok(Some(code(status)))
    }

    /// Sends a signal to the command's process group.
    pub fn kill(&mut self, job: u64, signal: Signal) {
        if let Some(job) = self.running.get(&job) {
            signal_group(&job.child, signal);
        }
    }

    /// Ends everything that is left.
    pub fn kill_all(&mut self) -> Result<()> {
        for (number, mut job) in std::mem::take(&mut self.running) {
            signal_group(&job.child, Signal::SIGKILL);
            self.ended.insert(number, code(job.child.wait()?));
        }
        Ok(())
    }
}

fn spawn(command: &Command) -> Result<Child> {
    let (program, args) = command.argv.split_first().context("no program named")?;
    std::process::Command::new(program)
        .args(args)
        .stdin(if command.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {program}"))
}

/// Appends all that comes from a pipe to a file.
fn write_down(pipe: Option<impl Read + Send + 'static>, mut file: File) -> JoinHandle<()> {
    thread::spawn(move || {
        if let Some(mut pipe) = pipe {
            // Fails only if the file cannot be written: the scenario misses the text, then.
            let _ = std::io::copy(&mut pipe, &mut file);
        }
    })
}

fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        thread::sleep(TICK);
    }
}

fn signal_group(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // ESRCH: it ended by itself a moment ago.
        let _ = killpg(Pid::from_raw(pid), signal);
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Reads a pipe in a thread of its own, chunk by chunk.
fn collect(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let Some(mut pipe) = pipe else { return };
        let mut buffer = [0; 64 << 10];
        while let Ok(n @ 1..) = pipe.read(&mut buffer) {
            if sender.send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

fn gather(chunks: &Receiver<Vec<u8>>, end: Instant) -> String {
    let mut bytes = Vec::new();
    while let Ok(chunk) = chunks.recv_timeout(end.saturating_duration_since(Instant::now())) {
        bytes.extend(chunk);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(text: &str, stdin: Option<&str>) -> Command {
        Command { argv: vec!["sh".into(), "-c".into(), text.into()], stdin: stdin.map(str::to_owned) }
    }

    #[test]
    fn output_and_code_come_back() {
        let out = run(&shell("cat; echo err >&2; exit 7", Some("in")), Duration::from_secs(20)).unwrap();
        assert_eq!((out.code, out.stdout.as_str(), out.stderr.as_str(), out.timed_out), (7, "in", "err\n", false));
    }

    #[test]
    fn the_time_limit_ends_children_too() {
        let out = run(&shell("sleep 300 & sleep 300", None), Duration::from_millis(50)).unwrap();
        assert!(out.timed_out);
        assert_eq!(out.code, 128 + 9);
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let command = Command { argv: vec!["/no/such/program".into()], stdin: None };
        assert!(run(&command, Duration::from_secs(1)).is_err());
    }
}
