//! Identify and the log pages: what controller and namespaces are (NVMe 5.15 and 5.14).

use super::namespace::{MAX_NAMESPACES, Namespace};
use super::prp::MAX_TRANSFER_SHIFT;
use super::shared::Shared;
use super::status::Status;

/// Bytes of every structure of Identify.
pub const LEN: usize = 4096;

/// What a guest calls a drive by follows from these (/dev/disk/by-id): QEMU's words, so that it finds its disks again.
const MODEL: &str = "QEMU NVMe Ctrl";
const QUALIFIED_NAME: &str = "nqn.2019-08.org.qemu:";
const VENDOR: u16 = 0x1b36;
const SUBSYSTEM_VENDOR: u16 = 0x1af4;
/// Commands waiting for events, at most; less one in the structure.
pub const MAX_EVENTS: usize = 4;

fn padded(field: &mut [u8], text: &str) {
    let text = text.bytes().chain(std::iter::repeat(b' '));
    field.iter_mut().zip(text).for_each(|(to, from)| *to = from);
}

/// The structure that `kind` (CNS) names, of a namespace where it is one of a namespace.
pub fn structure(shared: &Shared, kind: u8, number: u32) -> Result<Vec<u8>, Status> {
    let mut data = vec![0; LEN];
    match kind {
        0 => {
            if number == u32::MAX {
                // What all namespaces have in common: nothing.
            } else if number == 0 || number > MAX_NAMESPACES {
                return Err(Status::INVALID_NAMESPACE);
            } else if let Some(namespace) = shared.bus.find(number) {
                of_namespace(&namespace, &mut data);
            }
        }
        1 => of_controller(shared, &mut data),
        2 => {
            if number >= u32::MAX - 1 {
                return Err(Status::INVALID_NAMESPACE);
            }
            let active = shared.bus.all().into_iter().map(|(active, _)| active).filter(|active| *active > number);
            data.chunks_exact_mut(4).zip(active).for_each(|(to, active)| to.copy_from_slice(&active.to_le_bytes()));
        }
        3 => {
            let namespace = shared.bus.find(number).ok_or(Status::INVALID_NAMESPACE)?;
            names(&namespace, &mut data);
        }
        _ => return Err(Status::INVALID_FIELD),
    }
    Ok(data)
}

fn of_controller(shared: &Shared, data: &mut [u8]) {
    let mut put = |at: usize, bytes: &[u8]| data[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &VENDOR.to_le_bytes());
    put(2, &SUBSYSTEM_VENDOR.to_le_bytes());
    // Aborts at a time and events, less one; temperatures; sizes of entries; namespaces; what else it can do.
    put(77, &[MAX_TRANSFER_SHIFT]);
    put(80, &0x0001_0400u32.to_le_bytes());
    put(111, &[1]);
    // Doorbell Buffer Config.
    put(256, &(1u16 << 8).to_le_bytes());
    put(258, &[3, MAX_EVENTS as u8 - 1, 3]);
    put(266, &343u16.to_le_bytes());
    put(268, &373u16.to_le_bytes());
    put(512, &[0x66, 0x44]);
    put(516, &MAX_NAMESPACES.to_le_bytes());
    // Write Zeroes and Dataset Management, where a namespace can use them.
    let all = shared.bus.all();
    let any = |can: fn(&Namespace) -> bool| all.iter().any(|(_, namespace)| can(namespace));
    let zeroes = any(|of| of.disk.info().write_zeroes.is_some());
    let discard = any(|of| of.disk.info().discard.is_some());
    put(520, &(u16::from(zeroes) << 3 | u16::from(discard) << 2).to_le_bytes());
    // A flush of all namespaces is known; whether there is anything to flush.
    put(525, &[3 << 1 | u8::from(any(|of| of.disk.info().write_back))]);
    put(768, format!("{QUALIFIED_NAME}{}", shared.options.serial).as_bytes());
    // One power state, of 25 W.
    put(2048, &2500u16.to_le_bytes());
    padded(&mut data[4..24], &shared.options.serial);
    padded(&mut data[24..64], MODEL);
    padded(&mut data[64..72], env!("CARGO_PKG_VERSION"));
}

fn of_namespace(namespace: &Namespace, data: &mut [u8]) {
    let blocks = namespace.blocks().to_le_bytes();
    let info = namespace.disk.info();
    let mut put = |at: usize, bytes: &[u8]| data[at..at + bytes.len()].copy_from_slice(bytes);
    for at in [0, 8, 16] {
        put(at, &blocks);
    }
    // Thin provisioning is not said; the optimal sizes are, as blocks less one.
    put(24, &[1 << 4]);
    let in_blocks = |bytes: u32| u16::try_from(bytes / namespace.block).unwrap_or(u16::MAX).max(1) - 1;
    let physical = in_blocks(info.physical_block_size).to_le_bytes();
    let unit = in_blocks(info.discard.unwrap_or(info.physical_block_size)).to_le_bytes();
    put(64, &physical);
    put(66, &physical);
    put(68, &unit);
    put(70, &unit);
    put(72, &physical);
    // Read-only.
    put(99, &[u8::from(info.read_only)]);
    put(120, &namespace.eui64.to_be_bytes());
    // The one format: no metadata, blocks of so many bytes as a power of two.
    put(128, &[0, 0, namespace.block.ilog2() as u8, 0]);
}

/// The namespace's names (NVMe 5.15.2.3).
fn names(namespace: &Namespace, data: &mut [u8]) {
    const EUI64: u8 = 1;
    const UUID: u8 = 3;
    let mut list = Vec::new();
    if namespace.eui64 != 0 {
        list.extend([EUI64, 8, 0, 0]);
        list.extend(namespace.eui64.to_be_bytes());
    }
    if namespace.uuid != [0; 16] {
        list.extend([UUID, 16, 0, 0]);
        list.extend(namespace.uuid);
    }
    data[..list.len()].copy_from_slice(&list);
}

/// A log page.
pub fn log(page: u8) -> Result<Vec<u8>, Status> {
    let mut data = vec![0; 512];
    match page {
        // Errors: none. Changed namespaces: none.
        0x01 | 0x04 => {}
        0x02 => {
            // A healthy drive of 50 degrees Celsius with all its spare.
            data[1..3].copy_from_slice(&323u16.to_le_bytes());
            data[3] = 100;
            data[4] = 10;
        }
        0x03 => {
            data[0] = 1;
            padded(&mut data[8..16], env!("CARGO_PKG_VERSION"));
        }
        _ => return Err(Status::LOG_PAGE_INVALID),
    }
    Ok(data)
}
