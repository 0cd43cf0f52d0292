//! What an emulated endpoint has behind a port: power management and PCI Express (PCI 8, PCIe 7.5.3).

use super::ConfigSpace;
use super::regs::{CAP_EXPRESS, CAP_POWER, EXPRESS_DEVICE_CAP_FLR, POWER_CONTROL, POWER_NO_SOFT_RESET, POWER_STATE};
use crate::error::Result;

/// Registers of the PCI Express capability (PCIe 7.5.3) of an endpoint behind a port, after id and link.
const EXPRESS_LEN: usize = 0x3c;
/// Version 2, endpoint.
const EXPRESS_ENDPOINT: u16 = 2;
/// Role-based error reporting, and the function can be reset alone.
const EXPRESS_CAP: u32 = 1 << 15 | EXPRESS_DEVICE_CAP_FLR;
/// Device control: error reporting, relaxed ordering, payload and request sizes, no snoop. Bit 15 resets and reads as 0.
const EXPRESS_CONTROL: (u16, u16) = (0x08, 0x78ff);
/// Link capabilities and status: 2.5 GT/s, one lane.
const EXPRESS_LINK: [(usize, u32); 2] = [(0x0c, 0x11), (0x10, 0x11 << 16)];

/// Power management and PCI Express, which a device has behind a port.
///
/// # Errors
/// Configuration space is full.
pub fn express(config: &mut ConfigSpace) -> Result<()> {
    let power = config.add_capability(CAP_POWER, &[3, 0, POWER_NO_SOFT_RESET as u8, 0, 0, 0])?;
    config.allow(power + POWER_CONTROL, &POWER_STATE.to_le_bytes());
    let mut cap = [0; EXPRESS_LEN];
    cap[2..4].copy_from_slice(&EXPRESS_ENDPOINT.to_le_bytes());
    cap[4..8].copy_from_slice(&EXPRESS_CAP.to_le_bytes());
    for (at, value) in EXPRESS_LINK {
        cap[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let at = config.add_capability(CAP_EXPRESS, &cap[2..])?;
    config.allow(at + EXPRESS_CONTROL.0, &EXPRESS_CONTROL.1.to_le_bytes());
    Ok(())
}
