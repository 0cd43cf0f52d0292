//! `throttle`: a node that keeps to the rates of a `throttle-group`, which several nodes may share.

mod bucket;
mod group;

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::io::total;
use super::types::{claim, made};
use super::{BlockInfo, BlockNode, Child, Extent};
use crate::backends::BackendCx;
use crate::backends::table::Claim;
use crate::error::Result;
use crate::object::{Create, NodeRef, TypeInfo, props};
pub use group::{GROUP, Group};
use group::{GroupRef, Way};

props! {
    /// Keeps the requests to another node below the rates of a throttle-group.
    pub struct ThrottleProps {
        /// The group, which several nodes may share
        throttle_group: GroupRef,
        /// The node
        file: NodeRef,
    }
}

/// The row of the table.
pub static TYPE: TypeInfo<Arc<dyn BlockNode>, BackendCx> = TypeInfo::of::<ThrottleType>();

struct ThrottleType;

impl Create<Arc<dyn BlockNode>, BackendCx> for ThrottleType {
    const NAME: &'static str = "throttle";
    const GROUP: &'static str = "Filters";
    type Props = ThrottleProps;

    fn create(props: ThrottleProps, cx: &BackendCx) -> Result<Arc<dyn BlockNode>> {
        let group = cx.backends.throttles.claim(props.throttle_group.as_str(), &cx.name)?;
        Ok(made(Throttle { file: claim(cx, &props.file)?, group }))
    }
}

/// A node behind limits.
pub struct Throttle {
    file: Child,
    group: Claim<Group>,
}

impl BlockNode for Throttle {
    fn info(&self) -> BlockInfo {
        self.file.node.info()
    }

    fn read(&self, offset: u64, into: &[VolatileSlice]) -> io::Result<()> {
        self.group.wait(Way::Read, total(into));
        self.file.node.read(offset, into)
    }

    fn write(&self, offset: u64, from: &[VolatileSlice]) -> io::Result<()> {
        self.group.wait(Way::Write, total(from));
        self.file.node.write(offset, from)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.node.flush()
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        // A request without bytes.
        self.group.wait(Way::Write, 0);
        self.file.node.discard(range)
    }

    fn write_zeroes(&self, range: Range<u64>, may_unmap: bool) -> io::Result<()> {
        self.group.wait(Way::Write, 0);
        self.file.node.write_zeroes(range, may_unmap)
    }

    fn children(&self) -> Vec<Arc<str>> {
        vec![self.file.name.clone()]
    }

    fn resize(&self, len: u64) -> io::Result<()> {
        self.file.node.resize(len)
    }

    fn set_writable(&self, writable: bool) -> io::Result<()> {
        self.file.node.set_writable(writable)
    }

    fn extent(&self, offset: u64, end: u64) -> io::Result<(Extent, u64)> {
        self.file.node.extent(offset, end)
    }

    fn filename(&self) -> Option<PathBuf> {
        self.file.node.filename()
    }
}
