//! Tests of `passthru::kvm` on a real /dev/kvm, with guests of a few hand-written instructions.
//!
//! A harness of its own, because only it can say at run time that a test is ignored: without a usable /dev/kvm every
//! test is, visibly. Arguments that are no options are filters, as with any other test.

mod guest;
mod tests;

use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use passthru::host::Host;
use passthru::kvm::Kvm;

/// A test that takes longer hangs: a lost call of a vCPU, for example.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let chosen: Vec<_> = tests::ALL.iter().filter(|(name, _)| chosen(name)).collect();
    println!("\nrunning {} tests", chosen.len());

    let unusable = Kvm::open(&Host::real()).err().map(|error| error.cause().to_owned());
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    for (name, test) in chosen {
        let result = match &unusable {
            Some(reason) => Outcome::Ignored(reason.clone()),
            None => run(*test),
        };
        match result {
            Outcome::Passed => {
                passed += 1;
                println!("test {name} ... ok");
            }
            Outcome::Ignored(reason) => {
                ignored += 1;
                println!("test {name} ... ignored, {reason}");
            }
            Outcome::Failed(reason) => {
                failed += 1;
                println!("test {name} ... FAILED{reason}");
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored\n");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

enum Outcome {
    Passed,
    Ignored(String),
    Failed(&'static str),
}

/// Runs a test on a thread of its own. One that hangs is left behind: the process ends soon after.
fn run(test: tests::Test) -> Outcome {
    let (done, is_done) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let kvm = Kvm::open(&Host::real()).expect("it could be opened a moment ago");
        let result = test(&kvm);
        // The receiver is gone only if this test took too long.
        let _ = done.send(());
        result
    });
    if is_done.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
        return Outcome::Failed(": it hangs");
    }
    match thread.join() {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(reason)) => Outcome::Ignored(reason),
        Err(_) => Outcome::Failed(""),
    }
}
