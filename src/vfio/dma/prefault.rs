//! Taking guest memory from the host before it is pinned: by several threads, where a request to the IOMMU clears page
//! after page on one, with the kernel's lock of the address space held.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::memory::HostSlice;

/// What a thread takes at a time, in bytes: a huge page. The kernel holds the lock of the process's address space through
/// a call, and the main thread, which maps files, stacks and vCPUs meanwhile, waits for that.
const PART: u64 = 2 << 20;

/// Touches all of `memory` for writing, by `threads` threads of which the caller is one, until `stop` is set. 0 threads:
/// not at all.
///
/// A refusal is not told: whoever pins the memory next finds it out again, and has words for it.
pub fn prefault(memory: &HostSlice, threads: usize, stop: &AtomicBool) {
    let next = AtomicU64::new(0);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(PART, Ordering::Relaxed);
            if at >= memory.len() || memory.cut(at, PART).populate().is_err() {
                break;
            }
        }
    };
    let parts = usize::try_from(memory.len().div_ceil(PART)).unwrap_or(usize::MAX);
    thread::scope(|scope| {
        for _ in 1..threads.min(parts) {
            // Where there can be no more threads, those that there are do it all.
            let _ = thread::Builder::new().name("prefault".into()).spawn_scoped(scope, work);
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
        for (threads, stop, wanted) in [(3, false, 16 * PART + 4096), (1, true, 0), (0, false, 0)] {
            let memory = Arc::new(HostMem::anonymous(16 * PART + 4096, PageSize::Small).unwrap());
            prefault(&memory.slice(), threads, &AtomicBool::new(stop));
            assert_eq!(resident(&memory), wanted, "{threads} {stop}");
        }
    }
}
