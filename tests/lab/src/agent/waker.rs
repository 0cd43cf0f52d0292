//! Keeps L1 from stalling: QEMU's SVM emulation up to 10.1 can lose a local timer
//! interrupt in a race. Two threads, each pinned to one of L1's processors, wake each other
//! every 20 ms; the interrupt that this sends raises the lost line again.

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

const PERIOD: Duration = Duration::from_millis(20);

/// Starts the two threads; they run for ever.
pub fn start() -> Result<()> {
    let (to_second, from_first) = mpsc::channel();
    let (to_first, from_second) = mpsc::channel();
    to_first.send(())?;
    thread::spawn(move || pass(0, &from_second, &to_second));
    thread::spawn(move || pass(1, &from_first, &to_first));
    Ok(())
}

/// Waits for the other thread, rests, wakes it.
fn pass(cpu: usize, from: &Receiver<()>, to: &Sender<()>) {
    let mut set = CpuSet::new();
    if set.set(cpu).is_ok() {
        // A machine with one processor leaves the thread where it is.
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
    while from.recv().is_ok() {
        thread::sleep(PERIOD / 2);
        if to.send(()).is_err() {
            return;
        }
    }
}
