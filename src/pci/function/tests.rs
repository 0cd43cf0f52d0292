//! What writes change, resets, and which writes need the decode mutex.

use super::super::bar::BARS;
use super::super::{BarKind, BarSpec, MsiSpec, MsixSpec};
use super::*;
use crate::irq::Router;
use proptest::prelude::*;

const POWER: u16 = 0x40;
const EXPRESS: u16 = 0x48;

/// A function with every capability that acts: power at 40h, express at 48h, MSI, MSI-X and Advanced Features after.
fn full(header: u8) -> PciCore {
    let router = Router::new();
    let mut config = ConfigSpace::new();
    config.set_u8(HEADER_TYPE, header);
    config.allow(COMMAND, &0x0547u16.to_le_bytes());
    config.allow(BRIDGE_CONTROL, &[0x40]);
    assert_eq!(config.add_capability(CAP_POWER, &[0; 6]).unwrap(), POWER);
    config.allow(POWER + POWER_CONTROL, &[3]);
    let mut express = [0; 0x3a];
    express[2..6].copy_from_slice(&EXPRESS_DEVICE_CAP_FLR.to_le_bytes());
    express[6..8].copy_from_slice(&0x2810u16.to_le_bytes());
    assert_eq!(config.add_capability(CAP_EXPRESS, &express).unwrap(), EXPRESS);
    config.allow(EXPRESS + EXPRESS_DEVICE_CONTROL, &0x7fffu16.to_le_bytes());
    let msi = Msi::add(&mut config, MsiSpec { vectors: 2, address_64bit: true, maskable: true }, &router, "t").unwrap();
    let msix = Msix::add(&mut config, MsixSpec::exclusive(2, 3), &router, "t").unwrap();
    config.add_capability(CAP_ADVANCED, &[6, 2, 0, 0]).unwrap();
    let core = PciCore::new("t", config, Some(msi), Some(msix));
    let mut specs = [None; BARS];
    specs[0] = Some(BarSpec { size: 0x1000, kind: BarKind::Mem64, prefetchable: true });
    core.define_bars(specs).unwrap();
    core
}

fn write16(core: &PciCore, off: u16, value: u16) -> Changes {
    core.write(off, &value.to_le_bytes())
}

#[test]
fn writes_say_what_they_changed() {
    let core = full(0);
    let msi = core.with(|config| config.find(super::super::regs::CAP_MSI)).unwrap();
    let msix = core.msix().unwrap().place();
    for (off, value, expected) in [
        (0x3c, 5, Changes::empty()),
        (0x10, 0x1000, Changes::empty()),
        (0x12, 0xc000, Changes::empty()),
        (COMMAND, COMMAND_MEMORY, Changes::DECODE),
        (0x12, 0xd000, Changes::DECODE),
        (0x12, 0xd000, Changes::empty()),
        (COMMAND, COMMAND_BUS_MASTER | COMMAND_MEMORY, Changes::BUS_MASTER),
        (COMMAND, COMMAND_INTX_DISABLE, Changes::INTX_DISABLE | Changes::BUS_MASTER | Changes::DECODE),
        (COMMAND, COMMAND_INTX_DISABLE | COMMAND_IO, Changes::DECODE),
        (msi + 2, 0x11, Changes::MSI),
        (msi + 16, 1, Changes::empty()),
        (msi + 2, 0x01, Changes::MSI),
        (msi + 2, 0x00, Changes::MSI),
        (msix + 2, 0x4000, Changes::empty()),
        (msix + 2, 0xc000, Changes::MSIX),
        (msix + 2, 0x8000, Changes::empty()),
        (POWER + POWER_CONTROL, 3, Changes::POWER),
        (POWER + POWER_CONTROL, 0, Changes::POWER),
    ] {
        assert_eq!(write16(&core, off, value), expected, "{off:#x} = {value:#x}");
    }
}

#[test]
fn without_power_nothing_is_decoded() {
    let core = full(0);
    core.write(0x10, &0xc000_0000u32.to_le_bytes());
    write16(&core, COMMAND, COMMAND_MEMORY);
    assert!(core.placements()[0].is_some());
    assert_eq!(write16(&core, POWER + POWER_CONTROL, 3), Changes::POWER | Changes::DECODE);
    assert!(core.placements()[0].is_none());
}

#[test]
fn a_function_level_reset_is_power_on_for_all_registers() {
    for by_express in [true, false] {
        let core = full(0);
        let msix = core.msix().unwrap();
        core.write(0x10, &0xc000_0000u32.to_le_bytes());
        write16(&core, COMMAND, COMMAND_MEMORY | COMMAND_BUS_MASTER);
        write16(&core, msix.place() + 2, 0x8000);
        write16(&core, EXPRESS + EXPRESS_DEVICE_CONTROL, 0x0010);
        msix.table_write(12, &[0]);
        let what = if by_express {
            write16(&core, EXPRESS + EXPRESS_DEVICE_CONTROL, EXPRESS_DEVICE_CONTROL_FLR)
        } else {
            let advanced = core.with(|config| config.find(CAP_ADVANCED)).unwrap();
            core.write(advanced + ADVANCED_CONTROL, &[1])
        };
        assert_eq!(what, Changes::RESET | Changes::DECODE | Changes::BUS_MASTER | Changes::MSIX);
        assert_eq!((core.command(), core.placements()[0], msix.enabled()), (0, None, false));
        let mut control = [0; 4];
        msix.table_read(12, &mut control);
        assert_eq!(control, [1, 0, 0, 0], "masked again");
        core.read(EXPRESS + EXPRESS_DEVICE_CONTROL, &mut control[..2]);
        assert_eq!(control[..2], 0x2810u16.to_le_bytes(), "not all registers are zero after power-on");
    }
}

#[test]
fn without_the_capability_there_is_no_function_level_reset() {
    let core = full(0);
    core.with(|config| config.set_u32(EXPRESS + EXPRESS_DEVICE_CAP, 0));
    write16(&core, COMMAND, COMMAND_BUS_MASTER);
    assert_eq!(write16(&core, EXPRESS + EXPRESS_DEVICE_CONTROL, EXPRESS_DEVICE_CONTROL_FLR), Changes::empty());
    assert!(core.bus_master());
}

#[test]
fn only_a_bridge_resets_what_is_behind_it() {
    assert_eq!(write16(&full(1), BRIDGE_CONTROL, BRIDGE_CONTROL_RESET), Changes::SECONDARY_RESET);
    assert_eq!(write16(&full(0), BRIDGE_CONTROL, BRIDGE_CONTROL_RESET), Changes::empty());
}

#[test]
fn masked_msi_vectors_show_pending_bits() {
    let core = full(0);
    let msi = core.with(|config| config.find(super::super::regs::CAP_MSI)).unwrap();
    write16(&core, msi + 16, 3);
    write16(&core, msi + 2, 0x11);
    core.msi().unwrap().fire(1);
    let mut bits = [0; 4];
    core.read(msi + 20, &mut bits);
    assert_eq!(bits, [2, 0, 0, 0]);
}

proptest! {
    /// Whatever a guest writes, nothing panics, and a write that the decode mutex is not taken for changes nothing
    /// that needs it.
    #[test]
    fn the_mutex_is_taken_for_all_that_needs_it(header in 0u8..2,
            writes in prop::collection::vec((0u16..0xb0, any::<u32>(), 0usize..3), 1..60)) {
        let core = full(header);
        for (off, value, log2) in writes {
            let len = 1 << log2;
            let off = off & !(len as u16 - 1);
            let what = core.write(off, &value.to_le_bytes()[..len]);
            let needs = Changes::DECODE | Changes::POWER | Changes::RESET | Changes::SECONDARY_RESET;
            prop_assert!(!what.intersects(needs) || core.affects_decoding(off, len), "{off:#x} {what:?}");
        }
        core.reset();
        prop_assert_eq!((core.command(), core.power_state()), (0, 0));
        prop_assert!(!core.msi().unwrap().enabled() && !core.msix().unwrap().enabled());
    }
}
