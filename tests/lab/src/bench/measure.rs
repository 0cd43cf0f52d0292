//! L1's side of the benchmark (`lab measure`): runs a VMM, reads the guest's console as it
//! comes, and takes all figures at the moment a marker line stands on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::hist::Counts;
use super::map_time;
use super::smaps::{self, Memory};

/// What one run of a VMM showed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    pub marks: Vec<Mark>,
    /// Time in VFIO_IOMMU_MAP_DMA that the start waits for, ms.
    pub map_ms: f64,
    /// The same beside the guest, ms.
    pub beside_ms: f64,
    /// Requests of both.
    pub map_calls: u64,
    /// What the guest has reported by lines `LAB key=value`.
    pub values: BTreeMap<String, String>,
    /// Whether the VMM ended by itself, with 0.
    pub success: bool,
    /// The last lines of its output.
    pub tail: String,
}

/// The figures at one marker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mark {
    pub name: String,
    /// Since exec, ms.
    pub ms: f64,
    pub counts: Counts,
    pub memory: Memory,
    /// System calls of the VMM's threads.
    pub system_calls: u64,
}

impl Run {
    pub fn mark(&self, name: &str) -> Option<&Mark> {
        self.marks.iter().find(|m| m.name == name)
    }
}

/// Runs shell text, `limit` at most. `counting` sets the counters, which cost time.
pub fn run(text: &str, counting: bool, limit: Duration) -> Result<Run> {
    map_time::start()?;
    if counting {
        Counts::start()?;
    }
    let mut child = Command::new("sh")
        .args(["-c", text])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .process_group(0)
        .spawn()?;
    let started = Instant::now();
    let pid = child.id();
    let console = child.stdout.take().context("no pipe")?;
    let (done, stop) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        if stop.recv_timeout(limit).is_err()
            && let Ok(pid) = i32::try_from(pid)
        {
            // It may have ended at this very moment.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    });
    let mut marks = Vec::new();
    let mut values = BTreeMap::new();
    let mut lines = Vec::new();
    // Also those that have ended since, and will not be found any more.
    let mut threads = BTreeSet::new();
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim().to_owned();
        if let Some(name) = marker(&line) {
            let ms = started.elapsed().as_secs_f64() * 1000.0;
            let counts = if counting { Counts::read()? } else { Counts::default() };
            threads.extend(threads_of(pid));
            marks.push(Mark {
                name: name.to_owned(),
                ms,
                system_calls: counts.calls_of(&threads),
                counts,
                memory: smaps::parse(&fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default()),
            });
        } else if let Some((key, value)) = line.split_once("LAB ").and_then(|(_, report)| report.split_once('=')) {
            values.insert(key.to_owned(), value.to_owned());
        }
        lines.push(line);
    }
    let status = child.wait()?;
    // The watchdog has gone already if the limit was over.
    let _ = done.send(());
    let _ = watchdog.join();
    let map = map_time::read()?;
    map_time::stop();
    Counts::stop();
    let from = lines.len().saturating_sub(15);
    let map_time::MapTime { waited_ms, beside_ms, calls } = map;
    Ok(Run {
        marks,
        map_ms: waited_ms,
        beside_ms,
        map_calls: calls,
        values,
        success: status.success(),
        tail: lines[from..].join("\n"),
    })
}

/// The numbers of a process's threads.
fn threads_of(pid: u32) -> Vec<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The name on a marker line.
fn marker(line: &str) -> Option<&str> {
    if line.ends_with("L2 UP") {
        return Some("up");
    }
    Some(line.split_once("LAB mark=")?.1.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_told_from_other_lines() {
        assert_eq!(marker("L2 UP"), Some("up"));
        assert_eq!(marker("[    1.0] x LAB mark=nvme-start "), Some("nvme-start"));
        assert_eq!(marker("L2 UPSIDE"), None);
        assert_eq!(marker("LAB ping=4"), None);
    }
}
