//! The device type `virtio-blk-pci`: its properties, and how one is made of them.

use super::Blk;
use super::config::Shape;
use super::request::ID_LEN;
use crate::backends::iothread::IoThreadRef;
use crate::device::{Cx, Plug};
use crate::devices::disk::{self, Disk, DiskOptions, ErrorPolicy};
use crate::error::{Code, Error, Result};
use crate::object::{Create, Int, NodeRef, TypeInfo};
use crate::virtio::pci::{self, virtio_props};

/// The row of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<BlkType>();

/// The sizes of a queue: at least header, data and status fit.
const QUEUE_SIZES: std::ops::RangeInclusive<u64> = 4..=1024;

virtio_props! {
    /// A disk on a block node.
    struct BlkProps {
        /// The block node that it is on
        drive: NodeRef,
        /// Serial number that the guest is told, up to 20 bytes
        serial: Option<String>,
        /// The thread that serves all of its queues, after each other; by default each has its own
        iothread: Option<IoThreadRef>,
        /// Number of queues; each is served by a thread
        #[name = "num-queues"]
        queues: Int<1, 64> = "1",
        /// Descriptors of each queue, a power of two
        #[name = "queue-size"]
        queue_size: Int<4, 1024> = "256",
        /// Bytes of a block that the guest addresses, a power of two
        #[name = "logical_block_size"]
        logical: u32 = "512",
        /// Bytes of a block that the medium writes at once, a power of two; by default as the node says
        #[name = "physical_block_size"]
        physical: Option<u32>,
        /// Whether the guest may say what it does not need any more, if the node can use that
        discard: bool = "on",
        /// Whether the guest may have zeros written, if the node can do that without writing them
        #[name = "write-zeroes"]
        write_zeroes: bool = "on",
        /// Whether a write is done before it is on the medium; the guest flushes then
        #[name = "write-cache"]
        write_cache: bool = "on",
        /// Whether the guest may switch the write cache
        #[name = "config-wce"]
        config_wce: bool = "on",
        /// After a failed read: report tells the guest, ignore does not, stop lets it stand still until `cont` tries again
        rerror: ErrorPolicy = "auto",
        /// After a failed write; enospc, which is auto, stops where the medium is full and reports all else
        werror: ErrorPolicy = "auto",
        /// Its place among what firmware boots from; kept and shown, as no firmware asks
        bootindex: Option<Int<0, { i32::MAX as u64 }>>,
    }
}

struct BlkType;

impl Create<Plug, Cx> for BlkType {
    const NAME: &'static str = "virtio-blk-pci";
    const GROUP: &'static str = "Disks";
    const BUS: Option<&'static str> = Some("PCI");
    type Props = BlkProps;

    fn check(props: &BlkProps) -> Result<()> {
        props.pci().check()?;
        disk::check_block_sizes(props.logical, props.physical)?;
        if !props.queue_size.get().is_power_of_two() {
            let (least, most) = QUEUE_SIZES.into_inner();
            return Err(bad(format!("queue-size={} is no power of two", props.queue_size.get()))
                .fix(format!("write a power of two from {least} to {most}")));
        }
        disk::check_serial(props.serial.as_ref(), ID_LEN)
    }

    fn create(props: BlkProps, cx: &Cx) -> Result<Plug> {
        let options = props.pci();
        let claim = cx.backends.nodes.claim(props.drive.as_str(), &cx.id)?;
        let iothread = props.iothread.map(|id| cx.backends.iothreads.claim(id.as_str(), &cx.id)).transpose()?;
        let shape = Shape {
            logical: props.logical,
            physical: props.physical,
            queues: props.queues.get() as u16,
            queue_size: props.queue_size.get() as u16,
            discard: props.discard,
            write_zeroes: props.write_zeroes,
            config_wce: props.config_wce,
        };
        let own = DiskOptions {
            rerror: props.rerror,
            werror: props.werror,
            write_cache: props.write_cache,
            bootindex: props.bootindex.map(|index| index.get() as u32),
        };
        let disk = Disk::new(cx.id.clone(), claim.into(), own, cx.tell.clone());
        pci::plug(Blk::new(disk, shape, props.serial.as_deref().unwrap_or_default(), iothread), &options, cx)
    }
}

fn bad(cause: impl Into<String>) -> Error {
    Error::new(Code::BadProperty, cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Args, Props};

    fn check(text: &str) -> Result<()> {
        let mut args = Args::parse("--device", Some("driver"), &format!("virtio-blk-pci,{text}"))?;
        args.take("driver");
        let props = BlkProps::parse(&mut args)?;
        args.finish()?;
        BlkType::check(&props)
    }

    #[test]
    fn what_cannot_be_is_refused_before_anything_is_made() {
        check("drive=d0,werror=stop,rerror=enospc,bootindex=1,serial=abc,num-queues=4,queue-size=128,logical_block_size=4096").unwrap();
        for wrong in [
            "serial=abc",
            "drive=d0,queue-size=100",
            "drive=d0,num-queues=0",
            "drive=d0,logical_block_size=256",
            "drive=d0,logical_block_size=513",
            "drive=d0,logical_block_size=4096,physical_block_size=512",
            "drive=d0,serial=123456789012345678901",
            "drive=d0,werror=never",
            "drive=d0,disable-legacy=on,disable-modern=on",
        ] {
            assert_eq!(check(wrong).unwrap_err().code(), Code::BadProperty, "{wrong}");
        }
    }
}
