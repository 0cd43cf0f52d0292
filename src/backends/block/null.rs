//! `null-co`: a disk that holds nothing. It is as fast as a back end can be, which is what measurements need.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::io::{fill_zero, range_len, total, within};
use super::types::made;
use super::{BlockInfo, BlockNode, Extent};
use crate::backends::BackendCx;
use crate::error::Result;
use crate::object::{Create, Size, TypeInfo, props};

props! {
    /// A disk that reads as zeros and forgets what is written, for measurements.
    pub struct Props {
        /// Length
        size: Size = "1G",
        /// Whether reads fill the guest's memory with zeros, as QEMU's read-zeroes=
        read_zeroes: bool = "on",
        /// Refuse writes
        read_only: bool = "off",
    }
}

/// The row of the table.
pub static TYPE: TypeInfo<Arc<dyn BlockNode>, BackendCx> = TypeInfo::of::<NullType>();

struct NullType;

impl Create<Arc<dyn BlockNode>, BackendCx> for NullType {
    const NAME: &'static str = "null-co";
    const GROUP: &'static str = "What the host has";
    type Props = Props;

    fn create(props: Props, _cx: &BackendCx) -> Result<Arc<dyn BlockNode>> {
        Ok(made(Null::new(props)))
    }
}

/// A disk of zeros.
#[derive(Debug)]
pub struct Null {
    props: Props,
}

impl Null {
    /// One with these properties.
    pub fn new(props: Props) -> Null {
        Null { props }
    }
}

impl BlockNode for Null {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            len: self.props.size.0,
            read_only: self.props.read_only,
            block_size: 1,
            physical_block_size: 512,
            discard: Some(1),
            write_zeroes: Some(1),
            write_back: false,
        }
    }

    fn read(&self, offset: u64, into: &[VolatileSlice]) -> io::Result<()> {
        within(self.props.size.0, offset, total(into))?;
        if self.props.read_zeroes {
            fill_zero(into);
        }
        Ok(())
    }

    fn write(&self, offset: u64, from: &[VolatileSlice]) -> io::Result<()> {
        self.change(offset, total(from))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.change(range.start, range_len(&range))
    }

    fn write_zeroes(&self, range: Range<u64>, _may_unmap: bool) -> io::Result<()> {
        self.change(range.start, range_len(&range))
    }

    fn children(&self) -> Vec<Arc<str>> {
        Vec::new()
    }

    fn extent(&self, _offset: u64, end: u64) -> io::Result<(Extent, u64)> {
        Ok((Extent::Zero, end))
    }
}

impl Null {
    fn change(&self, offset: u64, count: u64) -> io::Result<()> {
        within(self.props.size.0, offset, count)?;
        if self.props.read_only { Err(super::io::read_only()) } else { Ok(()) }
    }
}
