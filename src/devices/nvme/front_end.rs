//! The device types `nvme` and `nvme-ns`.

use super::function::Nvme;
use super::namespace::{MAX_NAMESPACES, Namespace, NvmeBus};
use super::shared::Options;
use crate::device::{Adds, AnyDevice, Cx, NVME, Plug, Unit, UnitBus};
use crate::devices::disk::{self, Disk, DiskOptions, ErrorPolicy};
use crate::error::{Code, Error, Result};
use crate::object::{Create, Int, NodeRef, TypeInfo, props};

/// The row of controllers.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<NvmeType>();
/// The row of namespaces.
pub static NAMESPACE: TypeInfo<Plug, Cx> = TypeInfo::of::<NamespaceType>();

/// Bytes of the serial number's field.
const MAX_SERIAL: usize = 20;
/// Blocks are no larger than a page.
const MAX_BLOCK: u32 = 4096;

props! {
    /// An NVM Express drive: a controller, and a namespace on a block node.
    pub struct NvmeProps {
        /// Serial number that the guest is told, up to 20 bytes
        serial: String,
        /// The block node that namespace 1 is on; without it all namespaces are devices `nvme-ns`
        drive: Option<NodeRef>,
        /// Pairs of queues for reading and writing; each is served by a thread while the guest uses it
        #[name = "max_ioqpairs"]
        pairs: Int<1, 64> = "64",
        /// Bytes of a block that the guest addresses, a power of two from 512 to 4096
        #[name = "logical_block_size"]
        logical: u32 = "512",
        /// Whether a write is done before it is on the medium; the guest flushes then, and can switch it
        #[name = "write-cache"]
        write_cache: bool = "on",
        /// After a failed read: report tells the guest, ignore does not, stop lets it stand still until `cont` tries again
        rerror: ErrorPolicy = "auto",
        /// After a failed write; enospc, which is auto, stops where the medium is full and reports all else
        werror: ErrorPolicy = "auto",
        /// Its place among what firmware boots from; kept and shown, as no firmware asks
        bootindex: Option<Int<0, { i32::MAX as u64 }>>,
    }
}

props! {
    /// A namespace of an NVM Express controller, on a block node.
    pub struct NamespaceProps {
        /// The block node that it is on
        drive: NodeRef,
        /// Its number; by default the first that is free
        nsid: Option<Int<1, { MAX_NAMESPACES as u64 }>>,
        /// A name that no other has, a number
        eui64: Option<u64>,
        /// Another, as 32 hexadecimal digits with or without `-`
        uuid: Option<String>,
        /// Bytes of a block that the guest addresses, a power of two from 512 to 4096
        #[name = "logical_block_size"]
        logical: u32 = "512",
        /// Whether a write is done before it is on the medium; the guest flushes then, and can switch it
        #[name = "write-cache"]
        write_cache: bool = "on",
        /// After a failed read: report tells the guest, ignore does not, stop lets it stand still until `cont` tries again
        rerror: ErrorPolicy = "auto",
        /// After a failed write; enospc, which is auto, stops where the medium is full and reports all else
        werror: ErrorPolicy = "auto",
        /// Its place among what firmware boots from; kept and shown, as no firmware asks
        bootindex: Option<Int<0, { i32::MAX as u64 }>>,
    }
}

fn check_block(logical: u32) -> Result<()> {
    disk::check_block_sizes(logical, None)?;
    match logical > MAX_BLOCK {
        true => Err(Error::new(Code::BadProperty, format!("logical_block_size={logical} is larger than a page"))
            .fix("write 512, 1024, 2048 or 4096")),
        false => Ok(()),
    }
}

/// The bytes of a UUID; none is all zeros.
fn parse_uuid(text: Option<&String>) -> Result<[u8; 16]> {
    let Some(text) = text else { return Ok([0; 16]) };
    let digits: String = text.chars().filter(|letter| *letter != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32);
    number.map(u128::to_be_bytes).ok_or_else(|| {
        Error::new(Code::BadProperty, format!("uuid={text} is no UUID")).fix("write 32 hexadecimal digits")
    })
}

struct NvmeType;

impl Create<Plug, Cx> for NvmeType {
    const NAME: &'static str = "nvme";
    const GROUP: &'static str = "Disks";
    const BUS: Option<&'static str> = Some("PCI");
    const ADDS_BUS: Option<&'static str> = Some(NVME);
    type Props = NvmeProps;

    fn check(props: &NvmeProps) -> Result<()> {
        check_block(props.logical)?;
        disk::check_serial(Some(&props.serial), MAX_SERIAL)
    }

    fn create(props: NvmeProps, cx: &Cx) -> Result<Plug> {
        let bus = NvmeBus::new(&cx.adds);
        let options = Options { serial: props.serial, pairs: props.pairs.get() as u16 };
        let nvme = Nvme::new(cx, options, bus.clone())?;
        if let Some(drive) = &props.drive {
            let own = DiskOptions {
                rerror: props.rerror,
                werror: props.werror,
                write_cache: props.write_cache,
                bootindex: props.bootindex.map(|index| index.get() as u32),
            };
            let claim = cx.backends.nodes.claim(drive.as_str(), &cx.id)?;
            let disk = Disk::new(cx.id.clone(), claim.into(), own, cx.tell.clone());
            Namespace::new(disk, props.logical, (0, [0; 16]), Some(1), &bus).attach()?;
        }
        Ok(Plug { device: AnyDevice::Function(nvme), adds: Some(Adds::Units(UnitBus::Nvme(bus))) })
    }
}

struct NamespaceType;

impl Create<Plug, Cx> for NamespaceType {
    const NAME: &'static str = "nvme-ns";
    const GROUP: &'static str = "Disks";
    const BUS: Option<&'static str> = Some(NVME);
    type Props = NamespaceProps;

    fn check(props: &NamespaceProps) -> Result<()> {
        check_block(props.logical)?;
        parse_uuid(props.uuid.as_ref()).map(drop)
    }

    fn create(props: NamespaceProps, cx: &Cx) -> Result<Plug> {
        let Some(UnitBus::Nvme(bus)) = &cx.bus else {
            return Err(Error::new(Code::BadBus, "a namespace needs the bus of an nvme controller"));
        };
        let names = (props.eui64.unwrap_or(0), parse_uuid(props.uuid.as_ref())?);
        let own = DiskOptions {
            rerror: props.rerror,
            werror: props.werror,
            write_cache: props.write_cache,
            bootindex: props.bootindex.map(|index| index.get() as u32),
        };
        let claim = cx.backends.nodes.claim(props.drive.as_str(), &cx.id)?;
        let disk = Disk::new(cx.id.clone(), claim.into(), own, cx.tell.clone());
        let number = props.nsid.map(|nsid| nsid.get() as u32);
        let namespace = Namespace::new(disk, props.logical, names, number, bus);
        Ok(Plug { device: AnyDevice::Unit(namespace), adds: None })
    }
}
