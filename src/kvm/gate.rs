//! What vCPU threads may do: run, wait, or end. The main thread says so, the threads ask before each entry of the guest.

use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::{Condvar, Mutex};

const RUN: u8 = 0;
const PAUSE: u8 = 1;
const STOP: u8 = 2;

/// One for all vCPUs of a VM. Setting it does not call a thread back: the caller kicks the threads after it.
#[derive(Default)]
pub(super) struct Gate {
    /// Read without the lock before each entry; changed with it.
    order: AtomicU8,
    /// How many threads wait here, and how many have ended. No other lock is taken inside.
    threads: Mutex<Threads>,
    /// The order changed.
    changed: Condvar,
    /// A thread began to wait, or has ended.
    settled: Condvar,
}

#[derive(Default)]
struct Threads {
    waiting: usize,
    ended: usize,
}

/// What a thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// Enter the guest.
    Run,
    /// Enter the guest; it stood still in between.
    Resumed,
    /// Leave for good.
    Stop,
}

impl Gate {
    fn set(&self, order: u8) {
        // With the lock: a thread that has read the old order is not waiting yet, and would miss the signal.
        let _threads = self.threads.lock();
        if self.order.load(Ordering::Relaxed) != STOP {
            self.order.store(order, Ordering::Release);
        }
        self.changed.notify_all();
    }

    /// Every thread ends. Cannot be taken back.
    pub(super) fn stop(&self) {
        self.set(STOP);
    }

    /// Every thread waits.
    pub(super) fn pause(&self) {
        self.set(PAUSE);
    }

    /// Every thread runs.
    pub(super) fn resume(&self) {
        self.set(RUN);
    }

    /// Returns when none of `count` threads is in the guest or in a device's code: all wait or have ended.
    pub(super) fn wait_settled(&self, count: usize) {
        let mut threads = self.threads.lock();
        while threads.waiting + threads.ended < count && self.order.load(Ordering::Relaxed) != RUN {
            self.settled.wait(&mut threads);
        }
    }

    /// Asked by a vCPU's thread before each entry; waits while the order is to wait.
    pub(super) fn pass(&self) -> Pass {
        match self.order.load(Ordering::Acquire) {
            RUN => Pass::Run,
            STOP => Pass::Stop,
            _ => self.wait(),
        }
    }

    fn wait(&self) -> Pass {
        let mut threads = self.threads.lock();
        threads.waiting += 1;
        self.settled.notify_all();
        while self.order.load(Ordering::Relaxed) == PAUSE {
            self.changed.wait(&mut threads);
        }
        threads.waiting -= 1;
        if self.order.load(Ordering::Relaxed) == STOP { Pass::Stop } else { Pass::Resumed }
    }

    /// A thread will not ask again.
    pub(super) fn ended(&self) {
        self.threads.lock().ended += 1;
        self.settled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    #[test]
    fn threads_stand_still_between_pause_and_resume_and_end_after_stop() {
        let (gate, steps) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (gate, steps) = (gate.clone(), steps.clone());
                thread::spawn(move || {
                    let mut resumed = 0;
                    loop {
                        match gate.pass() {
                            Pass::Stop => break,
                            Pass::Resumed => resumed += 1,
                            Pass::Run => {}
                        }
                        steps.fetch_add(1, Ordering::SeqCst);
                        thread::yield_now();
                    }
                    gate.ended();
                    resumed
                })
            })
            .collect();
        for _ in 0..20 {
            gate.pause();
            gate.wait_settled(3);
            let before = steps.load(Ordering::SeqCst);
            thread::yield_now();
            assert_eq!(steps.load(Ordering::SeqCst), before);
            gate.resume();
            while steps.load(Ordering::SeqCst) == before {
                thread::yield_now();
            }
        }
        gate.stop();
        gate.resume();
        assert!(threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>() > 0);
        gate.pause();
        gate.wait_settled(3);
    }
}
