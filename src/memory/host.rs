//! Host memory that a guest or a device may reach: mappings that live exactly as long as somebody uses them.
//!
//! One of the few files with `unsafe`: it owns raw mappings and copies to and from memory that a guest changes at the
//! same time. Nobody ever holds a Rust reference into such memory; all access is by volatile copies of bounded length.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

/// The size of the pages that the processor's page tables map at their last level, in bytes.
pub const PAGE: u64 = 4096;
const HUGE_2M: usize = 2 << 20;
const HUGE_1G: usize = 1 << 30;

/// Which pages back guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageSize {
    /// 4 KiB pages only.
    Small,
    /// 4 KiB pages that the kernel may join to huge pages.
    Transparent,
    /// Explicit huge pages of 2 MiB from the host's pool.
    Huge2M,
    /// Explicit huge pages of 1 GiB from the host's pool.
    Huge1G,
}

impl PageSize {
    /// The alignment and granularity in bytes that mappings of this kind have.
    pub fn bytes(self) -> usize {
        match self {
            PageSize::Small => PAGE as usize,
            PageSize::Transparent | PageSize::Huge2M => HUGE_2M,
            PageSize::Huge1G => HUGE_1G,
        }
    }
}

/// Which of the memory nodes that are named a page comes from; the values are those of mbind(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum NodePolicy {
    /// The first of them, as long as it has memory.
    Preferred = libc::MPOL_PREFERRED,
    /// One of them and no other.
    Bind = libc::MPOL_BIND,
    /// All of them in turn.
    Interleave = libc::MPOL_INTERLEAVE,
}

/// A mapping of host memory, unmapped when the last user drops it.
pub struct HostMem {
    addr: *mut u8,
    len: usize,
    /// The file behind a shared mapping, and where in it the mapping starts.
    file: Option<(Arc<OwnedFd>, u64)>,
    /// Whether the guest's writes go through.
    writable: bool,
}

// SAFETY: the mapping is plain memory without thread affinity, and every access through `HostMem` is a volatile copy.
unsafe impl Send for HostMem {}
// SAFETY: as above; concurrent accesses race only as the guest's own processors do, on bytes that carry no invariant.
unsafe impl Sync for HostMem {}

impl HostMem {
    /// Private zeroed memory of `len` bytes (rounded up to the page size), for guest RAM. Nothing is allocated until
    /// it is touched; explicit huge pages are reserved here.
    pub fn anonymous(len: u64, pages: PageSize) -> io::Result<HostMem> {
        let mut flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_ANONYMOUS;
        flags |= match pages {
            PageSize::Small | PageSize::Transparent => MapFlags::MAP_NORESERVE,
            PageSize::Huge2M => MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_2MB,
            PageSize::Huge1G => MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_1GB,
        };
        let mem = Self::map(round(len, pages)?, pages.bytes(), flags, None)?;
        mem.advise(pages)?;
        Ok(mem)
    }

    /// Zeroed memory that other processes can share by its file descriptor.
    pub fn memfd(name: &str, len: u64, pages: PageSize) -> io::Result<HostMem> {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        let mut flags = MFdFlags::MFD_CLOEXEC;
        flags |= match pages {
            PageSize::Small | PageSize::Transparent => MFdFlags::empty(),
            PageSize::Huge2M => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB,
            PageSize::Huge1G => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_1GB,
        };
        let fd = memfd_create(name, flags)?;
        let len = round(len, pages)?;
        File::from(fd.try_clone()?).set_len(len as u64)?;
        let mem = Self::map(len, pages.bytes(), MapFlags::MAP_SHARED, Some((Arc::new(fd), 0)))?;
        mem.advise(pages)?;
        Ok(mem)
    }

    /// `len` bytes of a device's or a file's descriptor from `offset`, shared. Both must be multiples of a page.
    ///
    /// Address and offset agree modulo the largest kind of page that fits, so that the kernel can map a large BAR by huge
    /// pages (from 6.11 on for VFIO's), and KVM can do so in turn where the guest's address agrees as well.
    pub fn shared(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<HostMem> {
        let fd = Arc::new(fd.try_clone_to_owned()?);
        let len = usize::try_from(len).map_err(io::Error::other)?;
        Self::map(len, largest_page(len), MapFlags::MAP_SHARED, Some((fd, offset)))
    }

    /// The first `len` bytes of a file, as they are now: what is written here stays here.
    pub fn copied(fd: BorrowedFd<'_>, len: u64) -> io::Result<HostMem> {
        let fd = Arc::new(fd.try_clone_to_owned()?);
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut mem = Self::map(len, largest_page(len), MapFlags::MAP_PRIVATE, Some((fd, 0)))?;
        // The file does not stand for this memory: no other process can be given it.
        mem.file = None;
        Ok(mem)
    }

    fn map(len: usize, align: usize, flags: MapFlags, file: Option<(Arc<OwnedFd>, u64)>) -> io::Result<HostMem> {
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        // A reserved window that is larger by the alignment has an aligned part; the mapping is then fixed in there.
        let window = NonZeroUsize::new(len.checked_add(align).ok_or(io::ErrorKind::InvalidInput)?)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let reserve = MapFlags::MAP_PRIVATE | MapFlags::MAP_ANONYMOUS | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { nix::sys::mman::mmap_anonymous(None, window, ProtFlags::PROT_NONE, reserve)? };
        // Memory starts at a multiple of `align`, a part of a file as far behind one as in the file.
        let phase = file.as_ref().map_or(0, |(_, offset)| (*offset % align as u64) as usize);
        let start = congruent(base.as_ptr() as usize, align, phase);
        let fixed = flags | MapFlags::MAP_FIXED;
        let mapped = match (NonZeroUsize::new(start), &file) {
            (None, _) => Err(nix::Error::EINVAL),
            // SAFETY: `start..start + len` lies inside the window that was reserved above and that nobody else knows.
            (at, None) => unsafe { nix::sys::mman::mmap_anonymous(at, size, prot, fixed) },
            (at, Some((fd, offset))) => {
                let offset = libc::off_t::try_from(*offset).map_err(io::Error::other)?;
                // SAFETY: as above.
                unsafe { nix::sys::mman::mmap(at, size, prot, fixed, fd.as_fd(), offset) }
            }
        };
        let end = base.as_ptr() as usize + window.get();
        for (from, to) in [(base.as_ptr() as usize, start), (start + len, end)] {
            unmap(from, to - from);
        }
        match mapped {
            Ok(addr) => Ok(HostMem { addr: addr.as_ptr().cast(), len, file, writable: true }),
            Err(error) => {
                unmap(start, len);
                Err(error.into())
            }
        }
    }

    fn advise(&self, pages: PageSize) -> io::Result<()> {
        let advice = match pages {
            PageSize::Transparent => libc::MADV_HUGEPAGE,
            PageSize::Small => libc::MADV_NOHUGEPAGE,
            PageSize::Huge2M | PageSize::Huge1G => return Ok(()),
        };
        // SAFETY: the range is exactly this mapping; the advice changes no contents.
        let done = unsafe { libc::madvise(self.addr.cast(), self.len, advice) };
        match nix::errno::Errno::result(done) {
            // A kernel without transparent huge pages has nothing to join or to keep apart.
            Ok(_) | Err(nix::errno::Errno::EINVAL) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Has the kernel take its pages from these of the host's memory nodes (mbind(2)); those that it has already move.
    ///
    /// # Errors
    /// The kernel's: EINVAL where the host has no such node.
    pub fn place(&self, policy: NodePolicy, nodes: Range<u32>) -> io::Result<()> {
        const WORD: u32 = u64::BITS;
        /// Pages that are elsewhere move, or it is an error (linux/mempolicy.h).
        const STRICT: libc::c_int = 1 << 0;
        const MOVE: libc::c_int = 1 << 1;
        let mut mask = vec![0u64; nodes.end.div_ceil(WORD) as usize];
        nodes.for_each(|node| mask[(node / WORD) as usize] |= 1 << (node % WORD));
        // One more than there are bits: the kernel does not look at the last.
        let bits = mask.len() as u64 * u64::from(WORD) + 1;
        let flags = STRICT | MOVE;
        // SAFETY: the range is exactly this mapping, whose contents do not change; the mask lives and has `bits - 1` bits.
        let done = unsafe {
            libc::syscall(libc::SYS_mbind, self.addr, self.len, policy as libc::c_int, mask.as_ptr(), bits, flags)
        };
        nix::errno::Errno::result(done).map(drop).map_err(io::Error::from)
    }

    /// Bytes of it that the host has given (mincore(2)).
    #[cfg(test)]
    pub fn resident(&self) -> io::Result<u64> {
        let mut pages = vec![0u8; self.len.div_ceil(PAGE as usize)];
        // SAFETY: the range is exactly this mapping, and there is a byte for each of its pages.
        nix::errno::Errno::result(unsafe { libc::mincore(self.addr.cast(), self.len, pages.as_mut_ptr()) })?;
        Ok(pages.iter().filter(|page| **page & 1 != 0).count() as u64 * PAGE)
    }

    /// Leaves it out of core dumps, and lets the kernel join equal pages of it with others' (KSM), as asked.
    ///
    /// # Errors
    /// The kernel refuses one of them; it may have no KSM.
    pub fn advise_about(&self, dump: bool, merge: bool) -> io::Result<()> {
        for (wanted, advice) in [(!dump, libc::MADV_DONTDUMP), (merge, libc::MADV_MERGEABLE)] {
            if wanted {
                // SAFETY: the range is exactly this mapping; the advice changes no contents.
                nix::errno::Errno::result(unsafe { libc::madvise(self.addr.cast(), self.len, advice) })?;
            }
        }
        Ok(())
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// The host's virtual address of the first byte, for the kernel's interfaces.
    pub fn addr(&self) -> u64 {
        self.addr as u64
    }

    /// The file behind a shared mapping and the offset of the mapping in it.
    pub fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.file.as_ref().map(|(fd, offset)| (fd.as_fd(), *offset))
    }

    /// All of it.
    pub fn slice(self: &Arc<Self>) -> HostSlice {
        HostSlice { mem: self.clone(), offset: 0, len: self.len() }
    }

    /// `len` bytes of this memory from `offset` as a region of vm-memory's at the guest address `at`. The caller keeps the
    /// `Arc` beside it.
    fn guest_region(&self, at: u64, offset: u64, len: u64) -> io::Result<GuestRegionMmap> {
        // SAFETY: `offset + len` lies inside the mapping, for it comes from a `HostSlice`; the mapping is valid as long as
        // this `HostMem` lives, and `ram::GuestRam`, the only caller, holds an `Arc` of it beside the region.
        let builder =
            unsafe { MmapRegionBuilder::new(len as usize).with_raw_mmap_pointer(self.addr.add(offset as usize)) };
        let flags = if self.file.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
        let region: MmapRegion = builder
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags)
            .build()
            .map_err(io::Error::other)?;
        GuestRegionMmap::new(region, GuestAddress(at)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

/// Lets the calling thread give way to all others of the process, for as long as it lives (nice 19). It still gets what
/// they leave, and a little in any case: it may hold the lock of the address space, which they need to go on.
pub fn give_way() {
    // SAFETY: no memory is involved; 0 is the calling thread.
    let done = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
    debug_assert_eq!(done, 0, "less priority is allowed to everybody");
}

/// The size of the largest page that fits into `len` bytes.
fn largest_page(len: usize) -> usize {
    [HUGE_1G, HUGE_2M].into_iter().find(|page| len >= *page).unwrap_or(PAGE as usize)
}

/// The first address from `base` on that is `phase` bytes behind a multiple of `align`, which is less than `align` away.
fn congruent(base: usize, align: usize, phase: usize) -> usize {
    base + (phase + align - base % align) % align
}

fn round(len: u64, pages: PageSize) -> io::Result<usize> {
    let unit = if pages == PageSize::Transparent { PAGE as usize } else { pages.bytes() };
    usize::try_from(len)
        .ok()
        .and_then(|len| len.checked_next_multiple_of(unit))
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn unmap(start: usize, len: usize) {
    if len > 0 {
        // SAFETY: callers pass ranges of their own mapping only, and nothing points into them any more.
        unsafe { libc::munmap(start as *mut libc::c_void, len) };
    }
}

impl Drop for HostMem {
    fn drop(&mut self) {
        unmap(self.addr as usize, self.len);
    }
}

impl std::fmt::Debug for HostMem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:p}+{:#x}", self.addr, self.len)
    }
}

/// A part of a [`HostMem`] that keeps the whole of it mapped.
#[derive(Clone)]
pub struct HostSlice {
    mem: Arc<HostMem>,
    offset: u64,
    len: u64,
}

impl HostSlice {
    /// The `len` bytes that start `skip` bytes further on, as far as there are so many.
    #[must_use]
    pub fn cut(&self, skip: u64, len: u64) -> HostSlice {
        let skip = skip.min(self.len);
        HostSlice { mem: self.mem.clone(), offset: self.offset + skip, len: len.min(self.len - skip) }
    }

    /// The mapping that it is a part of.
    pub fn mem(&self) -> &Arc<HostMem> {
        &self.mem
    }

    /// Where it starts in the mapping, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// This slice as a region of vm-memory's at the guest address `at`. The caller keeps the mapping beside it.
    pub(super) fn guest_region(&self, at: u64) -> io::Result<GuestRegionMmap> {
        self.mem.guest_region(at, self.offset, self.len)
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The host's virtual address of the first byte, for the kernel's interfaces.
    pub fn addr(&self) -> u64 {
        self.mem.addr() + self.offset
    }

    /// Takes all of it from the host now, as a write to each page would (MADV_POPULATE_WRITE).
    ///
    /// # Errors
    /// The kernel's: no memory, or EINVAL before Linux 5.14. The contents do not change, and nothing is lost by an error.
    pub fn populate(&self) -> io::Result<()> {
        // SAFETY: the range lies inside the mapping, which `self` keeps; the advice changes no contents.
        let done = unsafe { libc::madvise(self.addr() as *mut _, self.len as usize, libc::MADV_POPULATE_WRITE) };
        nix::errno::Errno::result(done).map(drop).map_err(io::Error::from)
    }

    /// Gives all of it back to the host: it reads as zeros from then on, for every process that shares it; a copy of a file
    /// reads as the file.
    ///
    /// # Errors
    /// The kernel's: EINVAL for a part of a huge page of the host's pool, or for a file that cannot have holes.
    pub fn discard(&self) -> io::Result<()> {
        let advice = if self.mem.file.is_some() { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
        // SAFETY: the range lies inside the mapping, which `self` keeps; no reference to its bytes exists, only volatile
        // accesses, and zeros are as good for those as anything.
        let done = unsafe { libc::madvise(self.addr() as *mut _, self.len as usize, advice) };
        nix::errno::Errno::result(done).map(drop).map_err(io::Error::from)
    }

    /// Copies out from `offset`; what lies beyond the end reads as ones. 1, 2, 4 and 8 aligned bytes are one access.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let Some(at) = self.at(offset, data.len()) else { return data.fill(0xff) };
        // SAFETY: `at` is valid for `data.len()` bytes (checked by `self.at`) and aligned to the access's size (checked
        // by `accesses`); the copy is volatile because the guest may write at the same time.
        accesses(at as usize, data.len(), |done, size| unsafe {
            let from = at.add(done);
            match size {
                8 => data[done..done + 8].copy_from_slice(&from.cast::<u64>().read_volatile().to_ne_bytes()),
                4 => data[done..done + 4].copy_from_slice(&from.cast::<u32>().read_volatile().to_ne_bytes()),
                2 => data[done..done + 2].copy_from_slice(&from.cast::<u16>().read_volatile().to_ne_bytes()),
                _ => data[done] = from.read_volatile(),
            }
        });
    }

    /// Copies in at `offset`; what lies beyond the end is dropped. 1, 2, 4 and 8 aligned bytes are one access.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let Some(at) = self.at(offset, data.len()) else { return };
        if !self.mem.writable {
            return;
        }
        // SAFETY: as in `read`; the mapping is writable.
        accesses(at as usize, data.len(), |done, size| unsafe {
            let to = at.add(done);
            match data[done..done + size] {
                [a, b, c, d, e, f, g, h] => {
                    to.cast::<u64>().write_volatile(u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
                }
                [a, b, c, d] => to.cast::<u32>().write_volatile(u32::from_ne_bytes([a, b, c, d])),
                [a, b] => to.cast::<u16>().write_volatile(u16::from_ne_bytes([a, b])),
                [a] => to.write_volatile(a),
                _ => {}
            }
        });
    }

    fn at(&self, offset: u64, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len as u64)?;
        // SAFETY: `offset + len` lies inside the slice, and the slice inside the mapping.
        (end <= self.len).then(|| unsafe { self.mem.addr.add((self.offset + offset) as usize) })
    }
}

/// Splits `len` bytes at `addr` into naturally aligned accesses of 8, 4, 2 or 1 bytes: `each(done, size)`.
fn accesses(addr: usize, len: usize, mut each: impl FnMut(usize, usize)) {
    let mut done = 0;
    while done < len {
        let size =
            [8, 4, 2].into_iter().find(|size| (addr + done).is_multiple_of(*size) && len - done >= *size).unwrap_or(1);
        each(done, size);
        done += size;
    }
}

impl PartialEq for HostSlice {
    fn eq(&self, other: &HostSlice) -> bool {
        Arc::ptr_eq(&self.mem, &other.mem) && self.offset == other.offset && self.len == other.len
    }
}

impl std::fmt::Debug for HostSlice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}[{:#x}+{:#x}]", self.mem, self.offset, self.len)
    }
}

impl AsRawFd for HostMem {
    fn as_raw_fd(&self) -> i32 {
        self.file.as_ref().map_or(-1, |(fd, _)| fd.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn anonymous_memory_is_aligned_and_zero() {
        let mem = Arc::new(HostMem::anonymous(3 << 20, PageSize::Transparent).unwrap());
        assert_eq!(mem.addr() % (2 << 20), 0);
        assert_eq!(mem.len(), 3 << 20);
        let mut data = [1; 16];
        mem.slice().read((3 << 20) - 16, &mut data);
        assert_eq!(data, [0; 16]);
    }

    #[test]
    fn memfd_is_shared_through_its_descriptor() {
        let mem = Arc::new(HostMem::memfd("test", 8192, PageSize::Small).unwrap());
        mem.slice().write(4096, b"hello");
        let (fd, offset) = mem.file().unwrap();
        let other = Arc::new(HostMem::shared(fd, offset + 4096, 4096).unwrap());
        let mut data = [0; 5];
        other.slice().read(0, &mut data);
        assert_eq!(&data, b"hello");
    }

    #[test]
    fn nothing_outside_a_slice_can_be_reached() {
        let mem = Arc::new(HostMem::anonymous(4096, PageSize::Small).unwrap());
        let slice = mem.slice().cut(100, 8);
        let mut data = [0; 4];
        slice.read(6, &mut data);
        assert_eq!(data, [0xff; 4]);
        slice.write(6, &[1, 2, 3, 4]);
        slice.write(u64::MAX, &[1]);
        let mut whole = [9; 128];
        mem.slice().read(0, &mut whole);
        assert_eq!(whole, [0; 128]);
        assert!(mem.slice().cut(5000, 1).is_empty());
    }

    #[test]
    fn a_large_part_of_a_file_can_have_huge_pages() {
        let file = HostMem::memfd("test", 8 << 20, PageSize::Small).unwrap();
        let (fd, _) = file.file().unwrap();
        for (offset, len, align) in
            [(0, 4 << 20, 2 << 20), (0x3000, 3 << 20, 2 << 20), (0x1f_f000, 2 << 20, 2 << 20), (0x3000, 0x1000, 0x1000)]
        {
            let part = HostMem::shared(fd, offset, len).unwrap();
            assert_eq!(part.addr() % align, offset % align, "{offset:#x}+{len:#x}");
        }
        assert_eq!(
            [largest_page(1 << 30), largest_page((1 << 30) - 1), largest_page(0x1000)],
            [HUGE_1G, HUGE_2M, 4096]
        );
        assert_eq!(congruent(0x7fff_0000_1000, HUGE_1G, 0x3000), 0x7fff_0000_3000);
        assert_eq!(congruent(0x7fff_0000_3000, HUGE_1G, 0x3000), 0x7fff_0000_3000);
        assert_eq!(congruent(0x7fff_0000_4000, HUGE_2M, 0x3000), 0x7fff_0020_3000);
    }

    #[test]
    fn empty_memory_is_refused() {
        assert!(HostMem::anonymous(0, PageSize::Small).is_err());
    }

    proptest! {
        #[test]
        fn accesses_are_aligned_and_cover_every_byte_once(addr in 0usize..64, len in 0usize..64) {
            let mut next = 0;
            accesses(addr, len, |done, size| {
                assert_eq!((done, (addr + done) % size), (next, 0));
                next += size;
            });
            prop_assert_eq!(next, len);
        }

        #[test]
        fn what_is_written_is_read(offset in 0u64..4000, data in prop::collection::vec(any::<u8>(), 0..64)) {
            let mem = Arc::new(HostMem::anonymous(4096, PageSize::Small).unwrap());
            mem.slice().write(offset, &data);
            let mut back = vec![0; data.len()];
            mem.slice().read(offset, &mut back);
            prop_assert_eq!(back, data);
        }
    }
}
