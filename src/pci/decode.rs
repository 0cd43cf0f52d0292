//! The decode mutex and what it protects: which BAR of which function is where in the machine's memory map.
//!
//! There is one [`Decode`] per machine. It is held from before a register that decides about addresses is written until
//! the map follows and the function was told, so that the map never contradicts the registers: without it, a vCPU that
//! moves a BAR and one that switches decoding off could end with a BAR mapped that is off. The map is always computed
//! from the registers as they are, never from what one write said. Taken before `Memory.layout`.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::bar::{BARS, BarContent, Placement};
use super::vga::{Contents, PLACES, Places};
use crate::guest_error;
use crate::memory::host::PAGE;
use crate::memory::{Layout, Memory, PRIORITY_BAR, Region, RegionId};

/// The BARs' places in the machine's memory map.
pub struct Decode {
    memory: Arc<Memory>,
    mapped: Mutex<Mapped>,
}

/// The name of one attachment of a function to a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(u64);

/// What is mapped, and what could be.
#[derive(Default)]
pub(super) struct Mapped {
    next: u64,
    functions: BTreeMap<Key, Function>,
}

struct Function {
    contents: Contents,
    placed: [Option<(Placement, RegionId)>; PLACES],
}

/// One BAR that is not where the registers put it.
struct Edit {
    key: Key,
    bar: usize,
    old: Option<RegionId>,
    new: Option<(Placement, Region)>,
}

impl Edit {
    fn apply(&self, layout: &mut Layout) -> Option<(Placement, RegionId)> {
        if let Some(old) = self.old {
            layout.remove(old);
        }
        self.new.as_ref().map(|(place, region)| (*place, layout.add(place.space, place.base, region.clone())))
    }
}

impl Mapped {
    /// From now on the function's BARs can be mapped.
    pub(super) fn register(&mut self, contents: Contents) -> Key {
        let key = Key(self.next);
        self.next += 1;
        self.functions.insert(key, Function { contents, placed: [None; PLACES] });
        key
    }

    /// Whether a function has the legacy ranges of VGA.
    pub(super) fn has_legacy_vga(&self) -> bool {
        self.functions.values().any(|function| function.contents[BARS].is_some())
    }

    /// What differs from `wanted`. Functions that were detached meanwhile are left out.
    fn edits(&self, wanted: &[(Key, Places)]) -> Vec<Edit> {
        let mut edits = Vec::new();
        for (key, placements) in wanted {
            let Some(function) = self.functions.get(key) else { continue };
            let bars = function.contents.iter().zip(function.placed.iter().zip(placements));
            for (bar, (content, (placed, wanted))) in bars.enumerate() {
                if placed.map(|(placement, _)| placement) == *wanted {
                    continue;
                }
                let new =
                    content.as_ref().zip(*wanted).map(|(content, placement)| (placement, region(content, &placement)));
                if placed.is_some() || new.is_some() {
                    edits.push(Edit { key: *key, bar, old: placed.map(|(_, id)| id), new });
                }
            }
        }
        edits
    }

    fn set(&mut self, edit: &Edit, placed: Option<(Placement, RegionId)>) {
        if let Some(place) = self.functions.get_mut(&edit.key).and_then(|function| function.placed.get_mut(edit.bar)) {
            *place = placed;
        }
    }
}

/// What lies at the BAR's place. The whole page of a BAR that is smaller is there only if the BAR is at the page's start,
/// and below whatever else is in the page; elsewhere the BAR's own bytes are.
fn region(content: &BarContent, place: &Placement) -> Region {
    let end = content.pieces.last().map_or(0, |piece| piece.range.end);
    let whole_page = end > content.size && place.base.is_multiple_of(PAGE);
    let (len, priority) = if whole_page { (end, PRIORITY_BAR - 1) } else { (content.size, PRIORITY_BAR) };
    Region { name: content.name.clone(), len, priority, pieces: content.pieces.clone() }
}

impl Decode {
    /// Nothing mapped in `memory` yet.
    pub fn new(memory: Arc<Memory>) -> Arc<Decode> {
        Arc::new(Decode { memory, mapped: Mutex::default() })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Mapped> {
        self.mapped.lock()
    }

    /// Brings the map to what is wanted in one transaction. A BAR that cannot be mapped where the guest puts it is not
    /// mapped, and tried again when registers change next; the others are.
    pub(super) fn settle(&self, mapped: &mut Mapped, wanted: &[(Key, Places)]) {
        let edits = mapped.edits(wanted);
        if edits.is_empty() {
            return;
        }
        let all = |layout: &mut Layout| edits.iter().map(|edit| edit.apply(layout)).collect::<Vec<_>>();
        match self.memory.update(all) {
            Ok(placed) => edits.iter().zip(placed).for_each(|(edit, placed)| mapped.set(edit, placed)),
            Err(_) => self.settle_one_by_one(mapped, edits),
        }
    }

    fn settle_one_by_one(&self, mapped: &mut Mapped, edits: Vec<Edit>) {
        self.withdraw(edits.iter().filter_map(|edit| edit.old));
        for mut edit in edits {
            edit.old = None;
            let placed = self.memory.update(|layout| edit.apply(layout)).unwrap_or_else(|error| {
                if let Some((place, region)) = &edit.new {
                    guest_error!(region.name, "cannot be mapped at {:#x}: {error}", place.base);
                }
                None
            });
            mapped.set(&edit, placed);
        }
    }

    /// Unmaps a function for good, in one transaction.
    pub(super) fn forget(&self, key: Key) {
        let mut mapped = self.lock();
        if let Some(function) = mapped.functions.remove(&key) {
            self.withdraw(function.placed.iter().flatten().map(|(_, id)| *id));
        }
    }

    fn withdraw(&self, ids: impl Iterator<Item = RegionId>) {
        let removed = self.memory.update(|layout| ids.for_each(|id| layout.remove(id)));
        if let Err(error) = removed {
            // Only what lay below the removed regions can be refused.
            guest_error!("pci", "what a BAR had covered cannot be mapped: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bar::{BarSpecs, Placements};
    use super::super::regs::{BRIDGE_CONTROL, COMMAND, IO_BASE, MEMORY_BASE, PREFETCH_BASE};
    use super::super::root_port::RootPort;
    use super::super::testing::{Bench, Fake, Filled};
    use super::super::{BarKind, BarSpec, Devfn, PciFunction};
    use super::*;
    use crate::memory::host::PageSize;
    use crate::memory::{Backing, HostMem, Piece, Space};
    use proptest::prelude::*;

    fn specs() -> BarSpecs {
        let bar = |kind, size| Some(BarSpec { size, kind, prefetchable: false });
        let (mem32, mem64) = (bar(BarKind::Mem32, 0x1000), bar(BarKind::Mem64, 1 << 30));
        [mem32, bar(BarKind::Io, 0x100), mem64, None, None, None, bar(BarKind::Mem32, 0x800)]
    }

    /// Start, length and name of what is mapped.
    fn mapped(bench: &Bench) -> Vec<(u64, u64, String)> {
        let view = bench.memory.view(Space::Mmio);
        view.ranges().iter().map(|range| (range.start, range.len, range.name.to_string())).collect()
    }

    #[test]
    fn the_page_of_a_small_bar_is_there_where_nothing_else_is() {
        let bench = Bench::new();
        let mem = HostMem::anonymous(PAGE, PageSize::Small).unwrap();
        let pieces = vec![Piece { range: 0..PAGE, backing: Backing::Device(Arc::new(mem).slice()) }];
        let small = BarContent { name: "small".into(), size: 0x100, kind: BarKind::Mem32, prefetchable: false, pieces };
        let other = BarContent {
            name: "other".into(),
            pieces: vec![Piece { range: 0..0x100, backing: Backing::io(Arc::new(Filled(1))) }],
            ..small.clone()
        };
        let mut decoded = bench.decode.lock();
        let [a, b] = [small, other]
            .map(|content| decoded.register(std::array::from_fn(|bar| (bar == 0).then(|| content.clone()))));
        let at =
            |base| std::array::from_fn(|bar| (bar == 0).then_some(Placement { space: Space::Mmio, base, size: 0x100 }));
        let row = |start, len, name: &str| (start, len, name.to_owned());
        bench.decode.settle(&mut decoded, &[(a, at(0x1000_0000))]);
        assert_eq!(mapped(&bench), [row(0x1000_0000, PAGE, "small")]);
        // Not at a page's start.
        bench.decode.settle(&mut decoded, &[(a, at(0x1000_0100))]);
        assert_eq!(mapped(&bench), [row(0x1000_0100, 0x100, "small")]);
        // Another BAR in its page.
        bench.decode.settle(&mut decoded, &[(b, at(0x1000_0200)), (a, at(0x1000_0000))]);
        assert_eq!(
            mapped(&bench),
            [row(0x1000_0000, 0x200, "small"), row(0x1000_0200, 0x100, "other"), row(0x1000_0300, 0xd00, "small"),]
        );
        bench.decode.settle(&mut decoded, &[(b, [None; PLACES])]);
        assert_eq!(mapped(&bench), [row(0x1000_0000, PAGE, "small")]);
    }

    /// Dwords that hit enable bits, windows and BARs more often than any number would.
    fn value() -> impl Strategy<Value = u32> {
        prop_oneof![
            any::<u32>(),
            Just(0),
            Just(u32::MAX),
            Just(0xc000_c000),
            Just(0xfff0_0000),
            Just(0x40),
            Just(7),
            Just(0xc000_0001)
        ]
    }

    proptest! {
        /// A guest writes what it likes to a bridge and to functions beside and behind it: what is mapped is always
        /// exactly what all their registers together say.
        #[test]
        fn the_map_never_contradicts_the_registers(writes in prop::collection::vec((0usize..3, 0usize..10, value()), 1..60)) {
            let bench = Bench::new();
            let port = RootPort::new("rp1", 1, &bench.decode, &bench.router).unwrap();
            bench.plug(port.clone(), "1");
            let beside = Fake::new("beside", specs(), &bench.memory);
            bench.plug(beside.clone(), "2");
            let behind = Fake::new("behind", specs(), &bench.memory);
            let _slot = port.bus().attach(behind.clone(), None).unwrap();
            for (target, register, value) in writes {
                let places = [0x10, 0x14, 0x18, 0x1c, 0x30, COMMAND, COMMAND, MEMORY_BASE, PREFETCH_BASE, BRIDGE_CONTROL & !3];
                let off = if target == 0 && places[register] == 0x1c { IO_BASE } else { places[register] };
                // Behind the port the bus's number does not matter here.
                let bus = if target == 2 { port.bus() } else { bench.root.bus() };
                let devfn = Devfn::new([1, 2, 0][target], 0).unwrap();
                bus.find(devfn).unwrap().write(off, &value.to_le_bytes());

                let bridge = port.core().bridge().unwrap();
                let seen = behind.core().placements().map(|bar| bar.filter(|bar| bridge.forwards(bar)));
                let mapped = bench.decode.lock();
                let bars = |function: &Function| -> Placements { std::array::from_fn(|bar| function.placed[bar].map(|(place, _)| place)) };
                let placed: Vec<Placements> = mapped.functions.values().map(bars).collect();
                prop_assert_eq!(placed, vec![[None; BARS], beside.core().placements(), seen]);
            }
        }
    }
}
