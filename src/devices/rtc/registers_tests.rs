//! Tests of the clock's registers in the data sheet's terms.

use proptest::prelude::*;

use super::*;

/// 2024-02-29 23:59:58 UTC, a Thursday.
const NOW: i64 = 1_709_251_198;

fn at_now() -> Registers {
    Registers::new(NOW)
}

fn time(registers: &mut Registers, now: i64) -> [u8; 8] {
    [CENTURY, YEAR, MONTH, DAY_OF_MONTH, DAY_OF_WEEK, HOURS, MINUTES, SECONDS].map(|index| registers.read(index, now))
}

#[test]
fn after_power_on() {
    let mut registers = at_now();
    assert_eq!(registers.read(REGISTER_A, NOW), 0x26);
    assert_eq!(registers.read(REGISTER_B, NOW), 0x02);
    assert_eq!(registers.read(REGISTER_C, NOW), 0x00);
    assert_eq!(registers.read(REGISTER_D, NOW), 0x80);
    assert_eq!(registers.next_interrupt(NOW), None);
}

#[test]
fn time_in_all_four_formats() {
    for (control, hour, expected) in [
        (0x02, 0, [0x20, 0x24, 0x02, 0x29, 0x05, 0x23, 0x59, 0x58]),
        (0x06, 0, [20, 24, 2, 29, 5, 23, 59, 58]),
        (0x00, 0, [0x20, 0x24, 0x02, 0x29, 0x05, 0x91, 0x59, 0x58]),
        (0x04, 0, [20, 24, 2, 29, 5, 0x80 | 11, 59, 58]),
        (0x00, 1, [0x20, 0x24, 0x03, 0x01, 0x06, 0x12, 0x59, 0x58]),
        (0x00, 13, [0x20, 0x24, 0x03, 0x01, 0x06, 0x92, 0x59, 0x58]),
        (0x00, 14, [0x20, 0x24, 0x03, 0x01, 0x06, 0x81, 0x59, 0x58]),
    ] {
        let mut registers = at_now();
        registers.write(REGISTER_B, control, NOW);
        assert_eq!(time(&mut registers, NOW + hour * 3600), expected, "register B {control:#x}, {hour} h later");
    }
}

#[test]
fn time_runs_over_midnight_and_leap_day() {
    let mut registers = at_now();
    assert_eq!(time(&mut registers, NOW + 1)[5..], [0x23, 0x59, 0x59]);
    assert_eq!(time(&mut registers, NOW + 2), [0x20, 0x24, 0x03, 0x01, 0x06, 0, 0, 0]);
}

/// Linux drivers/rtc/rtc-mc146818-lib.c, mc146818_set_time(): SET and divider reset, the fields, and back.
#[test]
fn guest_sets_the_clock() {
    let mut registers = at_now();
    registers.write(REGISTER_B, 0x82, NOW);
    registers.write(REGISTER_A, 0x76, NOW);
    let fields = [(YEAR, 0x31), (MONTH, 0x12), (DAY_OF_MONTH, 0x31), (HOURS, 0x08), (MINUTES, 0x15), (SECONDS, 0x30)];
    for (index, value) in fields {
        registers.write(index, value, NOW);
    }
    assert_eq!(time(&mut registers, NOW + 9)[7], 0x30, "it stands still");
    registers.write(REGISTER_B, 0x02, NOW + 10);
    registers.write(REGISTER_A, 0x26, NOW + 10);
    assert_eq!(time(&mut registers, NOW + 15), [0x20, 0x31, 0x12, 0x31, 0x04, 0x08, 0x15, 0x35]);
    registers.reset();
    assert_eq!(time(&mut registers, NOW + 15)[1], 0x31, "a reset keeps the time");
}

#[test]
fn single_field_without_set() {
    let mut registers = at_now();
    registers.write(HOURS, 0x07, NOW);
    assert_eq!(time(&mut registers, NOW)[5..], [0x07, 0x59, 0x58]);
    registers.write(MONTH, 0x13, NOW);
    assert_eq!(time(&mut registers, NOW)[2], 0x02, "an impossible time is ignored");
    registers.write(SECONDS, 0x0f, NOW);
    assert_eq!(time(&mut registers, NOW)[7], 0x58);
}

#[test]
fn memory_and_read_only_registers() {
    let mut registers = at_now();
    for index in 0x0e..0x80 {
        if index != CENTURY {
            registers.write(index, index ^ 0x5a, NOW);
            assert_eq!(registers.read(index | 0x80, NOW), index ^ 0x5a);
        }
    }
    registers.write(REGISTER_A, 0xff, NOW);
    assert_eq!(registers.read(REGISTER_A, NOW), 0x7f, "UIP stays clear");
    registers.write(REGISTER_C, 0xff, NOW);
    registers.write(REGISTER_D, 0x00, NOW);
    assert_eq!((registers.read(REGISTER_C, NOW), registers.read(REGISTER_D, NOW)), (0, 0x80));
}

#[test]
fn update_flag_and_interrupt() {
    // Away from midnight, the alarm time after power-on.
    let start = NOW - 100;
    let mut registers = Registers::new(start);
    assert_eq!(registers.read(REGISTER_C, start + 1), 0x10);
    assert_eq!(registers.read(REGISTER_C, start + 1), 0x00);
    registers.write(REGISTER_B, 0x12, start + 1);
    assert!(!registers.interrupt(start + 1));
    assert_eq!(registers.next_interrupt(start + 1), Some(start + 2));
    assert!(registers.interrupt(start + 2));
    assert_eq!(registers.next_interrupt(start + 2), None, "it is already up");
    assert_eq!(registers.read(REGISTER_C, start + 2), 0x90);
    assert!(!registers.interrupt(start + 2));
    registers.reset();
    assert_eq!(registers.read(REGISTER_B, start + 2), 0x02);
    assert_eq!(registers.next_interrupt(start + 2), None);
}

#[test]
fn alarm_times() {
    const ANY: u8 = 0xff;
    for (hour, minute, second, expected) in [
        (0x23, 0x59, 0x59, Some(1)),
        (0x00, 0x00, 0x00, Some(2)),
        (0x23, 0x59, 0x58, Some(DAY)),
        (ANY, ANY, ANY, Some(1)),
        (ANY, ANY, 0x05, Some(7)),
        (ANY, 0x10, 0x05, Some(2 + 605)),
        (0x23, ANY, 0x00, Some(2 + 23 * 3600)),
        (0x23, 0x59, ANY, Some(1)),
        (0x24, 0x00, 0x00, None),
        (0x00, 0x60, 0x00, None),
        (0x00, 0x00, 0x0a, None),
    ] {
        let mut registers = at_now();
        for (index, value) in [(HOURS_ALARM, hour), (MINUTES_ALARM, minute), (SECONDS_ALARM, second)] {
            registers.write(index, value, NOW);
        }
        registers.write(REGISTER_B, 0x22, NOW);
        let next = registers.next_interrupt(NOW);
        assert_eq!(next, expected.map(|after| NOW + after), "{hour:02x}:{minute:02x}:{second:02x}");
        if let Some(next) = next {
            assert!(!registers.interrupt(next - 1));
            assert!(registers.interrupt(next));
            assert_eq!(registers.read(REGISTER_C, next), 0xb0);
        }
    }
}

#[test]
fn alarm_follows_a_clock_that_the_guest_has_set() {
    let mut registers = at_now();
    registers.write(HOURS, 0x07, NOW);
    for (index, value) in [(HOURS_ALARM, 0x08), (MINUTES_ALARM, 0x00), (SECONDS_ALARM, 0x00)] {
        registers.write(index, value, NOW);
    }
    registers.write(REGISTER_B, 0x22, NOW);
    assert_eq!(registers.next_interrupt(NOW), Some(NOW + 2));
}

proptest! {
    /// Whatever a guest writes and whatever the host's clock does: no panic, and a next interrupt lies ahead.
    #[test]
    fn any_accesses(
        start in prop_oneof![Just(NOW), any::<i64>()],
        steps in proptest::collection::vec((any::<bool>(), 0u8..0x34, any::<u8>(), prop_oneof![-5i64..100_000, any::<i64>()]), 0..100),
    ) {
        let mut now = start;
        let mut registers = Registers::new(now);
        for (write, index, value, ahead) in steps {
            now = now.saturating_add(ahead);
            if write { registers.write(index, value, now) } else { registers.read(index, now); }
            registers.interrupt(now);
            let sane = |seconds: i64| seconds.unsigned_abs() < 1 << 50;
            if let Some(next) = registers.next_interrupt(now)
                && sane(now)
                && sane(registers.offset)
            {
                prop_assert!(next > now && next <= now + DAY, "{next} after {now}");
            }
        }
    }
}
