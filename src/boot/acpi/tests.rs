//! Byte-level checks of the tables, and a round trip through iasl where the machine has it.

use super::*;
use proptest::prelude::*;
use std::process::Command;

fn input<'a>(layout: &'a Layout, apic_ids: &'a [u32]) -> Tables {
    Tables::build(&AcpiInput::new(layout, apic_ids)).unwrap()
}

fn layout() -> Layout {
    Layout::new(256 << 20, 46, 7).unwrap()
}

/// The table with this signature.
fn find(tables: &Tables, signature: &[u8]) -> (u64, Vec<u8>) {
    let (address, bytes) = tables.iter().find(|(_, bytes)| bytes.starts_with(signature)).unwrap();
    (address, bytes.to_vec())
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// All positions of `needle`.
fn count(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).filter(|window| *window == needle).count()
}

#[test]
fn tables_are_chained_summed_and_inside_their_area() {
    let layout = layout();
    let tables = input(&layout, &[0, 1]);
    let (rsdp_at, rsdp) = find(&tables, b"RSD PTR ");
    assert_eq!((rsdp_at, tables.rsdp()), (0xe_0000, 0xe_0000));
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    assert_eq!((rsdp[15], rsdp.len(), sum(&rsdp[..20]), sum(&rsdp)), (2, 36, 0, 0));

    let (xsdt_at, xsdt) = find(&tables, b"XSDT");
    assert_eq!(number(&rsdp, 24, 8), xsdt_at);
    let listed: Vec<u64> = xsdt[36..].chunks(8).map(|entry| number(entry, 0, 8)).collect();
    let named: Vec<u64> = [b"FACP", b"APIC", b"MCFG"].map(|name| find(&tables, name).0).to_vec();
    assert_eq!(listed, named);

    let mut last = 0;
    for (address, bytes) in tables.iter() {
        assert!(address >= last && address % 64 == 0);
        last = address + bytes.len() as u64;
        assert!(last <= 0x10_0000);
        if !bytes.starts_with(b"RSD") {
            assert_eq!(number(bytes, 4, 4), bytes.len() as u64);
        }
        if !bytes.starts_with(b"RSD") && !bytes.starts_with(b"FACS") {
            assert_eq!(sum(bytes), 0, "{}", bytes[..4].escape_ascii());
            assert_eq!(&bytes[10..24], b"PASSTHPASSTHRU");
        }
    }
}

#[test]
fn fadt_describes_the_fixed_hardware() {
    let layout = layout();
    let tables = input(&layout, &[0]);
    let (_, fadt) = find(&tables, b"FACP");
    let (dsdt, facs) = (find(&tables, b"DSDT").0, find(&tables, b"FACS").0);
    assert_eq!(fadt.len(), 276);
    assert_eq!((number(&fadt, 36, 4), number(&fadt, 132, 8)), (facs, 0));
    assert_eq!((number(&fadt, 40, 4), number(&fadt, 140, 8)), (dsdt, dsdt));
    assert_eq!(number(&fadt, 46, 2), 9, "SCI");
    assert_eq!(number(&fadt, 48, 4), 0, "no SMI command port");
    assert_eq!([56, 60, 64, 68, 72, 76, 80, 84].map(|at| number(&fadt, at, 4)), [0x600, 0, 0x604, 0, 0, 0x608, 0, 0]);
    assert_eq!(fadt[88..95], [4, 2, 0, 4, 0, 0, 0], "register lengths");
    assert_eq!((number(&fadt, 96, 2), number(&fadt, 98, 2)), (101, 1001), "no C2, no C3");
    assert_eq!(number(&fadt, 109, 2), 0b101, "legacy devices, no 8042, no VGA, RTC and MSI not denied");
    let flags = number(&fadt, 112, 4);
    assert_eq!(flags, 1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10);
    assert_eq!(fadt[116..128], [1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0], "reset register");
    assert_eq!(fadt[128], 6, "reset value");
    assert_eq!(fadt[148..160], [1, 32, 0, 2, 0x00, 0x06, 0, 0, 0, 0, 0, 0], "PM1a event");
    assert_eq!(fadt[172..184], [1, 16, 0, 2, 0x04, 0x06, 0, 0, 0, 0, 0, 0], "PM1a control");
    assert_eq!(fadt[208..220], [1, 32, 0, 3, 0x08, 0x06, 0, 0, 0, 0, 0, 0], "PM timer");

    let with_button = AcpiInput { power_button: true, ..AcpiInput::new(&layout, &[0]) };
    let (_, fadt) = find(&Tables::build(&with_button).unwrap(), b"FACP");
    assert_eq!(number(&fadt, 112, 4), flags & !(1 << 4), "a fixed power button");
}

#[test]
fn madt_lists_processors_and_overrides() {
    let layout = layout();
    let (_, madt) = find(&input(&layout, &[0, 1, 4, 254]), b"APIC");
    assert_eq!((number(&madt, 36, 4), number(&madt, 40, 4)), (0xfee0_0000, 1));
    let expected: &[&[u8]] = &[
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 1, 1, 0, 0, 0],
        &[0, 8, 4, 4, 1, 0, 0, 0],
        &[0, 8, 254, 254, 1, 0, 0, 0],
        &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
        &[2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0],
        &[4, 6, 0xff, 0, 0, 1],
    ];
    assert_eq!(madt[44..], expected.concat());
}

#[test]
fn apic_ids_that_the_madt_cannot_name_are_refused() {
    let layout = layout();
    for id in [255, 256, u32::MAX] {
        let error = Tables::build(&AcpiInput::new(&layout, &[0, id])).unwrap_err();
        assert_eq!(error.code(), Code::BadTopology);
    }
}

#[test]
fn mcfg_ends_at_the_last_bus() {
    let layout = layout();
    let (_, mcfg) = find(&input(&layout, &[0]), b"MCFG");
    assert_eq!(mcfg.len(), 60);
    assert_eq!(mcfg[44..], [0, 0, 0, 0xe0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0]);
}

#[test]
fn dsdt_reserves_configuration_space_as_one_range() {
    for (last_bus, len) in [(0u8, 0x10_0000u32), (7, 0x80_0000), (255, 0x1000_0000)] {
        let layout = Layout::new(256 << 20, 46, last_bus).unwrap();
        let (_, dsdt) = find(&input(&layout, &[0]), b"DSDT");
        let mut fixed = vec![0x86, 9, 0, 1, 0, 0, 0, 0xe0];
        fixed.extend_from_slice(&len.to_le_bytes());
        assert_eq!(count(&dsdt, &fixed), 1);
    }
}

#[test]
fn dsdt_windows_leave_out_what_is_taken() {
    let layout = layout();
    let (_, dsdt) = find(&input(&layout, &[0]), b"DSDT");
    // DWord and QWord memory descriptors: type 0, both ends fixed, read-write, then granularity, first and last.
    let mut windows = Vec::new();
    for at in 0..dsdt.len() - 30 {
        if dsdt[at..].starts_with(&[0x87, 0x17, 0, 0, 0x0c, 1, 0, 0, 0, 0]) {
            windows.push((number(&dsdt, at + 10, 4), number(&dsdt, at + 14, 4)));
            assert_eq!(number(&dsdt, at + 22, 4), windows[windows.len() - 1].1 - windows[windows.len() - 1].0 + 1);
        }
        if dsdt[at..].starts_with(&[0x8a, 0x2b, 0, 0, 0x0c, 1, 0, 0, 0, 0, 0, 0, 0, 0]) {
            windows.push((number(&dsdt, at + 14, 8), number(&dsdt, at + 22, 8)));
        }
    }
    let expected = [
        (0xc000_0000, 0xdfff_ffff),
        (0xe080_0000, 0xfebf_ffff),
        (0x1_0000_0000, 0xfc_ffff_ffff),
        (0x100_0000_0000, 0x3fff_ffff_ffff),
    ];
    assert_eq!(windows, expected);
}

#[test]
fn windows_that_cannot_be_expressed_are_left_out() {
    let odd = [0..0, 0xf000_0000..0x1_0000_0001];
    let layout = layout();
    let with = |mmio32: &[Range<u64>], mmio64: &[Range<u64>]| {
        let input = AcpiInput { mmio32, mmio64, ..AcpiInput::new(&layout, &[0]) };
        find(&Tables::build(&input).unwrap(), b"DSDT").1
    };
    assert_eq!(with(&odd, &odd[..1]), with(&[], &[]));
}

#[test]
fn dsdt_powers_off_with_the_promised_sleep_type() {
    let layout = layout();
    let (_, dsdt) = find(&input(&layout, &[0]), b"DSDT");
    assert_eq!(count(&dsdt, b"\x08\\_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00"), 1);
}

#[test]
fn devices_that_contribute_are_in_the_namespace() {
    let layout = layout();
    let name = acpi_tables::aml::Name::new("TEST".into(), &0x1234_5678u32);
    let input = AcpiInput { devices: &[&name], ..AcpiInput::new(&layout, &[0]) };
    let (_, dsdt) = find(&Tables::build(&input).unwrap(), b"DSDT");
    assert_eq!(count(&dsdt, b"\x08TEST\x0c\x78\x56\x34\x12"), 1);
}

#[test]
fn contributions_without_bound_are_refused() {
    let layout = layout();
    let name = acpi_tables::aml::Name::new("TEST".into(), &0x1234_5678u32);
    let many: Vec<&dyn Aml> = vec![&name; 0x4000];
    let input = AcpiInput { devices: &many, ..AcpiInput::new(&layout, &[0]) };
    assert_eq!(Tables::build(&input).unwrap_err().code(), Code::OutOfAddressSpace);
}

#[test]
fn iasl_takes_the_tables_apart_and_together_again() {
    if Command::new("iasl").arg("-v").output().is_err() {
        return; // an optional tool: the byte-level tests above stand without it
    }
    let layout = layout();
    let tables = input(&layout, &[0, 1, 2, 3]);
    let folder = tempfile::tempdir().unwrap();
    let iasl = |arguments: &[&str]| {
        let output = Command::new("iasl").args(arguments).current_dir(folder.path()).output().unwrap();
        let text = format!("{}{}", output.stdout.escape_ascii(), output.stderr.escape_ascii()).replace("\\n", "\n");
        assert!(output.status.success(), "iasl {arguments:?}\n{text}");
        for word in ["Error", "Warning", "Remark", "Invalid", "Incorrect", "unknown"] {
            let none = [format!("0 {word}"), format!(", 0 {word}")];
            let bad = text.lines().filter(|l| l.contains(word)).find(|l| !none.iter().any(|n| l.contains(n)));
            assert_eq!(bad, None, "iasl {arguments:?}\n{text}");
        }
    };
    for name in ["FACP", "APIC", "MCFG", "FACS", "XSDT", "DSDT"] {
        std::fs::write(folder.path().join(name.to_owned() + ".dat"), find(&tables, name.as_bytes()).1).unwrap();
        iasl(&["-d", &(name.to_owned() + ".dat")]);
    }
    iasl(&["-we", "DSDT.dsl"]);
    let text = std::fs::read_to_string(folder.path().join("DSDT.dsl")).unwrap();
    for word in ["PNP0A08", "_OSC", "_PRT", "_S5", "PNP0501", "PNP0B00", "PNP0C02"] {
        assert!(text.contains(word), "{word} is missing");
    }
}

proptest! {
    #[test]
    fn any_windows_give_sound_tables(
        mmio32 in prop::collection::vec((any::<u64>(), any::<u64>()), 0..4),
        mmio64 in prop::collection::vec((any::<u64>(), any::<u64>()), 0..4),
        apic_ids in prop::collection::vec(0u32..300, 0..300),
        last_bus: u8,
    ) {
        let ranges = |pairs: &[(u64, u64)]| pairs.iter().map(|&(start, end)| start..end).collect::<Vec<_>>();
        let (mmio32, mmio64) = (ranges(&mmio32), ranges(&mmio64));
        let layout = layout();
        let input = AcpiInput {
            mmio32: &mmio32, mmio64: &mmio64, last_bus, ecam_base: mmio32.len() as u64, pm_base: u16::MAX,
            ..AcpiInput::new(&layout, &apic_ids)
        };
        match Tables::build(&input) {
            Ok(tables) => for (_, bytes) in tables.iter().filter(|(_, bytes)| !bytes.starts_with(b"FACS")) {
                prop_assert_eq!(bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)), 0);
            },
            Err(error) => prop_assert!(apic_ids.iter().any(|&id| id > 254), "{}", error),
        }
    }
}
