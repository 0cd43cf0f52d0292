//! The real-time clock and CMOS memory of a PC: [`registers`] behind the index and data ports 0x70 and 0x71.
//!
//! An access costs the least that it can: an exit for the index, one for the data, no waiting for an update. The alarm
//! and update interrupts come from a timerfd on the host's clock, which is armed only while a guest has enabled them.
//!
//! One lock protects index, registers, and the order of the line's levels; it is held while the line is driven and the timer armed.

mod calendar;
mod registers;

use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::epoll::EpollFlags;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use parking_lot::Mutex;

use crate::event_loop::{EventLoop, Token};
use crate::irq::IrqLine;
use crate::memory::IoHandler;
use registers::Registers;

/// Index port; the data port follows.
pub const RTC_BASE: u16 = 0x70;
/// Ports that the clock takes.
pub const RTC_PORTS: u64 = 2;
/// Interrupt of the clock.
pub const RTC_IRQ: u32 = 8;

/// The clock.
pub struct Rtc {
    state: Mutex<State>,
    timer: Arc<TimerFd>,
}

struct State {
    /// The register that the data port reaches. Bit 7, which gates the NMI, is ignored.
    index: u8,
    registers: Registers,
    line: IrqLine,
    /// The host's second for which the timer is armed.
    armed: Option<i64>,
}

/// The host's second.
fn now() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
    }
}

impl Rtc {
    /// A clock that shows the host's time in UTC.
    ///
    /// # Errors
    /// The system is out of descriptors.
    pub fn new(line: IrqLine) -> io::Result<Arc<Rtc>> {
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let registers = Registers::new(now());
        let state = State { index: 0, registers, line, armed: None };
        Ok(Arc::new(Rtc { state: Mutex::new(state), timer: Arc::new(timer) }))
    }

    /// Lets `event_loop` drive the alarm and update interrupts, until the source is removed.
    ///
    /// # Errors
    /// The system is out of memory.
    pub fn attach(self: &Arc<Self>, event_loop: &mut EventLoop) -> io::Result<Token> {
        let rtc = Arc::clone(self);
        event_loop.add(Arc::clone(&self.timer), EpollFlags::EPOLLIN, move |_, _| rtc.expired())
    }

    /// The machine is reset: the clock runs on, interrupts are disabled.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.index = 0;
        state.registers.reset();
        self.settle(&mut state, now());
    }

    fn expired(&self) {
        let mut state = self.state.lock();
        // Empties the timer's counter. It fails only if another thread has re-armed the timer in between.
        let _ = self.timer.wait();
        state.armed = None;
        self.settle(&mut state, now());
    }

    /// Drives the line and arms the timer as the registers say.
    fn settle(&self, state: &mut State, now: i64) {
        let level = state.registers.interrupt(now);
        state.line.set(level);
        let next = state.registers.next_interrupt(now);
        if next == state.armed {
            return;
        }
        // On failure (a date that the kernel does not take) the alarm stays silent, which is all that can be done.
        let _ = match next {
            Some(second) => {
                self.timer.set(Expiration::OneShot(TimeSpec::new(second, 0)), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            }
            None => self.timer.unset(),
        };
        state.armed = next;
    }
}

/// A PC's bus splits accesses into single bytes: index first, then data.
impl IoHandler for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // The index port is write-only, so that only the byte that falls on the data port has a value.
        data.fill(0xff);
        let Some((_, byte)) = (offset..RTC_PORTS).zip(data).find(|&(port, _)| port == 1) else { return };
        let (mut state, now) = (self.state.lock(), now());
        let index = state.index;
        *byte = state.registers.read(index, now);
        if registers::read_has_effects(index) {
            self.settle(&mut state, now);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state.lock();
        for (port, &value) in (offset..RTC_PORTS).zip(data) {
            if port == 0 {
                state.index = value;
                continue;
            }
            let (index, now) = (state.index, now());
            state.registers.write(index, value, now);
            self.settle(&mut state, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::irq::Router;
    use crate::irq::testing::Recorder;

    fn rtc() -> (Arc<Rtc>, Arc<Recorder>) {
        let (router, chip) = (Router::new(), Arc::new(Recorder::default()));
        router.set_chip(chip.clone()).unwrap();
        chip.take();
        (Rtc::new(router.line(RTC_IRQ)).unwrap(), chip)
    }

    fn read(rtc: &Rtc, index: u8) -> u8 {
        rtc.write(0, &[index]);
        let mut byte = [0];
        rtc.read(1, &mut byte);
        byte[0]
    }

    #[test]
    fn ports() {
        let (rtc, _) = rtc();
        let mut data = [0; 4];
        rtc.write(0, &[0x40, 0x5a]);
        rtc.read(0, &mut data[..2]);
        assert_eq!(data, [0xff, 0x5a, 0, 0], "one access of two bytes; the index is write-only");
        assert_eq!(read(&rtc, 0xc0), 0x5a, "the NMI bit is ignored");
        rtc.read(0, &mut data[..1]);
        assert_eq!(data[0], 0xff);
        for offset in [2, u64::MAX] {
            rtc.write(offset, &[1; 8]);
            rtc.read(offset, &mut data);
            assert_eq!(data, [0xff; 4]);
        }
        assert_eq!(read(&rtc, 0x40), 0x5a);
        assert_eq!(read(&rtc, 0x0d), 0x80);
    }

    #[test]
    fn shows_the_hosts_year() {
        let (rtc, _) = rtc();
        let bcd = |value: u8| i64::from(value >> 4) * 10 + i64::from(value & 0x0f);
        let before = now();
        let year = bcd(read(&rtc, registers::CENTURY)) * 100 + bcd(read(&rtc, 0x09));
        let year_of = |seconds| i64::from(calendar::DateTime::from_unix(seconds).year);
        assert!((year_of(before)..=year_of(now())).contains(&year));
    }

    #[test]
    fn update_interrupt_comes_from_the_event_loop() {
        let mut event_loop = EventLoop::new(|_, signal| panic!("{signal}")).unwrap();
        let (rtc, chip) = rtc();
        rtc.attach(&mut event_loop).unwrap();
        let (watcher, handle) = (Arc::clone(&chip), event_loop.handle());
        std::thread::spawn(move || {
            while watcher.calls.lock().is_empty() {
                std::thread::sleep(Duration::from_millis(10));
            }
            handle.stop();
        });
        rtc.write(0, &[0x0b, 0x12]);
        event_loop.run().unwrap();
        assert_eq!(chip.take(), ["level 8 true"]);
        assert_eq!(read(&rtc, 0x0c) & 0x90, 0x90);
        assert_eq!(chip.take().first().map(String::as_str), Some("level 8 false"));
        rtc.reset();
        assert_eq!(rtc.state.lock().armed, None);
        assert_eq!(rtc.timer.get().unwrap(), None);
    }
}
