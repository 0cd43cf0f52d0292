//! `detect-zeroes=`: writes of zeros become ranges that read as zeros, which cost no place in the image.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::io::{is_zero, total};
use super::switch::Switch;
use super::{BlockInfo, BlockNode, Extent};
use crate::error::{Code, Error, Result};
use crate::object::prop_enum;

prop_enum! {
    /// What becomes of a write of zeros.
    pub enum DetectZeroes {
        /// It is a write.
        Off = "off",
        /// The range reads as zeros from then on.
        On = "on",
        /// The same, and its memory is given back.
        Unmap = "unmap",
    }
}

/// A node whose writes of zeros are found.
struct Detect {
    node: Arc<dyn BlockNode>,
    unmap: bool,
}

/// The node as its user is to see it.
///
/// # Errors
/// [`Code::BadProperty`]: memory is to be given back by a node that does not.
pub fn wrap(node: Arc<dyn BlockNode>, how: DetectZeroes) -> Result<Arc<dyn BlockNode>> {
    match how {
        DetectZeroes::Off => Ok(node),
        DetectZeroes::Unmap if node.info().discard.is_none() => {
            Err(Error::new(Code::BadProperty, "detect-zeroes=unmap gives memory back, which the node does not")
                .fix("add discard=unmap, or write detect-zeroes=on"))
        }
        DetectZeroes::On | DetectZeroes::Unmap => Ok(Arc::new(Detect { node, unmap: how == DetectZeroes::Unmap })),
    }
}

impl BlockNode for Detect {
    fn detect_zeroes(&self) -> DetectZeroes {
        if self.unmap { DetectZeroes::Unmap } else { DetectZeroes::On }
    }

    fn info(&self) -> BlockInfo {
        self.node.info()
    }

    fn read(&self, offset: u64, into: &[VolatileSlice]) -> io::Result<()> {
        self.node.read(offset, into)
    }

    fn write(&self, offset: u64, from: &[VolatileSlice]) -> io::Result<()> {
        match offset.checked_add(total(from)).filter(|_| is_zero(from)) {
            Some(end) if end > offset => self.node.write_zeroes(offset..end, self.unmap),
            _ => self.node.write(offset, from),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.node.flush()
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.node.discard(range)
    }

    fn write_zeroes(&self, range: Range<u64>, may_unmap: bool) -> io::Result<()> {
        self.node.write_zeroes(range, may_unmap)
    }

    fn children(&self) -> Vec<Arc<str>> {
        self.node.children()
    }

    fn resize(&self, len: u64) -> io::Result<()> {
        self.node.resize(len)
    }

    fn set_writable(&self, writable: bool) -> io::Result<()> {
        self.node.set_writable(writable)
    }

    fn extent(&self, offset: u64, end: u64) -> io::Result<(Extent, u64)> {
        self.node.extent(offset, end)
    }

    fn filename(&self) -> Option<PathBuf> {
        self.node.filename()
    }

    fn backing(&self) -> Option<Arc<dyn BlockNode>> {
        self.node.backing()
    }

    fn switch(&self) -> Option<&Switch> {
        self.node.switch()
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::{HostFile, Kind, Options};
    use super::super::io::write_from;
    use super::*;

    #[test]
    fn zeros_take_no_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let open = |unmap| Options { unmap, ..Options::plain(&path, true) };
        let file = |unmap| -> Arc<dyn BlockNode> { Arc::new(HostFile::open(open(unmap), Kind::File).unwrap()) };
        assert_eq!(wrap(file(false), DetectZeroes::Unmap).map(drop).unwrap_err().code(), Code::BadProperty);
        let node = wrap(file(true), DetectZeroes::Unmap).unwrap();
        let blocks = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap());
        let before = blocks();
        write_from(&*node, 0, &mut vec![0; 512 << 10]).unwrap();
        write_from(&*node, 768 << 10, &mut [0, 0, 1]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[..512 << 10].iter().all(|byte| *byte == 0));
        assert_eq!((bytes[512 << 10], &bytes[768 << 10..(768 << 10) + 4]), (7, &[0, 0, 1, 7][..]));
        // Where the file system can.
        assert!(node.info().discard.is_none() || blocks() < before);
    }
}
