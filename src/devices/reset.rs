//! The ports by which a PC resets itself: the chipset's reset control register (Intel ICH9 data sheet, "RST_CNT",
//! port 0xcf9) and the keyboard controller's "pulse the reset line" (port 0x64), which is all there is of it.
//!
//! 0xcf9 lies inside CONFIG_ADDRESS (0xcf8..0xcfc): only an access that starts at 0xcf9 is this register's.

use std::sync::atomic::{AtomicU8, Ordering};

use super::power::{PowerEvent, PowerSender};
use crate::memory::IoHandler;

/// Command port of the keyboard controller.
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;

/// RST_CNT: the reset is a hard one.
const RST_CNT_SYS_RST: u8 = 1 << 1;
/// RST_CNT: does the reset.
const RST_CNT_RST_CPU: u8 = 1 << 2;
/// RST_CNT: the reset includes a power cycle.
const RST_CNT_FULL_RST: u8 = 1 << 3;
/// 8042 commands 0xf0 to 0xff pulse the output lines whose bits are zero; bit 0 is the reset line.
const KEYBOARD_PULSE: u8 = 0xf0;
const KEYBOARD_RESET_LINE: u8 = 1 << 0;

/// The reset control register; one port, [`crate::boot::layout::RESET_PORT`]. Every kind of reset that it knows resets the whole machine.
pub struct ResetControl {
    /// The kind that a guest has chosen before the reset itself; reads back.
    kind: AtomicU8,
    power: PowerSender,
}

impl ResetControl {
    /// A register that tells `power`.
    pub fn new(power: PowerSender) -> Self {
        ResetControl { kind: AtomicU8::new(0), power }
    }

    /// Back to the state after power-on.
    pub fn reset(&self) {
        self.kind.store(0, Ordering::Relaxed);
    }
}

impl IoHandler for ResetControl {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(first) = data.first_mut() {
            *first = self.kind.load(Ordering::Relaxed);
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        self.kind.store(value & (RST_CNT_SYS_RST | RST_CNT_FULL_RST), Ordering::Relaxed);
        if value & RST_CNT_RST_CPU != 0 {
            self.power.send(PowerEvent::Reset);
        }
    }
}

/// The command port of a keyboard controller that is not there, but for its reset line; one port. It reads all-ones,
/// which tells Linux that there is no controller.
pub struct KeyboardReset {
    power: PowerSender,
}

impl KeyboardReset {
    /// A port that tells `power`.
    pub fn new(power: PowerSender) -> Self {
        KeyboardReset { power }
    }
}

impl IoHandler for KeyboardReset {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let pulses_reset = |&command: &u8| command >= KEYBOARD_PULSE && command & KEYBOARD_RESET_LINE == 0;
        if data.first().is_some_and(pulses_reset) {
            self.power.send(PowerEvent::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::power::tests::recorder;
    use super::*;
    use crate::boot::acpi::pm::RESET_VALUE;

    #[test]
    fn reset_control() {
        for (value, kind, resets) in
            [(0x00, 0x00, false), (0x02, 0x02, false), (0x04, 0x00, true), (0x06, 0x02, true), (0x0e, 0x0a, true)]
        {
            let (power, events) = recorder();
            let register = ResetControl::new(power);
            register.write(0, &[value]);
            let mut byte = [0];
            register.read(0, &mut byte);
            assert_eq!((byte[0], !events.lock().is_empty()), (kind, resets), "{value:#x}");
            register.reset();
            register.read(0, &mut byte);
            assert_eq!(byte[0], 0);
        }
    }

    /// Linux arch/x86/kernel/reboot.c, BOOT_CF9_FORCE: choose the kind, then do it.
    #[test]
    fn linux_cf9_reboot() {
        let (power, events) = recorder();
        let register = ResetControl::new(power);
        let mut cf9 = [0];
        register.read(0, &mut cf9);
        register.write(0, &[(cf9[0] & !RESET_VALUE) | 0x02]);
        assert!(events.lock().is_empty());
        register.write(0, &[(cf9[0] & !RESET_VALUE) | RESET_VALUE]);
        assert_eq!(*events.lock(), [PowerEvent::Reset]);
    }

    #[test]
    fn keyboard_reset() {
        for (command, resets) in [(0xfe, true), (0xf0, true), (0xff, false), (0xd1, false), (0xaa, false), (0, false)] {
            let (power, events) = recorder();
            let port = KeyboardReset::new(power);
            port.write(0, &[command]);
            assert_eq!(!events.lock().is_empty(), resets, "{command:#x}");
            let mut status = [0];
            port.read(0, &mut status);
            assert_eq!(status[0], 0xff);
        }
    }
}
