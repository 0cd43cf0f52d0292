//! One open file or block device of the host as a node: requests at offsets, by the calling thread or, where there are
//! several, by io_uring.

mod batch;
mod limits;
pub mod lock;
mod uring;

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use imago::io_buffers::{IoBuffer, IoVector, IoVectorMut};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::uio::{preadv, pwritev};
use nix::unistd::{Whence, lseek};
use parking_lot::{Mutex, RwLock};
use vm_memory::VolatileSlice;

use super::io::{range_len, read_only, total, within, write_plain_zeroes};
use super::{BlockInfo, BlockNode, Extent, Transfer};
use crate::error::{Code, Error, Result, explain_io};
use lock::Refused;
use uring::{DEPTH, Rings};

/// The most buffers that preadv(2) and pwritev(2) take (UIO_MAXIOV).
const MAX_BUFFERS: usize = 1024;

/// Whether requests that are made together are done together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Together {
    /// One after the other.
    No,
    /// Where the kernel gives us io_uring.
    IfPossible,
    /// By io_uring, and not otherwise.
    Yes,
}

/// How a file is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name.
    pub path: PathBuf,
    /// Only for reading.
    pub read_only: bool,
    /// Past the host's page cache.
    pub direct: bool,
    /// Whether to lock it against other programs; `None`: where the file system can.
    pub locking: Option<bool>,
    /// Whether what is discarded is given back to the host.
    pub unmap: bool,
    /// Whether requests that are made together are done together, by io_uring.
    pub together: Together,
}

impl Options {
    /// A file as a program's own, for reading or writing.
    pub fn plain(path: &Path, writable: bool) -> Options {
        Options {
            path: path.to_owned(),
            read_only: !writable,
            direct: false,
            locking: None,
            unmap: true,
            together: Together::No,
        }
    }
}

/// What is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A disk or partition.
    Device,
}

/// An open file or block device.
pub struct HostFile {
    options: Options,
    kind: Kind,
    /// Read-held by requests, also by those that need several system calls; write-held by requests of direct I/O that
    /// must read before they write, and while the descriptor is exchanged.
    file: RwLock<File>,
    len: AtomicU64,
    writable: AtomicBool,
    block_size: u32,
    physical_block_size: u32,
    /// The file system can punch holes; and can make ranges zero. Assumed until it says no.
    can_discard: AtomicBool,
    can_zero: AtomicBool,
    /// Held while the length changes.
    resizing: Mutex<()>,
    /// What does requests together, if the user wants that.
    rings: Option<Rings>,
}

impl HostFile {
    /// Opens what `options` name, which has to be a `kind`.
    ///
    /// # Errors
    /// [`Code::FileUnusable`], [`Code::DiskInUse`], [`Code::NoIoUring`].
    pub fn open(options: Options, kind: Kind) -> Result<HostFile> {
        let file = open_checked(&options, &options.path, kind, !options.read_only)?;
        lock(&file, &options, !options.read_only)?;
        if kind == Kind::Device && options.read_only && is_claimed(&file) {
            crate::log::warn(format_args!(
                "{} is mounted on the host or part of another device: what the host writes there the guest reads late, in \
                 part or not at all",
                options.path.display()
            ));
        }
        let len = length(&file).map_err(|error| unusable(&options.path, &error))?;
        let limits = limits::read(&file, options.direct);
        let rings = match options.together {
            Together::No => None,
            Together::IfPossible => Rings::new().ok(),
            Together::Yes => Some(Rings::new()?),
        };
        Ok(HostFile {
            kind,
            file: RwLock::new(file),
            len: AtomicU64::new(len),
            writable: AtomicBool::new(!options.read_only),
            block_size: limits.block_size,
            physical_block_size: limits.physical_block_size,
            can_discard: AtomicBool::new(true),
            can_zero: AtomicBool::new(true),
            resizing: Mutex::new(()),
            rings,
            options,
        })
    }

    fn check(&self, offset: u64, count: u64) -> io::Result<Range<u64>> {
        within(self.len.load(Ordering::Acquire), offset, count)
    }

    fn check_write(&self, offset: u64, count: u64) -> io::Result<Range<u64>> {
        let range = self.check(offset, count)?;
        if self.writable.load(Ordering::Relaxed) { Ok(range) } else { Err(read_only()) }
    }

    /// Whether direct I/O takes the request as it is.
    fn is_aligned(&self, range: &Range<u64>, slices: &[VolatileSlice]) -> bool {
        let mask = u64::from(self.block_size) - 1;
        let memory = slices.iter().fold(0, |bits, slice| bits | slice.ptr_guard().as_ptr() as u64 | slice.len() as u64);
        (range.start | range.end | memory) & mask == 0
    }

    /// The blocks that hold `range`.
    fn blocks(&self, range: &Range<u64>) -> Range<u64> {
        let size = u64::from(self.block_size);
        range.start / size * size..range.end.div_ceil(size) * size
    }

    /// A buffer for these blocks, with what the file has of them where `fill` says so, and how many bytes that is.
    fn bounce(&self, file: &File, blocks: &Range<u64>, fill: bool) -> io::Result<(IoBuffer, usize)> {
        let size = usize::try_from(range_len(blocks)).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut buffer = IoBuffer::new(size, self.block_size as usize)?;
        let bytes = buffer.as_mut().into_slice();
        // The last block of a file may be there in part.
        let got = if fill { read_some(file, &mut [IoSliceMut::new(bytes)], blocks.start)? } else { 0 };
        bytes[got..].fill(0);
        Ok((buffer, got))
    }

    fn read_bounced(&self, range: &Range<u64>, into: &[VolatileSlice]) -> io::Result<()> {
        let blocks = self.blocks(range);
        let (mut buffer, got) = self.bounce(&self.file.read(), &blocks, true)?;
        if blocks.start + (got as u64) < range.end {
            return Err(shorter(blocks.start + got as u64));
        }
        let mut from = &buffer.as_mut().into_slice()[(range.start - blocks.start) as usize..];
        for slice in into {
            let (part, rest) = from.split_at(slice.len());
            slice.copy_from(part);
            from = rest;
        }
        Ok(())
    }

    fn write_bounced(&self, range: &Range<u64>, from: &[VolatileSlice]) -> io::Result<()> {
        let blocks = self.blocks(range);
        // Nobody may write the rest of the first or last block between our reading and writing it.
        let file = self.file.write();
        let (mut buffer, _) = self.bounce(&file, &blocks, blocks != *range)?;
        let bytes = buffer.as_mut().into_slice();
        let mut into = &mut bytes[(range.start - blocks.start) as usize..];
        for slice in from {
            let (part, rest) = into.split_at_mut(slice.len());
            slice.copy_to(part);
            into = rest;
        }
        write_all(&file, &mut [IoSlice::new(bytes)], blocks.start)?;
        // A block that the file has in part is whole now; the file keeps its length.
        let len = self.len.load(Ordering::Acquire);
        if blocks.end > len && self.kind == Kind::File { file.set_len(len) } else { Ok(()) }
    }

    fn allocate(&self, range: &Range<u64>, mode: FallocateFlags) -> io::Result<()> {
        let (offset, len) = (to_off(range.start)?, to_off(range_len(range))?);
        fallocate(&*self.file.read(), mode, offset, len).map_err(io::Error::from)
    }
}

impl BlockNode for HostFile {
    fn info(&self) -> BlockInfo {
        let can = |what: &AtomicBool| what.load(Ordering::Relaxed);
        let unit = Some(self.physical_block_size);
        BlockInfo {
            len: self.len.load(Ordering::Acquire),
            read_only: !can(&self.writable),
            block_size: self.block_size,
            physical_block_size: self.physical_block_size,
            discard: unit.filter(|_| self.options.unmap && can(&self.can_discard)),
            write_zeroes: unit.filter(|_| can(&self.can_zero)),
            write_back: true,
        }
    }

    fn read(&self, offset: u64, into: &[VolatileSlice]) -> io::Result<()> {
        let range = self.check(offset, total(into))?;
        if self.options.direct && !self.is_aligned(&range, into) {
            return self.read_bounced(&range, into);
        }
        let (vector, _mapped) = IoVectorMut::from_volatile_slice(into);
        let mut buffers = vector.into_inner();
        let got = read_some(&self.file.read(), &mut buffers, offset)?;
        if got as u64 == range_len(&range) { Ok(()) } else { Err(shorter(offset + got as u64)) }
    }

    fn write(&self, offset: u64, from: &[VolatileSlice]) -> io::Result<()> {
        let range = self.check_write(offset, total(from))?;
        if self.options.direct && !self.is_aligned(&range, from) {
            return self.write_bounced(&range, from);
        }
        let (vector, _mapped) = IoVector::from_volatile_slice(from);
        write_all(&self.file.read(), &mut vector.into_inner(), offset)
    }

    fn depth(&self) -> usize {
        if self.rings.is_some() { DEPTH } else { 1 }
    }

    fn transfer(&self, transfers: &[Transfer]) -> Vec<io::Result<()>> {
        self.transfer_together(transfers)
    }

    fn flush(&self) -> io::Result<()> {
        // A file that we only read has nothing to write, and file systems may refuse.
        if self.writable.load(Ordering::Relaxed) { self.file.read().sync_data() } else { Ok(()) }
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.check_write(range.start, range_len(&range))?;
        if range.is_empty() || !self.options.unmap || !self.can_discard.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.allocate(&range, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE) {
            Err(error) if is_unsupported(&error) => {
                self.can_discard.store(false, Ordering::Relaxed);
                Ok(())
            }
            done => done,
        }
    }

    fn write_zeroes(&self, range: Range<u64>, may_unmap: bool) -> io::Result<()> {
        self.check_write(range.start, range_len(&range))?;
        if range.is_empty() {
            return Ok(());
        }
        // A hole reads as zeros, in a file and, by the kernel's block layer, on a disk.
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let unmap = may_unmap && self.options.unmap;
        let ways = [(unmap, punch, &self.can_discard), (true, FallocateFlags::FALLOC_FL_ZERO_RANGE, &self.can_zero)];
        for (wanted, mode, can) in ways {
            if !wanted || !can.load(Ordering::Relaxed) {
                continue;
            }
            match self.allocate(&range, mode) {
                Err(error) if is_unsupported(&error) => can.store(false, Ordering::Relaxed),
                // A disk wants whole blocks where a file does not.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                done => return done,
            }
        }
        write_plain_zeroes(self, range)
    }

    fn children(&self) -> Vec<Arc<str>> {
        Vec::new()
    }

    fn resize(&self, len: u64) -> io::Result<()> {
        if !self.writable.load(Ordering::Relaxed) {
            return Err(read_only());
        }
        if self.kind == Kind::Device {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let _resizing = self.resizing.lock();
        self.file.read().set_len(len)?;
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    fn set_writable(&self, writable: bool) -> io::Result<()> {
        let mut file = self.file.write();
        if writable == self.writable.load(Ordering::Relaxed) {
            return Ok(());
        }
        // The same file, whatever its name leads to by now.
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let plain = |error: Error| io::Error::other(error.evidence_lines().join(", "));
        let opened = open_checked(&self.options, &path, self.kind, writable).map_err(plain)?;
        // Our own locks would be in the way of the new ones.
        lock::release(&file);
        if let Err(error) = lock(&opened, &self.options, writable) {
            drop(opened);
            let before = lock(&file, &self.options, !writable);
            return Err(plain(before.err().unwrap_or(error)));
        }
        *file = opened;
        self.writable.store(writable, Ordering::Relaxed);
        Ok(())
    }

    fn extent(&self, offset: u64, end: u64) -> io::Result<(Extent, u64)> {
        if self.kind == Kind::Device {
            return Ok((Extent::Data, end));
        }
        let file = self.file.read();
        let seek = |whence| match lseek(&*file, to_off(offset)?, whence) {
            Ok(at) => Ok(u64::try_from(at).unwrap_or(end).min(end)),
            Err(Errno::ENXIO) => Ok(end),
            Err(errno) => Err(io::Error::from(errno)),
        };
        let data = seek(Whence::SeekData)?;
        if data > offset {
            Ok((Extent::Zero, data))
        } else {
            Ok((Extent::Data, seek(Whence::SeekHole)?.max(offset + 1)))
        }
    }

    fn filename(&self) -> Option<PathBuf> {
        Some(self.options.path.clone())
    }
}

/// Opens `path` and looks whether it is a `kind`.
fn open_checked(options: &Options, path: &Path, kind: Kind, writable: bool) -> Result<File> {
    // O_NONBLOCK: a pipe or a tape is refused below, not waited for. Files and disks do not care.
    let mut flags = libc::O_NONBLOCK;
    if options.direct {
        flags |= libc::O_DIRECT;
    }
    if kind == Kind::Device && writable {
        // The kernel gives a disk or partition that is mounted, is swap or part of another device to nobody who asks so.
        flags |= libc::O_EXCL;
    }
    let opened = OpenOptions::new().read(true).write(writable).custom_flags(flags).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => in_use(&options.path, "the kernel says that it is mounted or part of another device"),
        _ => unusable(&options.path, &error),
    })?;
    let of_type = file.metadata().map_err(|error| unusable(&options.path, &error))?.file_type();
    let (is, other) = match kind {
        Kind::File => (of_type.is_file(), "host_device"),
        Kind::Device => (of_type.is_block_device(), "file"),
    };
    if is {
        return Ok(file);
    }
    let error = Error::new(
        Code::FileUnusable,
        format!(
            "{} is no {}",
            options.path.display(),
            match kind {
                Kind::File => "regular file",
                Kind::Device => "disk or partition",
            }
        ),
    );
    let fits = of_type.is_file() || of_type.is_block_device();
    Err(if fits { error.fix(format!("use `--blockdev {other}`")) } else { error.fix("name a file or a disk") })
}

/// Whether the kernel has given a disk to a file system, swap or another device. Then nobody gets it for writing; for reading
/// it is had, as with QEMU, and good for what does not change.
fn is_claimed(disk: &File) -> bool {
    let path = format!("/proc/self/fd/{}", disk.as_raw_fd());
    let asked = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_EXCL).open(path);
    asked.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

/// Locks a file that was opened, if `options` say so.
fn lock(file: &File, options: &Options, writable: bool) -> Result<()> {
    if options.locking == Some(false) {
        return Ok(());
    }
    match lock::take(file, writable) {
        Ok(()) => Ok(()),
        Err(Refused::InUse(why)) => Err(in_use(&options.path, why)),
        Err(Refused::Failed(_)) if options.locking.is_none() => Ok(()),
        Err(Refused::Failed(error)) => Err(unusable(&options.path, &error).fix("locking=off does without locks")),
    }
}

fn in_use(path: &Path, why: &str) -> Error {
    Error::new(Code::DiskInUse, format!("{} is in use", path.display())).evidence(why)
}

fn unusable(path: &Path, error: &io::Error) -> Error {
    Error::new(Code::FileUnusable, format!("{} cannot be used as a disk", path.display())).evidence(explain_io(error))
}

/// The length of a file or a block device, whose metadata have none.
fn length(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Somebody has made the file shorter under us.
fn shorter(end: u64) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the file ends at {end}"))
}

fn to_off(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Whether a file system has no such operation.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV))
}

/// Reads until the buffers are full or the file ends.
fn read_some(file: &File, mut buffers: &mut [IoSliceMut], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while buffers.iter().any(|buffer| !buffer.is_empty()) {
        let count = buffers.len().min(MAX_BUFFERS);
        match preadv(file, &mut buffers[..count], to_off(offset + done as u64)?) {
            Ok(0) => break,
            Ok(got) => {
                done += got;
                IoSliceMut::advance_slices(&mut buffers, got);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(done)
}

/// Writes all of the buffers.
fn write_all(file: &File, mut buffers: &mut [IoSlice], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while buffers.iter().any(|buffer| !buffer.is_empty()) {
        let count = buffers.len().min(MAX_BUFFERS);
        match pwritev(file, &buffers[..count], to_off(offset + done)?) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(got) => {
                done += got as u64;
                IoSlice::advance_slices(&mut buffers, got);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
