//! `qcow2`: images that grow as they are written, and that can stand on other images.
//!
//! The crate imago does the work on the tables; the file below and the backing image are nodes of ours, so that locks,
//! limits and switches apply to them, and no image opens anything by itself.

pub mod check;
pub mod create;
pub mod header;
mod props;
mod refcounts;
pub mod snapshots;
mod storage;
mod view;

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use imago::format::PreallocateMode;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::{FormatAccess, ShallowMapping};
use parking_lot::RwLock;
use vm_memory::VolatileSlice;

use super::io::{range_len, read_into, read_only, total, within, write_plain_zeroes};
use super::{BlockInfo, BlockNode, Child, Extent};
use crate::error::{Code, Error, Result, explain_io};
use crate::log;
pub use props::TYPE;

use header::{Header, MAX_HEADER, Refused};
use storage::NodeStorage;
use view::View;

/// Bytes that are discarded or made zero at once, with all other requests waiting.
const MAX_EXCLUSIVE: u64 = 1 << 30;

/// An open image.
pub struct Qcow2 {
    file: Child,
    backing: Option<Child>,
    header: Header,
    /// Whether what is discarded is given back.
    unmap: bool,
    len: AtomicU64,
    writable: AtomicBool,
    /// Read-held by reads and writes, of which several run at once. Write-held by what changes tables that these may be
    /// using: discards, zeros (the crate looks at the rest of a cluster and then changes all of it), changes of the
    /// length, and the exchange of the whole.
    image: RwLock<View>,
}

/// Reads the header of the image on `file`.
///
/// # Errors
/// [`Code::ImageUnusable`], [`Code::ImageFailed`].
pub fn read_header(file: &dyn BlockNode, name: &str) -> Result<Header> {
    let len = file.info().len;
    let mut bytes = vec![0; len.min(MAX_HEADER as u64) as usize];
    read_into(file, 0, &mut bytes).map_err(|error| failed(name, &error))?;
    Header::parse(&bytes, len).map_err(|refused| {
        let error = Error::new(Code::ImageUnusable, format!("the image `{name}` cannot be used"));
        let error = error.evidence(refused.to_string());
        match refused {
            Refused::Magic => error.fix("say what it is with driver=raw, or -f raw"),
            Refused::Dirty | Refused::Corrupt => error.fix("`qemu-img check -r all FILE` mends it"),
            Refused::Unsupported(_) => error.fix("`qemu-img convert -O qcow2` makes an image without it"),
            Refused::Invalid(_) => error.fix("take a copy that is whole"),
        }
    })
}

impl Qcow2 {
    /// Opens the image on `file`. `backing` is what its header names below it, or another one.
    ///
    /// # Errors
    /// [`Code::ImageUnusable`], [`Code::ImageFailed`].
    pub fn open(file: Child, backing: Option<Child>, read_only: bool, unmap: bool) -> Result<Qcow2> {
        let header = read_header(&*file.node, &file.name)?;
        let writable = !read_only && !file.node.info().read_only;
        let image = View::open(&file, backing.as_ref(), &header, writable).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::Unsupported => {
                Error::new(Code::ImageUnusable, format!("the image `{}` cannot be used", file.name))
                    .evidence(error.to_string())
            }
            _ => failed(&file.name, &error),
        })?;
        Ok(Qcow2 {
            len: AtomicU64::new(header.size),
            writable: AtomicBool::new(writable),
            image: RwLock::new(image),
            file,
            backing,
            header,
            unmap,
        })
    }

    /// What the header said when the image was opened.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The node below.
    pub fn file(&self) -> &Child {
        &self.file
    }

    /// Forgets all that the image has itself: what it stands on shows through.
    ///
    /// # Errors
    /// Those of [`BlockNode::discard`]; images of version 2 cannot do it.
    pub fn empty(&self) -> io::Result<()> {
        let all = self.check_write(0, self.len.load(Ordering::Acquire))?;
        self.exclusively(all, |image, at, count| image.discard_to_backing(at, count))?;
        self.flush()
    }

    fn check(&self, offset: u64, count: u64) -> io::Result<Range<u64>> {
        within(self.len.load(Ordering::Acquire), offset, count)
    }

    fn check_write(&self, offset: u64, count: u64) -> io::Result<Range<u64>> {
        if self.writable.load(Ordering::Relaxed) { self.check(offset, count) } else { Err(read_only()) }
    }

    /// Whether clusters can be marked as zeros.
    fn has_zeros(&self) -> bool {
        self.header.version >= 3
    }

    /// Does `act` to all of `range`, with nobody else using the image, in parts.
    fn exclusively(
        &self,
        range: Range<u64>,
        act: impl Fn(&mut FormatAccess<NodeStorage>, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let count = MAX_EXCLUSIVE.min(range.end - at);
            self.image.write().alone(|image| act(image, at, count))?;
            at += count;
        }
        Ok(())
    }
}

/// Writes what is in memory, and all of it to the medium.
fn write_out(image: &View) -> io::Result<()> {
    image.with(|image| {
        image.flush()?;
        image.sync()
    })
}

fn failed(name: &str, error: &io::Error) -> Error {
    Error::new(Code::ImageFailed, format!("the image `{name}` cannot be read")).evidence(explain_io(error))
}

impl BlockNode for Qcow2 {
    fn info(&self) -> BlockInfo {
        let file = self.file.node.info();
        let cluster = u32::try_from(self.header.cluster_size()).ok().filter(|_| self.has_zeros());
        BlockInfo {
            len: self.len.load(Ordering::Acquire),
            read_only: !self.writable.load(Ordering::Relaxed),
            discard: cluster.filter(|_| self.unmap),
            write_zeroes: cluster,
            write_back: true,
            ..file
        }
    }

    fn read(&self, offset: u64, into: &[VolatileSlice]) -> io::Result<()> {
        self.check(offset, total(into))?;
        let (vector, _mapped) = IoVectorMut::from_volatile_slice(into);
        self.image.read().with(|image| image.readv(vector, offset))
    }

    fn write(&self, offset: u64, from: &[VolatileSlice]) -> io::Result<()> {
        self.check_write(offset, total(from))?;
        let (vector, _mapped) = IoVector::from_volatile_slice(from);
        self.image.read().with(|image| image.writev(vector, offset))
    }

    fn flush(&self) -> io::Result<()> {
        if !self.writable.load(Ordering::Relaxed) {
            return Ok(());
        }
        write_out(&self.image.read())
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        let range = self.check_write(range.start, range_len(&range))?;
        if !self.unmap || !self.has_zeros() {
            return Ok(());
        }
        self.exclusively(range, |image, at, count| image.discard_to_any(at, count))
    }

    fn write_zeroes(&self, range: Range<u64>, may_unmap: bool) -> io::Result<()> {
        let range = self.check_write(range.start, range_len(&range))?;
        if !self.has_zeros() {
            return write_plain_zeroes(self, range);
        }
        self.exclusively(range, |image, at, count| {
            if may_unmap && self.unmap { image.discard_to_zero(at, count) } else { image.write_zeroes(at, count) }
        })
    }

    fn children(&self) -> Vec<Arc<str>> {
        [Some(&self.file), self.backing.as_ref()].into_iter().flatten().map(|child| child.name.clone()).collect()
    }

    fn resize(&self, len: u64) -> io::Result<()> {
        if !self.writable.load(Ordering::Relaxed) {
            return Err(read_only());
        }
        self.image.write().alone(|image| {
            // What the backing image has behind our end must not come to light.
            let shows = self.backing.as_ref().is_some_and(|backing| backing.node.info().len > image.size());
            image.resize(len, if shows { PreallocateMode::Zero } else { PreallocateMode::None })
        })?;
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    fn set_writable(&self, writable: bool) -> io::Result<()> {
        let mut image = self.image.write();
        if writable == self.writable.load(Ordering::Relaxed) {
            return Ok(());
        }
        if writable {
            self.file.node.set_writable(true)?;
        } else {
            write_out(&image)?;
        }
        *image = View::open(&self.file, self.backing.as_ref(), &self.header, writable)?;
        self.writable.store(writable, Ordering::Relaxed);
        if writable { Ok(()) } else { self.file.node.set_writable(false) }
    }

    fn extent(&self, offset: u64, end: u64) -> io::Result<(Extent, u64)> {
        self.image.read().with(|image| {
            let (mapping, count) = image.get_shallow_mapping(offset, end.saturating_sub(offset))?;
            let extent = match mapping {
                ShallowMapping::Indirect { .. } => Extent::Backing,
                ShallowMapping::Zero { explicit: false, .. } if self.backing.is_some() => Extent::Backing,
                ShallowMapping::Zero { .. } | ShallowMapping::Eof { .. } => Extent::Zero,
                _ => Extent::Data,
            };
            Ok((extent, if count == 0 { end } else { offset + count }))
        })
    }

    fn filename(&self) -> Option<PathBuf> {
        self.file.node.filename()
    }

    fn backing(&self) -> Option<Arc<dyn BlockNode>> {
        self.backing.as_ref().map(|backing| backing.node.clone())
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        // The tables that are still in memory; a guest that cares has flushed before.
        if let Err(error) = self.flush() {
            log::warn(format_args!("the image `{}` was not closed properly: {}", self.file.name, explain_io(&error)));
        }
    }
}

#[cfg(test)]
mod tests;
