//! `copy-on-read`: what is read from the backing image of an overlay is kept in the overlay, where it is near.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use vm_memory::VolatileSlice;

use super::io::{chunks, range_len, read_into, total, within, write_from};
use super::types::{claim, made};
use super::{BlockInfo, BlockNode, Child, Extent};
use crate::backends::BackendCx;
use crate::error::{Code, Error, Result};
use crate::object::{Create, NodeRef, TypeInfo, props};

props! {
    /// Keeps in an overlay what was read from its backing image.
    pub struct CopyOnReadProps {
        /// The overlay
        file: NodeRef,
    }
}

/// The row of the table.
pub static TYPE: TypeInfo<Arc<dyn BlockNode>, BackendCx> = TypeInfo::of::<CopyOnReadType>();

struct CopyOnReadType;

impl Create<Arc<dyn BlockNode>, BackendCx> for CopyOnReadType {
    const NAME: &'static str = "copy-on-read";
    const GROUP: &'static str = "Filters";
    type Props = CopyOnReadProps;

    fn create(props: CopyOnReadProps, cx: &BackendCx) -> Result<Arc<dyn BlockNode>> {
        let file = claim(cx, &props.file)?;
        if file.node.info().read_only {
            return Err(Error::new(
                Code::BadProperty,
                format!("`{}` is read-only, nothing can be kept in it", file.name),
            )
            .fix("open the overlay for writing, or leave copy-on-read out"));
        }
        Ok(made(CopyOnRead::new(file)))
    }
}

/// A node that keeps what is read.
pub struct CopyOnRead {
    file: Child,
    /// Write-held while what was read is written: a guest's write in between would be lost. Read-held by its writes.
    copying: RwLock<()>,
}

impl CopyOnRead {
    /// Keeps what is read through it in `file`.
    pub fn new(file: Child) -> CopyOnRead {
        CopyOnRead { file, copying: RwLock::new(()) }
    }

    /// Copies what the overlay has not of `range`.
    fn keep(&self, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let (extent, end) = self.file.node.extent(at, range.end)?;
            if extent == Extent::Backing {
                let mut buffer = vec![0; range_len(&(at..end)).min(super::io::MAX_CHUNK as u64) as usize];
                for part in chunks(at..end) {
                    let bytes = &mut buffer[..range_len(&part) as usize];
                    let _copying = self.copying.write();
                    // By now a guest's write may have made it the overlay's own, which reads so, too.
                    read_into(&*self.file.node, part.start, bytes)?;
                    write_from(&*self.file.node, part.start, bytes)?;
                }
            }
            at = end.max(at + 1);
        }
        Ok(())
    }
}

impl BlockNode for CopyOnRead {
    fn info(&self) -> BlockInfo {
        self.file.node.info()
    }

    fn read(&self, offset: u64, into: &[VolatileSlice]) -> io::Result<()> {
        let range = within(self.info().len, offset, total(into))?;
        // What cannot be kept (a full disk) can be read all the same.
        let _ = self.keep(range);
        self.file.node.read(offset, into)
    }

    fn write(&self, offset: u64, from: &[VolatileSlice]) -> io::Result<()> {
        let _copying = self.copying.read();
        self.file.node.write(offset, from)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.node.flush()
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        let _copying = self.copying.read();
        self.file.node.discard(range)
    }

    fn write_zeroes(&self, range: Range<u64>, may_unmap: bool) -> io::Result<()> {
        let _copying = self.copying.read();
        self.file.node.write_zeroes(range, may_unmap)
    }

    fn children(&self) -> Vec<Arc<str>> {
        vec![self.file.name.clone()]
    }

    fn resize(&self, len: u64) -> io::Result<()> {
        self.file.node.resize(len)
    }

    fn extent(&self, offset: u64, end: u64) -> io::Result<(Extent, u64)> {
        self.file.node.extent(offset, end)
    }

    fn filename(&self) -> Option<PathBuf> {
        self.file.node.filename()
    }

    fn backing(&self) -> Option<Arc<dyn BlockNode>> {
        self.file.node.backing()
    }
}

#[cfg(test)]
mod tests {
    use super::super::qcow2::Qcow2;
    use super::super::qcow2::create::{New, create};
    use super::super::testing::MemoryNode;
    use super::*;

    #[test]
    fn what_was_read_once_comes_from_the_overlay() {
        let base = Arc::new(MemoryNode::new((0..300_000).map(|at| (at % 251) as u8).collect()));
        let file = Arc::new(MemoryNode::new(Vec::new()));
        create(file.clone(), &New { backing: Some(("b".into(), "raw".into())), ..New::of(300_000) }).unwrap();
        let top = Qcow2::open(Child::own(file.clone(), "f"), Some(Child::own(base.clone(), "b")), false, true).unwrap();
        let node = CopyOnRead::new(Child::own(Arc::new(top), "top"));
        let mut first = vec![0; 100_000];
        read_into(&node, 1000, &mut first).unwrap();
        assert!(first == base.bytes()[1000..101_000]);
        base.bad_from(0);
        let mut again = vec![0; 100_000];
        read_into(&node, 1000, &mut again).unwrap();
        assert!(again == first);
        assert!(read_into(&node, 200_000, &mut again).is_err());
        base.bad_from(u64::MAX);
        file.full_after(0);
        read_into(&node, 200_000, &mut again).unwrap();
        assert!(again == base.bytes()[200_000..]);
    }
}
