//! ACPI fixed hardware: the PM1a event and control blocks and the PM timer (ACPI specification 6.5, section 4.8).
//!
//! The machine is always in ACPI mode (no SMI command port in the FADT), so SCI_EN reads as one. The timer's carry
//! interrupt (TMR_STS) never occurs: operating systems of today read the timer often enough to see it wrap. One lock
//! protects the registers and the order of the SCI's levels; it is held while the line is driven.
//!
//! Where the registers lie and what they promise is written once, in [`crate::boot::acpi::pm`].

use std::time::Instant;

use bitflags::bitflags;
use parking_lot::Mutex;

use super::power::{PowerEvent, PowerSender};
use crate::boot::acpi::pm::{LEN, PM_TIMER, PM1A_CONTROL, PM1A_EVENT, SLEEP_TYPE_S5};
use crate::irq::IrqLine;
use crate::memory::IoHandler;

/// Ports that the block takes, from [`crate::boot::layout::PM_BASE`].
pub const PM_PORTS: u64 = LEN as u64;
/// The timer's frequency in Hz.
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// The FADT does not claim the 32-bit timer (TMR_VAL_EXT), so that the upper eight bits read as zero.
const PM_TIMER_MASK: u128 = 0x00ff_ffff;

bitflags! {
    /// PM1 status register, table 4.13; written ones clear.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Pm1Status: u16 {
        /// The power button was pressed.
        const PWRBTN = 1 << 8;
    }

    /// PM1 enable register, table 4.14.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Pm1Enable: u16 {
        const TMR = 1 << 0;
        const GBL = 1 << 5;
        const PWRBTN = 1 << 8;
        const SLPBTN = 1 << 9;
        const RTC = 1 << 10;
        const PCIEXP_WAKE_DIS = 1 << 14;
    }

    /// PM1 control register, table 4.15.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Pm1Control: u16 {
        /// The machine is in ACPI mode; read-only.
        const SCI_EN = 1 << 0;
        const BM_RLD = 1 << 1;
        /// The sleep state that SLP_EN enters.
        const SLP_TYP = 7 << 10;
        /// Enters it; write-only.
        const SLP_EN = 1 << 13;
    }
}

/// What a guest can write and read back.
const CONTROL_STORED: Pm1Control = Pm1Control::BM_RLD.union(Pm1Control::SLP_TYP);
const SLP_TYP_SHIFT: u32 = Pm1Control::SLP_TYP.bits().trailing_zeros();

/// The registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Status,
    Enable,
    Control,
    Timer,
}

/// Where the registers begin and how many bytes they have.
const REGISTERS: [(Register, u16, usize); 4] = [
    (Register::Status, PM1A_EVENT, 2),
    (Register::Enable, PM1A_EVENT + 2, 2),
    (Register::Control, PM1A_CONTROL, 2),
    (Register::Timer, PM_TIMER, 4),
];

/// The register, and the byte of it, that byte `index` of an access at `offset` hits.
fn register(offset: u64, index: usize) -> Option<(Register, usize)> {
    let at = usize::try_from(offset).ok()?.checked_add(index)?;
    REGISTERS.iter().find_map(|&(register, start, len)| {
        let byte = at.checked_sub(usize::from(start)).filter(|&byte| byte < len)?;
        Some((register, byte))
    })
}

/// The block of power management registers.
pub struct AcpiPm {
    state: Mutex<State>,
    power: PowerSender,
    start: Instant,
}

struct State {
    status: Pm1Status,
    enable: Pm1Enable,
    control: Pm1Control,
    sci: IrqLine,
}

impl AcpiPm {
    /// Registers that tell `power` and interrupt by `sci`. The timer starts at 0.
    pub fn new(sci: IrqLine, power: PowerSender) -> Self {
        let state = State { status: Pm1Status::empty(), enable: Pm1Enable::empty(), control: Pm1Control::SCI_EN, sci };
        AcpiPm { state: Mutex::new(state), power, start: Instant::now() }
    }

    /// Presses the power button: the guest's system shuts down if it listens.
    pub fn power_button(&self) {
        let mut state = self.state.lock();
        state.status |= Pm1Status::PWRBTN;
        state.drive_sci();
    }

    /// Back to the state after power-on; the timer runs on.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.status = Pm1Status::empty();
        state.enable = Pm1Enable::empty();
        state.control = Pm1Control::SCI_EN;
        state.drive_sci();
    }
}

/// The timer's value after `nanos` nanoseconds.
fn timer_value(nanos: u128) -> u32 {
    let count = nanos.saturating_mul(u128::from(PM_TIMER_HZ)) / 1_000_000_000;
    (count & PM_TIMER_MASK) as u32
}

impl State {
    fn drive_sci(&self) {
        self.sci.set(self.status.bits() & self.enable.bits() != 0);
    }

    /// Writes the control register's high or low byte; says whether it asks for S5.
    fn write_control(&mut self, byte: usize, value: u8) -> bool {
        let written = Pm1Control::from_bits_truncate(splice(self.control.bits(), byte, value));
        self.control = (written & CONTROL_STORED) | Pm1Control::SCI_EN;
        let sleep_type = (written & Pm1Control::SLP_TYP).bits() >> SLP_TYP_SHIFT;
        written.contains(Pm1Control::SLP_EN) && sleep_type == u16::from(SLEEP_TYPE_S5)
    }
}

/// `word` with its byte `index` (0 or 1) replaced.
fn splice(word: u16, index: usize, value: u8) -> u16 {
    let [low, high] = word.to_le_bytes();
    u16::from_le_bytes(if index == 0 { [value, high] } else { [low, value] })
}

/// Byte `index` of little-endian `bytes`; all-ones beyond.
fn byte_of(bytes: &[u8], index: usize) -> u8 {
    bytes.get(index).copied().unwrap_or(0xff)
}

/// Accesses of any size and alignment. The timer is sampled once, so that its bytes belong together.
impl IoHandler for AcpiPm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let timer = timer_value(self.start.elapsed().as_nanos()).to_le_bytes();
        let state = self.state.lock();
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = match register(offset, index) {
                Some((Register::Status, at)) => byte_of(&state.status.bits().to_le_bytes(), at),
                Some((Register::Enable, at)) => byte_of(&state.enable.bits().to_le_bytes(), at),
                Some((Register::Control, at)) => byte_of(&state.control.bits().to_le_bytes(), at),
                Some((Register::Timer, at)) => byte_of(&timer, at),
                None => 0xff,
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state.lock();
        let mut soft_off = false;
        for (index, &value) in data.iter().enumerate() {
            match register(offset, index) {
                Some((Register::Status, at)) => {
                    state.status.remove(Pm1Status::from_bits_truncate(splice(0, at, value)));
                }
                Some((Register::Enable, at)) => {
                    state.enable = Pm1Enable::from_bits_truncate(splice(state.enable.bits(), at, value));
                }
                Some((Register::Control, at)) => soft_off |= state.write_control(at, value),
                Some((Register::Timer, _)) | None => {}
            }
        }
        state.drive_sci();
        drop(state);
        if soft_off {
            self.power.send(PowerEvent::Shutdown);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::power::tests::recorder;
    use super::*;
    use crate::irq::Router;
    use crate::irq::testing::Recorder;

    fn pm() -> (AcpiPm, Arc<Recorder>, Arc<Mutex<Vec<PowerEvent>>>) {
        let (power, events) = recorder();
        let (router, chip) = (Router::new(), Arc::new(Recorder::default()));
        router.set_chip(chip.clone()).unwrap();
        chip.take();
        (AcpiPm::new(router.line(9), power), chip, events)
    }

    fn read16(pm: &AcpiPm, offset: u64) -> u16 {
        let mut data = [0; 2];
        pm.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    #[test]
    fn power_button_interrupts_until_its_status_is_cleared() {
        let (pm, chip, _) = pm();
        pm.power_button();
        assert_eq!(read16(&pm, 0), 0x100);
        assert!(chip.take().is_empty(), "not enabled");
        pm.write(2, &0x0100u16.to_le_bytes());
        assert_eq!(chip.take(), ["level 9 true"]);
        pm.write(0, &0x0001u16.to_le_bytes());
        assert!(chip.take().is_empty(), "another bit");
        pm.write(0, &0x0100u16.to_le_bytes());
        assert_eq!(chip.take(), ["level 9 false"]);
        assert_eq!(read16(&pm, 0), 0);
        pm.power_button();
        pm.reset();
        assert_eq!(chip.take(), ["level 9 true", "level 9 false"]);
        assert_eq!(read16(&pm, 2), 0);
    }

    #[test]
    fn only_defined_bits_are_kept() {
        let (pm, _, events) = pm();
        pm.write(0, &[0xff; 4]);
        assert_eq!((read16(&pm, 0), read16(&pm, 2)), (0, 0x4721));
        assert_eq!(read16(&pm, 4), 1, "ACPI mode from the start");
        pm.write(4, &0xdfffu16.to_le_bytes());
        assert_eq!(read16(&pm, 4), 0x1c03);
        assert!(events.lock().is_empty());
    }

    #[test]
    fn soft_off_needs_its_type_and_the_enable_bit() {
        for (value, off) in
            [(0x1400u16, false), (0x3400, true), (0x3401, true), (0x2000, false), (0x2400, false), (0x3c00, false)]
        {
            let (pm, _, events) = pm();
            pm.write(4, &value.to_le_bytes());
            assert_eq!(*events.lock() == [PowerEvent::Shutdown], off, "{value:#x}");
            assert_eq!(read16(&pm, 4) & 0x2000, 0, "SLP_EN reads as zero");
        }
    }

    /// ACPICA writes the type first and then the type with SLP_EN.
    #[test]
    fn acpica_soft_off() {
        let (pm, _, events) = pm();
        let control = read16(&pm, 4) & !0x3c00;
        pm.write(4, &(control | 0x1400).to_le_bytes());
        pm.write(4, &(control | 0x3400).to_le_bytes());
        assert_eq!(*events.lock(), [PowerEvent::Shutdown]);
    }

    #[test]
    fn timer_counts_at_its_frequency_and_wraps() {
        assert_eq!(timer_value(0), 0);
        assert_eq!(timer_value(1_000_000_000), 3_579_545);
        assert_eq!(timer_value(1_000), 3);
        let wrap = (1u128 << 24) * 1_000_000_000 / u128::from(PM_TIMER_HZ);
        assert_eq!(timer_value(wrap), 0x00ff_ffff);
        assert_eq!(timer_value(wrap + 1), 0);

        let (pm, ..) = pm();
        let read = || {
            let mut data = [0; 4];
            pm.read(PM_TIMER.into(), &mut data);
            u32::from_le_bytes(data)
        };
        let first = read();
        while read() == first {}
        assert!(read() <= 0x00ff_ffff);
    }

    proptest! {
        #[test]
        fn any_accesses(steps in proptest::collection::vec((any::<bool>(), 0u64..16, any::<u64>(), 0u32..4), 0..60)) {
            let (pm, ..) = pm();
            for (write, offset, value, size) in steps {
                let mut data = value.to_le_bytes();
                let data = &mut data[..1 << size];
                if write { pm.write(offset, data) } else { pm.read(offset, data) }
                prop_assert_eq!(read16(&pm, 4) & 1, 1);
            }
            pm.read(u64::MAX, &mut [0; 8]);
        }
    }
}
