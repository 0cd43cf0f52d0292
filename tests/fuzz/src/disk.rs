//! A block node in memory, of bounded length.

use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use passthru::backends::block::io::{fill_zero, range_len, total, within};
use passthru::backends::block::{BlockInfo, BlockNode};
use vm_memory::VolatileSlice;

/// Where the disk is full.
const MAX_LEN: u64 = 32 << 20;

/// Bytes.
pub struct Disk(Mutex<Vec<u8>>);

impl Disk {
    /// A disk that holds these.
    pub fn new(bytes: &[u8]) -> Disk {
        Disk(Mutex::new(bytes.to_vec()))
    }

    fn with<R>(&self, offset: u64, count: u64, act: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        let mut bytes = self.0.lock().unwrap();
        let range = within(bytes.len() as u64, offset, count)?;
        Ok(act(&mut bytes[range.start as usize..range.end as usize]))
    }
}

impl BlockNode for Disk {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            len: self.0.lock().unwrap().len() as u64,
            read_only: false,
            block_size: 1,
            physical_block_size: 512,
            discard: Some(512),
            write_zeroes: Some(512),
            write_back: true,
        }
    }

    fn read(&self, offset: u64, into: &[VolatileSlice]) -> Result<()> {
        self.with(offset, total(into), |mut bytes| {
            for slice in into {
                let (part, rest) = bytes.split_at_mut(slice.len());
                slice.copy_from(part);
                bytes = rest;
            }
        })
    }

    fn write(&self, offset: u64, from: &[VolatileSlice]) -> Result<()> {
        self.with(offset, total(from), |mut bytes| {
            for slice in from {
                let (part, rest) = bytes.split_at_mut(slice.len());
                slice.copy_to(part);
                bytes = rest;
            }
        })
    }

    /// As one that has several transfers under way.
    fn depth(&self) -> usize {
        4
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, range: Range<u64>) -> Result<()> {
        self.write_zeroes(range, true)
    }

    fn write_zeroes(&self, range: Range<u64>, _may_unmap: bool) -> Result<()> {
        self.with(range.start, range_len(&range), |bytes| fill_zero(&[VolatileSlice::from(bytes)]))
    }

    fn children(&self) -> Vec<Arc<str>> {
        Vec::new()
    }

    fn resize(&self, len: u64) -> Result<()> {
        if len > MAX_LEN {
            return Err(ErrorKind::StorageFull.into());
        }
        let mut bytes = self.0.lock().map_err(|_| Error::other("poisoned"))?;
        bytes.resize(len as usize, 0);
        Ok(())
    }
}
