//! The device type `virtio-scsi-pci`: its properties, and how one is made of them.

use super::Scsi;
use super::config::Shape;
use crate::backends::iothread::IoThreadRef;
use crate::device::{Adds, Cx, Plug, SCSI, UnitBus};
use crate::error::{Code, Error, Result};
use crate::object::{Create, Int, TypeInfo};
use crate::scsi::ScsiBus;
use crate::virtio::pci::{self, virtio_props};

/// The row of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<ScsiType>();

virtio_props! {
    /// A SCSI host adapter, for `scsi-hd` and `scsi-cd`.
    struct ScsiProps {
        /// The thread that serves all of its queues, after each other; by default each has its own
        iothread: Option<IoThreadRef>,
        /// Number of queues for commands; each is served by a thread
        #[name = "num_queues"]
        queues: Int<1, 64> = "1",
        /// Descriptors of each queue, a power of two
        #[name = "virtqueue_size"]
        queue_size: Int<4, 1024> = "256",
        /// The longest transfer, in units of 512 bytes
        #[name = "max_sectors"]
        max_sectors: Int<1, 65535> = "65535",
        /// The most commands that a unit has at a time
        #[name = "cmd_per_lun"]
        cmd_per_lun: Int<1, 1024> = "128",
        /// Tell the guest of units that come and go; without it none does
        hotplug: bool = "on",
        /// Offer that the guest is told of units that change
        #[name = "param_change"]
        change: bool = "on",
    }
}

struct ScsiType;

impl Create<Plug, Cx> for ScsiType {
    const NAME: &'static str = "virtio-scsi-pci";
    const GROUP: &'static str = "Disks";
    const BUS: Option<&'static str> = Some("PCI");
    const ADDS_BUS: Option<&'static str> = Some(SCSI);
    type Props = ScsiProps;

    fn check(props: &ScsiProps) -> Result<()> {
        if !props.queue_size.get().is_power_of_two() {
            return Err(Error::new(Code::BadProperty, "virtqueue_size is a power of two"));
        }
        props.pci().check()
    }

    fn create(props: ScsiProps, cx: &Cx) -> Result<Plug> {
        let options = props.pci();
        let shape = Shape {
            queues: props.queues.get() as u16,
            queue_size: props.queue_size.get() as u16,
            max_sectors: props.max_sectors.get() as u32,
            cmd_per_lun: props.cmd_per_lun.get() as u32,
            hotplug: props.hotplug,
            change: props.change,
        };
        let iothread = props.iothread.map(|id| cx.backends.iothreads.claim(id.as_str(), &cx.id)).transpose()?;
        let bus = ScsiBus::new(&cx.adds, props.hotplug);
        let plug = pci::plug(Scsi::new(cx.id.clone(), shape, bus.clone(), iothread)?, &options, cx)?;
        Ok(Plug { adds: Some(Adds::Units(UnitBus::Scsi(bus))), ..plug })
    }
}
