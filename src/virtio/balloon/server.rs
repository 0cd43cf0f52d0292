//! The thread that serves a balloon.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::pages::{discard, discard_mapped, ranges};
use super::stats::{MAX_LEN, Stats};
use super::{Shared, bit};
use crate::memory::Space;
use crate::virtio::{Activation, Chain, Serve, Served, Source, VirtQueue};

/// The most page numbers of one request; Linux has 256.
const MAX_PAGES: u64 = 1 << 18;
/// Page numbers that are looked at together.
const CHUNK: usize = 1024;

/// What a queue is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Stats,
    Report,
}

/// What the worker does.
pub struct Server {
    shared: Arc<Shared>,
    queues: Vec<(Role, Arc<VirtQueue>)>,
    /// When the guest is asked for its statistics.
    ask: Option<Instant>,
}

impl Server {
    /// For the queues of a driver that runs. A queue whose feature the driver does not know has no number (virtio 5.5.2).
    pub fn new(shared: Arc<Shared>, run: &Activation) -> Server {
        let roles = [
            (true, Role::Inflate),
            (true, Role::Deflate),
            (run.has(bit::STATS), Role::Stats),
            (run.has(bit::REPORTING), Role::Report),
        ];
        let there = roles.into_iter().filter(|(there, _)| *there).map(|(_, role)| role);
        let queues = there.enumerate().filter_map(|(index, role)| Some((role, run.queue(index)?))).collect();
        let mut server = Server { shared, queues, ask: None };
        server.ask_later();
        server
    }

    /// What the worker waits for, in the order of the queues.
    pub fn sources(&self) -> Vec<Source> {
        self.queues.iter().map(|(_, queue)| Source::Event(queue.kick().clone())).collect()
    }

    fn ask_later(&mut self) {
        let interval = self.shared.options.interval;
        self.ask = (interval > 0).then(|| Instant::now() + Duration::from_secs(interval.into()));
    }

    fn serve(&self, role: Role, queue: &VirtQueue) {
        queue.drain(|chain| match role {
            Role::Inflate => self.inflate(chain),
            // The next access to a page gets an empty one.
            Role::Deflate => Served::Done(0),
            Role::Stats => self.answered(chain),
            Role::Report => self.reported(&chain),
        });
    }

    fn inflate(&self, mut chain: Chain<'_>) -> Served {
        if chain.readable.len() > 4 * MAX_PAGES {
            return Served::Malformed("a balloon of too many pages at once");
        }
        let view = self.shared.memory.view(Space::Mmio);
        let mut chunk = [0; 4 * CHUNK];
        loop {
            let len = chain.readable.read(&mut chunk);
            if len == 0 {
                return Served::Done(0);
            }
            let pages =
                chunk[..len].chunks_exact(4).map(|page| u32::from_le_bytes([page[0], page[1], page[2], page[3]]));
            ranges(pages).iter().for_each(|range| discard(&view, range));
        }
    }

    /// The guest gives its answer with the first request; that is kept until the next answer is wanted.
    fn answered(&self, mut chain: Chain<'_>) -> Served {
        let mut bytes = [0; MAX_LEN];
        let len = chain.readable.read(&mut bytes);
        *self.shared.stats.lock() = Stats::parse(&bytes[..len]);
        Served::Later
    }

    /// Free pages, which the guest may use again at any time, with whatever content; but a guest that fills free pages with
    /// something of its own looks for that.
    fn reported(&self, chain: &Chain<'_>) -> Served {
        if self.shared.poison.load(Ordering::Acquire) == 0 {
            let view = self.shared.memory.view(Space::Mmio);
            for slice in chain.writable.slices() {
                discard_mapped(&view, slice.ptr_guard().as_ptr() as u64, slice.len() as u64);
            }
        }
        Served::Done(0)
    }
}

impl Serve for Server {
    fn ready(&mut self, source: usize) {
        if let Some((role, queue)) = self.queues.get(source) {
            self.serve(*role, queue);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.ask
    }

    fn expired(&mut self) {
        self.ask_later();
        if let Some((_, queue)) = self.queues.iter().find(|(role, _)| *role == Role::Stats) {
            // Giving the old answer back asks for a new one, which comes with a kick.
            let mut asked = false;
            queue.drain(|chain| match std::mem::replace(&mut asked, true) {
                false => Served::Done(0),
                true => self.answered(chain),
            });
        }
    }
}
