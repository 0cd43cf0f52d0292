//! Block back ends: a graph of named nodes, each of which reads and writes bytes at offsets, on top of others or of what
//! the host has.
//!
//! | file | what |
//! |---|---|
//! | `file`, `host_device` | a file, a disk or partition of the host, on the descriptor of `host` |
//! | `host` | one open descriptor: requests, alone or many at once by io_uring; alignment of direct I/O, holes; QEMU's locks |
//! | `raw` | a part of another node |
//! | `qcow2` | images: header, the crate imago on a node, their check |
//! | `chain` | opening an image by its file's name, with its backing files |
//! | `detect_zeroes` | writes of zeros that take no place |
//! | `throttle` | rates, which several nodes may share |
//! | `copy_on_read`, `null` | keeps what was read in an overlay; nothing: reads as zeros |
//! | `switch` | where a device holds on to while what is below it changes: a new overlay, a commit |
//!
//! Nodes are called from the worker threads of devices, several at once. A node holds no lock of another's; the order of
//! locks is that of the graph, from the device down.

pub mod chain;
pub mod copy;
pub mod copy_on_read;
pub mod detect_zeroes;
pub mod file;
pub mod host;
pub mod io;
pub mod null;
pub mod overlay;
pub mod qcow2;
pub mod raw;
pub mod switch;
#[cfg(test)]
pub(crate) mod testing;
pub mod throttle;
pub mod types;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use vm_memory::VolatileSlice;

pub use types::{BLOCKDEVS, Common, expand, remove};

use super::table::Claim;
use detect_zeroes::DetectZeroes;
use switch::Switch;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockInfo {
    /// Length in bytes.
    pub len: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Requests whose offset and length are multiples of this need no copy and no second request; a power of two. All
    /// others work.
    pub block_size: u32,
    /// The unit in which the medium writes, a power of two, at least `block_size`.
    pub physical_block_size: u32,
    /// The unit in which [`BlockNode::discard`] gives memory back; `None`: it does nothing.
    pub discard: Option<u32>,
    /// The unit in which [`BlockNode::write_zeroes`] is cheaper than writing zeros; `None`: it is not.
    pub write_zeroes: Option<u32>,
    /// Whether what is written is lost with the host's power until [`BlockNode::flush`] returns.
    pub write_back: bool,
}

/// What holds the bytes from some offset on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// This node, or what it stands on.
    Data,
    /// Nothing: they read as zeros.
    Zero,
    /// The backing node: this one has no bytes of its own there.
    Backing,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the node into memory.
    Read,
    /// From memory to the node.
    Write,
}

/// A read or write that is made together with others.
#[derive(Clone, Copy)]
pub struct Transfer<'a> {
    /// Which way.
    pub direction: Direction,
    /// Where its bytes are in the node.
    pub offset: u64,
    /// Where they are in memory.
    pub buffers: &'a [VolatileSlice<'a>],
}

impl Transfer<'_> {
    /// Does it by itself.
    pub fn alone(&self, node: &(impl BlockNode + ?Sized)) -> std::io::Result<()> {
        match self.direction {
            Direction::Read => node.read(self.offset, self.buffers),
            Direction::Write => node.write(self.offset, self.buffers),
        }
    }
}

/// A node of the graph.
///
/// A request that leaves `0..len` fails with [`std::io::ErrorKind::InvalidInput`] and does nothing. One that fails otherwise may
/// have been done in part. The errors are those of the system where it has one (`ENOSPC`, `EIO`), so that a device can
/// tell its guest which.
pub trait BlockNode: Send + Sync {
    /// What the node is now.
    fn info(&self) -> BlockInfo;

    /// Fills `into` with what is at `offset`.
    fn read(&self, offset: u64, into: &[VolatileSlice]) -> std::io::Result<()>;

    /// Writes `from` to `offset`. It need not be on the medium when this returns.
    fn write(&self, offset: u64, from: &[VolatileSlice]) -> std::io::Result<()>;

    /// How many transfers it has under way at a time when it is given several; 1: it does one after the other.
    fn depth(&self) -> usize {
        1
    }

    /// Does several transfers, in whatever order, and says what became of each. All have ended when it returns.
    fn transfer(&self, transfers: &[Transfer]) -> Vec<std::io::Result<()>> {
        transfers.iter().map(|transfer| transfer.alone(self)).collect()
    }

    /// Returns when all writes that have returned are on the medium.
    fn flush(&self) -> std::io::Result<()>;

    /// Says that nobody needs the bytes of `range` any more: what they read as afterwards is not said.
    fn discard(&self, range: Range<u64>) -> std::io::Result<()>;

    /// Makes `range` read as zeros. `may_unmap`: its memory may be given back.
    fn write_zeroes(&self, range: Range<u64>, may_unmap: bool) -> std::io::Result<()>;

    /// The names of the nodes that this one stands on.
    fn children(&self) -> Vec<Arc<str>>;

    /// Changes the length; new bytes read as zeros.
    fn resize(&self, _len: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    /// Makes a node that was opened for reading one that can be written, or the other way round.
    fn set_writable(&self, writable: bool) -> std::io::Result<()> {
        if writable != self.info().read_only { Ok(()) } else { Err(std::io::ErrorKind::Unsupported.into()) }
    }

    /// What holds the bytes from `offset` on, and up to which offset at least; `offset` lies before `end`, `end` at most
    /// at the end of the node.
    fn extent(&self, _offset: u64, end: u64) -> std::io::Result<(Extent, u64)> {
        Ok((Extent::Data, end))
    }

    /// The host's file that the node stands on.
    fn filename(&self) -> Option<PathBuf> {
        None
    }

    /// What an overlay stands on.
    fn backing(&self) -> Option<Arc<dyn BlockNode>> {
        None
    }

    /// What becomes of a write of zeros, where its line says so.
    fn detect_zeroes(&self) -> DetectZeroes {
        DetectZeroes::Off
    }

    /// The switch that the node is.
    fn switch(&self) -> Option<&Switch> {
        None
    }
}

/// A node below another, which has it for itself while it lives.
#[derive(Clone)]
pub struct Child {
    /// The node.
    pub node: Arc<dyn BlockNode>,
    /// Its name.
    pub name: Arc<str>,
    /// Gives the node back to the next user. Shared with what this child is handed on to.
    _claim: Option<Arc<Claim<dyn BlockNode>>>,
}

impl Child {
    /// A node that has a name among those of the machine.
    pub fn claimed(claim: Claim<dyn BlockNode>) -> Child {
        Child { node: claim.back().clone(), name: claim.name().clone(), _claim: Some(Arc::new(claim)) }
    }

    /// A node that nobody else knows.
    pub fn own(node: Arc<dyn BlockNode>, name: impl Into<Arc<str>>) -> Child {
        Child { node, name: name.into(), _claim: None }
    }
}
