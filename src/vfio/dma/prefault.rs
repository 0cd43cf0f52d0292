//! Taking guest memory from the host before it is pinned: by several threads, where a request to the IOMMU clears page
//! after page on one, with the kernel's lock of the address space held.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::Gate;
use crate::memory::HostSlice;
use crate::memory::host::give_way;

/// What a thread takes at a time, in bytes: a huge page. The kernel holds the lock of the process's address space through
/// a call, and the main thread, which maps files, stacks and vCPUs meanwhile, waits for that.
const PART: u64 = 2 << 20;

/// Touches all of `memory` for writing, by `threads` threads, until `stop` is set. 0 threads: not at all.
///
/// With a gate in `patience` these threads give way to all others, and the caller joins them when somebody waits at the
/// gate; without one the caller is the first of them. So a guest that boots on all of the host's processors loses next to
/// nothing to memory that it does not need yet, and who needs it does not wait for threads that are kept waiting.
///
/// A refusal is not told: whoever pins the memory next finds it out again, and has words for it.
pub fn prefault(memory: &HostSlice, threads: usize, patience: Option<&Gate>, stop: &AtomicBool) {
    let next = AtomicU64::new(0);
    let over = || stop.load(Ordering::Relaxed) || next.load(Ordering::Relaxed) >= memory.len();
    let work = || {
        while !over() {
            let at = next.fetch_add(PART, Ordering::Relaxed);
            if at < memory.len() && memory.cut(at, PART).populate().is_err() {
                // Nobody gets further.
                next.store(memory.len(), Ordering::Relaxed);
            }
        }
    };
    let helper = || {
        if let Some(gate) = patience {
            give_way();
            work();
            gate.nudge();
        } else {
            work();
        }
    };
    let parts = usize::try_from(memory.len().div_ceil(PART)).unwrap_or(usize::MAX);
    let helpers = threads.min(parts).saturating_sub(usize::from(patience.is_none()));
    thread::scope(|scope| {
        // Where there can be no more threads, those that there are do it all.
        let spawn = || thread::Builder::new().name("prefault".into()).spawn_scoped(scope, helper).ok();
        let helpers = std::iter::repeat_with(spawn).take(helpers).flatten().count();
        if let Some(gate) = patience.filter(|_| helpers > 0) {
            gate.until_wanted(over);
        }
        if threads > 0 {
            work();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::HostMem;
    use crate::memory::host::PageSize;
    use std::sync::Arc;

    /// Resident bytes of a mapping, by /proc/self/smaps.
    fn resident(memory: &HostMem) -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let from = smaps.lines().skip_while(|line| !line.starts_with(&format!("{:x}-", memory.addr())));
        let line = from.skip(1).find(|line| line.starts_with("Rss:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    #[test]
    fn every_page_is_there_and_none_after_a_stop() {
        let gate = Gate::default();
        gate.expect(1);
        for (threads, patience, stop, wanted) in [
            (3, None, false, 16 * PART + 4096),
            (3, Some(&gate), false, 16 * PART + 4096),
            (1, Some(&gate), false, 16 * PART + 4096),
            (1, None, true, 0),
            (2, Some(&gate), true, 0),
            (0, None, false, 0),
            (0, Some(&gate), false, 0),
        ] {
            let memory = Arc::new(HostMem::anonymous(16 * PART + 4096, PageSize::Small).unwrap());
            prefault(&memory.slice(), threads, patience, &AtomicBool::new(stop));
            assert_eq!(resident(&memory), wanted, "{threads} {} {stop}", patience.is_some());
        }
    }

    #[test]
    fn the_caller_sleeps_until_somebody_waits_or_it_is_over() {
        let gate = Gate::default();
        gate.expect(1);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let patient = || gate.until_wanted(|| over.load(Ordering::Relaxed));
            let waiter = scope.spawn(|| gate.wait());
            scope.spawn(patient).join().unwrap();
            gate.settled(1);
            assert!(waiter.join().unwrap());
            let second = scope.spawn(patient);
            gate.nudge();
            over.store(true, Ordering::Relaxed);
            gate.nudge();
            second.join().unwrap();
        });
    }
}
