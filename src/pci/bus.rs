//! A PCI bus: which function is at which address, and the way of a configuration write from its bus to the memory map.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use super::bar::{BARS, BarContent, Placements};
use super::bridge::Bridge;
use super::decode::{Decode, Key, Mapped};
use super::{Changes, Devfn, PciCore, PciFunction, intx, root_port};
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
    /// The root port above; `None` for the root bus.
    upstream: Option<Arc<PciCore>>,
    /// Where that port sits. Set when the port is attached, which is before anything can be attached here.
    parent: Mutex<Option<(Weak<PciBus>, Devfn)>>,
    functions: RwLock<BTreeMap<Devfn, Arc<Attached>>>,
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
        PciBus::new(name, decode, None)
    }

    /// The bus behind the root port whose registers are `port`.
    pub fn secondary(name: &str, decode: &Arc<Decode>, port: Arc<PciCore>) -> Arc<PciBus> {
        PciBus::new(name, decode, Some(port))
    }

    fn new(name: &str, decode: &Arc<Decode>, upstream: Option<Arc<PciCore>>) -> Arc<PciBus> {
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
        self.upstream.is_none()
    }

    /// The functions and their addresses, ascending.
    pub fn functions(&self) -> Vec<(Devfn, Arc<dyn PciFunction>)> {
        self.functions.read().iter().map(|(devfn, attached)| (*devfn, attached.function.clone())).collect()
    }

    /// Puts a function on the bus: at `addr`, or at the first free slot. Asks it for its BARs.
    ///
    /// # Errors
    /// [`Code::BadBus`] if the address is none, is taken, or is one that this bus does not have;
    /// [`Code::DeviceFailed`] if a BAR is impossible.
    pub fn attach(self: &Arc<Self>, function: Arc<dyn PciFunction>, addr: Option<&str>) -> Result<Slot> {
        let wanted = addr.map(Devfn::parse).transpose()?;
        let contents: [Option<BarContent>; BARS] = std::array::from_fn(|index| function.bar(index));
        function.core().define_bars(contents.each_ref().map(|bar| bar.as_ref().map(BarContent::spec)))?;
        let attached = {
            // The decode mutex comes before the bus's lock, here as in `Attached::write`.
            let key = self.decode.lock().register(contents);
            let mut functions = self.functions.write();
            let taken = functions.iter().map(|(devfn, other)| (*devfn, other.function.id())).collect();
            let devfn = match choose(&self.name, self.is_root(), &taken, wanted) {
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
        self.decode.forget(attached.key);
        self.occupancy_changed(attached.devfn.slot());
    }

    /// Makes what others show of a slot's functions true: function 0's header, and the link of the port above.
    fn occupancy_changed(&self, slot: u8) {
        let (zero, others, occupied) = {
            let functions = self.functions.read();
            let others = functions.keys().any(|devfn| devfn.slot() == slot && devfn.function() != 0);
            (Devfn::new(slot, 0).and_then(|zero| functions.get(&zero).cloned()), others, !functions.is_empty())
        };
        if let Some(zero) = zero {
            zero.function.core().set_multi_function(others);
        }
        if let Some(port) = &self.upstream {
            root_port::set_link(port, occupied);
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
        self.functions.read().get(&devfn).cloned()
    }

    /// The registers of the bridges on the way from here to the processor.
    fn bridges_above(&self) -> Vec<Bridge> {
        let mut bridges: Vec<Bridge> = self.upstream.iter().filter_map(|port| port.bridge()).collect();
        let mut parent = self.parent.lock().clone();
        for _ in 0..MAX_DEPTH {
            let Some(bus) = parent.and_then(|(bus, _)| bus.upgrade()) else { break };
            bridges.extend(bus.upstream.iter().filter_map(|port| port.bridge()));
            parent = bus.parent.lock().clone();
        }
        bridges
    }

    /// Every function on this bus and behind it.
    pub(super) fn all(&self) -> Vec<Arc<Attached>> {
        let here: Vec<_> = self.functions.read().values().cloned().collect();
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
    fn wanted(&self) -> (Key, Placements) {
        let above = self.bus.upgrade().map(|bus| bus.bridges_above()).unwrap_or_default();
        let seen = |bar: &super::bar::Placement| above.iter().all(|bridge| bridge.forwards(bar));
        (self.key, self.function.core().placements().map(|bar| bar.filter(seen)))
    }
}

/// Puts the map of these functions right; `mapped` is the machine's decode mutex.
pub(super) fn settle(decode: &Decode, mapped: &mut Mapped, functions: &[Arc<Attached>]) {
    let wanted: Vec<_> = functions.iter().map(|attached| attached.wanted()).collect();
    decode.settle(mapped, &wanted);
}

/// The address for a function: the wanted one if it is free, else function 0 of the first slot that nobody uses.
fn choose(bus: &str, is_root: bool, taken: &BTreeMap<Devfn, &str>, wanted: Option<Devfn>) -> Result<Devfn> {
    let holder = |devfn: Devfn| taken.get(&devfn);
    let refuse = |cause: String| {
        let list = taken.iter().map(|(devfn, id)| format!("{devfn} is {id}"));
        Err(list.fold(Error::new(Code::BadBus, cause), Error::evidence))
    };
    match wanted {
        Some(devfn) if !is_root && devfn.slot() != 0 => refuse(format!("bus {bus} has slot 0 only, not {devfn}")),
        Some(devfn) => match holder(devfn) {
            Some(id) => refuse(format!("address {devfn} of bus {bus} is taken by {id}")),
            None => Ok(devfn),
        },
        None => {
            let slots = if is_root { HOST_BRIDGE_SLOT + 1..LPC_SLOT } else { 0..1 };
            let free = |slot: &u8| taken.keys().all(|devfn| devfn.slot() != *slot);
            match slots.into_iter().find(free).and_then(|slot| Devfn::new(slot, 0)) {
                Some(devfn) => Ok(devfn),
                None => refuse(format!("no slot of bus {bus} is free")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::regs::{COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY, HEADER_TYPE};
    use super::super::testing::{Bench, Fake, one_bar};
    use super::*;
    use crate::memory::Space;

    fn fake(bench: &Bench, id: &str) -> Arc<Fake> {
        Fake::new(id, one_bar(0, 0x1000), &bench.memory)
    }

    fn attach(bench: &Bench, id: &str, addr: Option<&str>) -> Result<Slot> {
        bench.root.bus().attach(fake(bench, id), addr)
    }

    #[test]
    fn automatic_slots_leave_the_chipset_its_own() {
        let bench = Bench::new();
        let slots: Vec<Slot> = (1..0x1f).map(|n| attach(&bench, &format!("d{n}"), None).unwrap()).collect();
        let numbers: Vec<u8> = slots.iter().map(|slot| slot.devfn().slot()).collect();
        assert_eq!(numbers, (1..0x1f).collect::<Vec<_>>());
        let full = attach(&bench, "more", None).err().unwrap();
        assert_eq!(full.code(), Code::BadBus);
        assert_eq!(full.evidence_lines().len(), 30);
        assert!(attach(&bench, "lpc", Some("1f.0")).is_ok(), "by its address it can be taken");
    }

    #[test]
    fn a_taken_address_names_its_holder() {
        let bench = Bench::new();
        let _nic = attach(&bench, "nic0", Some("2")).unwrap();
        let error = attach(&bench, "gpu0", Some("02.0")).err().unwrap();
        assert_eq!((error.code(), error.cause()), (Code::BadBus, "address 02.0 of bus pcie.0 is taken by nic0"));
        assert_eq!(attach(&bench, "gpu0", Some("20")).err().unwrap().code(), Code::BadBus);
        assert_eq!(attach(&bench, "gpu0", None).unwrap().devfn(), Devfn::parse("1").unwrap());
    }

    #[test]
    fn several_functions_show_in_the_header_of_the_first() {
        let bench = Bench::new();
        let _zero = attach(&bench, "a", Some("3.0")).unwrap();
        assert_eq!(bench.read32(0, "3.0", HEADER_TYPE & !3) >> 16, 0);
        let one = attach(&bench, "b", Some("3.1")).unwrap();
        assert_eq!(bench.read32(0, "3.0", HEADER_TYPE & !3) >> 16, 0x80);
        assert_eq!(attach(&bench, "c", None).unwrap().devfn().slot(), 1);
        drop(one);
        assert_eq!(bench.read32(0, "3.0", HEADER_TYPE & !3) >> 16, 0);
    }

    #[test]
    fn a_detached_function_reads_as_ones_and_is_not_mapped() {
        let bench = Bench::new();
        let slot = attach(&bench, "a", Some("1")).unwrap();
        let late = bench.root.bus().find(slot.devfn()).unwrap();
        bench.enable(0, "1", 0, 0xc000_0000, COMMAND_MEMORY);
        assert_eq!(bench.mapped(Space::Mmio), [("a BAR0".into(), 0xc000_0000)]);
        drop(slot);
        assert_eq!(bench.read32(0, "1", 0), u32::MAX);
        assert!(bench.mapped(Space::Mmio).is_empty());
        late.write(0x10, &0xd000_0000u32.to_le_bytes());
        assert!(bench.mapped(Space::Mmio).is_empty(), "a write that was under way maps nothing");
    }

    #[test]
    fn a_function_is_told_after_the_map_follows() {
        let bench = Bench::new();
        let function = fake(&bench, "a");
        let _slot = bench.root.bus().attach(function.clone(), Some("1")).unwrap();
        bench.enable(0, "1", 0, 0xc000_0000, COMMAND_MEMORY);
        bench.write(0, "1", COMMAND, u32::from(COMMAND_BUS_MASTER), 2);
        bench.write(0, "1", COMMAND, u32::from(COMMAND_BUS_MASTER), 2);
        let told = function.told.lock();
        let expected = [(Changes::DECODE, vec!["a BAR0".to_string()]), (Changes::DECODE | Changes::BUS_MASTER, vec![])];
        assert_eq!(*told, expected, "what changes nothing tells nothing");
    }

    #[test]
    fn bars_move_one_by_one_with_decoding_on() {
        let bench = Bench::new();
        let mut specs = one_bar(0, 0x1000);
        specs[1] = one_bar(1, 0x1000)[1];
        let _slot = bench.root.bus().attach(Fake::new("a", specs, &bench.memory), Some("1")).unwrap();
        bench.write(0, "1", 0x14, 0xc000_1000, 4);
        bench.enable(0, "1", 0, 0xc000_0000, COMMAND_MEMORY);
        bench.write(0, "1", 0x10, 0xffff_ffff, 4);
        bench.write(0, "1", 0x10, 0xc000_1000, 4);
        assert_eq!(bench.mapped(Space::Mmio).len(), 1, "one shadows the other");
        bench.write(0, "1", 0x14, 0xc000_0000, 4);
        let both = [("a BAR1".into(), 0xc000_0000), ("a BAR0".into(), 0xc000_1000)];
        assert_eq!(bench.mapped(Space::Mmio), both);
        bench.root.reset();
        assert!(bench.mapped(Space::Mmio).is_empty());
        assert_eq!((bench.read32(0, "1", 0x10), bench.read32(0, "1", 0x04)), (0, 0));
    }

    #[test]
    fn a_refused_bar_leaves_the_others_mapped() {
        use crate::memory::{FlatRange, MemoryListener, Stage};
        struct Refuse;
        impl MemoryListener for Refuse {
            fn remove(&self, _: &FlatRange) {}
            fn add(&self, range: &FlatRange) -> Result<()> {
                if range.start == 0xd000_0000 { Err(Error::new(Code::DmaFailed, "no")) } else { Ok(()) }
            }
        }
        let bench = Bench::new();
        let _listening = bench.memory.listen(Stage::Guest, Arc::new(Refuse)).unwrap();
        let mut specs = one_bar(0, 0x1000);
        specs[1] = one_bar(1, 0x1000)[1];
        let _slot = bench.root.bus().attach(Fake::new("a", specs, &bench.memory), Some("1")).unwrap();
        bench.write(0, "1", 0x14, 0xc000_0000, 4);
        bench.enable(0, "1", 0, 0xd000_0000, COMMAND_MEMORY);
        assert_eq!(bench.mapped(Space::Mmio), [("a BAR1".into(), 0xc000_0000)]);
        bench.write(0, "1", 0x10, 0xe000_0000, 4);
        assert_eq!(bench.mapped(Space::Mmio).len(), 2);
    }

    #[test]
    fn two_processors_leave_a_map_that_agrees_with_the_registers() {
        let bench = Bench::new();
        let _slot = attach(&bench, "a", Some("1")).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..200).for_each(|n| bench.write(0, "1", 0x10, 0xc000_0000 + n * 0x1000, 4)));
            scope.spawn(|| (0..200).for_each(|n| bench.write(0, "1", COMMAND, if n % 2 == 0 { 2 } else { 0 }, 2)));
        });
        let on = bench.read32(0, "1", COMMAND) & u32::from(COMMAND_MEMORY) != 0;
        let expected: Vec<(String, u64)> =
            on.then(|| ("a BAR0".into(), u64::from(bench.read32(0, "1", 0x10)))).into_iter().collect();
        assert_eq!(bench.mapped(Space::Mmio), expected);
    }
}
