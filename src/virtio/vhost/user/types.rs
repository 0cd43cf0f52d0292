//! The types of vhost-user devices: one row each, with what a daemon does not say.

use std::sync::Arc;

use super::{Config, Shape, VhostUser};
use crate::device::{Cx, Plug};
use crate::error::{Code, Error, Result};
use crate::object::{Create, Int, Invalid, Kind, PropValue, Refers, TypeInfo, reference};
use crate::virtio::pci::{self, PciOptions, virtio_props};

reference! {
    /// The id of the socket of a daemon.
    pub struct SocketRef(Refers { kind: Kind::Chardev, types: &["socket"], shared: false });
}

/// The heading in help.
const GROUP: &str = "Devices of daemons (vhost-user)";
/// No class fits.
const OTHER: [u8; 3] = [0, 0xff, 0];
/// PCI classes: storage, SCSI and other; communication, other; input, other; audio.
const SCSI: [u8; 3] = [0, 0, 1];
const STORAGE: [u8; 3] = [0, 0x80, 1];
const COMMUNICATION: [u8; 3] = [0, 0x80, 7];
const INPUT: [u8; 3] = [0, 0x80, 9];
const AUDIO: [u8; 3] = [0, 1, 4];

/// Most request queues of a device.
const MAX_QUEUES: u64 = 64;
/// Bytes of a block device's configuration space, up to and with write zeroes (virtio 5.2.4), and where in it the number of
/// queues is.
const BLK_CONFIG: usize = 60;
const BLK_NUM_QUEUES: usize = 34;
/// Bytes of a filesystem's tag (virtio 5.11.4).
const FS_TAG: usize = 36;

fn create(shape: Shape, socket: &SocketRef, options: &PciOptions, cx: &Cx) -> Result<Plug> {
    let chardev = cx.backends.chardevs.claim(socket.as_str(), &cx.id)?;
    let device: Arc<VhostUser> = VhostUser::new(cx.id.clone(), shape, chardev, &cx.memory)?;
    pci::plug(device, options, cx)
}

/// Declares the types of devices about which nothing is to be said but where their daemon is.
macro_rules! plain_types {
    ($($(#[doc = $doc:literal])+ $TYPE:ident $Type:ident $Props:ident $name:literal: $shape:expr;)*) => {$(
        virtio_props! {
            $(#[doc = $doc])+
            struct $Props {
                /// The socket of its daemon
                chardev: SocketRef,
            }
        }

        struct $Type;

        impl Create<Plug, Cx> for $Type {
            const NAME: &'static str = $name;
            const GROUP: &'static str = GROUP;
            const BUS: Option<&'static str> = Some("PCI");
            type Props = $Props;

            fn check(props: &$Props) -> Result<()> {
                props.pci().check()
            }

            fn create(props: $Props, cx: &Cx) -> Result<Plug> {
                create($shape, &props.chardev, &props.pci(), cx)
            }
        }

        /// A row of the table of device types.
        pub static $TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<$Type>();
    )*};
}

/// A shape whose daemon serves all queues.
fn shape(device_type: u16, class: [u8; 3], queues: u16, queue_size: u16, config: Config) -> Shape {
    Shape { device_type, class, queues, served: queues, queue_size, config }
}

plain_types! {
    /// Random numbers of a daemon.
    RNG RngType RngProps "vhost-user-rng-pci": shape(4, OTHER, 1, 4, Config::Own(Vec::new()));
    /// Sockets between guest and host, of a daemon.
    VSOCK VsockType VsockProps "vhost-user-vsock-pci":
        // The event queue is the device's own, which has none to tell of.
        Shape { served: 2, ..shape(19, COMMUNICATION, 3, 128, Config::Daemon(8)) };
    /// General-purpose I/O lines of a daemon.
    GPIO GpioType GpioProps "vhost-user-gpio-pci": shape(41, COMMUNICATION, 2, 256, Config::Daemon(8));
    /// An I2C adapter of a daemon.
    I2C I2cType I2cProps "vhost-user-i2c-pci": shape(34, COMMUNICATION, 1, 4, Config::Own(Vec::new()));
    /// An input device of a daemon.
    INPUT_DEVICE InputType InputProps "vhost-user-input-pci": shape(18, INPUT, 2, 4, Config::Daemon(136));
    /// A sound device of a daemon.
    SOUND SoundType SoundProps "vhost-user-snd-pci": shape(25, AUDIO, 4, 64, Config::Daemon(12));
    /// System control and management of a daemon.
    SCMI ScmiType ScmiProps "vhost-user-scmi-pci": shape(32, COMMUNICATION, 2, 256, Config::Own(Vec::new()));
}

/// A size that is a power of two.
fn power_of_two(name: &str, size: u64) -> Result<()> {
    match size.is_power_of_two() {
        true => Ok(()),
        false => Err(Error::new(Code::BadProperty, format!("{name} is a power of two"))),
    }
}

virtio_props! {
    /// A disk of a daemon.
    struct BlkProps {
        /// The socket of its daemon
        chardev: SocketRef,
        /// Queues for requests
        #[name = "num-queues"]
        num_queues: Int<1, MAX_QUEUES> = "1",
        /// Requests that a queue has room for; a power of two
        #[name = "queue-size"]
        queue_size: Int<2, 1024> = "128",
    }
}

struct BlkType;

impl Create<Plug, Cx> for BlkType {
    const NAME: &'static str = "vhost-user-blk-pci";
    const GROUP: &'static str = GROUP;
    const BUS: Option<&'static str> = Some("PCI");
    type Props = BlkProps;

    fn check(props: &BlkProps) -> Result<()> {
        power_of_two("queue-size", props.queue_size.get())?;
        props.pci().check()
    }

    fn create(props: BlkProps, cx: &Cx) -> Result<Plug> {
        let queues = props.num_queues.get() as u16;
        let config = Config::Patched(BLK_CONFIG, BLK_NUM_QUEUES, queues.to_le_bytes().to_vec());
        let shape = shape(2, SCSI, queues, props.queue_size.get() as u16, config);
        create(shape, &props.chardev, &props.pci(), cx)
    }
}

/// A row of the table of device types.
pub static BLK: TypeInfo<Plug, Cx> = TypeInfo::of::<BlkType>();

/// The name of a filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tag(String);

impl PropValue for Tag {
    const KIND: &'static str = "str";

    fn parse(text: &str) -> Result<Self, Invalid> {
        match (1..=FS_TAG).contains(&text.len()) {
            true => Ok(Tag(text.to_owned())),
            false => Err(Invalid::expected("1 to 36 bytes")),
        }
    }
}

virtio_props! {
    /// A filesystem of a daemon, such as virtiofsd.
    struct FsProps {
        /// The socket of its daemon
        chardev: SocketRef,
        /// The name by which the guest mounts it
        tag: Tag,
        /// Queues for requests
        #[name = "num-request-queues"]
        num_request_queues: Int<1, MAX_QUEUES> = "1",
        /// Requests that a queue has room for; a power of two
        #[name = "queue-size"]
        queue_size: Int<2, 1024> = "128",
    }
}

struct FsType;

impl Create<Plug, Cx> for FsType {
    const NAME: &'static str = "vhost-user-fs-pci";
    const GROUP: &'static str = GROUP;
    const BUS: Option<&'static str> = Some("PCI");
    type Props = FsProps;

    fn check(props: &FsProps) -> Result<()> {
        power_of_two("queue-size", props.queue_size.get())?;
        props.pci().check()
    }

    fn create(props: FsProps, cx: &Cx) -> Result<Plug> {
        let requests = props.num_request_queues.get() as u32;
        let config = fs_config(&props.tag.0, requests);
        // Urgent requests have a queue of their own.
        let shape = shape(26, STORAGE, 1 + requests as u16, props.queue_size.get() as u16, Config::Own(config));
        create(shape, &props.chardev, &props.pci(), cx)
    }
}

/// struct virtio_fs_config (virtio 5.11.4).
fn fs_config(tag: &str, queues: u32) -> Vec<u8> {
    let mut config = tag.as_bytes().to_vec();
    config.resize(FS_TAG, 0);
    config.extend(queues.to_le_bytes());
    config
}

/// A row of the table of device types.
pub static FS: TypeInfo<Plug, Cx> = TypeInfo::of::<FsType>();

virtio_props! {
    /// A SCSI host adapter of a daemon.
    struct ScsiProps {
        /// The socket of its daemon
        chardev: SocketRef,
        /// Queues for requests
        #[name = "num_queues"]
        num_queues: Int<1, MAX_QUEUES> = "1",
        /// Requests that a queue has room for; a power of two
        #[name = "virtqueue_size"]
        virtqueue_size: Int<4, 1024> = "128",
        /// Sectors of 512 bytes that a request has at most
        #[name = "max_sectors"]
        max_sectors: Int<1, 0xffff_ffff> = "65535",
        /// Requests that a disk has at most
        #[name = "cmd_per_lun"]
        cmd_per_lun: Int<1, 0xffff_ffff> = "128",
    }
}

struct ScsiType;

impl Create<Plug, Cx> for ScsiType {
    const NAME: &'static str = "vhost-user-scsi-pci";
    const GROUP: &'static str = GROUP;
    const BUS: Option<&'static str> = Some("PCI");
    type Props = ScsiProps;

    fn check(props: &ScsiProps) -> Result<()> {
        power_of_two("virtqueue_size", props.virtqueue_size.get())?;
        props.pci().check()
    }

    fn create(props: ScsiProps, cx: &Cx) -> Result<Plug> {
        let (queues, size) = (props.num_queues.get() as u32, props.virtqueue_size.get() as u16);
        let config = scsi_config(queues, size, props.max_sectors.get() as u32, props.cmd_per_lun.get() as u32);
        // Two more: control and events.
        let shape = shape(8, SCSI, 2 + queues as u16, size, Config::Own(config));
        create(shape, &props.chardev, &props.pci(), cx)
    }
}

/// struct virtio_scsi_config (virtio 5.6.4).
fn scsi_config(queues: u32, size: u16, max_sectors: u32, cmd_per_lun: u32) -> Vec<u8> {
    // A request has two descriptors of its own beside its data. Lengths of an event, of sense data, of a command.
    let words = [queues, u32::from(size) - 2, max_sectors, cmd_per_lun, 16, 96, 32];
    let mut config: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    // The highest channel, target and unit.
    config.extend([0u16, 255].into_iter().flat_map(u16::to_le_bytes));
    config.extend(16383u32.to_le_bytes());
    config
}

/// A row of the table of device types.
pub static SCSI_ADAPTER: TypeInfo<Plug, Cx> = TypeInfo::of::<ScsiType>();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_spaces_of_ours() {
        let fs = fs_config("myfs", 2);
        assert_eq!((fs.len(), &fs[..5], &fs[36..]), (40, &b"myfs\0"[..], &[2, 0, 0, 0][..]));
        let scsi = scsi_config(3, 128, 0xffff, 128);
        assert_eq!(
            (scsi.len(), &scsi[..8], &scsi[28..]),
            (36, &[3, 0, 0, 0, 126, 0, 0, 0][..], &[0, 0, 255, 0, 255, 63, 0, 0][..])
        );
        assert!(Tag::parse("").is_err() && Tag::parse(&"x".repeat(37)).is_err() && Tag::parse("a").is_ok());
    }
}
