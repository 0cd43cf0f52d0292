//! Units for tests.

use std::sync::Arc;

use super::ScsiBus;
use super::disk::{Kind, Options, ScsiDisk};
use crate::devices::disk::Disk;

pub(crate) type Unit = ScsiDisk;

fn options(kind: Kind, block: u32) -> Options {
    Options {
        kind,
        block,
        physical: None,
        granularity: None,
        vendor: "QEMU".into(),
        product: "QEMU HARDDISK".into(),
        version: "2.5+".into(),
        serial: "LAB-7".into(),
        device_id: "LAB-7".into(),
        wwn: Some(0x5000_c500_1234_5678),
        rotation: 1,
        target: None,
        lun: None,
    }
}

/// A disk with blocks of 512 bytes.
pub(crate) fn disk(disk: Disk, bus: &Arc<ScsiBus>) -> Arc<ScsiDisk> {
    ScsiDisk::new(disk, options(Kind::Disk, 512), bus.clone())
}

/// A CD drive.
pub(crate) fn cd(disk: Disk, bus: &Arc<ScsiBus>) -> Arc<ScsiDisk> {
    ScsiDisk::new(disk, options(Kind::Cd, 2048), bus.clone())
}
