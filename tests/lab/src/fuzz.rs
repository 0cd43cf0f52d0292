//! `cargo lab fuzz`: builds the targets of tests/fuzz with cargo-fuzz and lets each of them look for a crash.
//!
//! cargo-fuzz asks the compiler for the address sanitizer and for coverage, which a stable compiler gives only when it is
//! told to; nothing else of the build depends on that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::build::{cargo, target};
use crate::cli::is_chosen;
use crate::report;
use crate::runner::Tally;

/// How a target looks for a crash.
#[derive(Clone, Copy)]
pub struct Search {
    pub time: Duration,
    /// What its random choices start from; `None`: another number each time.
    pub seed: Option<u32>,
}

/// An ordinary run makes the same choices each time: what fails in it is what the change has broken, not the luck of a run
/// that has nothing to do with it.
pub const SHORT: Search = Search { time: Duration::from_secs(20), seed: Some(1) };
/// A campaign goes where none has been.
pub const LONG: Search = Search { time: Duration::from_secs(600), seed: None };
/// Targets at a time: each keeps one processor busy.
const AT_A_TIME: usize = 2;
/// Memory that a target may take, MiB, and the time of one input, s. More of either counts as a crash.
const MEMORY_MIB: u32 = 2048;
const INPUT_SECONDS: u32 = 20;
/// Lines of a failed target's output that are shown.
const OUTPUT_LINES: usize = 40;

/// The build is optimised a little: a run is short, and so shall the build be.
const PROFILE: &[(&str, &str)] = &[
    ("RUSTC_BOOTSTRAP", "1"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ("CARGO_PROFILE_RELEASE_STRIP", "none"),
];
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Name of a target's result, as filters and reports have it.
pub fn result_name(target: &str) -> String {
    format!("fuzz-{}", target.replace('_', "-"))
}

/// The targets: the programs in tests/fuzz/targets.
pub fn targets() -> Result<Vec<String>> {
    let folder = crate::build::workspace().join("tests/fuzz/targets");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Runs the targets whose result's name contains one of `filters`.
pub fn run(filters: &[String], search: Search) -> Result<Tally> {
    let chosen: Vec<String> = targets()?.into_iter().filter(|name| is_chosen(&result_name(name), filters)).collect();
    if chosen.is_empty() {
        return Ok(Tally::default());
    }
    let programs = build()?;
    let corpora = target().join("fuzz").join("corpus");
    let seeds = Command::new(programs.join("seeds")).arg(&corpora).stdout(Stdio::null()).status();
    ensure!(seeds.context("cannot start the program that writes the seeds")?.success(), "there are no seeds");
    let waiting = Mutex::new(chosen);
    let tally = Mutex::new(Tally::default());
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(name) = take(&waiting) {
                    let outcome = look_for_a_crash(&programs.join(&name), &corpora.join(&name), search);
                    note(&name, outcome, &mut tally.lock().unwrap_or_else(|e| e.into_inner()));
                }
            });
        }
    });
    Ok(tally.into_inner().unwrap_or_else(|e| e.into_inner()))
}

fn take(waiting: &Mutex<Vec<String>>) -> Option<String> {
    waiting.lock().unwrap_or_else(|e| e.into_inner()).pop()
}

/// What a target did without a crash.
struct Stats {
    executions: u64,
    seconds: u64,
}

fn note(name: &str, outcome: Result<Stats>, tally: &mut Tally) {
    let name = result_name(name);
    match outcome {
        Ok(stats) => {
            tally.passed += 1;
            println!("pass  {name} ({} s, {} executions)", stats.seconds, stats.executions);
        }
        Err(error) => {
            tally.failed += 1;
            println!("FAIL  {name}: {error:#}");
        }
    }
}

/// Builds all programs; gives their folder.
fn build() -> Result<PathBuf> {
    let known = cargo().args(["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !known.is_ok_and(|status| status.success()) {
        eprintln!("lab: installing cargo-fuzz");
        // --debug: it only starts other programs.
        let status = cargo().args(["install", "--locked", "--quiet", "--debug", "cargo-fuzz"]).status();
        ensure!(status.context("cannot start cargo")?.success(), "cargo-fuzz cannot be installed");
    }
    eprintln!("lab: building the fuzz targets");
    let folder = target().join("fuzz");
    let status = cargo()
        .args(["fuzz", "build", "--fuzz-dir", "tests/fuzz", "--target-dir"])
        .arg(&folder)
        .envs(PROFILE.iter().copied())
        .env("CARGO_TERM_QUIET", "true")
        .status();
    ensure!(status.context("cannot start cargo fuzz")?.success(), "the fuzz targets do not build");
    Ok(folder.join(TRIPLE).join("release"))
}

/// Runs one target from its corpus, which keeps what it finds.
fn look_for_a_crash(program: &Path, corpus: &Path, search: Search) -> Result<Stats> {
    let crashes = corpus.with_extension("crashes");
    fs::create_dir_all(&crashes).with_context(|| format!("cannot make {}", crashes.display()))?;
    let output = Command::new(program)
        .arg(format!("-max_total_time={}", search.time.as_secs()))
        .args(search.seed.map(|seed| format!("-seed={seed}")))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-artifact_prefix={}/", crashes.display()))
        .arg("-print_final_stats=1")
        .arg(corpus)
        .stdin(Stdio::null())
        .output()
        .context("it cannot be started")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{}; the input is kept in {}:\n{}",
        output.status,
        crashes.display(),
        complaint(&text)
    );
    let stats = parse(&text).context("it did not say how much it has done")?;
    ensure!(stats.executions > 0, "it ran no input");
    Ok(stats)
}

/// From the panic or the sanitizer's report on, else the end.
fn complaint(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let reported = lines.iter().position(|line| line.contains("panicked at") || line.contains("ERROR: "));
    match reported {
        Some(at) => lines[at..].iter().take(OUTPUT_LINES).fold(String::new(), |text, line| text + line + "\n"),
        None => report::tail(text, OUTPUT_LINES),
    }
}

/// `Done 2757 runs in 31 second(s)` is libFuzzer's last word.
fn parse(text: &str) -> Option<Stats> {
    let words: Vec<&str> = text.lines().rev().find_map(|line| line.strip_prefix("Done "))?.split(' ').collect();
    Some(Stats { executions: words.first()?.parse().ok()?, seconds: words.get(3)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_is_understood() {
        let stats = parse("#2757\tDONE   cov: 3820\nDone 2757 runs in 31 second(s)\nstat::x: 1\n").unwrap();
        assert_eq!((stats.executions, stats.seconds), (2757, 31));
        assert!(parse("==1== ERROR: libFuzzer: deadly signal").is_none());
    }

    #[test]
    fn a_panic_is_shown_from_its_message_on() {
        let text = "#1 NEW\nthread panicked at x.rs:1\nwhy\n".to_owned() + &"frame\n".repeat(100);
        let shown = complaint(&text);
        assert!(shown.starts_with("thread panicked") && shown.lines().count() == OUTPUT_LINES);
        assert_eq!(complaint("only\nthis").trim(), "only\nthis");
    }

    #[test]
    fn each_target_is_a_program_of_the_crate() {
        let manifest = fs::read_to_string(crate::build::workspace().join("tests/fuzz/Cargo.toml")).unwrap();
        let names = targets().unwrap();
        assert!(!names.is_empty());
        for name in names {
            assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name}");
        }
    }
}
