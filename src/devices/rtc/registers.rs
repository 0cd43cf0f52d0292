//! The registers of the clock: Motorola MC146818A data sheet, "Register descriptions". Pure: the host's time comes in
//! with each access.
//!
//! The clock is never seen in an update: the time is computed from the host's whenever it is read, so UIP is always
//! clear and no guest waits for it. A guest that sets the clock changes its distance from the host's.

use bitflags::bitflags;

use super::calendar::{DAY, DateTime, weekday};

/// Bytes of clock registers and battery-backed memory.
pub const CMOS_SIZE: usize = 128;
/// Where PCs keep the century.
pub const CENTURY: u8 = 0x32;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;

/// The registers that hold the time.
const TIME: [u8; 8] = [SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, CENTURY];

/// Register A after power-on: 32.768 kHz time base, 1024 Hz periodic rate.
const DEFAULT_A: u8 = 0x26;
/// Register A: update in progress; read-only.
const A_UIP: u8 = 1 << 7;
/// Register D: the memory has kept its contents; all other bits are zero.
const D_VRT: u8 = 1 << 7;
/// Hours register in 12-hour mode: afternoon.
const HOURS_PM: u8 = 1 << 7;
/// Alarm registers: values from here on match always.
const ALARM_ANY: u8 = 0xc0;

bitflags! {
    /// Register B.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct ControlB: u8 {
        /// Daylight saving; kept, without effect: the clock shows UTC.
        const DSE = 1 << 0;
        /// 24-hour mode.
        const HOURS_24 = 1 << 1;
        /// Binary instead of BCD.
        const DM = 1 << 2;
        /// Square wave; kept, there is no such pin.
        const SQWE = 1 << 3;
        /// Interrupt at the end of each update.
        const UIE = 1 << 4;
        /// Alarm interrupt.
        const AIE = 1 << 5;
        /// Periodic interrupt; kept, never raised (operating systems of today use other timers).
        const PIE = 1 << 6;
        /// Updates stand still: the time is being set.
        const SET = 1 << 7;
    }

    /// Register C, cleared by reading. Its bits 4 to 6 are enabled by the same bits of register B.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct FlagsC: u8 {
        /// An update has ended.
        const UF = 1 << 4;
        /// The alarm time has come.
        const AF = 1 << 5;
        /// An enabled flag is set.
        const IRQF = 1 << 7;
    }
}

/// Whether reading register `index` changes anything: the flags of register C are cleared.
pub fn read_has_effects(index: u8) -> bool {
    index & 0x7f == REGISTER_C
}

/// The 128 bytes behind the index and data ports.
#[derive(Debug)]
pub struct Registers {
    bytes: [u8; CMOS_SIZE],
    control: ControlB,
    flags: FlagsC,
    /// Guest's seconds minus host's.
    offset: i64,
    /// The guest's second up to which `flags` are true.
    seen: i64,
}

impl Registers {
    /// The clock shows the host's time, `now`, in BCD and 24-hour mode; the memory is zero.
    pub fn new(now: i64) -> Self {
        let mut bytes = [0; CMOS_SIZE];
        bytes[usize::from(REGISTER_A)] = DEFAULT_A;
        Registers { bytes, control: ControlB::HOURS_24, flags: FlagsC::empty(), offset: 0, seen: now }
    }

    /// Reads register `index` (bit 7 is ignored) at the host's second `now`.
    pub fn read(&mut self, index: u8, now: i64) -> u8 {
        let index = index & 0x7f;
        match index {
            REGISTER_B => self.control.bits(),
            REGISTER_C => self.take_flags(now),
            REGISTER_D => D_VRT,
            _ if TIME.contains(&index) && !self.is_set() => self.time_register(index, self.guest_time(now)),
            _ => self.get(index),
        }
    }

    /// Writes register `index` (bit 7 is ignored) at the host's second `now`.
    pub fn write(&mut self, index: u8, value: u8, now: i64) {
        self.advance(now);
        let index = index & 0x7f;
        match index {
            REGISTER_A => self.put(index, value & !A_UIP),
            REGISTER_B => self.write_control(ControlB::from_bits_truncate(value), now),
            REGISTER_C | REGISTER_D => {}
            _ if TIME.contains(&index) && !self.is_set() => {
                self.freeze(now);
                self.put(index, value);
                self.adopt(now);
            }
            _ => self.put(index, value),
        }
    }

    /// The level of the IRQ pin at the host's second `now`.
    pub fn interrupt(&mut self, now: i64) -> bool {
        self.advance(now);
        self.enabled().intersects(self.flags)
    }

    /// The host's second at which the IRQ pin will next go high, if it is not and nothing is written before.
    pub fn next_interrupt(&self, now: i64) -> Option<i64> {
        if self.is_set() || self.enabled().intersects(self.flags) {
            return None;
        }
        let guest = self.guest_time(now);
        let update = self.control.contains(ControlB::UIE).then_some(guest.saturating_add(1));
        let alarm = if self.control.contains(ControlB::AIE) { self.next_alarm(guest) } else { None };
        let next = [update, alarm].into_iter().flatten().min()?;
        Some(next.saturating_sub(self.offset))
    }

    /// The machine is reset: interrupts are disabled; time and memory are kept ("RESET", data sheet).
    pub fn reset(&mut self) {
        self.control -= ControlB::UIE | ControlB::AIE | ControlB::PIE | ControlB::SQWE;
        self.flags = FlagsC::empty();
    }

    fn get(&self, index: u8) -> u8 {
        self.bytes.get(usize::from(index)).copied().unwrap_or(0xff)
    }

    fn put(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.bytes.get_mut(usize::from(index)) {
            *byte = value;
        }
    }

    fn is_set(&self) -> bool {
        self.control.contains(ControlB::SET)
    }

    fn guest_time(&self, now: i64) -> i64 {
        now.saturating_add(self.offset)
    }

    fn enabled(&self) -> FlagsC {
        FlagsC::from_bits_truncate(self.control.bits()) & (FlagsC::UF | FlagsC::AF)
    }

    /// Brings the flags up to the present.
    fn advance(&mut self, now: i64) {
        let guest = self.guest_time(now);
        if guest > self.seen && !self.is_set() {
            self.flags |= FlagsC::UF;
            if self.next_alarm(self.seen).is_some_and(|alarm| alarm <= guest) {
                self.flags |= FlagsC::AF;
            }
        }
        self.seen = guest;
    }

    fn take_flags(&mut self, now: i64) -> u8 {
        let pending = self.interrupt(now);
        let mut flags = std::mem::replace(&mut self.flags, FlagsC::empty());
        flags.set(FlagsC::IRQF, pending);
        flags.bits()
    }

    /// The first second after `guest` at which the alarm registers match; `None` if they hold no time of day.
    fn next_alarm(&self, guest: i64) -> Option<i64> {
        let alarm = |index, decode: fn(&Self, u8) -> u8, limit: u8| {
            let value = self.get(index);
            let first = if value >= ALARM_ANY { 0 } else { decode(self, value) };
            let last = if value >= ALARM_ANY { limit - 1 } else { first };
            (last < limit).then_some(i64::from(first)..=i64::from(last))
        };
        let hours = alarm(HOURS_ALARM, Self::decode_hour, 24)?;
        let minutes = alarm(MINUTES_ALARM, Self::decode, 60)?;
        let seconds = alarm(SECONDS_ALARM, Self::decode, 60)?;
        let midnight = guest.div_euclid(DAY).saturating_mul(DAY);
        let of_day = guest.rem_euclid(DAY);
        let times = hours.flat_map(|hour| minutes.clone().map(move |minute| hour * 3600 + minute * 60));
        let next = times.map(|minute| {
            let start = minute + seconds.start();
            let end = minute + seconds.end();
            // Today if a second of this minute is still to come, else tomorrow.
            let today = start.max(of_day + 1);
            if today <= end { today } else { start + DAY }
        });
        next.min().map(|second| midnight.saturating_add(second))
    }

    fn encode(&self, value: u8) -> u8 {
        if self.control.contains(ControlB::DM) { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    /// The number that a register's `value` stands for; an impossible one stays too large for any field.
    fn decode(&self, value: u8) -> u8 {
        if self.control.contains(ControlB::DM) {
            value
        } else if value & 0x0f > 9 || value >> 4 > 9 {
            u8::MAX
        } else {
            (value >> 4) * 10 + (value & 0x0f)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.control.contains(ControlB::HOURS_24) {
            return self.encode(hour);
        }
        let of_half = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(of_half) | if hour >= 12 { HOURS_PM } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.control.contains(ControlB::HOURS_24) {
            return self.decode(value);
        }
        match self.decode(value & !HOURS_PM) {
            of_half @ 1..=12 => of_half % 12 + if value & HOURS_PM != 0 { 12 } else { 0 },
            _ => u8::MAX,
        }
    }

    fn time_register(&self, index: u8, guest: i64) -> u8 {
        let time = DateTime::from_unix(guest);
        match index {
            SECONDS => self.encode(time.second),
            MINUTES => self.encode(time.minute),
            HOURS => self.encode_hour(time.hour),
            DAY_OF_WEEK => self.encode(weekday(guest)),
            DAY_OF_MONTH => self.encode(time.day),
            MONTH => self.encode(time.month),
            // Both are below 100.
            YEAR => self.encode((time.year % 100) as u8),
            _ => self.encode((time.year / 100) as u8),
        }
    }

    fn write_control(&mut self, control: ControlB, now: i64) {
        let was_set = self.is_set();
        if control.contains(ControlB::SET) && !was_set {
            self.freeze(now);
        }
        self.control = control;
        if was_set && !self.is_set() {
            self.adopt(now);
        }
    }

    /// Copies the running time into the registers.
    fn freeze(&mut self, now: i64) {
        let guest = self.guest_time(now);
        for index in TIME {
            let value = self.time_register(index, guest);
            self.put(index, value);
        }
    }

    /// Lets the clock run on from the registers; an impossible time is ignored. The day of the week follows the date.
    fn adopt(&mut self, now: i64) {
        let century = u16::from(self.decode(self.get(CENTURY)));
        let year = u16::from(self.decode(self.get(YEAR)));
        if year > 99 {
            return;
        }
        let time = DateTime {
            year: century * 100 + year,
            month: self.decode(self.get(MONTH)),
            day: self.decode(self.get(DAY_OF_MONTH)),
            hour: self.decode_hour(self.get(HOURS)),
            minute: self.decode(self.get(MINUTES)),
            second: self.decode(self.get(SECONDS)),
        };
        if let Some(guest) = time.to_unix() {
            self.offset = guest.saturating_sub(now);
            self.seen = guest;
        }
    }
}

#[cfg(test)]
#[path = "registers_tests.rs"]
mod tests;
