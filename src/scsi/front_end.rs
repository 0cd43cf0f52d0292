//! The device types `scsi-hd` and `scsi-cd`.

use super::bus::{MAX_LUN, MAX_TARGET};
use super::disk::{Kind, Options, ScsiDisk};
use crate::device::{AnyDevice, Cx, Plug, SCSI, UnitBus};
use crate::devices::disk::{self, Disk, DiskOptions, ErrorPolicy};
use crate::error::{Code, Error, Result};
use crate::object::{Create, Int, NodeRef, TypeInfo, props};

/// The row of disks.
pub static DISK: TypeInfo<Plug, Cx> = TypeInfo::of::<DiskType>();
/// The row of CD drives.
pub static CD: TypeInfo<Plug, Cx> = TypeInfo::of::<CdType>();

/// Bytes of a CD's block.
const CD_BLOCK: u32 = 2048;
/// Most bytes of a serial number (VPD page 80h), and of the texts of INQUIRY.
const MAX_SERIAL: usize = 36;
const MAX_VENDOR: usize = 8;
const MAX_PRODUCT: usize = 16;
const MAX_VERSION: usize = 4;
/// What a guest calls a disk by follows from these (/dev/disk/by-id): QEMU's words, so that it finds its disks again.
const VENDOR: &str = "QEMU";
const VERSION: &str = "2.5+";

props! {
    /// A disk of a SCSI host adapter, on a block node.
    pub struct DiskProps {
        /// The block node that it is on
        drive: NodeRef,
        /// Target; by default the first that is free
        scsi_id: Option<Int<0, { MAX_TARGET as u64 }>>,
        /// Logical unit of the target; by default the first that is free
        lun: Option<Int<0, { MAX_LUN as u64 }>>,
        /// Channel; there is one
        channel: Int<0, 0> = "0",
        /// Serial number that the guest is told, up to 36 bytes
        serial: Option<String>,
        /// Name that the guest is told; by default the serial number, or else the device's id
        #[name = "device_id"]
        device_id: Option<String>,
        /// World wide name, a number; by default none
        wwn: Option<u64>,
        /// Who makes it, up to 8 letters
        vendor: Option<String>,
        /// What it is called, up to 16 letters
        product: Option<String>,
        /// Its version, up to 4 letters
        ver: Option<String>,
        /// 1: it does not turn; else turns per minute; 0: not said
        #[name = "rotation_rate"]
        rotation_rate: u16 = "0",
        /// Bytes of a block that the guest addresses, a power of two
        #[name = "logical_block_size"]
        logical: u32 = "512",
        /// Bytes of a block that the medium writes at once, a power of two; by default as the node says
        #[name = "physical_block_size"]
        physical: Option<u32>,
        /// Bytes that are given back at once; by default as the node says
        #[name = "discard_granularity"]
        granularity: Option<u32>,
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
    /// A CD drive of a SCSI host adapter, with the bytes of a block node as its medium.
    pub struct CdProps {
        /// The block node that is its medium
        drive: NodeRef,
        /// Target; by default the first that is free
        scsi_id: Option<Int<0, { MAX_TARGET as u64 }>>,
        /// Logical unit of the target; by default the first that is free
        lun: Option<Int<0, { MAX_LUN as u64 }>>,
        /// Channel; there is one
        channel: Int<0, 0> = "0",
        /// Serial number that the guest is told, up to 36 bytes
        serial: Option<String>,
        /// Name that the guest is told; by default the serial number, or else the device's id
        #[name = "device_id"]
        device_id: Option<String>,
        /// World wide name, a number; by default none
        wwn: Option<u64>,
        /// Who makes it, up to 8 letters
        vendor: Option<String>,
        /// What it is called, up to 16 letters
        product: Option<String>,
        /// Its version, up to 4 letters
        ver: Option<String>,
        /// After a failed read: report tells the guest, ignore does not, stop lets it stand still until `cont` tries again
        rerror: ErrorPolicy = "auto",
        /// Its place among what firmware boots from; kept and shown, as no firmware asks
        bootindex: Option<Int<0, { i32::MAX as u64 }>>,
    }
}

/// Texts of the unit that have a longest length.
fn check_texts(
    serial: Option<&String>,
    vendor: Option<&String>,
    product: Option<&String>,
    version: Option<&String>,
) -> Result<()> {
    disk::check_serial(serial, MAX_SERIAL)?;
    for (name, text, most) in
        [("vendor", vendor, MAX_VENDOR), ("product", product, MAX_PRODUCT), ("ver", version, MAX_VERSION)]
    {
        if let Some(text) = text.filter(|text| text.len() > most || !text.is_ascii()) {
            return Err(Error::new(Code::BadProperty, format!("{name}={text} is not up to {most} letters of ASCII")));
        }
    }
    Ok(())
}

/// Makes a unit for the bus that it goes to.
fn make(cx: &Cx, drive: &NodeRef, own: DiskOptions, mut options: Options) -> Result<Plug> {
    let Some(UnitBus::Scsi(bus)) = &cx.bus else {
        return Err(Error::new(Code::BadBus, "a SCSI device needs a SCSI bus"));
    };
    if options.device_id.is_empty() {
        options.device_id = if options.serial.is_empty() { cx.id.to_string() } else { options.serial.clone() };
    }
    let claim = cx.backends.nodes.claim(drive.as_str(), &cx.id)?;
    let disk = Disk::new(cx.id.clone(), claim.into(), own, cx.tell.clone());
    Ok(Plug { device: AnyDevice::Unit(ScsiDisk::new(disk, options, bus.clone())), adds: None })
}

struct DiskType;

impl Create<Plug, Cx> for DiskType {
    const NAME: &'static str = "scsi-hd";
    const GROUP: &'static str = "Disks";
    const BUS: Option<&'static str> = Some(SCSI);
    type Props = DiskProps;

    fn check(props: &DiskProps) -> Result<()> {
        disk::check_block_sizes(props.logical, props.physical)?;
        if let Some(bytes) = props.granularity.filter(|bytes| !bytes.is_power_of_two()) {
            return Err(Error::new(Code::BadProperty, format!("discard_granularity={bytes} is no power of two")));
        }
        check_texts(props.serial.as_ref(), props.vendor.as_ref(), props.product.as_ref(), props.ver.as_ref())
    }

    fn create(props: DiskProps, cx: &Cx) -> Result<Plug> {
        let own = DiskOptions {
            rerror: props.rerror,
            werror: props.werror,
            write_cache: props.write_cache,
            bootindex: props.bootindex.map(|index| index.get() as u32),
        };
        let options = Options {
            kind: Kind::Disk,
            block: props.logical,
            physical: props.physical,
            granularity: props.granularity,
            vendor: props.vendor.unwrap_or_else(|| VENDOR.into()),
            product: props.product.unwrap_or_else(|| "QEMU HARDDISK".into()),
            version: props.ver.unwrap_or_else(|| VERSION.into()),
            serial: props.serial.unwrap_or_default(),
            device_id: props.device_id.unwrap_or_default(),
            wwn: props.wwn,
            rotation: props.rotation_rate,
            target: props.scsi_id.map(|target| target.get() as u8),
            lun: props.lun.map(|lun| lun.get() as u16),
        };
        make(cx, &props.drive, own, options)
    }
}

struct CdType;

impl Create<Plug, Cx> for CdType {
    const NAME: &'static str = "scsi-cd";
    const GROUP: &'static str = "Disks";
    const BUS: Option<&'static str> = Some(SCSI);
    type Props = CdProps;

    fn check(props: &CdProps) -> Result<()> {
        check_texts(props.serial.as_ref(), props.vendor.as_ref(), props.product.as_ref(), props.ver.as_ref())
    }

    fn create(props: CdProps, cx: &Cx) -> Result<Plug> {
        let own = DiskOptions {
            rerror: props.rerror,
            werror: ErrorPolicy::Auto,
            write_cache: false,
            bootindex: props.bootindex.map(|index| index.get() as u32),
        };
        let options = Options {
            kind: Kind::Cd,
            block: CD_BLOCK,
            physical: Some(CD_BLOCK),
            granularity: None,
            vendor: props.vendor.unwrap_or_else(|| VENDOR.into()),
            product: props.product.unwrap_or_else(|| "QEMU CD-ROM".into()),
            version: props.ver.unwrap_or_else(|| VERSION.into()),
            serial: props.serial.unwrap_or_default(),
            device_id: props.device_id.unwrap_or_default(),
            wwn: props.wwn,
            rotation: 0,
            target: props.scsi_id.map(|target| target.get() as u8),
            lun: props.lun.map(|lun| lun.get() as u16),
        };
        make(cx, &props.drive, own, options)
    }
}
