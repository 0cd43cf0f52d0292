//! A node as what the crate imago reads images from.
//!
//! The crate's trait has functions that are `unsafe` to call, because a caller must keep requests aligned and apart by
//! itself. So this one file of the back ends has `unsafe` in it; its own part of the bargain is a conversion of
//! buffers.

use std::fmt;
use std::io;
use std::sync::Arc;

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;
use imago::storage::{PreallocateMode, Storage};
use parking_lot::Mutex;
use vm_memory::VolatileSlice;

use super::super::BlockNode;
use super::super::io::{total, write_plain_zeroes};

/// How far behind its file's end an image may write, bytes. New clusters follow each other, so that only a damaged table leads
/// further, and would make the file as long as it likes.
const MAX_GAP: u64 = 1 << 30;

/// A node under an image.
pub struct NodeStorage {
    node: Arc<dyn BlockNode>,
    /// Held while the node grows: of two that write behind its end, neither may cut off the other's part.
    growing: Mutex<()>,
    helper: CommonStorageHelper,
}

impl NodeStorage {
    /// The node as the image's file.
    pub fn new(node: Arc<dyn BlockNode>) -> NodeStorage {
        NodeStorage { node, growing: Mutex::new(()), helper: CommonStorageHelper::default() }
    }

    /// Makes the node reach to `end` at least.
    fn reach(&self, offset: u64, len: u64) -> io::Result<u64> {
        let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        let len = self.node.info().len;
        if end.saturating_sub(len) > MAX_GAP {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the image leads to {end:#x}, far behind its end"),
            ));
        }
        if end > len {
            let _growing = self.growing.lock();
            if end > self.node.info().len {
                self.node.resize(end)?;
            }
        }
        Ok(end)
    }
}

impl fmt::Debug for NodeStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NodeStorage").field(&self.node.filename()).finish()
    }
}

impl fmt::Display for NodeStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node.filename() {
            Some(name) => write!(f, "{}", name.display()),
            None => write!(f, "a node"),
        }
    }
}

impl Storage for NodeStorage {
    fn mem_align(&self) -> usize {
        self.node.info().block_size as usize
    }

    fn req_align(&self) -> usize {
        self.node.info().block_size as usize
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.node.info().len)
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut buffers = bufv.into_inner();
        // What lies behind the end reads as zeros.
        let mut left = self.node.info().len.saturating_sub(offset);
        let mut slices = Vec::with_capacity(buffers.len());
        for buffer in &mut buffers {
            let there = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let (part, rest) = buffer.split_at_mut(there);
            rest.fill(0);
            slices.push(VolatileSlice::from(part));
            left -= there as u64;
        }
        if total(&slices) == 0 { Ok(()) } else { self.node.read(offset, &slices) }
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        self.reach(offset, bufv.len())?;
        let buffers = bufv.into_inner();
        let slices: Vec<VolatileSlice> = buffers
            .iter()
            .map(|buffer| {
                // SAFETY: the memory is borrowed, and so valid and mapped, for as long as the slice is in use; nobody
                // writes through it, because `BlockNode::write` only reads from its buffers.
                unsafe { VolatileSlice::new(buffer.as_ptr().cast_mut(), buffer.len()) }
            })
            .collect();
        self.node.write(offset, &slices)
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = self.reach(offset, length)?;
        self.node.write_zeroes(offset..end, true)
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = self.reach(offset, length)?;
        self.node.write_zeroes(offset..end, false)
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset.saturating_add(length).min(self.node.info().len);
        if offset < end { self.node.discard(offset..end) } else { Ok(()) }
    }

    fn flush(&self) -> io::Result<()> {
        // A node keeps nothing back: what was written is the system's.
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.node.flush()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, new_size: u64, prealloc_mode: PreallocateMode) -> io::Result<()> {
        let _growing = self.growing.lock();
        let old = self.node.info().len;
        self.node.resize(new_size)?;
        match prealloc_mode {
            PreallocateMode::None | PreallocateMode::Zero => Ok(()),
            PreallocateMode::WriteData => write_plain_zeroes(&*self.node, old..new_size.max(old)),
            _ => self.node.write_zeroes(old..new_size.max(old), false),
        }
    }
}
