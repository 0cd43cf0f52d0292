//! The registers of a device as the guest reaches them, and the device behind them: who may run, and when.

use std::ops::Range;
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use super::common::legacy::{self, Register as Legacy};
use super::common::{Action, Common, Live};
use super::fields;
use super::layout::{Block, Layout, MEMORY_BAR, NOTIFY_MULTIPLIER};
use crate::error::{Error, Result};
use crate::guest_error;
use crate::irq::Router;
use crate::memory::ram::LiveRam;
use crate::memory::{Backing, Doorbell, IoHandler, Memory, Piece};
use crate::pci::PciCore;
use crate::virtio::interrupt::Interrupts;
use crate::virtio::queue::VirtQueue;
use crate::virtio::{Activation, VirtioDevice, VirtioInfo, feature};

/// What lies between the guest's registers and the device.
pub struct Transport {
    core: Arc<PciCore>,
    device: Arc<dyn VirtioDevice>,
    info: VirtioInfo,
    /// Whether it has shared memory.
    has_memory: bool,
    interrupts: Arc<Interrupts>,
    ram: Arc<LiveRam>,
    layout: Layout,
    /// One for each queue.
    doorbells: Vec<Doorbell>,
    /// Held while the device starts and stops. Workers never take it.
    state: Mutex<State>,
}

struct State {
    common: Common,
    /// The queues since the driver was ready; they keep their place when the device stands still for a while.
    queues: Option<Vec<Option<Arc<VirtQueue>>>>,
    active: bool,
    /// It is gone for good.
    unplugged: bool,
}

impl State {
    fn halt(&self, on: bool) {
        self.queues.iter().flatten().flatten().for_each(|queue| queue.halt(on));
    }
}

impl Transport {
    /// The transport of `device`, which offers `transport_features` beside the device's own: of its rings, and VERSION_1 if
    /// it has the modern interface.
    ///
    /// # Errors
    /// [`crate::error::Code::SystemFailed`]: no descriptor is left for a doorbell.
    pub fn new(
        core: Arc<PciCore>,
        device: Arc<dyn VirtioDevice>,
        transport_features: u64,
        memory: &Arc<Memory>,
        router: &Arc<Router>,
    ) -> Result<Arc<Transport>> {
        let info = device.info();
        let bell = |index: u16| {
            let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(|error| Error::system("make an eventfd", &error.into()))?;
            Ok(Doorbell { offset: u64::from(index) * u64::from(NOTIFY_MULTIPLIER), bell: Arc::new(bell) })
        };
        let doorbells: Result<Vec<Doorbell>> = (0..info.queues).map(bell).collect();
        let vectors = core.msix().map_or(0, |msix| msix.spec().vectors);
        let offered = info.features | transport_features & device.ring_features();
        let state = State {
            common: Common::new(offered, info.queues, info.queue_size, vectors),
            queues: None,
            active: false,
            unplugged: false,
        };
        Ok(Arc::new(Transport {
            interrupts: Interrupts::new(core.clone(), router.clone(), info.queues),
            core,
            has_memory: device.shared_memory().is_some(),
            device,
            info,
            ram: LiveRam::new(memory.clone()),
            layout: Layout::new(info.config_len, info.queues),
            doorbells: doorbells?,
            state: Mutex::new(state),
        }))
    }

    /// The blocks as trapped pieces of their BAR.
    pub fn pieces(self: &Arc<Self>) -> Vec<Piece> {
        let piece = |(block, range): &(Block, Range<u64>)| {
            let io: Arc<dyn IoHandler> = Arc::new(BlockIo { transport: self.clone(), block: *block });
            Piece { range: range.clone(), backing: Backing::io(io) }
        };
        self.layout.blocks.iter().map(piece).collect()
    }

    /// Size of that BAR.
    pub fn bar_size(&self) -> u64 {
        self.layout.bar_size
    }

    /// The legacy registers as a trapped piece of their BAR, and the size of that.
    pub fn legacy_bar(self: &Arc<Self>) -> (u64, Vec<Piece>) {
        let size = legacy::bar_size(self.info.config_len);
        let io: Arc<dyn IoHandler> = Arc::new(LegacyIo(self.clone()));
        (size, vec![Piece { range: 0..size, backing: Backing::io(io) }])
    }

    /// Reads at an offset of the BAR by way of configuration space; what is not in one block reads as ones.
    pub fn bar_read(&self, offset: u64, data: &mut [u8]) {
        match self.locate(offset, data.len()) {
            Some((block, offset)) => self.read(block, offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes as [`Transport::bar_read`] reads.
    pub fn bar_write(&self, offset: u64, data: &[u8]) {
        if let Some((block, offset)) = self.locate(offset, data.len()) {
            self.write(block, offset, data);
        }
    }

    fn locate(&self, offset: u64, len: usize) -> Option<(Block, u64)> {
        let end = offset.checked_add(len as u64)?;
        let mut blocks = self.layout.blocks.iter();
        let (block, range) = blocks.find(|(_, range)| range.start <= offset && end <= range.end)?;
        Some((*block, offset - range.start))
    }

    fn read(&self, block: Block, offset: u64, data: &mut [u8]) {
        match block {
            Block::Common => {
                let live =
                    Live { needs_reset: self.interrupts.needs_reset(), generation: self.interrupts.generation() };
                self.state.lock().common.read(offset, data, live);
            }
            Block::Isr => {
                data.fill(0);
                if offset == 0
                    && let Some(first) = data.first_mut()
                {
                    *first = self.interrupts.take_isr();
                }
            }
            Block::Device => self.read_config(offset, data),
            // A doorbell has nothing to say.
            Block::Notify => data.fill(0),
        }
    }

    fn write(&self, block: Block, offset: u64, data: &[u8]) {
        match block {
            Block::Common => {
                let mut state = self.state.lock();
                for action in state.common.write(offset, data) {
                    self.act(&mut state, action);
                }
            }
            Block::Device => self.write_config(offset, data),
            // KVM rings it without an exit; where it could not, this does.
            Block::Notify => {
                let rung = self.doorbells.iter().find(|doorbell| doorbell.offset == offset);
                // EAGAIN would mean that the counter is at its maximum: rung all the same.
                rung.map(|doorbell| doorbell.bell.write(1));
            }
            Block::Isr => {}
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(bar) = self.has_memory.then(|| self.core.placements()[usize::from(MEMORY_BAR)]).flatten() {
            self.device.shared_memory_is_at(bar.base);
        }
        if let Some((at, len)) = self.inside_config(offset, data.len()) {
            self.device.read_config(at, &mut data[..len]);
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let state = self.state.lock();
        if let Some((at, len)) = self.inside_config(offset, data.len()).filter(|_| !state.unplugged) {
            self.device.write_config(at, &data[..len]);
        }
    }

    fn msix_enabled(&self) -> bool {
        self.core.msix().is_some_and(|msix| msix.enabled())
    }

    fn legacy_read(&self, offset: u64, data: &mut [u8]) {
        let msix = self.msix_enabled();
        if let Some(at) = offset.checked_sub(legacy::config_start(msix)) {
            return self.read_config(at, data);
        }
        let state = self.state.lock();
        fields::read(legacy::table(msix), offset, data, |register| match register {
            Legacy::Isr => self.interrupts.take_isr().into(),
            register => state.common.legacy_get(register),
        });
    }

    fn legacy_write(&self, offset: u64, data: &[u8]) {
        let msix = self.msix_enabled();
        if let Some(at) = offset.checked_sub(legacy::config_start(msix)) {
            return self.write_config(at, data);
        }
        let state = &mut *self.state.lock();
        let get = |state: &State, register| state.common.legacy_get(register);
        fields::write(legacy::table(msix), offset, data, state, get, |state, register, value| {
            let action = match register {
                Legacy::QueueNotify => state.common.legacy_kick(value as u16),
                register => state.common.legacy_set(register, value),
            };
            if let Some(action) = action {
                self.act(state, action);
            }
            if register == Legacy::QueueNotify
                && let Some(doorbell) = self.doorbells.get(value as usize)
            {
                // EAGAIN would mean that the counter is at its maximum: rung all the same.
                let _ = doorbell.bell.write(1);
            }
        });
    }

    /// An access to the device's configuration space, as offset and length, cut at its end.
    fn inside_config(&self, offset: u64, len: usize) -> Option<(usize, usize)> {
        let left = u64::from(self.info.config_len).checked_sub(offset).filter(|left| *left > 0)?;
        Some((offset as usize, len.min(usize::try_from(left).unwrap_or(usize::MAX))))
    }

    fn act(&self, state: &mut State, action: Action) {
        match action {
            Action::ConfigVector(vector) => self.interrupts.set_config_vector(vector),
            Action::QueueVector(index, vector) => {
                self.interrupts.set_queue_vector(index, vector);
                self.reroute(state);
            }
            Action::Status => self.settle(state),
            Action::Reset => self.forget(state),
        }
    }

    /// The command register or the power state has changed.
    pub fn follow(&self) {
        self.settle(&mut self.state.lock());
    }

    /// MSI-X is switched on or off, or a queue has another vector: who interrupts by itself has to know.
    fn reroute(&self, state: &State) {
        if state.active {
            self.device.interrupts_changed();
        }
    }

    /// The command register or MSI-X has changed how interrupts come to the guest.
    pub fn interrupts_changed(&self) {
        self.interrupts.pin_changed();
        self.reroute(&self.state.lock());
    }

    /// As after power-on. Returns when no queue is touched any more.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.common.reset();
        self.forget(&mut state);
    }

    /// The device does nothing from now on.
    pub fn unplug(&self) {
        let mut state = self.state.lock();
        state.unplugged = true;
        self.settle(&mut state);
    }

    /// Wakes every worker: what was put back is tried again.
    pub fn ring_all(&self) {
        for Doorbell { bell, .. } in &self.doorbells {
            // EAGAIN would mean that the counter is at its maximum: rung all the same.
            let _ = bell.write(1);
        }
    }

    /// What goes with a reset of the registers.
    fn forget(&self, state: &mut State) {
        self.settle(state);
        state.queues = None;
        self.device.reset();
        self.interrupts.reset();
        for Doorbell { bell, .. } in &self.doorbells {
            // EAGAIN: it was not rung.
            let _ = bell.read();
        }
    }

    /// Lets the device run if it may: the driver is ready, and the function may reach memory. It stands still otherwise.
    fn settle(&self, state: &mut State) {
        let may = state.common.runs() && !state.unplugged;
        let runs = may && self.core.bus_master() && self.core.power_state() == 0;
        if state.active && !runs {
            // The request that a worker is at is the last one that the device waits for.
            state.halt(true);
            self.device.deactivate();
            state.active = false;
        } else if !state.active && runs && !self.interrupts.needs_reset() {
            state.active = self.activate(state);
            if !state.active {
                self.interrupts.need_reset();
            }
        }
    }

    fn activate(&self, state: &mut State) -> bool {
        let queues = match state.queues.clone().map_or_else(|| self.make_queues(&state.common), Some) {
            Some(queues) => state.queues.insert(queues).clone(),
            None => return false,
        };
        state.halt(false);
        let run = Activation { features: state.common.agreed(), queues, interrupts: self.interrupts.clone() };
        let activated = self.device.activate(run);
        if let Err(error) = &activated {
            guest_error!(self.core.name(), "cannot run: {error}");
        }
        activated.is_ok()
    }

    /// The queues that the driver has enabled; `None` if one of them cannot be.
    fn make_queues(&self, common: &Common) -> Option<Vec<Option<Arc<VirtQueue>>>> {
        let event_idx = common.agreed() & feature::EVENT_IDX != 0;
        let make = |(index, (registers, doorbell)): (usize, (&super::common::QueueRegisters, &Doorbell))| {
            if !registers.enabled {
                return Some(None);
            }
            let (ram, interrupts) = (self.ram.clone(), self.interrupts.clone());
            let (index, kick) = (index as u16, doorbell.bell.clone());
            match VirtQueue::new(index, common.max_size(), registers.rings, event_idx, ram, interrupts, kick) {
                Ok(queue) => Some(Some(queue)),
                Err(broken) => {
                    guest_error!(self.core.name(), "queue {index} cannot be used: {}", broken.0);
                    None
                }
            }
        };
        common.queues().iter().zip(&self.doorbells).enumerate().map(make).collect()
    }

    /// What there is to say of it now, for people.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let state = self.state.lock();
        let enabled = state.common.queues().iter().filter(|queue| queue.enabled).count();
        let driver = match (state.active, self.interrupts.needs_reset()) {
            (_, true) => "has to reset it".to_owned(),
            (true, false) => "drives it".to_owned(),
            (false, false) if state.common.status().is_empty() => "none".to_owned(),
            (false, false) => "is not ready".to_owned(),
        };
        vec![
            ("driver", driver),
            ("features", format!("{:#x}", state.common.agreed())),
            ("queues", format!("{enabled} of {} in use", self.info.queues)),
        ]
    }
}

/// One block as a trapped piece.
struct BlockIo {
    transport: Arc<Transport>,
    block: Block,
}

impl IoHandler for BlockIo {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.transport.read(self.block, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.transport.write(self.block, offset, data);
    }

    fn doorbells(&self) -> &[Doorbell] {
        match self.block {
            Block::Notify => &self.transport.doorbells,
            _ => &[],
        }
    }
}

/// The legacy registers as a trapped piece.
struct LegacyIo(Arc<Transport>);

impl IoHandler for LegacyIo {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.legacy_read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.legacy_write(offset, data);
    }
}
