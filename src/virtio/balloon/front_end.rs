//! The device type `virtio-balloon-pci`: its properties, and how one is made of them.

use super::{Balloon, Options};
use crate::device::{Cx, Plug};
use crate::error::Result;
use crate::object::{Create, Int, TypeInfo};
use crate::virtio::pci::{self, virtio_props};

/// The name of the type.
pub const NAME: &str = "virtio-balloon-pci";

/// The row of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<BalloonType>();

virtio_props! {
    /// A balloon: the guest gives memory back while it runs. Not beside a passed-through device.
    struct BalloonProps {
        /// Let the guest take pages out of the balloon before it runs out of memory
        deflate_on_oom: bool = "off",
        /// Take free pages back that the guest names by itself
        free_page_reporting: bool = "off",
        /// Seconds between two looks at the guest's own statistics; 0: none
        guest_stats_polling_interval: Int<0, { u32::MAX as u64 }> = "0",
    }
}

struct BalloonType;

impl Create<Plug, Cx> for BalloonType {
    const NAME: &'static str = NAME;
    const GROUP: &'static str = "Small devices";
    const BUS: Option<&'static str> = Some("PCI");
    type Props = BalloonProps;

    fn check(props: &BalloonProps) -> Result<()> {
        props.pci().check()
    }

    fn create(props: BalloonProps, cx: &Cx) -> Result<Plug> {
        let options = Options {
            deflate_on_oom: props.deflate_on_oom,
            reporting: props.free_page_reporting,
            interval: props.guest_stats_polling_interval.get() as u32,
        };
        let balloon = Balloon::new(cx.id.clone(), options, cx.memory.clone(), cx.tell.clone());
        pci::plug(balloon, &props.pci(), cx)
    }
}
