//! A function of the host that says whatever the fuzzer wants, in the place of VFIO.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use passthru::memory::HostMem;
use passthru::memory::host::PageSize;
use passthru::vfio::HostPci;
use passthru::vfio::seams::{BARS, IrqInfo, IrqKind, RegionIndex, RegionInfo};
use vmm_sys_util::eventfd::EventFd;

use crate::input::Input;

/// Bytes of [`HostileDevice::describe`].
pub const DESCRIPTION: usize = 11;
/// Vectors that the device has at most: each costs a descriptor in every run.
const MAX_VECTORS: u32 = 8;
/// The largest area that is really mapped, in bytes.
const MAX_MAPPED: u64 = 1 << 20;
/// A region's size is 2 to the power of less than this.
const SIZE_BITS: u8 = 40;

/// Bits of the description's first byte.
const LARGE_SPACE: u8 = 1 << 0;
const BROKEN_WRITES: u8 = 1 << 1;
const BROKEN_READS: u8 = 1 << 2;
const NO_RESET: u8 = 1 << 3;
const REFUSES_ARMING: u8 = 1 << 4;
const ODD_SIZES: u8 = 1 << 5;
const BROKEN_MAPS: u8 = 1 << 6;

/// A device behind the seam [`HostPci`].
pub struct HostileDevice {
    config: Mutex<Vec<u8>>,
    flags: u8,
    sizes: [u64; BARS + 1],
    mappable: u8,
    vectors: u32,
    writes: Mutex<u64>,
}

impl HostileDevice {
    /// Reads [`DESCRIPTION`] bytes: flags; sizes of the six BARs and the ROM; which of them can be mapped; vectors.
    pub fn describe(input: &mut Input) -> HostileDevice {
        let flags = input.u8();
        let sizes = std::array::from_fn(|_| match input.u8() % SIZE_BITS {
            0 => 0,
            bits => (1 << bits) - u64::from(flags & ODD_SIZES != 0),
        });
        let (mappable, vectors) = (input.u8(), u32::from(input.u16()));
        HostileDevice {
            config: Mutex::default(),
            flags,
            sizes,
            mappable,
            vectors: vectors % (MAX_VECTORS + 1),
            writes: Mutex::default(),
        }
    }

    /// Gives it its configuration space; what is missing of 256 or 4096 bytes is zero.
    pub fn with_config(self, bytes: &[u8]) -> HostileDevice {
        let mut config = bytes.to_vec();
        config.resize(if self.flags & LARGE_SPACE != 0 { 4096 } else { 256 }, 0);
        *lock(&self.config) = config;
        self
    }

    fn refuse(&self, flag: u8) -> io::Result<()> {
        if self.flags & flag != 0 { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }
}

impl HostPci for HostileDevice {
    fn name(&self) -> &str {
        "0000:01:00.0"
    }

    fn region(&self, region: RegionIndex) -> RegionInfo {
        let (size, bit) = match region {
            RegionIndex::Bar(bar) => (self.sizes.get(usize::from(bar)).copied().unwrap_or_default(), 1 << (bar % 8)),
            RegionIndex::Rom => (self.sizes[BARS], 0),
            RegionIndex::Config => (lock(&self.config).len() as u64, 0),
            RegionIndex::Vga => (0, 0),
        };
        let mappable = (self.mappable & bit != 0 && size >= 4096).then_some(0..size).into_iter().collect();
        RegionInfo { size, readable: true, writable: true, mappable }
    }

    fn read(&self, region: RegionIndex, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let config = lock(&self.config);
        for (at, byte) in (offset..).zip(data) {
            *byte = match region {
                RegionIndex::Config => usize::try_from(at).ok().and_then(|at| config.get(at)).copied().unwrap_or(0xff),
                _ => at as u8,
            };
        }
        // The space is there once: a device that never answers is refused at the start, which is no long test.
        if region == RegionIndex::Config && offset == 0 { Ok(()) } else { self.refuse(BROKEN_READS) }
    }

    fn write(&self, region: RegionIndex, offset: u64, data: &[u8]) -> io::Result<()> {
        self.refuse(BROKEN_WRITES)?;
        *lock(&self.writes) += data.len() as u64;
        if region == RegionIndex::Config {
            let mut config = lock(&self.config);
            for (at, byte) in (offset..).zip(data) {
                if let Some(known) = usize::try_from(at).ok().and_then(|at| config.get_mut(at)) {
                    *known = *byte;
                }
            }
        }
        Ok(())
    }

    fn map(&self, _: RegionIndex, area: Range<u64>) -> io::Result<Arc<HostMem>> {
        self.refuse(BROKEN_MAPS)?;
        let len = area.end.saturating_sub(area.start);
        assert!(area.start.is_multiple_of(4096) && len.is_multiple_of(4096) && len > 0, "{area:x?} is not whole pages");
        if len > MAX_MAPPED {
            return Err(io::Error::from_raw_os_error(22));
        }
        HostMem::anonymous(len, PageSize::Small).map(Arc::new)
    }

    fn irq(&self, kind: IrqKind) -> IrqInfo {
        let count = if kind == IrqKind::Intx { self.vectors.min(1) } else { self.vectors };
        IrqInfo { count, automasked: kind == IrqKind::Intx }
    }

    fn arm(&self, kind: IrqKind, first: u32, fds: &[Option<&EventFd>]) -> io::Result<()> {
        let end = u64::from(first) + fds.len() as u64;
        assert!(end <= u64::from(self.irq(kind).count), "{kind:?}: {end} of {} vectors", self.irq(kind).count);
        self.refuse(REFUSES_ARMING)
    }

    fn disarm(&self, _: IrqKind) -> io::Result<()> {
        Ok(())
    }

    fn mask(&self, _: IrqKind, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn unmask_fd(&self, _: IrqKind, _: &EventFd) -> io::Result<()> {
        self.refuse(REFUSES_ARMING)
    }

    fn reset(&self) -> io::Result<bool> {
        Ok(self.flags & NO_RESET == 0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
