//! Who owns which register, on one sample and on anything that a device may show.

use super::super::testing::sample;
use super::*;
use proptest::prelude::*;

const ALL: Abilities = Abilities { msi: true, msix: true, intx: true, attachment: Attachment::RootBus };

fn ids(config: &ConfigSpace) -> (Vec<u8>, Vec<u16>) {
    let ids = config.capabilities().into_iter().map(|(id, _)| id).collect();
    (ids, config.ext_capabilities().into_iter().map(|(id, _)| id).collect())
}

#[test]
fn lists_keep_what_a_guest_may_see() {
    let (config, division) = plan(&sample(), ALL);
    assert_eq!(ids(&config), (vec![0x01, 0x05, 0x10, 0x11], vec![0x01, 0x03]));
    assert_eq!((division.power, division.msi, division.msix), (Some(0x40), Some(0x50), Some(0xb0)));
    let none = Abilities::default();
    let (config, division) = plan(&sample(), none);
    assert_eq!(ids(&config).0, [0x01, 0x10]);
    assert_eq!((division.msi, division.msix), (None, None));
    assert_eq!(config.u8(0xb0), 0, "what is hidden shows nothing");
    assert_eq!(config.u8(regs::INTERRUPT_PIN), 0);
}

#[test]
fn registers_have_their_owners() {
    let (config, division) = plan(&sample(), ALL);
    // Offset, bits of the hardware, forwarded, value after power-on of what is emulated.
    let rows: [(&str, u16, u8, bool, u8); 17] = [
        ("vendor", 0x00, 0, false, 0x86),
        ("command", 0x04, 0, false, 0),
        ("status, capability list", 0x06, 0xef, true, 0x10),
        ("status, errors", 0x07, 0xff, true, 0),
        ("header type", 0x0e, 0, false, 0),
        ("self test", 0x0f, 0, false, 0),
        ("BAR", 0x12, 0, false, 0),
        ("interrupt line", 0x3c, 0, false, 0),
        ("interrupt pin", 0x3d, 0, false, 1),
        ("link of a capability", 0x41, 0, false, 0x50),
        ("power state", 0x44, 0xfc, false, 0),
        ("power events", 0x45, 0xff, false, 0x21),
        ("MSI control", 0x52, 0, false, 0x80),
        ("express type", 0x72, 0, false, 0x92),
        ("express device control, error reporting", 0x78, 0xf0, true, 0),
        ("SR-IOV control", 0x148, 0, false, 0),
        ("error reporting", 0x104, 0xff, true, 0),
    ];
    for (name, at, bits, forwarded, value) in rows {
        let hardware = division.bits(at, 1)[0];
        assert_eq!((hardware, !division.forwarded(at, 1).is_empty()), (bits, forwarded), "{name}");
        assert_eq!(config.u8(at) & !bits, value & !bits, "{name}");
    }
}

#[test]
fn an_endpoint_on_the_root_bus_has_no_link() {
    let (config, division) = plan(&sample(), ALL);
    assert_eq!(config.u8(0x72) >> 4, TYPE_INTEGRATED);
    for at in (0x7c..0x84).chain(0x9c..0xa0) {
        assert_eq!((config.u8(at), division.reads_hardware(at, 1)), (0, false), "{at:#x}");
    }
    let behind_a_port = Abilities { attachment: Attachment::Port, ..ALL };
    let (config, division) = plan(&sample(), behind_a_port);
    assert_eq!(config.u8(0x72) >> 4, TYPE_ENDPOINT);
    assert!(division.reads_hardware(0x7c, 4));
    let mut integrated = sample();
    integrated[0x72] = 0x92;
    let (config, _) = plan(&integrated, behind_a_port);
    assert_eq!(config.u8(0x72), 0x02);
    assert_eq!((config.u16(0x7c), config.u16(0x82)), (LINK_X1, LINK_X1));
}

#[test]
fn a_hidden_first_extended_capability_links_on() {
    let mut bytes = sample();
    bytes[0x100] = 0x15;
    let (config, _) = plan(&bytes, ALL);
    assert_eq!(config.ext_capabilities(), [(0, 0x100), (3, 0x180)]);
    bytes[0x180] = 0x0f;
    let (config, _) = plan(&bytes, ALL);
    assert_eq!(config.u32(0x100), 0, "an empty list");
}

#[test]
fn a_conventional_function_has_no_extended_space() {
    let (config, division) = plan(&sample()[..256], ALL);
    assert!(config.ext_capabilities().is_empty());
    assert!(!division.reads_hardware(0x100, 4) && division.forwarded(0x100, 4).is_empty());
}

#[test]
fn lists_that_loop_end() {
    let mut bytes = sample();
    bytes[0xb1] = 0x40;
    bytes[0x183] = 0x10;
    let (config, _) = plan(&bytes, ALL);
    assert_eq!(ids(&config), (vec![0x01, 0x05, 0x10, 0x11], vec![0x01, 0x03]));
}

#[test]
fn capabilities_that_reach_beyond_the_space_are_hidden() {
    let mut bytes = sample();
    bytes[0x34] = 0xfc;
    bytes[0xfc..0x100].copy_from_slice(&[0x05, 0x40, 0x80, 0]);
    bytes[0x41] = 0xf8;
    bytes[0xf8..0xfc].copy_from_slice(&[0x11, 0, 4, 0]);
    let (config, division) = plan(&bytes, ALL);
    assert_eq!(ids(&config).0, [0x01]);
    assert_eq!((division.msi, division.msix), (None, None));
}

#[test]
fn writes_are_forwarded_in_runs() {
    let (_, division) = plan(&sample(), ALL);
    assert_eq!(division.forwarded(0x04, 4), [2..4]);
    assert_eq!(division.forwarded(0x70, 4), [3..4]);
    assert!(division.forwarded(0xfff, 16).len() <= 1);
    assert!(division.forwarded(u16::MAX, 4).is_empty());
}

#[test]
fn a_resizable_bar_shows_its_present_size_and_no_other() {
    let mut bytes = sample();
    let mut put = |at: usize, dword: u32| bytes[at..at + 4].copy_from_slice(&dword.to_le_bytes());
    put(0x140, 0x2000_0015 | 1 << 16);
    put(0x200, 0);
    // BAR 0 has 256 MiB of 64 MiB to 16 GiB, BAR 2 2 MiB; a size beyond 128 TiB in the upper half of control.
    put(0x144, 0x0007_ff00);
    put(0x148, 0x0001_0000 | 8 << 8 | 2 << 5);
    put(0x14c, 0x0000_0070);
    put(0x150, 1 << 8 | 2);
    let (config, division) = plan(&bytes, Abilities::default());
    assert_eq!(config.u16(0x140), 0x0015);
    assert_eq!([config.u32(0x144), config.u32(0x148)], [1 << 12, 8 << 8 | 2 << 5]);
    assert_eq!([config.u32(0x14c), config.u32(0x150)], [1 << 5, 1 << 8 | 2]);
    assert!(!division.reads_hardware(0x144, 16) && division.forwarded(0x140, 20).is_empty());
    let mut guest = config;
    guest.write(0x148, &[0xff; 4]);
    assert_eq!(guest.u32(0x148), 8 << 8 | 2 << 5, "nothing can be written");
    // A size that the register cannot show hides it.
    bytes[0x149] = 0x3f;
    let (config, _) = plan(&bytes, Abilities::default());
    assert!(config.ext_capabilities().iter().all(|(id, _)| *id != 0x15));
}

/// What a guest does to the space: where, and the bytes of a read (none) or a write.
fn accesses() -> impl Strategy<Value = Vec<(u16, Vec<u8>)>> {
    prop::collection::vec((0..regs::CONFIG_SIZE, prop::collection::vec(any::<u8>(), 1..=4)), 1..48)
}

/// A hostile device: the sample with bytes changed and any capability of the hidden ones put in.
fn device() -> impl Strategy<Value = Vec<u8>> {
    let pokes = prop::collection::vec((0usize..SIZE, any::<u8>()), 0..32);
    let hidden = prop::sample::select(HIDDEN_EXTENDED.to_vec());
    (pokes, hidden, prop::bool::ANY).prop_map(|(pokes, (id, _), first)| {
        let mut bytes = sample();
        for (at, byte) in pokes {
            bytes[at] = byte;
        }
        let at = if first { 0x100 } else { 0x180 };
        bytes[at..at + 2].copy_from_slice(&id.to_le_bytes());
        bytes
    })
}

proptest! {
    /// A guest may write what it likes: what is hidden stays hidden, no emulated bit reaches the hardware, and the hardware
    /// gets exactly the bytes that the division gives it.
    #[test]
    fn no_write_crosses_the_division(
        bytes in device(), accesses in accesses(), port: bool, msi: bool, msix: bool, intx: bool,
    ) {
        let attachment = if port { Attachment::Port } else { Attachment::RootBus };
        let abilities = Abilities { msi, msix, intx, attachment };
        let (fresh, division) = plan(&bytes, abilities);
        let (mut guest, _) = plan(&bytes, abilities);
        let mut hardware = bytes.clone();
        for (off, data) in accesses {
            guest.write(off, &data);
            let mut kept = data.clone();
            division.keep_reporting(off, &mut kept);
            let mut before = 0;
            for part in division.forwarded(off, data.len()) {
                prop_assert!(part.start >= before && part.start < part.end && part.end <= data.len());
                before = part.end;
                let at = usize::from(off) + part.start;
                hardware[at..at + part.len()].copy_from_slice(&kept[part]);
            }
        }
        for at in 0..SIZE {
            let off = at as u16;
            let of_hardware = division.bits(off, 1)[0];
            let changeable = fresh.changeable(off);
            if division.forwarded(off, 1).is_empty() {
                prop_assert_eq!(hardware[at], bytes[at], "a write reached {:#x}", at);
            } else {
                // What goes to the hardware unasked is the hardware's, but for bits that show the same whatever is there,
                // and those of the guest that the hardware keeps.
                prop_assert_eq!(changeable & of_hardware, 0, "{:#x} has two owners", at);
                prop_assert_eq!(hardware[at] & changeable, bytes[at] & changeable, "a write reached {:#x}", at);
                prop_assert!(of_hardware != 0, "{:#x} is written and never read", at);
            }
            prop_assert_eq!(guest.u8(off) & !changeable, fresh.u8(off) & !changeable, "emulated at {:#x}", at);
            let mut shown = [guest.u8(off)];
            division.merge(off, &[hardware[at]], &mut shown);
            prop_assert_eq!(shown[0] & !of_hardware, guest.u8(off) & !of_hardware);
            prop_assert_eq!(shown[0] & of_hardware, hardware[at] & of_hardware);
        }
        let (seen, there) = (ids(&guest), ids(&fresh));
        prop_assert!(seen.0.iter().all(|id| !HIDDEN.contains(id)));
        let of_the_host = |id: &u16| HIDDEN_EXTENDED.iter().any(|(hidden, _)| hidden == id);
        prop_assert!(!seen.1.iter().any(of_the_host), "{:x?}", seen.1);
        prop_assert_eq!(seen, there, "the lists are the guest's to read only");
        prop_assert!(division.msi.is_none() || msi);
        prop_assert!(division.msix.is_none() || msix);
        prop_assert!(intx || guest.u8(regs::INTERRUPT_PIN) == 0);
    }

    /// The registers that decide about addresses, interrupts and the built-in self test are never the hardware's.
    #[test]
    fn the_host_keeps_what_decides(bytes in device(), port: bool) {
        let attachment = if port { Attachment::Port } else { Attachment::RootBus };
        let (_, division) = plan(&bytes, Abilities { attachment, ..ALL });
        let never = [(0, 6), (regs::STATUS + 2, regs::CAPABILITIES_START - regs::STATUS - 2)];
        let msi = division.msi.map(|at| (at, 0xa));
        let msix = division.msix.map(|at| (at, MSIX_LEN));
        for (at, len) in never.into_iter().chain(msi).chain(msix) {
            prop_assert!(!division.reads_hardware(at, usize::from(len)), "{:#x} is read", at);
            prop_assert!(division.forwarded(at, usize::from(len)).is_empty(), "{:#x} is written", at);
        }
    }

    /// Whatever the device shows: lists end, MSI and MSI-X fit, and no bit has two owners.
    #[test]
    fn no_device_breaks_the_plan(
        pokes in prop::collection::vec((0usize..SIZE, any::<u8>()), 0..64), garbage: bool, short: bool, port: bool,
        all in prop::collection::vec(any::<u8>(), 256),
    ) {
        let mut bytes = sample();
        if garbage {
            bytes[..256].copy_from_slice(&all);
        }
        for (at, byte) in pokes {
            bytes[at] = byte;
        }
        bytes.truncate(if short { 256 } else { SIZE });
        let attachment = if port { Attachment::Port } else { Attachment::RootBus };
        let (config, division) = plan(&bytes, Abilities { attachment, ..ALL });
        prop_assert!(config.capabilities().len() <= 48);
        prop_assert!(division.msix.is_none_or(|at| at + MSIX_LEN <= 0x100));
        for at in 0..regs::CONFIG_SIZE {
            prop_assert_eq!(config.changeable(at) & division.bits(at, 1)[0], 0, "at {:#x}", at);
        }
        for (_, at) in config.ext_capabilities() {
            prop_assert!(!division.reads_hardware(at, 4));
        }
    }
}
