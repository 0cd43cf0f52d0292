//! A node in memory for tests, which can be told to fail.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use vm_memory::VolatileSlice;

use super::io::{fill_zero, range_len, total, within};
use super::throttle::Group;
use super::types::{BLOCKDEVS, Common, expand};
use super::{BlockInfo, BlockNode};
use crate::backends::table::Table;
use crate::backends::{BackendCx, Backends};
use crate::error::Result;
use crate::event_loop::EventLoop;
use crate::object::{Args, Props};

/// Where the disk is full, bytes.
const MAX_LEN: u64 = 64 << 20;

/// Makes the nodes of `lines` as a machine does that has a throttle group `t0`.
pub(crate) fn graph(lines: &[&str]) -> Result<Arc<Table<dyn BlockNode>>> {
    let event_loop = EventLoop::new(|_, _| {}).unwrap().handle();
    let backends = Arc::new(Backends::default());
    backends.throttles.add("t0".into(), "throttle-group", Arc::new(Group::unlimited()), true).unwrap();
    let nodes = backends.nodes.clone();
    let lines: Vec<Args> = lines.iter().map(|text| Args::parse("--blockdev", Some("driver"), text).unwrap()).collect();
    for mut args in expand(&lines)? {
        let of_type = BLOCKDEVS.take_type(&mut args)?;
        let name: Arc<str> = Common::parse(&mut args)?.node_name.as_str().into();
        let (event_loop, backends) = (event_loop.clone(), backends.clone());
        let node = of_type.create(&mut args, &BackendCx { name: name.clone(), event_loop, backends })?;
        let shared = node.info().read_only;
        nodes.add(name, of_type.name(), node, shared)?;
    }
    Ok(nodes)
}

/// Bytes in memory.
pub(crate) struct MemoryNode {
    bytes: Mutex<Vec<u8>>,
    /// How many more writes (or changes of the length) go well; then the disk is full.
    writes_left: AtomicU64,
    /// Reads at and after this offset fail.
    bad_from: AtomicU64,
}

impl MemoryNode {
    /// A node with these bytes.
    pub(crate) fn new(bytes: Vec<u8>) -> MemoryNode {
        MemoryNode {
            bytes: Mutex::new(bytes),
            writes_left: AtomicU64::new(u64::MAX),
            bad_from: AtomicU64::new(u64::MAX),
        }
    }

    /// What it holds.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().clone()
    }

    /// After `writes` more the disk is full.
    pub(crate) fn full_after(&self, writes: u64) {
        self.writes_left.store(writes, Ordering::Relaxed);
    }

    /// The medium cannot be read from `offset` on.
    pub(crate) fn bad_from(&self, offset: u64) {
        self.bad_from.store(offset, Ordering::Relaxed);
    }

    fn count_write(&self) -> io::Result<()> {
        let left = self.writes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| io::Error::from_raw_os_error(libc::ENOSPC))
    }
}

impl BlockNode for MemoryNode {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            len: self.bytes.lock().len() as u64,
            read_only: false,
            block_size: 1,
            physical_block_size: 512,
            discard: Some(512),
            write_zeroes: Some(512),
            write_back: true,
        }
    }

    fn read(&self, offset: u64, into: &[VolatileSlice]) -> io::Result<()> {
        let bytes = self.bytes.lock();
        let range = within(bytes.len() as u64, offset, total(into))?;
        if range.end > self.bad_from.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let mut from = &bytes[range.start as usize..range.end as usize];
        for slice in into {
            let (part, rest) = from.split_at(slice.len());
            slice.copy_from(part);
            from = rest;
        }
        Ok(())
    }

    fn write(&self, offset: u64, from: &[VolatileSlice]) -> io::Result<()> {
        let mut bytes = self.bytes.lock();
        let range = within(bytes.len() as u64, offset, total(from))?;
        self.count_write()?;
        let mut into = &mut bytes[range.start as usize..range.end as usize];
        for slice in from {
            let (part, rest) = into.split_at_mut(slice.len());
            slice.copy_to(part);
            into = rest;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.write_zeroes(range, true)
    }

    fn write_zeroes(&self, range: Range<u64>, _may_unmap: bool) -> io::Result<()> {
        let mut bytes = self.bytes.lock();
        let range = within(bytes.len() as u64, range.start, range_len(&range))?;
        self.count_write()?;
        let part = &mut bytes[range.start as usize..range.end as usize];
        fill_zero(&[VolatileSlice::from(part)]);
        Ok(())
    }

    fn children(&self) -> Vec<Arc<str>> {
        Vec::new()
    }

    fn resize(&self, len: u64) -> io::Result<()> {
        self.count_write()?;
        if len > MAX_LEN {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.bytes.lock().resize(len as usize, 0);
        Ok(())
    }
}
