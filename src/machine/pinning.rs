//! How the machine's RAM is pinned for its passed-through devices: `-M q35,dma-map=`.

use std::sync::Arc;

use super::inbox::{Inbox, Task};
use super::types::DmaMap;
use crate::vfio::dma::Pinning;

/// More threads clear memory no faster: they wait for the memory itself.
const MAX_THREADS: usize = 8;

/// What `dma-map=` says of the start of a guest with `vcpus` processors. What comes of it in the background is a task for
/// the machine.
pub fn at_start(map: DmaMap, vcpus: u32, inbox: &Arc<Inbox>) -> Pinning {
    match map {
        DmaMap::Auto => Pinning { gently: true, ..while_it_runs(vcpus, inbox) },
        DmaMap::Sync => Pinning { threads: threads(available(), 0), ..Pinning::default() },
    }
}

/// For what is plugged into a guest that runs: always in the background, so that it keeps nobody waiting but who plugs
/// it, and with full priority, because somebody does.
pub fn while_it_runs(vcpus: u32, inbox: &Arc<Inbox>) -> Pinning {
    let inbox = inbox.clone();
    let tell = move || inbox.post(Task::Mapped);
    Pinning { threads: threads(available(), vcpus as usize), gently: false, background: Some(Arc::new(tell)) }
}

fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
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
