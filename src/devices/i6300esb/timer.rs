//! The watchdog's registers and its two stages, without a clock of its own (Intel 6300ESB datasheet, chapter 16). Pure: what
//! comes of an access is a deadline that has changed.

use std::time::Duration;

/// Registers of configuration space: interrupt type, clock and what becomes of the reset; then enable and lock.
pub const CONFIG: u16 = 0x60;
pub const LOCK: u16 = 0x68;
/// The bits of the first that can be written.
pub const CONFIG_MASK: u16 = INTERRUPT_TYPE | FAST_CLOCK | NO_REBOOT;
const INTERRUPT_TYPE: u16 = 0b11;
/// The clock has a period of 1 us and not of 1 ms.
const FAST_CLOCK: u16 = 1 << 2;
/// The end of the second stage resets nothing.
const NO_REBOOT: u16 = 1 << 5;
/// The bits of the second.
const LOCKED: u8 = 1 << 0;
const ENABLED: u8 = 1 << 1;
/// The first stage comes after the second.
const FREE_RUNNING: u8 = 1 << 2;

/// Registers of the BAR: the lengths of the stages, the interrupt's status, and the reload register.
const PRELOAD_1: u64 = 0x0;
const PRELOAD_2: u64 = 0x4;
const RELOAD: u64 = 0xc;
/// Size of the BAR.
pub const BAR_SIZE: u64 = 16;
/// The stages' lengths have 20 bits.
const PRELOAD_MASK: u32 = 0xf_ffff;
/// Two writes to the reload register open the registers for one more.
const UNLOCK: [u8; 2] = [0x80, 0x86];
/// Bits of the reload register: start the first stage anew, and whether the watchdog has reset the machine. The datasheet
/// has the latter in bit 9, Linux's driver looks at bit 12.
const PING: u16 = 1 << 8;
const TIMED_OUT: u16 = 1 << 9 | 1 << 12;
/// The period of PCI's clock, as QEMU has it, and the ticks of it that the two clocks divide by.
const TICK: Duration = Duration::from_nanos(30);
const SLOW_SHIFT: u32 = 15;
const FAST_SHIFT: u32 = 5;

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    config: u16,
    lock: u8,
    preloads: [u32; 2],
    /// How many of the writes of [`UNLOCK`] have come.
    unlocked: usize,
    second_stage: bool,
    timed_out: bool,
}

impl Default for Timer {
    fn default() -> Timer {
        Timer { config: 0, lock: 0, preloads: [PRELOAD_MASK; 2], unlocked: 0, second_stage: false, timed_out: false }
    }
}

/// What comes of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing.
    Nothing,
    /// A stage of this length begins now.
    Start(Duration),
    /// The clock stops.
    Stop,
    /// The watchdog barks, and the machine is reset or what else the user wants; the clock stops.
    Bark,
}

impl Timer {
    /// As after power-on, but for what says why.
    pub fn reset(&mut self) {
        *self = Timer { timed_out: self.timed_out, ..Timer::default() };
    }

    fn stage(&self) -> Duration {
        let preload = self.preloads[usize::from(self.second_stage)];
        let shift = if self.config & FAST_CLOCK != 0 { FAST_SHIFT } else { SLOW_SHIFT };
        TICK.saturating_mul(preload.saturating_add(1)).saturating_mul(1 << shift)
    }

    /// The first stage anew, if it is enabled.
    pub fn restart(&mut self) -> Outcome {
        if self.lock & ENABLED == 0 {
            return Outcome::Nothing;
        }
        self.second_stage = false;
        Outcome::Start(self.stage())
    }

    /// The guest has written the first register of configuration space.
    pub fn set_config(&mut self, value: u16) {
        self.config = value & CONFIG_MASK;
    }

    /// The guest has written the second one. What is locked stays.
    pub fn set_lock(&mut self, value: u8) -> Outcome {
        if self.lock & LOCKED != 0 {
            return Outcome::Nothing;
        }
        let before = std::mem::replace(&mut self.lock, value & (LOCKED | ENABLED | FREE_RUNNING));
        match (before & ENABLED != 0, self.lock & ENABLED != 0) {
            (false, true) => self.restart(),
            (true, false) => Outcome::Stop,
            _ => Outcome::Nothing,
        }
    }

    /// What the second register of configuration space shows.
    pub fn lock(&self) -> u8 {
        self.lock
    }

    /// Reads the BAR.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == RELOAD && self.timed_out {
            let bytes = TIMED_OUT.to_le_bytes();
            data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        }
    }

    /// Writes the BAR.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Outcome {
        let mut bytes = [0; 4];
        bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let value = u32::from_le_bytes(bytes);
        if offset == RELOAD
            && let Some(step) = UNLOCK.get(self.unlocked)
            && value == u32::from(*step)
        {
            self.unlocked += 1;
            return Outcome::Nothing;
        }
        let open = std::mem::take(&mut self.unlocked) == UNLOCK.len();
        match offset {
            PRELOAD_1 if open => self.preloads[0] = value & PRELOAD_MASK,
            PRELOAD_2 if open => self.preloads[1] = value & PRELOAD_MASK,
            RELOAD if open => {
                // Bits that are written as ones are cleared.
                if value as u16 & TIMED_OUT != 0 {
                    self.timed_out = false;
                }
                if value as u16 & PING != 0 {
                    return self.restart();
                }
            }
            _ => {}
        }
        Outcome::Nothing
    }

    /// A stage is over.
    pub fn expired(&mut self) -> Outcome {
        if self.lock & ENABLED == 0 {
            return Outcome::Stop;
        }
        if !self.second_stage {
            // The datasheet's interrupt or SMI would come here; QEMU has neither.
            self.second_stage = true;
            return Outcome::Start(self.stage());
        }
        if self.config & NO_REBOOT == 0 {
            self.timed_out = true;
            self.reset();
            return Outcome::Bark;
        }
        match self.lock & FREE_RUNNING != 0 {
            true => self.restart(),
            false => Outcome::Stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unlock(timer: &mut Timer) {
        for byte in UNLOCK {
            assert_eq!(timer.write(RELOAD, &[byte]), Outcome::Nothing);
        }
    }

    fn set(timer: &mut Timer, offset: u64, value: u32) -> Outcome {
        unlock(timer);
        timer.write(offset, &value.to_le_bytes())
    }

    #[test]
    fn a_guest_that_pings_is_left_alone_and_one_that_does_not_is_barked_at() {
        let mut timer = Timer::default();
        set(&mut timer, PRELOAD_1, 0x3ff);
        set(&mut timer, PRELOAD_2, 0x7ff);
        // 1 ms is 32768 periods of 30 ns, nearly.
        let stage = |count: u32| Outcome::Start(TICK * count * (1 << SLOW_SHIFT));
        assert_eq!(timer.set_lock(ENABLED), stage(0x400));
        assert_eq!(timer.expired(), stage(0x800));
        assert_eq!(set(&mut timer, RELOAD, PING.into()), stage(0x400));
        assert_eq!(timer.expired(), stage(0x800));
        assert_eq!(timer.expired(), Outcome::Bark);
        let mut data = [0; 2];
        timer.read(RELOAD, &mut data);
        assert_eq!(data, TIMED_OUT.to_le_bytes());
        assert_eq!(timer.lock(), 0, "it is off after its reset");
        set(&mut timer, RELOAD, TIMED_OUT.into());
        timer.read(RELOAD, &mut data);
        assert_eq!(data, [0, 0]);
    }

    #[test]
    fn what_is_not_unlocked_or_is_locked_stays() {
        let mut timer = Timer::default();
        timer.write(PRELOAD_1, &[1, 0, 0, 0]);
        assert_eq!(timer, Timer::default());
        timer.write(RELOAD, &[0x80]);
        timer.write(RELOAD, &[0x00]);
        timer.write(RELOAD, &[0x86]);
        timer.write(PRELOAD_1, &[1, 0, 0, 0]);
        assert_eq!(timer, Timer::default());
        assert!(matches!(timer.set_lock(ENABLED | LOCKED), Outcome::Start(_)));
        assert_eq!((timer.set_lock(0), timer.lock()), (Outcome::Nothing, ENABLED | LOCKED));
    }

    #[test]
    fn without_reboot_it_stops_or_starts_anew() {
        let mut timer = Timer::default();
        timer.set_config(NO_REBOOT | FAST_CLOCK);
        assert_eq!(timer.set_lock(ENABLED), Outcome::Start(TICK * (1 << 20) * (1 << FAST_SHIFT)));
        timer.expired();
        assert_eq!(timer.expired(), Outcome::Stop);
        timer.set_lock(0);
        timer.set_lock(ENABLED | FREE_RUNNING);
        timer.expired();
        assert!(matches!(timer.expired(), Outcome::Start(_)));
        assert_eq!(timer.set_lock(0), Outcome::Stop);
    }

    proptest! {
        #[test]
        fn no_access_panics(writes in prop::collection::vec((0u64..20, prop::collection::vec(any::<u8>(), 0..9), any::<u16>()), 0..60)) {
            let mut timer = Timer::default();
            for (offset, data, value) in writes {
                timer.write(offset, &data);
                timer.set_config(value);
                timer.set_lock(value as u8 & !LOCKED);
                timer.expired();
                timer.read(offset, &mut [0; 8]);
            }
        }
    }
}
