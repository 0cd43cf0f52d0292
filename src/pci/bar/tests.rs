//! Sizing, decoding, and registers of any content.

use super::*;
use proptest::prelude::*;

fn spec(kind: BarKind, size: u64) -> Option<BarSpec> {
    Some(BarSpec { size, kind, prefetchable: false })
}

fn specs() -> BarSpecs {
    [
        spec(BarKind::Mem32, 0x1000),
        spec(BarKind::Io, 0x20),
        spec(BarKind::Mem64, 16 << 30),
        None,
        None,
        None,
        spec(BarKind::Mem32, 0x800),
    ]
}

fn bases(config: &ConfigSpace, specs: &BarSpecs) -> [Option<u64>; BARS] {
    decode(&Registers::read(config, true), specs).map(|placement| placement.map(|placement| placement.base))
}

#[test]
fn sizing_writes_show_size_and_type() {
    let mut config = ConfigSpace::new();
    define(&mut config, &specs(), "t").unwrap();
    for at in (0x10..0x28).step_by(4).chain([0x30]) {
        config.write(at, &[0xff; 4]);
    }
    let sized: Vec<u32> = (0x10..0x28).step_by(4).map(|at| config.u32(at)).collect();
    assert_eq!(sized, [0xffff_f000, 0xffff_ffe1, 0x0000_0004, 0xffff_fffc, 0, 0]);
    assert_eq!(config.u32(0x30), 0xffff_f801);
}

#[test]
fn bars_answer_when_their_space_is_enabled() {
    let mut config = ConfigSpace::new();
    define(&mut config, &specs(), "t").unwrap();
    for (at, value) in [(0x10, 0xc000_0000u32), (0x14, 0xc000), (0x18, 0), (0x1c, 0x10), (0x30, 0xc000_1001)] {
        config.write(at, &value.to_le_bytes());
    }
    assert_eq!(bases(&config, &specs()), [None; BARS]);
    config.set_u16(COMMAND, COMMAND_IO);
    assert_eq!(bases(&config, &specs())[..3], [None, Some(0xc000), None]);
    config.set_u16(COMMAND, COMMAND_MEMORY);
    let all = [Some(0xc000_0000), None, Some(0x10_0000_0000), None, None, None, Some(0xc000_1000)];
    assert_eq!(bases(&config, &specs()), all);
    config.write(0x30, &0xc000_1000u32.to_le_bytes());
    assert_eq!(bases(&config, &specs())[6], None, "the ROM has its own enable bit");
    assert_eq!(decode(&Registers::read(&config, false), &specs()), [None; BARS], "only D0 answers");
}

#[test]
fn unassigned_and_wrapping_bars_answer_nowhere() {
    let command = COMMAND_IO | COMMAND_MEMORY;
    let registers = |bars| Registers { command, bars, rom: 1, powered: true };
    assert_eq!(decode(&registers([0; 6]), &specs()), [None; BARS]);
    assert_eq!(decode(&registers([0, 0, u32::MAX, u32::MAX, 0, 0]), &specs()), [None; BARS]);
    assert!(decode(&registers([0, 0x1_0000, 0, 0, 0, 0]), &specs())[1].is_none(), "ports end at 64 KiB");
    let top = decode(&registers([0xffff_f000, 0xffe0, 0, 0xf_fffc, 0, 0]), &specs());
    assert_eq!(top[0].unwrap().range(), 0xffff_f000..1 << 32);
    assert_eq!(top[1].unwrap().range(), 0xffe0..0x1_0000);
    assert_eq!(top[2].unwrap().range(), (1 << 52) - (16 << 30)..1 << 52);
}

#[test]
fn impossible_bars_are_refused() {
    let cases: [(usize, BarKind, u64); 9] = [
        (0, BarKind::Mem32, 0),
        (0, BarKind::Mem32, 8),
        (0, BarKind::Mem32, 0x1800),
        (0, BarKind::Mem32, 1 << 32),
        (5, BarKind::Mem64, 0x1000),
        (0, BarKind::Io, 2),
        (0, BarKind::Io, 1 << 17),
        (6, BarKind::Mem64, 0x1000),
        (6, BarKind::Mem32, 0x400),
    ];
    for (index, kind, size) in cases {
        let mut specs = [None; BARS];
        specs[index] = spec(kind, size);
        assert!(define(&mut ConfigSpace::new(), &specs, "t").is_err(), "{index} {kind:?} {size:#x}");
    }
    let mut overlapping = [None; BARS];
    overlapping[0] = spec(BarKind::Mem64, 0x1000);
    overlapping[1] = spec(BarKind::Mem32, 0x1000);
    assert!(define(&mut ConfigSpace::new(), &overlapping, "t").is_err());
    let mut bridge = ConfigSpace::new();
    bridge.set_u8(super::super::regs::HEADER_TYPE, HEADER_BRIDGE);
    assert!(define(&mut bridge, &[None, spec(BarKind::Mem64, 0x1000), None, None, None, None, None], "t").is_err());
    assert!(define(&mut bridge, &[spec(BarKind::Mem64, 0x1000), None, None, None, None, None, None], "t").is_ok());
}

fn any_spec() -> impl Strategy<Value = Option<BarSpec>> {
    let kind = prop_oneof![Just(BarKind::Io), Just(BarKind::Mem32), Just(BarKind::Mem64)];
    prop::option::of((kind, 0u32..64, any::<bool>()).prop_map(|(kind, log2, prefetchable)| BarSpec {
        size: 1 << log2,
        kind,
        prefetchable,
    }))
}

proptest! {
    /// No content of the registers panics, and every placement is aligned and inside its space.
    #[test]
    fn any_registers_decode(command: u16, bars: [u32; 6], rom: u32, powered: bool,
            specs in prop::array::uniform7(any_spec())) {
        let registers = Registers { command, bars, rom, powered };
        for (placement, spec) in decode(&registers, &specs).iter().zip(&specs) {
            let Some(placement) = placement else { continue };
            prop_assert_eq!(placement.size, spec.unwrap().size);
            prop_assert_eq!(placement.base % placement.size, 0);
            prop_assert!(placement.base != 0);
            let end = if placement.space == Space::Pio { IO_END } else { MEMORY_END };
            prop_assert!(placement.range().end <= end);
        }
    }

    /// What is written to a BAR's register is read back, apart from what size and type fix.
    #[test]
    fn registers_hold_addresses(index in 0usize..5, log2 in 4u32..=51, value: u64, prefetchable: bool) {
        let kind = if log2 <= 31 { BarKind::Mem32 } else { BarKind::Mem64 };
        let size = 1u64 << log2;
        let mut specs = [None; BARS];
        specs[index] = Some(BarSpec { size, kind, prefetchable });
        let mut config = ConfigSpace::new();
        define(&mut config, &specs, "t").unwrap();
        config.write(register(index, HEADER_ENDPOINT), &value.to_le_bytes()[..4]);
        config.write(register(index + 1, HEADER_ENDPOINT), &value.to_le_bytes()[4..]);
        let low = u64::from(config.u32(register(index, HEADER_ENDPOINT)) & !MEM_FLAGS);
        let high = u64::from(config.u32(register(index, HEADER_ENDPOINT) + 4));
        let expected = if kind == BarKind::Mem64 { value } else { value & 0xffff_ffff };
        prop_assert_eq!(high << 32 | low, expected & !(size - 1));
    }
}
