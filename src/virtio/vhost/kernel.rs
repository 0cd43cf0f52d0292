//! vhost-net: threads of the kernel move packets between the queues of a network device and a tap (/dev/vhost-net).

use std::fs::File;
use std::sync::Arc;

use parking_lot::Mutex;
use vhost::VhostBackend;
use vhost::net::VhostNet;
use vhost::vhost_kern::net::Net;
use vm_memory::GuestMemoryMmap;

use super::calls::Calls;
use super::memory::Table;
use super::{Failure, hand_over, said};
use crate::error::{Code, Error, Result};
use crate::memory::ram::GuestRam;
use crate::memory::{FlatRange, Listening, Memory, MemoryListener, Space, Stage};
use crate::virtio::{Activation, Interrupts, VirtQueue, feature};

/// The pairs of queues of one device that the kernel serves.
pub struct KernelNet {
    _listening: Listening,
    shared: Arc<Shared>,
    memory: Arc<Memory>,
    /// What the kernel knows of rings and packets.
    features: u64,
}

struct Shared {
    id: Arc<str>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    table: Table,
    run: Option<Run>,
}

/// While a driver drives the device.
struct Run {
    pairs: Vec<Pair>,
    queues: Vec<Option<Arc<VirtQueue>>>,
    calls: Calls,
    interrupts: Arc<Interrupts>,
}

/// One pair: the kernel has a thread for it.
struct Pair {
    net: Net<Arc<GuestMemoryMmap>>,
    /// What `net` finds rings in.
    _ram: GuestRam,
    /// The kernel's indices of queues, and ours.
    queues: Vec<(usize, Arc<VirtQueue>)>,
}

impl Pair {
    fn start(
        table: &Table,
        ram: &GuestRam,
        features: u64,
        tap: &File,
        run: &Run,
        index: usize,
    ) -> Result<Pair, Failure> {
        let net = Net::new(Arc::new(ram.memory().clone())).map_err(said)?;
        net.set_owner().map_err(said)?;
        net.set_features(features).map_err(said)?;
        net.set_mem_table(&table.local()).map_err(said)?;
        let used = |at: usize| Some((at, run.queues.get(2 * index + at)?.clone()?));
        let queues: Vec<_> = [0, 1].into_iter().filter_map(used).collect();
        for (at, queue) in &queues {
            let Some(call) = run.calls.of(2 * index + at) else { continue };
            // The library translates.
            hand_over(&net, *at, queue, call, |address, _| Some(address))?;
        }
        let pair = Pair { net, _ram: ram.clone(), queues };
        pair.connect(Some(tap)).map(|()| pair)
    }

    /// A queue with a tap is served, one without is not. Returns when that is so.
    fn connect(&self, tap: Option<&File>) -> Result<(), Failure> {
        self.queues.iter().try_for_each(|(at, _)| self.net.set_backend(*at, tap).map_err(said))
    }

    fn stop(&self) -> Result<(), Failure> {
        self.connect(None)?;
        for (at, queue) in &self.queues {
            queue.set_position(self.net.get_vring_base(*at).map_err(said)? as u16);
        }
        Ok(())
    }
}

/// What the kernel offers.
///
/// # Errors
/// [`Code::VhostNetFailed`].
fn probe() -> Result<u64> {
    let nothing: Arc<GuestMemoryMmap> = Arc::default();
    Net::new(nothing).and_then(|net| net.get_features()).map_err(|error| refused(&said(error)))
}

fn refused(why: &Failure) -> Error {
    Error::new(Code::VhostNetFailed, "the kernel does not serve the network device")
        .evidence(format!("/dev/vhost-net: {why}"))
        .fix("modprobe vhost_net, and let this user open /dev/vhost-net; or leave vhost=on out")
}

impl KernelNet {
    /// The kernel's side of the device called `id`.
    ///
    /// # Errors
    /// [`Code::VhostNetFailed`]: the kernel has no vhost-net, or not for this user.
    pub fn new(id: Arc<str>, memory: &Arc<Memory>) -> Result<KernelNet> {
        let features = probe()?;
        let shared = Arc::new(Shared { id, state: Mutex::default() });
        let listening = memory.listen(Stage::Remote, shared.clone())?;
        Ok(KernelNet { _listening: listening, shared, memory: memory.clone(), features })
    }

    /// The features of the rings that the kernel knows.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Serves the device's pairs on these taps.
    ///
    /// # Errors
    /// [`Code::VhostNetFailed`].
    pub fn start(&self, run: &Activation, taps: &[&File]) -> Result<()> {
        let ram = GuestRam::of(&self.memory.view(Space::Mmio))?;
        let mut queues = run.queues.clone();
        queues.truncate(2 * taps.len());
        let calls = Calls::new(&self.shared.id, &queues, &run.interrupts)?;
        let mut state = self.shared.state.lock();
        let features = run.features & self.features;
        let mut next = Run { pairs: Vec::new(), queues, calls, interrupts: run.interrupts.clone() };
        for (index, tap) in taps.iter().enumerate() {
            // The queues of those that were started are the kernel's only until `next` is dropped.
            let pair = Pair::start(&state.table, &ram, features, tap, &next, index).map_err(|why| refused(&why))?;
            next.pairs.push(pair);
        }
        for queue in next.queues.iter().flatten() {
            // EAGAIN would mean that the counter is at its maximum: awake all the same.
            let _ = queue.kick().write(1);
        }
        state.run = Some(next);
        Ok(())
    }

    /// Ends it. Returns when the kernel touches no queue any more.
    pub fn stop(&self) {
        let Some(run) = self.shared.state.lock().run.take() else { return };
        for pair in &run.pairs {
            if let Err(why) = pair.stop() {
                crate::log::warn(format_args!("{}: vhost-net: a queue has lost its place: {why}", self.shared.id));
            }
        }
    }

    /// The queues interrupt another way.
    pub fn interrupts_changed(&self) {
        let mut state = self.shared.state.lock();
        let Some(run) = &mut state.run else { return };
        let changed = Calls::new(&self.shared.id, &run.queues, &run.interrupts).map_err(said).and_then(|calls| {
            for (index, pair) in run.pairs.iter().enumerate() {
                for (at, _) in &pair.queues {
                    let Some(call) = calls.of(2 * index + at) else { continue };
                    pair.net.set_vring_call(*at, call).map_err(said)?;
                }
            }
            run.calls = calls;
            Ok(())
        });
        if let Err(why) = changed {
            crate::guest_error!(&self.shared.id, "vhost-net: its interrupts stay as they are: {why}");
        }
    }
}

/// Whether the kernel can serve a driver with these features: the header of its packets is a tap's.
pub fn fits(features: u64) -> bool {
    use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
    features & (feature::VERSION_1 | 1 << VIRTIO_NET_F_MRG_RXBUF) != 0
}

impl Shared {
    fn follow(&self, edit: impl FnOnce(&mut Table) -> bool) {
        let mut state = self.state.lock();
        let State { table, run } = &mut *state;
        if !edit(table) {
            return;
        }
        for pair in run.iter().flat_map(|run| &run.pairs) {
            if let Err(error) = pair.net.set_mem_table(&table.local()) {
                crate::log::warn(format_args!("{}: vhost-net does not take the guest's memory: {error}", self.id));
            }
        }
    }
}

impl MemoryListener for Shared {
    fn remove(&self, range: &FlatRange) {
        self.follow(|table| table.remove(range));
    }

    fn add(&self, range: &FlatRange) -> Result<()> {
        self.follow(|table| table.add(range));
        Ok(())
    }
}
