//! The controller as a PCI function: registers in BAR 0, MSI-X in BAR 3, and the thread that moves its packets.
//!
//! One lock holds the registers and what the rings are in the midst of. The thread takes it for one packet that comes, or a
//! batch of descriptors that go, so whoever resets the controller waits for no more than that, and no memory is touched
//! afterwards. With it the thread sends to the back end, which never waits, and interrupts, which takes locks of the PCI
//! core and the router only.

use std::io;
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use super::causes::{Mode, VECTORS};
use super::nvm::Nvm;
use super::receive::{self, Given};
use super::registers::{Action, Registers};
use super::regs::{RCTL, RCTL_ENABLE, RING, TX_RING};
use super::transmit::Sender;
use crate::backends::net::{HEADER, MAX_PACKET, NetQueue, Netdev, Offloads};
use crate::backends::table::Claim;
use crate::device::{Cx, Device};
use crate::error::{Code, Error, Result, explain_io};
use crate::guest_error;
use crate::host::setting::Mac;
use crate::memory::ram::LiveRam;
use crate::memory::{Backing, HostSlice, IoHandler, Piece};
use crate::pci::pin::Pin;
use crate::pci::regs::{
    CLASS, COMMAND, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, COMMAND_MEMORY, DEVICE, INTERRUPT_PIN, SUBSYSTEM,
    SUBSYSTEM_VENDOR, VENDOR,
};
use crate::pci::{
    BarContent, BarKind, Changes, ConfigSpace, Msi, MsiSpec, Msix, MsixSpec, PciCore, PciFunction, endpoint,
};
use crate::virtio::{Serve, Source, Worker};

/// Intel's 82574L.
const IDS: (u16, u16) = (0x8086, 0x10d3);
/// Network controller, Ethernet: class 02, subclass 00.
const CLASS_ETHERNET: [u8; 3] = [0, 0, 2];
const INTA: u8 = 1;
/// Bytes of the registers' BAR.
const BAR_SIZE: u64 = 0x2_0000;
/// The BAR with the MSI-X table.
const MSIX_BAR: u8 = 3;
/// Rings of packets that go.
const SENDERS: usize = 2;
/// Packets that are taken from the back end, or batches of descriptors from a ring, before the thread looks at anything else.
const BATCH: usize = 64;

/// The subsystem that a guest is told.
#[derive(Debug, Clone, Copy)]
pub struct Ids {
    pub subsystem_vendor: u16,
    pub subsystem: u16,
}

/// The controller.
pub struct E1000e {
    /// Until it is unplugged. Before what it uses.
    worker: Mutex<Option<Worker>>,
    shared: Arc<Shared>,
    mac: [u8; 6],
}

/// What vCPUs and the thread share.
struct Shared {
    id: Arc<str>,
    core: Arc<PciCore>,
    pin: Arc<Pin>,
    netdev: Claim<dyn Netdev>,
    ram: Arc<LiveRam>,
    /// Wakes the thread.
    bell: Arc<EventFd>,
    state: Mutex<State>,
}

struct State {
    registers: Registers,
    senders: [Sender; SENDERS],
}

impl Shared {
    fn mode(&self) -> Mode {
        match (self.core.msix().is_some_and(|msix| msix.enabled()), self.core.msi().is_some_and(Msi::enabled)) {
            (true, _) => Mode::Msix,
            (_, true) => Mode::Msi,
            _ => Mode::Pin,
        }
    }

    /// Whether it may touch memory.
    fn may_run(&self, registers: &Registers) -> bool {
        self.core.bus_master() && self.core.power_state() == 0 && registers.may_master()
    }

    fn ring(&self) {
        // EAGAIN would mean that the counter is at its maximum: rung all the same.
        let _ = self.bell.write(1);
    }

    /// Interrupts the guest where that is due. With the state's lock, so that two threads cannot leave a stale level.
    fn settle(&self, registers: &mut Registers) {
        let mode = self.mode();
        let fire = registers.causes.settle(mode);
        for vector in (0..usize::from(VECTORS)).filter(|vector| fire.vectors >> vector & 1 != 0) {
            match mode {
                Mode::Msix => self.core.msix().iter().for_each(|msix| msix.fire(vector)),
                Mode::Msi => self.core.msi().iter().for_each(|msi| msi.fire(vector)),
                Mode::Pin => {}
            }
        }
        self.pin.set(fire.pin);
    }

    /// The registers as `put` leaves them, and nothing under way.
    fn restart(&self, put: impl FnOnce(&mut Registers)) {
        let mut state = self.state.lock();
        put(&mut state.registers);
        state.senders = Default::default();
        self.settle(&mut state.registers);
    }

    /// The other end has gone, which the driver is told once. `why`: for people.
    fn link_lost(&self, why: &io::Error) {
        let mut state = self.state.lock();
        if state.registers.link {
            let place = self.netdev.place();
            crate::log::warn(format_args!("{}: the link is down: {place}: {}", self.id, explain_io(why)));
            state.registers.set_link(false, self.mode());
            self.settle(&mut state.registers);
        }
    }
}

impl IoHandler for Shared {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.state.lock();
        for (index, part) in data.chunks_mut(4).enumerate() {
            let at = offset + 4 * index as u64;
            let value = state.registers.read((at & !3) as u32, self.mode()) >> (8 * (at & 3));
            let bytes = value.to_le_bytes();
            part.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        }
        self.settle(&mut state.registers);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // Registers are written whole.
        let (dwords, []) = data.as_chunks::<4>() else { return };
        if !offset.is_multiple_of(4) {
            return;
        }
        let mut state = self.state.lock();
        for (index, dword) in dwords.iter().enumerate() {
            let register = (offset + 4 * index as u64) as u32;
            match state.registers.write(register, u32::from_le_bytes(*dword), self.mode()) {
                Action::None | Action::Settle => {}
                Action::Work => self.ring(),
                Action::Reset => state.senders = Default::default(),
            }
        }
        self.settle(&mut state.registers);
    }
}

/// What the thread waits for, beside its bell: a packet, and room in the back end.
const PACKET: usize = 1;
const ROOM: usize = 2;

/// The thread's side.
struct Packets {
    shared: Arc<Shared>,
    back: Arc<dyn NetQueue>,
    incoming: Vec<u8>,
    /// Bytes of a packet that came and that the driver had no room for yet.
    waiting: usize,
    outgoing: Vec<u8>,
    body: Vec<u8>,
    /// The back end has no room.
    full: bool,
}

impl Packets {
    /// The driver's packets, as long as the back end has room at the beginning of a batch.
    fn transmit(&mut self) {
        if !self.flush() {
            return;
        }
        for queue in 0..SENDERS {
            let more = (0..BATCH).all(|_| {
                let more = self.transmit_some(queue);
                self.flush() && more
            });
            if more {
                self.shared.ring();
            }
        }
    }

    /// Has the back end send what it has; says whether it has room for more.
    fn flush(&mut self) -> bool {
        self.full = match self.back.flush() {
            Ok(all) => !all,
            Err(error) => {
                self.shared.link_lost(&error);
                false
            }
        };
        !self.full
    }

    /// Says whether there is more.
    fn transmit_some(&mut self, queue: usize) -> bool {
        let Packets { shared, back, outgoing, .. } = self;
        let mut lost = None;
        let more = {
            let mut state = shared.state.lock();
            let State { registers, senders } = &mut *state;
            if !shared.may_run(registers) {
                return false;
            }
            let ram = match shared.ram.now() {
                Ok(ram) => ram,
                Err(error) => {
                    guest_error!(shared.id, "there is no memory: {error}");
                    return false;
                }
            };
            let up = registers.link;
            let mut send = |frame: &[u8]| {
                outgoing.clear();
                outgoing.resize(HEADER, 0);
                outgoing.extend_from_slice(frame);
                if up && lost.is_none() {
                    lost = back.send(outgoing).err();
                }
            };
            let ring = (TX_RING + RING * queue as u32, queue as u32);
            let served = senders[queue].serve(registers, ram.memory(), ring, shared.mode(), &mut send);
            shared.settle(registers);
            served.unwrap_or_else(|error| {
                guest_error!(shared.id, "transmit ring {queue} is not in memory: {}", error.0);
                false
            })
        };
        if let Some(error) = lost {
            shared.link_lost(&error);
        }
        more
    }

    fn receive(&mut self) {
        for _ in 0..BATCH {
            if self.waiting == 0 {
                if !self.listens() {
                    return;
                }
                match self.back.receive(&mut self.incoming) {
                    // What has no header is no packet, and is lost.
                    Ok(Some(len)) if len < HEADER => continue,
                    Ok(Some(len)) => self.waiting = len,
                    Ok(None) => return,
                    Err(error) => return self.shared.link_lost(&error),
                }
            }
            if !self.give() {
                return;
            }
            self.waiting = 0;
        }
        // There may be more: the back end's descriptor is still readable.
    }

    /// Whether packets are taken from the back end.
    fn listens(&self) -> bool {
        let state = self.shared.state.lock();
        state.registers.link && state.registers.get(RCTL) & RCTL_ENABLE != 0 && self.shared.may_run(&state.registers)
    }

    /// Gives the packet that waits; whether it need not wait any more.
    fn give(&mut self) -> bool {
        let Packets { shared, incoming, waiting, body, .. } = self;
        let mut state = shared.state.lock();
        let registers = &mut state.registers;
        if registers.get(RCTL) & RCTL_ENABLE == 0 || !shared.may_run(registers) {
            return false;
        }
        let ram = match shared.ram.now() {
            Ok(ram) => ram,
            Err(error) => {
                guest_error!(shared.id, "there is no memory: {error}");
                return false;
            }
        };
        let given = receive::give(registers, ram.memory(), &incoming[HEADER..*waiting], shared.mode(), body);
        shared.settle(registers);
        match given {
            Given::Done => true,
            Given::NoRoom => false,
            Given::NotInMemory(error) => {
                guest_error!(shared.id, "the receive ring is not in memory: {error}");
                true
            }
        }
    }
}

impl Serve for Packets {
    fn ready(&mut self, source: usize) {
        if source != PACKET {
            self.transmit();
        }
        self.receive();
    }

    fn paused(&self, source: usize) -> bool {
        match source {
            ROOM => !self.full,
            // As long as the driver has no room, the packets wait in the back end; a link that is gone stays readable.
            _ => self.waiting > 0 || !self.listens(),
        }
    }
}

impl E1000e {
    /// A controller on `netdev`.
    ///
    /// # Errors
    /// No descriptor or thread is left.
    pub fn new(cx: &Cx, netdev: Claim<dyn Netdev>, mac: [u8; 6], ids: Ids) -> Result<Arc<E1000e>> {
        let mut config = ConfigSpace::new();
        config.set_u16(VENDOR, IDS.0);
        config.set_u16(DEVICE, IDS.1);
        config.set(CLASS, &CLASS_ETHERNET);
        config.set_u16(SUBSYSTEM_VENDOR, ids.subsystem_vendor);
        config.set_u16(SUBSYSTEM, ids.subsystem);
        config.set_u8(INTERRUPT_PIN, INTA);
        config.allow(COMMAND, &(COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE).to_le_bytes());
        let msi = MsiSpec { vectors: 1, address_64bit: true, maskable: false };
        let msi = Msi::add(&mut config, msi, &cx.router, &cx.id)?;
        let msix = Msix::add(&mut config, MsixSpec::exclusive(MSIX_BAR, VECTORS), &cx.router, &cx.id)?;
        if !cx.on_root_bus {
            endpoint::express(&mut config)?;
        }
        let core = Arc::new(PciCore::new(cx.id.clone(), config, Some(msi), Some(msix)));
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| Error::system("make an eventfd", &error.into()))?;
        let back = netdev.pairs().first().cloned().ok_or_else(|| {
            Error::new(Code::WrongBackend, format!("`{}` gives no packets", netdev.name())).evidence(netdev.place())
        })?;
        let nvm = Nvm::new(mac, IDS.1, (ids.subsystem_vendor, ids.subsystem));
        let shared = Arc::new(Shared {
            id: cx.id.clone(),
            pin: Arc::new(Pin::new(core.clone(), cx.router.clone())),
            core,
            netdev,
            ram: LiveRam::new(cx.memory.clone()),
            bell: Arc::new(bell),
            state: Mutex::new(State { registers: Registers::new(mac, nvm), senders: Default::default() }),
        });
        let room = back.room().map(|room| Source::Writable(room.clone()));
        let sources = [Source::Event(shared.bell.clone()), Source::Readable(back.watch().clone())];
        let sources = sources.into_iter().chain(room).collect();
        let packets = Packets {
            shared: shared.clone(),
            back,
            incoming: vec![0; MAX_PACKET],
            waiting: 0,
            outgoing: Vec::new(),
            body: Vec::new(),
            full: false,
        };
        let worker = Worker::start(&cx.id, sources, packets)?;
        Ok(Arc::new(E1000e { worker: Mutex::new(Some(worker)), shared, mac }))
    }
}

impl Device for E1000e {
    fn id(&self) -> &str {
        &self.shared.id
    }

    fn reset(&self) {
        self.shared.core.reset();
        self.shared.restart(Registers::power_on);
        // Whole packets only, with their checksums; a device before this one on the back end may have had it otherwise.
        let netdev = &self.shared.netdev;
        if let Err(error) = netdev.set_offloads(Offloads::empty()).and_then(|()| netdev.set_pairs(1)) {
            guest_error!(self.shared.id, "{}: {}", netdev.place(), explain_io(&error));
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let link = if self.shared.state.lock().registers.link { "up" } else { "down" };
        vec![("network", self.shared.netdev.place()), ("mac", Mac(self.mac).to_string()), ("link", link.into())]
    }

    fn unplug(&self) {
        let worker = self.worker.lock().take();
        drop(worker);
        self.shared.restart(Registers::power_on);
        self.shared.pin.set(false);
    }
}

impl PciFunction for E1000e {
    fn core(&self) -> &PciCore {
        &self.shared.core
    }

    fn bar(&self, index: usize) -> Option<BarContent> {
        if index == usize::from(MSIX_BAR) {
            return Some(self.shared.core.msix()?.exclusive_bar());
        }
        (index == 0).then(|| BarContent {
            name: format!("{} registers", self.shared.id).into(),
            size: BAR_SIZE,
            kind: BarKind::Mem32,
            prefetchable: false,
            pieces: vec![Piece { range: 0..BAR_SIZE, backing: Backing::io(self.shared.clone()) }],
        })
    }

    fn changed(&self, what: Changes) {
        if what.contains(Changes::RESET) {
            self.shared.restart(Registers::power_on);
        }
        if what.intersects(Changes::BUS_MASTER | Changes::POWER) {
            // The packet that its thread is at is the last one, or there is something to do again.
            drop(self.shared.state.lock());
            self.shared.ring();
        }
        if what.intersects(Changes::INTX_DISABLE | Changes::MSI | Changes::MSIX | Changes::RESET) {
            self.shared.settle(&mut self.shared.state.lock().registers);
            self.shared.pin.settle();
        }
    }

    fn show_page(&self, page: &HostSlice) -> bool {
        self.shared.core.with(|config| config.mirror(Some(page.clone())));
        true
    }
}
