//! The guest's RAM: what it is made of, where it is, and which memory node has which of it.

use std::ops::Range;
use std::sync::Arc;

use super::back_ends;
use super::options::{HugePages, MemoryOptions, RunOptions};
use super::types::Q35;
use crate::backends::Backends;
use crate::backends::table::Claim;
use crate::boot::acpi::numa::NumaInput;
use crate::boot::layout::{self, BASE_MEMORY_END, HIGH_MEMORY, Layout};
use crate::error::{Code, Error, Result, explain_io};
use crate::memory::host::PageSize;
use crate::memory::{Backing, HostMem, HostSlice, Memory, PRIORITY_PLATFORM, Region, Space};
use crate::pci::vga::LEGACY;

/// The names of the objects that are the guest's memory, in the order of its addresses; none: it has memory of its own.
pub fn objects<'a>(options: &'a RunOptions, backend: Option<&'a str>) -> Vec<&'a str> {
    match backend {
        Some(id) => vec![id],
        None => options.numa.memdevs().collect(),
    }
}

/// The node of each processor, where the user says that there are nodes.
///
/// # Errors
/// [`Code::BadNuma`].
pub fn nodes(options: &RunOptions) -> Result<Vec<u32>> {
    let sockets: Vec<u32> = options.smp.apic_ids().map(|id| options.smp.socket_of(id)).collect();
    options.numa.of_cpus(&sockets)
}

/// Takes the objects that are the guest's memory.
///
/// # Errors
/// They have not the size of `-m`, or are another's.
pub fn claim(backends: &Backends, ids: &[&str], options: &MemoryOptions) -> Result<Vec<Claim<HostMem>>> {
    let objects: Result<Vec<_>> = ids.iter().map(|id| backends.memories.claim(id, back_ends::RAM)).collect();
    let objects = objects?;
    let all: u64 = objects.iter().map(|object| object.len()).sum();
    if !objects.is_empty() && all != options.size.0 {
        let names: Vec<String> = objects.iter().map(|object| format!("`{}`", object.name())).collect();
        let have = if names.len() == 1 { "has" } else { "have" };
        let sizes = format!("{} {have} {} MiB, -m says {} MiB", names.join(" and "), all >> 20, options.size.0 >> 20);
        return Err(Error::new(Code::BadProperty, "the object that is the guest's memory has another size")
            .evidence(sizes)
            .fix(format!("write -m {}M", all >> 20)));
    }
    Ok(objects)
}

/// A piece of RAM: where it is, which of the objects it is of, and where in that it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    range: Range<u64>,
    object: usize,
    offset: u64,
}

/// Cuts ranges of RAM by objects of these sizes, which follow each other. Pure.
fn pieces(ranges: &[Range<u64>], sizes: &[u64]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut objects = sizes.iter().copied().enumerate().filter(|(_, size)| *size > 0);
    let mut current = objects.next().map(|(object, size)| (object, 0, size));
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let Some((object, offset, size)) = current else { return pieces };
            let len = (range.end - at).min(size - offset);
            pieces.push(Piece { range: at..at + len, object, offset });
            at += len;
            current = match offset + len < size {
                true => Some((object, offset + len, size)),
                false => objects.next().map(|(object, size)| (object, 0, size)),
            };
        }
    }
    pieces
}

/// The ranges of RAM, with their names.
fn ranges(layout: &Layout) -> impl Iterator<Item = (&'static str, Range<u64>)> {
    let high = layout.high_ram.clone().map(|range| ("ram above 4 GiB", range));
    std::iter::once(("ram below 4 GiB", layout.low_ram.clone())).chain(high)
}

/// The guest's nodes as ACPI tells them; `None`: the user says nothing of nodes.
///
/// # Errors
/// [`Code::BadNuma`].
pub fn numa(options: &RunOptions, objects: &[Claim<HostMem>], layout: &Layout) -> Result<Option<NumaInput>> {
    let nodes = &options.numa.nodes;
    if nodes.is_empty() {
        return Ok(None);
    }
    // A node without an object has all of the memory, if it is the only one.
    let owners: Vec<u32> = (0..).zip(nodes).filter(|(_, node)| node.memdev.is_some()).map(|(id, _)| id).collect();
    let sizes: Vec<u64> = match objects {
        [] => vec![options.memory.size.0],
        objects => objects.iter().map(|object| object.len()).collect(),
    };
    let all: Vec<Range<u64>> = ranges(layout).map(|(_, range)| range).collect();
    let legacy = BASE_MEMORY_END..HIGH_MEMORY;
    let memory = pieces(&all, &sizes).into_iter().flat_map(|piece| {
        let node = owners.get(piece.object).copied().unwrap_or_default();
        layout::cut(piece.range, &legacy).into_iter().map(move |range| (node, range))
    });
    let last = nodes.len() as u32 - 1;
    Ok(Some(NumaInput {
        cpus: self::nodes(options)?,
        memory: memory.collect(),
        room: Some((last, layout.room.clone())).filter(|(_, room)| !room.is_empty()),
        distances: options.numa.distances.clone(),
    }))
}

/// What the guest's RAM is made of.
pub enum Ram<'a> {
    /// Memory that nobody else is given.
    Own,
    /// Memory that other processes can be given.
    Shared,
    /// Objects', one after the other.
    Of(&'a [Claim<HostMem>]),
}

impl Ram<'_> {
    /// The memory of a range: what of it begins where, as offset in the range.
    fn make(
        &self,
        name: &str,
        range: &Range<u64>,
        pieces: &[Piece],
        pages: PageSize,
    ) -> std::io::Result<Vec<(u64, HostSlice)>> {
        let len = range.end - range.start;
        Ok(match self {
            Ram::Own => vec![(0, Arc::new(HostMem::anonymous(len, pages)?).slice())],
            Ram::Shared => vec![(0, Arc::new(HostMem::memfd(name, len, pages)?).slice())],
            Ram::Of(objects) => {
                let inside = pieces.iter().filter(|piece| range.contains(&piece.range.start));
                let slice = |piece: &Piece| {
                    let object = objects.get(piece.object)?.back().slice();
                    Some((
                        piece.range.start - range.start,
                        object.cut(piece.offset, piece.range.end - piece.range.start),
                    ))
                };
                inside.filter_map(slice).collect()
            }
        })
    }
}

/// Gives the guest its RAM: one region below 4 GiB, one above where there is so much, cut where an object ends. Where a
/// device is passed through this queues its mapping, or maps it (`dma-map=sync`). With `vga`, the legacy memory of VGA is
/// left out of it.
pub fn add(
    memory: &Memory,
    layout: &Layout,
    options: &MemoryOptions,
    machine: &Q35,
    made_of: &Ram<'_>,
    vga: bool,
) -> Result<()> {
    let pages = match options.hugepages {
        HugePages::TwoMiB => PageSize::Huge2M,
        HugePages::OneGiB => PageSize::Huge1G,
        HugePages::Transparent => PageSize::Transparent,
        HugePages::Off => PageSize::Small,
    };
    let sizes: Vec<u64> = match made_of {
        Ram::Of(objects) => objects.iter().map(|object| object.len()).collect(),
        Ram::Own | Ram::Shared => Vec::new(),
    };
    let all: Vec<Range<u64>> = ranges(layout).map(|(_, range)| range).collect();
    let pieces = pieces(&all, &sizes);
    let [window, ..] = LEGACY;
    let hole = if vga { window.range() } else { 0..0 };
    let mut regions = Vec::new();
    for (name, range) in ranges(layout) {
        let made = made_of.make(name, &range, &pieces, pages).map_err(|error| {
            Error::new(Code::NoMemory, format!("{} MiB for the guest cannot be had", (range.end - range.start) >> 20))
                .evidence(explain_io(&error))
        })?;
        for (offset, mem) in made {
            if let Err(error) = mem.mem().advise_about(machine.dump_guest_core, machine.mem_merge) {
                crate::log::warn(format_args!("dump-guest-core= and mem-merge= are not had: {}", explain_io(&error)));
            }
            let start = range.start + offset;
            for part in layout::cut(start..start + mem.len(), &hole) {
                let slice = mem.cut(part.start - start, part.end - part.start);
                regions.push((part.start, Region::whole(name, slice.len(), PRIORITY_PLATFORM, Backing::Ram(slice))));
            }
        }
    }
    memory.update(|map| {
        for (start, region) in regions {
            map.add(Space::Mmio, start, region);
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn objects_follow_each_other_over_the_hole() {
        let piece = |range: Range<u64>, object, offset| Piece { range, object, offset };
        let all = [0..30, 40..60];
        assert_eq!(pieces(&all, &[50]), [piece(0..30, 0, 0), piece(40..60, 0, 30)]);
        assert_eq!(
            pieces(&all, &[10, 0, 25, 15]),
            [piece(0..10, 0, 0), piece(10..30, 2, 0), piece(40..45, 2, 20), piece(45..60, 3, 0)]
        );
        assert_eq!(pieces(&all, &[]), []);
    }

    proptest! {
        #[test]
        fn every_byte_has_its_place(low in 1u64..50, high in 0u64..50, cuts in prop::collection::vec(0u64..30, 0..6)) {
            let mut left = low + high;
            let mut sizes: Vec<u64> = cuts.iter().map(|cut| { let size = (*cut).min(left); left -= size; size }).collect();
            sizes.push(left);
            let all = [0..low, 100..100 + high];
            let found = pieces(&all, &sizes);
            let bytes = found.iter().flat_map(|piece| {
                piece.range.clone().zip(piece.offset..).map(|(at, offset)| (at, piece.object, offset))
            });
            let addresses = all.iter().cloned().flatten();
            let owners = sizes.iter().enumerate().flat_map(|(object, size)| (0..*size).map(move |offset| (object, offset)));
            let expected: Vec<_> = addresses.zip(owners).map(|(at, (object, offset))| (at, object, offset)).collect();
            prop_assert_eq!(bytes.collect::<Vec<_>>(), expected);
        }
    }
}
