//! What a person reads: the last lines of consoles, and a run's folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::scenario::Part;

/// Runs whose consoles are kept.
const KEPT_RUNS: usize = 20;

/// The last `count` lines of a text, without terminal control sequences.
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines[from..].iter().map(|l| plain(l)).collect::<Vec<_>>().join("\n")
}

/// Leaves out escape sequences and other control characters, which firmware prints.
fn plain(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            // A CSI sequence ends with a letter; any other is two characters long.
            if chars.next() == Some('[') {
                for c in chars.by_ref() {
                    if c.is_ascii_alphabetic() {
                        break;
                    }
                }
            }
        } else if c == '\t' || !c.is_control() {
            out.push(c);
        }
    }
    out
}

/// Parts of scenarios as a table, subjects down and steps across; nothing if there are none.
pub fn table(parts: &[Part]) -> String {
    if parts.is_empty() {
        return String::new();
    }
    let (mut subjects, mut steps): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for part in parts {
        if !subjects.contains(&part.subject) {
            subjects.push(part.subject);
        }
        if !steps.contains(&part.step) {
            steps.push(part.step);
        }
    }
    let width = subjects.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = format!("{:width$}", "");
    for step in &steps {
        out += &format!("  {step}");
    }
    out.push('\n');
    for subject in subjects {
        out += &format!("{subject:width$}");
        for step in &steps {
            let cell = parts.iter().find(|part| part.subject == subject && part.step == *step);
            let word = cell.map_or("-", |part| if part.result.is_ok() { "pass" } else { "FAIL" });
            out += &format!("  {word:0$}", step.len());
        }
        out = out.trim_end().to_owned() + "\n";
    }
    out
}

/// The last lines of every console below `folder` that has changed since `since`.
pub fn consoles(folder: &Path, lines: usize, since: SystemTime) -> String {
    let mut files = Vec::new();
    for dir in [folder.to_owned(), folder.join("share/jobs")] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let console = path.extension().is_some_and(|e| e == "log" || e == "out");
            if let Ok(changed) = entry.metadata().and_then(|m| m.modified())
                && console
                && changed >= since
            {
                files.push((changed, path));
            }
        }
    }
    files.sort();
    let mut out = String::new();
    for (_, file) in files {
        let bytes = fs::read(&file).unwrap_or_default();
        let text = tail(&String::from_utf8_lossy(&bytes), lines);
        out += &format!("--- {} ---\n{text}\n", file.display());
    }
    out
}

/// Makes the folder of this run, `SECONDS-PID` below `target/lab/runs`, and removes the oldest ones.
pub fn run_folder(target: &Path) -> Result<PathBuf> {
    let runs = target.join("lab/runs");
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let folder = runs.join(format!("{seconds}-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut old: Vec<PathBuf> = fs::read_dir(&runs)?.flatten().map(|e| e.path()).collect();
    old.sort();
    let surplus = old.len().saturating_sub(KEPT_RUNS);
    for path in old[..surplus].iter().filter(|p| !is_running(p)) {
        // Another run may be removing the same one.
        let _ = fs::remove_dir_all(path);
    }
    Ok(folder)
}

/// Whether the process that a run's folder is named after still exists.
fn is_running(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name.rsplit_once('-').is_some_and(|(_, pid)| Path::new("/proc").join(pid).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_keeps_the_end_and_drops_control_sequences() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("\x1b[2J\x1b[01;01Hhello\r\n", 5), "hello");
        assert_eq!(tail("", 3), "");
    }

    #[test]
    fn a_table_shows_what_was_not_reached() {
        let part = |subject, step, fine: bool| Part {
            subject,
            step,
            result: if fine { Ok(()) } else { Err(anyhow::anyhow!("no")) },
        };
        let parts = [part("nvme", "works", true), part("nvme", "reboot", false), part("e1000", "works", true)];
        assert_eq!(table(&parts), "       works  reboot\nnvme   pass   FAIL\ne1000  pass   -\n");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn old_runs_go_away() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..30 {
            fs::create_dir_all(dir.path().join(format!("lab/runs/{i:03}-0"))).unwrap();
        }
        let live = dir.path().join("lab/runs/000-1");
        fs::create_dir(&live).unwrap();
        let mine = run_folder(dir.path()).unwrap();
        assert!(mine.is_dir());
        let left = fs::read_dir(dir.path().join("lab/runs")).unwrap().count();
        assert_eq!(left, KEPT_RUNS + 1);
        assert!(live.is_dir(), "a run that still goes on keeps its folder");
    }
}
