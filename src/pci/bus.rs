//! A PCI bus: which function is at which address, and the way of a configuration write from its bus to the memory map.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use super::bar::{BARS, BarContent};
use super::bridge::Bridge;
use super::decode::{Decode, Key, Mapped};
use super::slot::ExpressSlot;
use super::vga::{Contents, Places, places};
use super::{Changes, Devfn, PciCore, PciFunction, intx};
use crate::error::{Code, Error, Result};

/// The slot of the host bridge, and the one that an ICH9 keeps for its LPC function: never given automatically.
const HOST_BRIDGE_SLOT: u8 = 0;
const LPC_SLOT: u8 = 0x1f;
/// More bridges in a row than bus numbers can express.
const MAX_DEPTH: usize = 256;

/// A bus. Its own lock is held only to look up or change who is where, never while a function is called.
pub struct PciBus {
    name: Arc<str>,
    decode: Arc<Decode>,
    upstream: Upstream,
    /// Where that port sits. Set when the port is attached, which is before anything can be attached here.
    parent: Mutex<Option<(Weak<PciBus>, Devfn)>>,
    functions: RwLock<BTreeMap<Devfn, Arc<Attached>>>,
}

/// What is above a bus.
enum Upstream {
    /// The processor: the bus is the root.
    Processor,
    /// A root port, with the one slot that it has.
    Port(Arc<ExpressSlot>),
    /// A bridge to a conventional bus.
    Bridge(Arc<PciCore>),
}

impl Upstream {
    /// The registers of the bridge, if there is one.
    fn bridge(&self) -> Option<Bridge> {
        match self {
            Upstream::Processor => None,
            Upstream::Port(slot) => slot.core().bridge(),
            Upstream::Bridge(core) => core.bridge(),
        }
    }
}

/// A function at its address.
pub(super) struct Attached {
    key: Key,
    devfn: Devfn,
    function: Arc<dyn PciFunction>,
    bus: Weak<PciBus>,
    decode: Arc<Decode>,
}

/// A function's place on a bus. Dropping it detaches the function: configuration reads are then all-ones, its BARs are
/// gone from the map and cannot come back. The owner calls [`crate::device::Device::unplug`] afterwards.
pub struct Slot {
    bus: Arc<PciBus>,
    attached: Arc<Attached>,
}

impl Slot {
    /// The address on the bus.
    pub fn devfn(&self) -> Devfn {
        self.attached.devfn
    }

    /// The bus.
    pub fn bus(&self) -> &Arc<PciBus> {
        &self.bus
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.bus.detach(&self.attached);
    }
}

impl PciBus {
    /// The root bus of a machine.
    pub fn root(name: &str, decode: &Arc<Decode>) -> Arc<PciBus> {
        PciBus::new(name, decode, Upstream::Processor)
    }

    /// The bus behind the root port with this slot.
    pub(super) fn secondary(name: &str, decode: &Arc<Decode>, slot: Arc<ExpressSlot>) -> Arc<PciBus> {
        PciBus::new(name, decode, Upstream::Port(slot))
    }

    /// The conventional bus behind the bridge with these registers.
    pub(super) fn conventional(name: &str, decode: &Arc<Decode>, bridge: Arc<PciCore>) -> Arc<PciBus> {
        PciBus::new(name, decode, Upstream::Bridge(bridge))
    }

    fn new(name: &str, decode: &Arc<Decode>, upstream: Upstream) -> Arc<PciBus> {
        Arc::new(PciBus {
            name: name.into(),
            decode: decode.clone(),
            upstream,
            parent: Mutex::new(None),
            functions: RwLock::default(),
        })
    }

    /// The name that `bus=` takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is the root bus, where endpoints are integrated into the root complex.
    pub fn is_root(&self) -> bool {
        matches!(self.upstream, Upstream::Processor)
    }

    /// Whether it is behind a port, where a device is a PCI Express endpoint.
    pub fn is_express_port(&self) -> bool {
        self.express_slot().is_some()
    }

    /// The slot that the bus is in; `None` for the root bus and conventional ones.
    pub fn express_slot(&self) -> Option<&Arc<ExpressSlot>> {
        match &self.upstream {
            Upstream::Port(slot) => Some(slot),
            Upstream::Processor | Upstream::Bridge(_) => None,
        }
    }

    /// The slots that a function may be given.
    fn slots(&self) -> Slots {
        match self.upstream {
            Upstream::Processor => Slots::Root,
            Upstream::Port(_) => Slots::One,
            Upstream::Bridge(_) => Slots::Conventional,
        }
    }

    /// Whether a guest can find something here: it looks for function 0 first.
    pub(super) fn is_occupied(&self) -> bool {
        self.functions.read().keys().any(|devfn| devfn.function() == 0)
    }

    /// Whether what is here has power.
    fn powered(&self) -> bool {
        self.express_slot().is_none_or(|slot| slot.powered())
    }

    /// The functions and their addresses, ascending.
    pub fn functions(&self) -> Vec<(Devfn, Arc<dyn PciFunction>)> {
        self.functions.read().iter().map(|(devfn, attached)| (*devfn, attached.function.clone())).collect()
    }

    /// Puts a function on the bus: at `addr`, or at the first free slot. Asks it for its BARs.
    ///
    /// # Errors
    /// [`Code::BadBus`] if the address is none, is taken, or is one that this bus does not have;
    /// [`Code::DeviceFailed`] if a BAR is impossible; [`Code::VgaUnavailable`] if another function has the legacy ranges of
    /// VGA already.
    pub fn attach(self: &Arc<Self>, function: Arc<dyn PciFunction>, addr: Option<&str>) -> Result<Slot> {
        let wanted = addr.map(Devfn::parse).transpose()?;
        let bars: [Option<BarContent>; BARS] = std::array::from_fn(|index| function.bar(index));
        function.core().define_bars(bars.each_ref().map(|bar| bar.as_ref().map(BarContent::spec)))?;
        let mut ranges = function.legacy_vga().into_iter().flatten();
        let mut bars = bars.into_iter();
        let contents: Contents = std::array::from_fn(|_| bars.next().unwrap_or_else(|| ranges.next()));
        let attached = {
            // The decode mutex comes before the bus's lock, here as in `Attached::write`.
            let key = {
                let mut mapped = self.decode.lock();
                if contents[BARS].is_some() && mapped.has_legacy_vga() {
                    return Err(Error::new(Code::VgaUnavailable, "two devices would answer at the legacy VGA ranges")
                        .fix("give x-vga=on to one device only"));
                }
                mapped.register(contents)
            };
            let mut functions = self.functions.write();
            let taken = functions.iter().map(|(devfn, other)| (*devfn, other.function.id())).collect();
            let devfn = match choose_address(&self.name, self.slots(), &taken, wanted) {
                Ok(devfn) => devfn,
                Err(error) => {
                    drop(functions);
                    self.decode.forget(key);
                    return Err(error);
                }
            };
            let attached =
                Arc::new(Attached { key, devfn, function, bus: Arc::downgrade(self), decode: self.decode.clone() });
            functions.insert(devfn, attached.clone());
            attached
        };
        if let Some(secondary) = attached.function.secondary() {
            *secondary.parent.lock() = Some((Arc::downgrade(self), attached.devfn));
        }
        let core = attached.function.core();
        core.set_gsi(core.pin().map(|pin| self.gsi(attached.devfn, pin)));
        self.occupancy_changed(attached.devfn.slot());
        Ok(Slot { bus: self.clone(), attached })
    }

    fn detach(&self, attached: &Arc<Attached>) {
        self.functions.write().remove(&attached.devfn);
        // What is behind a bridge that is gone cannot be reached any more, even if it is detached later.
        let behind = attached.function.secondary().map(|bus| bus.all()).unwrap_or_default();
        behind.iter().for_each(|attached| self.decode.forget(attached.key));
        self.decode.forget(attached.key);
        self.occupancy_changed(attached.devfn.slot());
    }

    /// Makes what others show of a slot's functions true: function 0's header, and the link of the port above.
    fn occupancy_changed(&self, slot: u8) {
        let (zero, others) = {
            let functions = self.functions.read();
            let others = functions.keys().any(|devfn| devfn.slot() == slot && devfn.function() != 0);
            (Devfn::new(slot, 0).and_then(|zero| functions.get(&zero).cloned()), others)
        };
        if let Some(zero) = zero {
            zero.function.core().set_multi_function(others);
        }
        if let Some(port) = self.express_slot() {
            port.set_presence(self.is_occupied());
        }
    }

    /// The GSI of a pin of a function here, through the swizzles of all bridges above.
    pub fn gsi(&self, devfn: Devfn, pin: u8) -> u32 {
        let mut at = (devfn.slot(), pin);
        let mut parent = self.parent.lock().clone();
        for _ in 0..MAX_DEPTH {
            let Some((bus, port)) = parent else { break };
            at = (port.slot(), intx::swizzle(at.0, at.1));
            parent = bus.upgrade().and_then(|bus| bus.parent.lock().clone());
        }
        intx::intx_gsi(at.0, at.1)
    }

    /// The function at an address.
    pub(super) fn find(&self, devfn: Devfn) -> Option<Arc<Attached>> {
        if !self.powered() {
            return None;
        }
        self.functions.read().get(&devfn).cloned()
    }

    /// The registers of the bridges on the way from here to the processor.
    fn bridges_above(&self) -> Vec<Bridge> {
        let mut bridges: Vec<Bridge> = self.upstream.bridge().into_iter().collect();
        let mut parent = self.parent.lock().clone();
        for _ in 0..MAX_DEPTH {
            let Some(bus) = parent.and_then(|(bus, _)| bus.upgrade()) else { break };
            bridges.extend(bus.upstream.bridge());
            parent = bus.parent.lock().clone();
        }
        bridges
    }

    /// Every function on this bus.
    pub(super) fn all_here(&self) -> Vec<Arc<Attached>> {
        self.functions.read().values().cloned().collect()
    }

    /// Every function on this bus and behind it.
    pub(super) fn all(&self) -> Vec<Arc<Attached>> {
        let here = self.all_here();
        let behind: Vec<_> =
            here.iter().filter_map(|attached| attached.function.secondary()).flat_map(|bus| bus.all()).collect();
        here.into_iter().chain(behind).collect()
    }

    /// The bus behind a bridge here that leads to bus number `number`, and the number of that bus.
    pub(super) fn towards(&self, number: u8) -> Option<(u8, Arc<PciBus>)> {
        self.functions.read().values().find_map(|attached| {
            let secondary = attached.function.secondary()?;
            let bridge = attached.function.core().bridge()?;
            bridge.leads_to(number).then(|| (bridge.secondary, secondary.clone()))
        })
    }
}

impl Attached {
    pub(super) fn function(&self) -> &Arc<dyn PciFunction> {
        &self.function
    }

    /// A guest's write of 1, 2 or 4 bytes inside a dword.
    pub(super) fn write(&self, off: u16, data: &[u8]) {
        self.function.before_write(off, data);
        if !self.function.core().affects_decoding(off, data.len()) {
            let what = self.function.config_write(off, data);
            if !what.is_empty() {
                self.function.changed(what);
            }
            return;
        }
        let mut mapped = self.decode.lock();
        let what = self.function.config_write(off, data);
        if what.is_empty() {
            return;
        }
        let behind = self.function.secondary().map(|bus| bus.all()).unwrap_or_default();
        let reset = what.contains(Changes::SECONDARY_RESET);
        if reset {
            behind.iter().for_each(|attached| attached.function.core().reset());
        }
        if what.intersects(Changes::DECODE | Changes::POWER | Changes::RESET | Changes::SECONDARY_RESET) {
            let wanted: Vec<_> =
                std::iter::once(self).chain(behind.iter().map(Arc::as_ref)).map(Attached::wanted).collect();
            self.decode.settle(&mut mapped, &wanted);
        }
        self.function.changed(what);
        if reset {
            behind.iter().for_each(|attached| attached.function.changed(Changes::RESET));
        }
    }

    /// Where the registers of the function and of the bridges above it put its BARs.
    fn wanted(&self) -> (Key, Places) {
        let above = self.bus.upgrade().map(|bus| bus.bridges_above()).unwrap_or_default();
        let powered = self.bus.upgrade().is_some_and(|bus| bus.powered());
        let seen = |bar: &super::bar::Placement| powered && above.iter().all(|bridge| bridge.forwards(bar));
        let core = self.function.core();
        let command = if powered && core.power_state() == 0 { core.command() } else { 0 };
        (self.key, places(core.placements().map(|bar| bar.filter(seen)), command, &above))
    }
}

/// Puts the map of these functions right; `mapped` is the machine's decode mutex.
pub(super) fn settle(decode: &Decode, mapped: &mut Mapped, functions: &[Arc<Attached>]) {
    let wanted: Vec<_> = functions.iter().map(|attached| attached.wanted()).collect();
    decode.settle(mapped, &wanted);
}

/// The slots of a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slots {
    /// The root bus: all but the host bridge's are there, and that of an ICH9's LPC function is not given automatically.
    Root,
    /// Behind a port there is slot 0 only.
    One,
    /// Behind a bridge there are 32, of which the first is not given automatically, as in QEMU.
    Conventional,
}

/// The address for a function: the wanted one if it is free, else function 0 of the first slot that nobody uses.
///
/// # Errors
/// [`Code::BadBus`] if it is taken, or if the bus has no such slot or no free one; the evidence says who is where.
pub fn choose_address(bus: &str, slots: Slots, taken: &BTreeMap<Devfn, &str>, wanted: Option<Devfn>) -> Result<Devfn> {
    let holder = |devfn: Devfn| taken.get(&devfn);
    let refuse = |cause: String| {
        let list = taken.iter().map(|(devfn, id)| format!("{devfn} is {id}"));
        Err(list.fold(Error::new(Code::BadBus, cause), Error::evidence))
    };
    match wanted {
        Some(devfn) if slots == Slots::One && devfn.slot() != 0 => {
            refuse(format!("bus {bus} has slot 0 only, not {devfn}"))
        }
        Some(devfn) => match holder(devfn) {
            Some(id) => refuse(format!("address {devfn} of bus {bus} is taken by {id}")),
            None => Ok(devfn),
        },
        None => {
            let slots = match slots {
                Slots::Root => HOST_BRIDGE_SLOT + 1..LPC_SLOT,
                Slots::One => 0..1,
                Slots::Conventional => 1..32,
            };
            let free = |slot: &u8| taken.keys().all(|devfn| devfn.slot() != *slot);
            match slots.into_iter().find(free).and_then(|slot| Devfn::new(slot, 0)) {
                Some(devfn) => Ok(devfn),
                None => refuse(format!("no slot of bus {bus} is free")),
            }
        }
    }
}

#[cfg(test)]
mod tests;
