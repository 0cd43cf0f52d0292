//! How the machine's RAM is pinned for its passed-through devices: `-M q35,dma-map=`.

use std::sync::Arc;

use super::inbox::{Inbox, Task};
use super::types::DmaMap;
use crate::vfio::dma::Pinning;

/// More threads clear memory no faster: they wait for the memory itself.
const MAX_THREADS: usize = 8;

/// What `dma-map=` says, for a guest with `vcpus` processors. What came of it in the background is a task for the machine.
pub fn pinning(map: DmaMap, vcpus: u32, inbox: &Arc<Inbox>) -> Pinning {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let inbox = inbox.clone();
    let tell = move || inbox.post(Task::Mapped);
    match map {
        DmaMap::Auto => Pinning { threads: threads(cpus, vcpus as usize), background: Some(Arc::new(tell)) },
        DmaMap::Sync => Pinning { threads: threads(cpus, 0), background: None },
    }
}

/// Threads that take memory: on the `cpus` that the `busy` ones leave free, one at least.
fn threads(cpus: usize, busy: usize) -> usize {
    cpus.saturating_sub(busy).clamp(1, MAX_THREADS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_that_run_meanwhile_keep_their_processors() {
        for (cpus, busy, wanted) in [(1, 1, 1), (2, 1, 1), (2, 0, 2), (8, 2, 6), (64, 4, 8), (4, 16, 1)] {
            assert_eq!(threads(cpus, busy), wanted, "{cpus} {busy}");
        }
    }
}
