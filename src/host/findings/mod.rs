//! What `passthru check` finds: for each thing that a guest with devices needs, whether it is there, who says so, and what
//! mends it. A finding that fails is the error that `run` or `bind` would end with, from the same function.

use serde::{Serialize, Serializer};

use crate::bdf::Bdf;
use crate::error::{Code, Error, Result};

mod device;
mod machine;
mod modules;
mod session;

pub use session::{LockRights, become_user};

/// How it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Pass,
    /// A guest can run, and something about it is worse than it could be.
    Warn,
    /// No guest, or not this one, can run.
    Fail,
}

impl Level {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Level::Pass => "PASS",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        }
    }
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The machine and its kernel.
    Host,
    /// A device.
    Device(Bdf),
    /// The user and the process that would run the guest.
    Session,
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Subject::Host => out.serialize_str("host"),
            Subject::Device(bdf) => bdf.serialize(out),
            Subject::Session => out.serialize_str("session"),
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub subject: Subject,
    /// Of the table of errors: `passthru explain` says more.
    #[serde(serialize_with = "as_text")]
    pub code: Code,
    /// How it stands.
    pub level: Level,
    /// In one sentence.
    pub what: String,
    /// Who says so.
    pub evidence: Vec<String>,
    /// What mends it.
    pub fix: Option<String>,
}

fn as_text<S: Serializer>(code: &Code, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(code)
}

impl Finding {
    /// All is well.
    pub fn pass(subject: Subject, code: Code, what: impl Into<String>) -> Finding {
        Finding { subject, code, level: Level::Pass, what: what.into(), evidence: Vec::new(), fix: None }
    }

    /// What a guest would fail with.
    pub fn fail(subject: Subject, error: &Error) -> Finding {
        Finding {
            level: Level::Fail,
            evidence: error.evidence_lines().to_vec(),
            fix: error.fix_text().map(str::to_owned),
            ..Finding::pass(subject, error.code(), error.cause())
        }
    }

    /// What a guest would run with all the same.
    pub fn warn(subject: Subject, error: &Error) -> Finding {
        Finding { level: Level::Warn, ..Finding::fail(subject, error) }
    }

    /// Well, in these words, unless there is an error.
    pub fn of<T>(subject: Subject, code: Code, well: impl Into<String>, result: Result<T>) -> Finding {
        result.map_or_else(|error| Finding::fail(subject, &error), |_| Finding::pass(subject, code, well))
    }

    /// Adds a line of evidence.
    #[must_use]
    pub fn evidence(mut self, line: impl Into<String>) -> Finding {
        self.evidence.push(line.into());
        self
    }
}

/// The exit code that findings call for: 0 if none fails, 4 if only devices do, else 3.
pub fn exit_code(findings: &[Finding]) -> u8 {
    let failed = || findings.iter().filter(|finding| finding.level == Level::Fail);
    match failed().next() {
        None => 0,
        Some(_) if failed().all(|finding| matches!(finding.subject, Subject::Device(_))) => 4,
        Some(_) => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_to_be_mended_before_its_devices() {
        let host = Finding::fail(Subject::Host, &Error::new(Code::NoKvm, "x"));
        let device = Finding::fail(Subject::Device("01:00.0".parse().unwrap()), &Error::new(Code::Busy, "x"));
        let warning = Finding::warn(Subject::Host, &Error::new(Code::AcsOverridden, "x"));
        let session = Finding::fail(Subject::Session, &Error::new(Code::FileUnusable, "x"));
        assert_eq!(exit_code(&[]), 0);
        assert_eq!(exit_code(std::slice::from_ref(&warning)), 0);
        assert_eq!(exit_code(&[warning, device.clone()]), 4);
        assert_eq!(exit_code(&[device.clone(), host]), 3);
        assert_eq!(exit_code(&[device, session]), 3);
    }

    #[test]
    fn json_has_words() {
        let finding = Finding::fail(Subject::Host, &Error::new(Code::NoKvm, "x").evidence("y").fix("z"));
        let wanted = r#"{"subject":"host","code":"PT001","level":"fail","what":"x","evidence":["y"],"fix":"z"}"#;
        assert_eq!(serde_json::to_string(&finding).unwrap(), wanted);
    }
}
