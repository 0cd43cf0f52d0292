//! `raw`: the bytes of another node as they are, or a part of them.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::file::Discard;
use super::io::{range_len, read_only, total, within};
use super::types::{claim, made};
use super::{BlockInfo, BlockNode, Child, Direction, Extent, Transfer};
use crate::backends::BackendCx;
use crate::error::{Code, Error, Result};
use crate::object::{Create, NodeRef, Size, TypeInfo, props};

props! {
    /// The bytes of another node as they are, or a part of them.
    pub struct RawProps {
        /// The node that has them
        file: NodeRef,
        /// Where the part begins
        offset: Size = "0",
        /// Length of the part; without it all that follows
        size: Option<Size>,
        /// Refuse writes
        read_only: bool = "off",
        /// Whether what the guest discards goes to the other node, whose own discard= must say so, too
        discard: Discard = "unmap",
    }
}

/// The row of the table.
pub static TYPE: TypeInfo<Arc<dyn BlockNode>, BackendCx> = TypeInfo::of::<RawType>();

struct RawType;

impl Create<Arc<dyn BlockNode>, BackendCx> for RawType {
    const NAME: &'static str = "raw";
    const GROUP: &'static str = "Formats";
    type Props = RawProps;

    fn create(props: RawProps, cx: &BackendCx) -> Result<Arc<dyn BlockNode>> {
        let size = props.size.map(|size| size.0);
        let raw = Raw::new(claim(cx, &props.file)?, props.offset.0, size, props.read_only)?;
        Ok(made(Raw { discard: props.discard == Discard::Unmap, ..raw }))
    }
}

/// A part of another node.
pub struct Raw {
    file: Child,
    offset: u64,
    /// Its length; `None`: to the end of the other, however long that is.
    size: Option<u64>,
    read_only: bool,
    /// Whether discards are passed on.
    discard: bool,
}

impl Raw {
    /// `size` bytes of `file` from `offset` on; without `size` all that follow.
    ///
    /// # Errors
    /// [`Code::BadProperty`] if they do not lie inside it.
    pub fn new(file: Child, offset: u64, size: Option<u64>, read_only: bool) -> Result<Raw> {
        let (name, len) = (&file.name, file.node.info().len);
        let fits = offset.checked_add(size.unwrap_or(0)).is_some_and(|end| end <= len);
        if !fits {
            let asked = size.map_or(String::new(), |size| format!("{size} bytes "));
            return Err(Error::new(
                Code::BadProperty,
                format!("{asked}from offset {offset} do not lie inside `{name}`"),
            )
            .evidence(format!("`{name}` has {len} bytes"))
            .fix("make offset= and size= smaller"));
        }
        Ok(Raw { file, offset, size, read_only, discard: true })
    }

    fn len(&self) -> u64 {
        self.size.unwrap_or_else(|| self.file.node.info().len.saturating_sub(self.offset))
    }

    /// Where a request lies in the file.
    fn place(&self, offset: u64, count: u64) -> io::Result<Range<u64>> {
        let range = within(self.len(), offset, count)?;
        Ok(range.start + self.offset..range.end + self.offset)
    }

    fn place_change(&self, offset: u64, count: u64) -> io::Result<Range<u64>> {
        if self.read_only { Err(read_only()) } else { self.place(offset, count) }
    }
}

impl BlockNode for Raw {
    fn info(&self) -> BlockInfo {
        let file = self.file.node.info();
        // What begins inside a block of the file has blocks of its own that lie across two of it.
        let shift = |size: u32| if self.offset.is_multiple_of(u64::from(size)) { size } else { 1 };
        BlockInfo {
            len: self.len(),
            read_only: self.read_only || file.read_only,
            block_size: shift(file.block_size),
            discard: file.discard.filter(|_| self.discard),
            ..file
        }
    }

    fn read(&self, offset: u64, into: &[VolatileSlice]) -> io::Result<()> {
        self.file.node.read(self.place(offset, total(into))?.start, into)
    }

    fn write(&self, offset: u64, from: &[VolatileSlice]) -> io::Result<()> {
        self.file.node.write(self.place_change(offset, total(from))?.start, from)
    }

    fn depth(&self) -> usize {
        self.file.node.depth()
    }

    fn transfer(&self, transfers: &[Transfer]) -> Vec<io::Result<()>> {
        let place = |transfer: &Transfer| match transfer.direction {
            Direction::Read => self.place(transfer.offset, total(transfer.buffers)),
            Direction::Write => self.place_change(transfer.offset, total(transfer.buffers)),
        };
        let placed: io::Result<Vec<Transfer>> =
            transfers.iter().map(|transfer| Ok(Transfer { offset: place(transfer)?.start, ..*transfer })).collect();
        match placed {
            Ok(placed) => self.file.node.transfer(&placed),
            // Each by itself: those that can be are done, and those that cannot are told so.
            Err(_) => transfers.iter().map(|transfer| transfer.alone(self)).collect(),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.node.flush()
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        let range = self.place_change(range.start, range_len(&range))?;
        if self.discard { self.file.node.discard(range) } else { Ok(()) }
    }

    fn write_zeroes(&self, range: Range<u64>, may_unmap: bool) -> io::Result<()> {
        self.file.node.write_zeroes(self.place_change(range.start, range_len(&range))?, may_unmap)
    }

    fn children(&self) -> Vec<Arc<str>> {
        vec![self.file.name.clone()]
    }

    fn resize(&self, len: u64) -> io::Result<()> {
        match self.size {
            // What follows it in the file is not ours.
            Some(_) => Err(io::ErrorKind::Unsupported.into()),
            None => self.file.node.resize(len.checked_add(self.offset).ok_or(io::ErrorKind::InvalidInput)?),
        }
    }

    fn set_writable(&self, writable: bool) -> io::Result<()> {
        if writable && self.read_only { Err(read_only()) } else { self.file.node.set_writable(writable) }
    }

    fn extent(&self, offset: u64, end: u64) -> io::Result<(Extent, u64)> {
        let (extent, end) = self.file.node.extent(offset + self.offset, end + self.offset)?;
        Ok((extent, end - self.offset))
    }

    fn filename(&self) -> Option<PathBuf> {
        self.file.node.filename()
    }
}

#[cfg(test)]
mod tests {
    use super::super::io::{read_into, write_from};
    use super::super::testing::MemoryNode;
    use super::*;

    fn part(offset: u64, size: Option<u64>) -> (Arc<MemoryNode>, Result<Raw>) {
        let file = Arc::new(MemoryNode::new((0..200).collect()));
        (file.clone(), Raw::new(Child::own(file, "file"), offset, size, false))
    }

    #[test]
    fn it_is_a_part_of_the_file_and_nothing_beside_it() {
        let (file, raw) = part(10, Some(20));
        let raw = raw.unwrap();
        assert_eq!((raw.info().len, raw.children()), (20, vec!["file".into()]));
        let mut bytes = [0; 4];
        read_into(&raw, 16, &mut bytes).unwrap();
        assert_eq!(bytes, [26, 27, 28, 29]);
        assert!(read_into(&raw, 17, &mut bytes).is_err());
        write_from(&raw, 0, &mut [1, 2]).unwrap();
        assert!(write_from(&raw, 19, &mut [1, 2]).is_err());
        raw.write_zeroes(18..20, true).unwrap();
        assert!(raw.discard(18..21).is_err());
        let now = file.bytes();
        assert_eq!((&now[9..13], &now[27..31]), (&[9, 1, 2, 12][..], &[27, 0, 0, 30][..]));
        assert!(raw.resize(10).is_err());
    }

    #[test]
    fn without_a_size_it_reaches_to_the_end() {
        let (file, raw) = part(150, None);
        let raw = raw.unwrap();
        assert_eq!(raw.info().len, 50);
        raw.resize(60).unwrap();
        assert_eq!((raw.info().len, file.bytes().len()), (60, 210));
    }

    #[test]
    fn several_at_a_time_are_placed_one_by_one() {
        let (file, raw) = part(10, Some(20));
        let raw = raw.unwrap();
        let mut memory = [1, 2, 3, 4];
        let (front, back) = memory.split_at_mut(2);
        let buffers = [[VolatileSlice::from(front)], [VolatileSlice::from(back)]];
        let write = |offset, buffers| Transfer { direction: Direction::Write, offset, buffers };
        assert!(raw.transfer(&[write(0, &buffers[0]), write(18, &buffers[1])]).iter().all(io::Result::is_ok));
        let done = raw.transfer(&[write(4, &buffers[0]), write(19, &buffers[1])]);
        assert!(done[0].is_ok() && done[1].is_err(), "{done:?}");
        let now = file.bytes();
        assert_eq!((&now[9..16], &now[27..31]), (&[9, 1, 2, 12, 13, 1, 2][..], &[27, 3, 4, 30][..]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (offset, size) in [(201, None), (190, Some(11)), (u64::MAX, Some(2)), (0, Some(u64::MAX))] {
            let error = part(offset, size).1.map(drop).unwrap_err();
            assert_eq!(error.code(), Code::BadProperty, "{offset} {size:?}");
        }
    }
}
