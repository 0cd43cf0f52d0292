//! The words between the lab on L0 and its agent in L1: one JSON document a line.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One question; the answer carries the same `id`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub id: u64,
    pub op: Op,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Is the agent there?
    Ping,
    /// Run a command to its end.
    Run { command: Command, timeout_ms: u64 },
    /// Start a command in the background; its output goes to `/share/jobs/NAME.out`.
    Start { command: Command, name: String },
    /// Wait for a background command, `timeout_ms` at most.
    Wait { job: u64, timeout_ms: u64 },
    /// Send a signal to a background command and its children.
    Kill { job: u64, signal: i32 },
    /// What is there: drivers, processes, mounts.
    Picture,
    /// Kill every background command that is left.
    KillAll,
    /// Connect to a guest's control socket.
    QmpOpen { path: String, timeout_ms: u64 },
    /// Run a command on it.
    QmpRun { session: u64, command: String, arguments: Value, timeout_ms: u64 },
    /// Send a command on it; the answer is the number that [`Op::QmpEnd`] takes.
    QmpBegin { session: u64, command: String, arguments: Value },
    /// Wait for what a command that was sent came to.
    QmpEnd { session: u64, number: u64, timeout_ms: u64 },
    /// Wait for an event on it.
    QmpEvent { session: u64, name: String, timeout_ms: u64 },
}

/// A program with its arguments (`sh -c TEXT` for shell text).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Command {
    pub argv: Vec<String>,
    #[serde(default)]
    pub stdin: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Response {
    pub id: u64,
    pub result: Result<Answer, String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Done,
    Ran(Output),
    Started {
        job: u64,
        pid: u32,
    },
    /// `None`: still running.
    Waited {
        code: Option<i32>,
    },
    /// A line for each fact.
    Picture(Vec<String>),
    /// A session with a control socket.
    Session(u64),
    /// What came over it; `None`: nothing did in time.
    Json(Option<Value>),
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Exit code, or 128 + signal as a shell has it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// The time limit ended it.
    pub timed_out: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_line() {
        let request = Request {
            id: 7,
            op: Op::Run {
                command: Command { argv: vec!["sh".into(), "-c".into(), "a\nb".into()], stdin: None },
                timeout_ms: 5,
            },
        };
        let line = serde_json::to_string(&request).unwrap();
        assert!(!line.contains('\n'));
        let back: Request = serde_json::from_str(&line).unwrap();
        assert_eq!(back.id, 7);
        assert!(matches!(back.op, Op::Run { timeout_ms: 5, .. }));
    }
}
