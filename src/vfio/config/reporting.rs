//! Error reporting stays as the host set it (PCIe 6.2): the host's kernel handles the errors of the device and tells of
//! them ([`crate::vfio`]'s notices), which it cannot if the guest switches the device's messages off. VFIO lets every one
//! of these bits through. The guest has registers of its own; status and header log are the hardware's for both.
//!
//! The command register's SERR# enable, which does the same for uncorrectable errors, is kept by [`super::super::pci`].

use super::{Division, Planner};
use crate::pci::{ConfigSpace, regs};

/// Device control in the PCI Express capability, with the enables of correctable, non-fatal and fatal errors and of
/// unsupported requests (PCIe 7.5.3.4).
const DEVICE_CONTROL: u16 = 0x08;
const ENABLES: u8 = 0x0f;
/// Advanced Error Reporting (PCIe 7.8.4), and its registers that decide what is reported: offset and defined bits of
/// uncorrectable mask and severity, correctable mask.
const AER: u16 = 0x0001;
const AER_CHOICES: [(u16, u32); 3] = [(0x08, 0x07ff_f030), (0x0c, 0x07ff_f030), (0x14, 0x0000_f1c1)];

impl Planner {
    /// Gives the guest its own choice of what is reported.
    pub(super) fn keep_reporting(&mut self, source: &ConfigSpace) {
        if let Some(at) = self.config.find(regs::CAP_EXPRESS).map(|at| at + DEVICE_CONTROL)
            && self.division.is_hardwares(at, 1)
        {
            self.division.hardware[usize::from(at)] &= !ENABLES;
            self.division.reporting = Some((at, source.u8(at)));
            self.config.set_u8(at, self.config.u8(at) & !ENABLES);
            self.config.allow(at, &[ENABLES]);
        }
        let aer = self.config.ext_capabilities().into_iter().find(|(id, _)| *id == AER);
        for (off, bits) in aer.into_iter().flat_map(|(_, at)| AER_CHOICES.map(|(off, bits)| (at + off, bits))) {
            if !self.division.is_hardwares(off, 4) {
                continue;
            }
            self.emulate(off, 4, regs::CONFIG_SIZE);
            self.config.allow(off, &bits.to_le_bytes());
        }
    }
}

impl Division {
    /// Whether all bits of these bytes are the hardware's: no other structure of a defective device lies there.
    fn is_hardwares(&self, off: u16, len: usize) -> bool {
        let bits = self.bits(off, len);
        bits.len() == len && bits.iter().all(|bits| *bits == 0xff)
    }

    /// Puts the host's bits into what is written to the hardware at `off`.
    pub fn keep_reporting(&self, off: u16, data: &mut [u8]) {
        let byte =
            self.reporting.and_then(|(at, value)| Some((data.get_mut(usize::from(at.checked_sub(off)?))?, value)));
        if let Some((byte, value)) = byte {
            *byte = *byte & !ENABLES | value & ENABLES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::sample;
    use super::super::{Abilities, plan};
    use super::*;

    #[test]
    fn the_guest_chooses_for_itself_and_the_hardware_keeps_the_hosts_choice() {
        let mut bytes = sample();
        bytes[0x78] = 0x37;
        bytes[0x108..0x110].copy_from_slice(&[0, 0, 0x10, 0, 0x30, 0x20, 0x06, 0]);
        let (mut config, division) = plan(&bytes, Abilities::default());
        assert_eq!(division.bits(0x78, 2), [0xf0, 0xff]);
        assert_eq!(config.u8(0x78) & ENABLES, 0, "as after power-on");
        for (off, written, hardware) in
            [(0x78, vec![0x58, 1], vec![0x57, 1]), (0x76, vec![1, 2, 0, 4], vec![1, 2, 7, 4])]
        {
            let mut data = written;
            division.keep_reporting(off, &mut data);
            assert_eq!(data, hardware, "{off:#x}");
        }
        let mut elsewhere = [0xff; 2];
        division.keep_reporting(0x7a, &mut elsewhere);
        assert_eq!(elsewhere, [0xff; 2]);
        for at in [0x108, 0x10c, 0x114] {
            assert!(!division.reads_hardware(at, 4) && division.forwarded(at, 4).is_empty(), "{at:#x}");
        }
        for at in [0x104, 0x110, 0x118, 0x11c] {
            assert!(division.reads_hardware(at, 4), "{at:#x}");
        }
        assert_eq!(config.u32(0x108), 0x0010_0000, "what it chooses from");
        config.write(0x108, &[0xff; 4]);
        assert_eq!(config.u32(0x108), 0x07ff_f030);
    }
}
