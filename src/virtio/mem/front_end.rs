//! The device type `virtio-mem-pci`: its properties, and how one is made of them.

use super::{MAX_BLOCKS, Parameters, VirtioMem};
use crate::backends::memory::MemoryRef;
use crate::device::{Cx, Plug};
use crate::error::{Code, Error, Result};
use crate::object::{Create, Int, Size, TypeInfo};
use crate::virtio::pci::{self, virtio_props};

/// The name of the type.
pub const NAME: &str = "virtio-mem-pci";
/// The least block: a large page, which the host and IOMMUs map as one.
const MIN_BLOCK: u64 = 2 << 20;

/// The row of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<MemType>();

virtio_props! {
    /// Memory that the guest gets and gives back while it runs, in blocks, up to -m maxmem=.
    struct MemProps {
        /// Its memory: an object memory-backend-*, whose size is the most that the guest gets
        memdev: MemoryRef,
        /// How much the guest is to have at first; `qom-set` of the monitor changes it
        requested_size: Size = "0",
        /// Length of a block, a power of two from 2 MiB on; by default the least with which there are 4096 at most
        block_size: Option<Size>,
        /// The guest's memory node that it belongs to
        node: Int<0, 127> = "0",
        /// Where in the guest's addresses it is; by default the first free place
        memaddr: Option<Int<0, { 1 << 52 }>>,
    }
}

struct MemType;

impl Create<Plug, Cx> for MemType {
    const NAME: &'static str = NAME;
    const GROUP: &'static str = "Small devices";
    const BUS: Option<&'static str> = Some("PCI");
    type Props = MemProps;

    fn check(props: &MemProps) -> Result<()> {
        if let Some(Size(block)) = props.block_size
            && (block < MIN_BLOCK || !block.is_power_of_two())
        {
            return Err(Error::new(Code::BadProperty, "block-size= is a power of two from 2M on"));
        }
        props.pci().check()
    }

    fn create(props: MemProps, cx: &Cx) -> Result<Plug> {
        let backend = cx.backends.memories.claim(props.memdev.as_str(), &cx.id)?;
        let len = backend.len();
        let block_size = props.block_size.map_or_else(|| default_block(len), |Size(block)| block);
        let bad = |cause: String| Error::new(Code::BadProperty, cause);
        if !len.is_multiple_of(block_size) || len / block_size > MAX_BLOCKS {
            return Err(bad(format!("`{}` cannot be cut into blocks of {} MiB", backend.name(), block_size >> 20))
                .evidence(format!("it has {len} bytes; there may be {MAX_BLOCKS} blocks"))
                .fix("give the object a size that is a multiple of block-size=, or leave block-size= out"));
        }
        let Size(requested) = props.requested_size;
        if requested > len || !requested.is_multiple_of(block_size) {
            return Err(bad(format!("requested-size= is a multiple of {} MiB, up to {len} bytes", block_size >> 20)));
        }
        let wanted = props.memaddr.map(Int::get);
        let part = cx.room.take(len, block_size.max(ALIGN), wanted).ok_or_else(|| no_room(cx, len))?;
        let parameters = Parameters { block_size, node: props.node.get() as u16, requested };
        let device = VirtioMem::new(cx.id.clone(), &parameters, part, backend, cx.memory.clone(), cx.tell.clone());
        pci::plug(device, &props.pci(), cx)
    }
}

/// Linux adds memory by sections of 128 MiB at least.
const ALIGN: u64 = 128 << 20;

/// The least power of two with which there are not too many blocks.
fn default_block(len: u64) -> u64 {
    len.div_ceil(MAX_BLOCKS).next_power_of_two().max(MIN_BLOCK)
}

fn no_room(cx: &Cx, len: u64) -> Error {
    let room = cx.room.range();
    Error::new(Code::NoMemoryRoom, format!("there is no room for the {} MiB of {}", len >> 20, cx.id))
        .evidence(match room.is_empty() {
            true => "-m has no maxmem=".to_owned(),
            false => format!("-m maxmem= keeps the addresses {:#x} to {:#x} free", room.start, room.end - 1),
        })
        .fix("write -m SIZE,maxmem=MOST, where MOST is SIZE and the sizes of all memory devices")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_as_small_as_their_number_allows() {
        for (len, block) in [(2 << 20, 2 << 20), (8 << 30, 2 << 20), ((8 << 30) + 1, 4 << 20), (1 << 40, 256 << 20)] {
            assert_eq!(default_block(len), block);
            assert!(len.div_ceil(block) <= MAX_BLOCKS);
        }
    }
}
