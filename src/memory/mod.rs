//! The guest's physical memory and port space: one layout, one flat view, one way to change them.
//!
//! A [`Region`] describes a range in [`Piece`]s (guest RAM, host mapping, ROM, trapped). [`Memory::update`] edits the
//! [`Layout`], flattens it ([`flat`]), and tells every [`MemoryListener`] what vanished and what appeared: KVM's memory
//! slots, the IOMMU's mappings, and vhost-user tables are listeners of this one map and of nothing else.
//!
//! Locks: `Memory::layout` serialises updates and is held while listeners run; it is taken after the machine's `decode`
//! mutex and before any listener's own lock. [`Memory::read`] and [`Memory::write`] take no lock at all: they load the
//! current flat view and call the handler without holding anything.

mod buffers;
pub mod flat;
pub mod host;
pub mod ram;
pub mod room;
mod transaction;

use std::ops::Range;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;

pub use buffers::Buffers;
pub use flat::{FlatRange, FlatView};
pub use host::{HostMem, HostSlice};
pub use transaction::{Listening, Memory};

/// A trapped range of the guest's memory or port space.
///
/// Called on a vCPU's thread, without any lock held, possibly from several vCPUs at once. A guest's mistake is never an
/// error here: an unknown read fills `data` with ones, an unknown write does nothing.
pub trait IoHandler: Send + Sync {
    /// Reads `data.len()` bytes (1, 2, 4 or 8) at `offset` from the start of the handler's range; fills all of `data`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` (1, 2, 4 or 8 bytes) at `offset` from the start of the handler's range.
    fn write(&self, offset: u64, data: &[u8]);

    /// The offsets whose writes only wake somebody. KVM does that without an exit; a write that reaches `write` all the
    /// same must do what KVM would have done.
    fn doorbells(&self) -> &[Doorbell] {
        &[]
    }
}

/// A place in a trapped range where a write, whatever its value, signals an eventfd.
#[derive(Debug, Clone)]
pub struct Doorbell {
    /// Offset from the start of the handler's range.
    pub offset: u64,
    /// What is signalled.
    pub bell: Arc<EventFd>,
}

/// The two address spaces of an x86 processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// Physical memory addresses.
    Mmio,
    /// Port I/O, 64 KiB.
    Pio,
}

/// What answers an access to a piece of a region.
#[derive(Clone)]
pub enum Backing {
    /// Guest RAM: the guest and its devices read and write it directly.
    Ram(HostSlice),
    /// Host memory that the guest reads directly; its writes are ignored.
    Rom(HostSlice),
    /// Host memory that the guest reads directly and whose writes trap: no exit for a read.
    RomDevice {
        /// What reads see. The owner keeps it current.
        mem: HostSlice,
        /// Where writes go.
        io: Arc<dyn IoHandler>,
        /// The handler's offset at the start of the piece.
        offset: u64,
    },
    /// A mapped BAR of a host device: the guest reads and writes the hardware directly.
    Device(HostSlice),
    /// Memory that is not the guest's alone, such as a file's: the guest and its devices read and write it directly, those of
    /// the host as far as their IOMMU can map it.
    Shared(HostSlice),
    /// Every access traps.
    Io {
        /// Where accesses go.
        io: Arc<dyn IoHandler>,
        /// The handler's offset at the start of the piece.
        offset: u64,
    },
}

impl Backing {
    /// A trapped piece whose handler sees offset 0 at its start.
    pub fn io(io: Arc<dyn IoHandler>) -> Backing {
        Backing::Io { io, offset: 0 }
    }

    /// The host memory behind the piece, where there is any.
    pub fn host(&self) -> Option<&HostSlice> {
        match self {
            Backing::Ram(mem)
            | Backing::Rom(mem)
            | Backing::Device(mem)
            | Backing::Shared(mem)
            | Backing::RomDevice { mem, .. } => Some(mem),
            Backing::Io { .. } => None,
        }
    }

    /// The same backing, `skip` bytes further on and `len` bytes long.
    fn cut(&self, skip: u64, len: u64) -> Backing {
        match self {
            Backing::Ram(mem) => Backing::Ram(mem.cut(skip, len)),
            Backing::Rom(mem) => Backing::Rom(mem.cut(skip, len)),
            Backing::Device(mem) => Backing::Device(mem.cut(skip, len)),
            Backing::Shared(mem) => Backing::Shared(mem.cut(skip, len)),
            Backing::RomDevice { mem, io, offset } => {
                Backing::RomDevice { mem: mem.cut(skip, len), io: io.clone(), offset: offset + skip }
            }
            Backing::Io { io, offset } => Backing::Io { io: io.clone(), offset: offset + skip },
        }
    }
}

impl PartialEq for Backing {
    /// Whether both are the very same memory or handler at the same offset.
    fn eq(&self, other: &Backing) -> bool {
        match (self, other) {
            (Backing::Ram(a), Backing::Ram(b))
            | (Backing::Rom(a), Backing::Rom(b))
            | (Backing::Device(a), Backing::Device(b))
            | (Backing::Shared(a), Backing::Shared(b)) => a == b,
            (Backing::RomDevice { mem: a, io: x, offset: i }, Backing::RomDevice { mem: b, io: y, offset: j }) => {
                a == b && i == j && Arc::ptr_eq(x, y)
            }
            (Backing::Io { io: x, offset: i }, Backing::Io { io: y, offset: j }) => i == j && Arc::ptr_eq(x, y),
            _ => false,
        }
    }
}

impl std::fmt::Debug for Backing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Backing::Ram(mem) => write!(f, "ram {mem:?}"),
            Backing::Rom(mem) => write!(f, "rom {mem:?}"),
            Backing::Device(mem) => write!(f, "device {mem:?}"),
            Backing::Shared(mem) => write!(f, "shared {mem:?}"),
            Backing::RomDevice { mem, .. } => write!(f, "rom-device {mem:?}"),
            Backing::Io { offset, .. } => write!(f, "io +{offset:#x}"),
        }
    }
}

/// A part of a region with one backing.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The bytes of the region that it covers.
    pub range: Range<u64>,
    /// What answers there.
    pub backing: Backing,
}

/// Something that can be placed in an address space: RAM, a BAR, a register block.
#[derive(Clone, Debug)]
pub struct Region {
    /// Who it belongs to, for people: "ram below 4G", "gpu0 BAR1".
    pub name: Arc<str>,
    /// Length in bytes.
    pub len: u64,
    /// Where regions overlap the higher priority answers; on a tie, the one that was placed first.
    pub priority: i8,
    /// The pieces, in ascending order and without overlap; what they leave out is unassigned.
    pub pieces: Vec<Piece>,
}

/// Priority of guest RAM and of the platform's registers: no BAR that a guest moves can shadow them.
pub const PRIORITY_PLATFORM: i8 = 10;
/// Priority of what lies over a platform region on purpose, such as a function's page over the ECAM.
pub const PRIORITY_OVERLAY: i8 = 20;
/// Priority of BARs and of bridge windows.
pub const PRIORITY_BAR: i8 = 0;

impl Region {
    /// A region of one piece.
    pub fn whole(name: impl Into<Arc<str>>, len: u64, priority: i8, backing: Backing) -> Region {
        Region { name: name.into(), len, priority, pieces: vec![Piece { range: 0..len, backing }] }
    }
}

/// The name of a placed region, unique in one [`Memory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(u64);

/// Where every region is. Edited inside [`Memory::update`] only.
#[derive(Clone, Default)]
pub struct Layout {
    next: u64,
    placed: std::collections::BTreeMap<RegionId, Placed>,
}

#[derive(Clone)]
struct Placed {
    space: Space,
    base: u64,
    region: Arc<Region>,
}

impl Layout {
    /// Places a region at `base`. A region that would reach beyond the end of the space is cut there.
    pub fn add(&mut self, space: Space, base: u64, region: Region) -> RegionId {
        let id = RegionId(self.next);
        self.next += 1;
        self.placed.insert(id, Placed { space, base, region: Arc::new(region) });
        id
    }

    /// Takes a region away. Unknown names are ignored: removal is idempotent.
    pub fn remove(&mut self, id: RegionId) {
        self.placed.remove(&id);
    }

    fn flatten(&self, space: Space) -> Vec<FlatRange> {
        let regions =
            self.placed.values().filter(|placed| placed.space == space).map(|placed| (placed.base, &*placed.region));
        flat::flatten(regions, space)
    }
}

/// At which point of a transaction a listener is told. New ranges are announced in ascending order of the stages and
/// vanished ones in descending order: a device can never reach by DMA what the guest cannot reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// KVM's memory slots.
    Guest,
    /// IOMMU mappings.
    Dma,
    /// Other processes' tables of the memory.
    Remote,
}

/// Told of every change of the map of physical memory ([`Space::Mmio`]).
///
/// Called with the layout lock held, on whatever thread made the change. A listener must not call devices and must not
/// call back into [`Memory`].
pub trait MemoryListener: Send + Sync {
    /// The range is gone. Cannot fail: if the kernel refuses, the listener logs it and keeps the range's
    /// [`HostMem`] alive for ever, so that nothing else is ever mapped at that host address.
    fn remove(&self, range: &FlatRange);
    /// The range is new. An error undoes the whole transaction.
    fn add(&self, range: &FlatRange) -> crate::error::Result<()>;
    /// The transaction is complete and `view` is what vCPUs see.
    fn commit(&self, _view: &Arc<FlatView>) {}
    /// What is new until this is taken back is in use as soon as the transaction is complete: what a listener does about it,
    /// it does before [`MemoryListener::add`] returns.
    fn at_once(&self, _on: bool) {}
}
