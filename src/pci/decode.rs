//! The decode mutex and what it protects: which BAR of which function is where in the machine's memory map.
//!
//! There is one [`Decode`] per machine. It is held from before a register that decides about addresses is written until
//! the map follows and the function was told, so that the map never contradicts the registers: without it, a vCPU that
//! moves a BAR and one that switches decoding off could end with a BAR mapped that is off. The map is always computed
//! from the registers as they are, never from what one write said. Taken before `Memory.layout`.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::bar::{BARS, BarContent, Placement, Placements};
use crate::guest_error;
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
    contents: [Option<BarContent>; BARS],
    placed: [Option<(Placement, RegionId)>; BARS],
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
    pub(super) fn register(&mut self, contents: [Option<BarContent>; BARS]) -> Key {
        let key = Key(self.next);
        self.next += 1;
        self.functions.insert(key, Function { contents, placed: [None; BARS] });
        key
    }

    /// What differs from `wanted`. Functions that were detached meanwhile are left out.
    fn edits(&self, wanted: &[(Key, Placements)]) -> Vec<Edit> {
        let mut edits = Vec::new();
        for (key, placements) in wanted {
            let Some(function) = self.functions.get(key) else { continue };
            let bars = function.contents.iter().zip(function.placed.iter().zip(placements));
            for (bar, (content, (placed, wanted))) in bars.enumerate() {
                if placed.map(|(placement, _)| placement) == *wanted {
                    continue;
                }
                let new = content.as_ref().zip(*wanted).map(|(content, placement)| (placement, region(content)));
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

fn region(content: &BarContent) -> Region {
    Region { name: content.name.clone(), len: content.size, priority: PRIORITY_BAR, pieces: content.pieces.clone() }
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
    pub(super) fn settle(&self, mapped: &mut Mapped, wanted: &[(Key, Placements)]) {
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
