//! `cargo lab demo`: the main job, shown to a person step by step, in the lab or, with
//! `--host`, on this very machine.

mod guard;
pub mod host;
mod host_facts;
pub mod lab;

use std::io::Write;

/// Prints the heading of a step.
fn step(number: usize, text: &str) {
    println!("\n== {number}. {text}");
}

/// Prints a command as it is run.
fn shows(command: &str) {
    println!("   $ {command}");
}

/// Prints output, set off from the demo's own words.
fn output(text: &str) {
    for line in text.lines() {
        println!("   | {}", crate::report::tail(line, 1));
    }
    // A closed output is noticed by the next println.
    let _ = std::io::stdout().flush();
}

/// Prints what was proven.
fn summary(proofs: &[String]) {
    println!("\n== Proven");
    for proof in proofs {
        println!("   * {proof}");
    }
}
