//! A serial port: the 16550A of [`uart`] between a [`Chardev`] and an interrupt line, at a PC's COM1 by convention or
//! behind a PCI function ([`pci`]), or at any ports of the ISA bus ([`isa`]).
//!
//! One lock protects the registers, the bytes that wait for the receiver, and the order of the line's levels. It is held
//! while the line is driven and while a byte goes into the back end's queue; neither blocks or calls back.
//!
//! What a guest's access costs: one uncontended lock and, where the interrupt's level changes, one call of the line.

pub mod isa;
pub mod pci;
pub mod uart;

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::backends::chardev::{Chardev, FrontEnd};
use crate::boot_trace::{self, phases};
use crate::memory::IoHandler;
use uart::{FIFO_SIZE, RBR_THR_DLL, Uart};

/// First port of COM1.
pub const COM1_BASE: u16 = 0x3f8;
/// Interrupt of COM1.
pub const COM1_IRQ: u32 = 4;
/// Ports that a serial port takes.
pub const PORTS: u64 = uart::REGISTERS;

/// Most bytes of input that wait for the guest.
const MAX_BACKLOG: usize = 4096;
/// Room in the backlog at which the source of the input is asked to go on.
const RESUME_ROOM: usize = MAX_BACKLOG / 2;

/// A serial port.
pub struct Serial {
    state: Mutex<State>,
    chardev: Arc<dyn Chardev>,
}

/// Sets the level of the port's interrupt; called with the port's lock held.
type Drive = Box<dyn FnMut(bool) + Send>;

struct State {
    uart: Uart,
    drive: Drive,
    /// Input that has not yet found room in the UART; at most [`MAX_BACKLOG`] bytes.
    backlog: VecDeque<u8>,
    /// The source of the input has been told that there is no room.
    source_waits: bool,
}

impl Serial {
    /// A serial port on `chardev`; `drive` sets the level of its interrupt.
    pub fn new(chardev: Arc<dyn Chardev>, drive: impl FnMut(bool) + Send + 'static) -> Arc<Self> {
        let (uart, backlog) = (Uart::default(), VecDeque::new());
        let state = State { uart, drive: Box::new(drive), backlog, source_waits: false };
        let serial = Arc::new(Serial { state: Mutex::new(state), chardev });
        let front_end: Weak<Serial> = Arc::downgrade(&serial);
        serial.chardev.attach(front_end);
        serial
    }

    /// Back to the state after power-on. Input that waits is kept: it comes from outside of the machine.
    pub fn reset(&self) {
        self.update(|state| {
            state.uart = Uart::default();
            state.uart.set_ready(self.chardev.ready());
        });
    }

    /// Runs `f` on the state, then moves input on, drives the interrupt line and announces room.
    fn update<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let result = f(&mut state);
        state.refill();
        // Under the lock, so that two threads cannot leave the line at a stale level.
        let level = state.uart.interrupt();
        (state.drive)(level);
        let announce = state.source_waits && MAX_BACKLOG.saturating_sub(state.backlog.len()) >= RESUME_ROOM;
        if announce {
            state.source_waits = false;
        }
        drop(state);
        if announce {
            self.chardev.resume();
        }
        result
    }

    fn read_register(&self, state: &mut State, register: u8) -> u8 {
        if register == uart::LSR {
            state.uart.set_ready(self.chardev.ready());
        }
        let value = state.uart.read(register);
        // A guest may empty the FIFO by one access of several bytes: the next byte must be there.
        if register == RBR_THR_DLL {
            state.refill();
        }
        value
    }

    fn write_register(&self, state: &mut State, register: u8, value: u8) {
        if let Some(byte) = state.uart.write(register, value) {
            boot_trace::moment(phases::CONSOLE);
            self.chardev.write(&[byte]);
            state.uart.set_ready(self.chardev.ready());
        }
    }
}

impl FrontEnd for Serial {
    fn room(&self) -> usize {
        let mut state = self.state.lock();
        let room = MAX_BACKLOG.saturating_sub(state.backlog.len());
        state.source_waits = room == 0;
        room
    }

    fn input(&self, bytes: &[u8]) {
        self.update(|state| {
            let room = MAX_BACKLOG.saturating_sub(state.backlog.len());
            state.backlog.extend(bytes.iter().take(room));
        });
    }

    /// The break overtakes input that still waits.
    fn input_break(&self) {
        self.update(|state| state.uart.receive_break());
    }

    fn output_ready(&self) {
        self.update(|state| state.uart.set_ready(self.chardev.ready()));
    }
}

impl State {
    /// Moves waiting input into the UART, never so much that it overruns.
    fn refill(&mut self) {
        for _ in 0..self.uart.room().min(FIFO_SIZE) {
            let Some(byte) = self.backlog.pop_front() else { return };
            self.uart.receive(byte);
        }
    }
}

/// The register at `offset + index`, if the access still hits one.
fn register(offset: u64, index: usize) -> Option<u8> {
    let register = offset.checked_add(u64::try_from(index).ok()?)?;
    u8::try_from(register).ok().filter(|&register| u64::from(register) < PORTS)
}

/// An access of several bytes is split into single bytes at ascending ports, as a PC's bus does.
impl IoHandler for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.update(|state| {
            for (index, byte) in data.iter_mut().enumerate() {
                *byte = register(offset, index).map_or(0xff, |register| self.read_register(state, register));
            }
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.update(|state| {
            for (index, &byte) in data.iter().enumerate() {
                if let Some(register) = register(offset, index) {
                    self.write_register(state, register, byte);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;

    use super::uart::{IER_DLM, IIR_FCR, LSR};
    use super::*;
    use crate::backends::chardev::testing::Recorder;
    use crate::irq::Router;
    use crate::irq::testing::Recorder as Chip;

    struct Bench {
        serial: Arc<Serial>,
        sink: Arc<Recorder>,
        chip: Arc<Chip>,
    }

    fn bench() -> Bench {
        let (sink, chip) = (Arc::new(Recorder::default()), Arc::new(Chip::default()));
        let router = Router::new();
        router.set_chip(chip.clone()).unwrap();
        chip.take();
        let line = router.line(COM1_IRQ);
        let serial = Serial::new(sink.clone(), move |high| line.set(high));
        Bench { serial, sink, chip }
    }

    impl Bench {
        fn read(&self, register: u8) -> u8 {
            let mut byte = [0];
            self.serial.read(register.into(), &mut byte);
            byte[0]
        }
        fn write(&self, register: u8, value: u8) {
            self.serial.write(register.into(), &[value]);
        }
    }

    #[test]
    fn bytes_go_out_and_come_in() {
        let bench = bench();
        b"hello".iter().for_each(|&byte| bench.write(RBR_THR_DLL, byte));
        assert_eq!(*bench.sink.bytes.lock(), b"hello");
        bench.serial.input(b"abc");
        let mut seen = Vec::new();
        while bench.read(LSR) & 1 != 0 {
            seen.push(bench.read(RBR_THR_DLL));
        }
        assert_eq!(seen, b"abc");
    }

    #[test]
    fn line_is_high_while_the_uart_interrupts() {
        let bench = bench();
        bench.write(IIR_FCR, 1);
        bench.write(IER_DLM, 1);
        bench.serial.input(b"ab");
        bench.read(RBR_THR_DLL);
        assert_eq!(bench.chip.take(), ["level 4 true"]);
        bench.read(RBR_THR_DLL);
        assert_eq!(bench.chip.take(), ["level 4 false"]);
        bench.serial.input(b"c");
        bench.serial.reset();
        assert_eq!(bench.chip.take(), ["level 4 true", "level 4 false"]);
    }

    #[test]
    fn full_sink_clears_thre_and_its_drain_interrupts() {
        let bench = bench();
        bench.write(IER_DLM, 2);
        bench.read(IIR_FCR);
        bench.sink.full.store(true, Ordering::SeqCst);
        bench.write(RBR_THR_DLL, b'x');
        assert_eq!(bench.read(LSR) & 0x60, 0);
        assert_eq!(bench.chip.take(), ["level 4 true", "level 4 false"]);
        bench.sink.full.store(false, Ordering::SeqCst);
        bench.sink.front.get().unwrap().output_ready();
        assert_eq!(bench.chip.take(), ["level 4 true"]);
        assert_eq!(bench.read(LSR) & 0x60, 0x60);
    }

    #[test]
    fn input_is_bounded_and_the_source_is_called_back_once() {
        let bench = bench();
        while bench.serial.room() > 0 {
            bench.serial.input(&[7; 100]);
        }
        bench.serial.input(b"dropped");
        assert_eq!(bench.serial.state.lock().backlog.len(), MAX_BACKLOG);
        for _ in 0..MAX_BACKLOG {
            assert_eq!(bench.read(RBR_THR_DLL), 7);
        }
        assert_eq!(bench.sink.resumed.load(Ordering::SeqCst), 1);
        assert!(bench.serial.room() > 0);
    }

    #[test]
    fn wide_accesses_are_split_and_stay_inside() {
        let bench = bench();
        bench.serial.write(3, &[0x03, 0x0b]);
        let mut data = [0; 4];
        bench.serial.read(3, &mut data[..2]);
        assert_eq!(data, [0x03, 0x0b, 0, 0]);
        bench.serial.write(6, &[0; 8]);
        bench.serial.read(7, &mut data);
        assert_eq!(data[1..], [0xff; 3]);
        bench.serial.read(u64::MAX, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn break_reaches_the_guest() {
        let bench = bench();
        bench.write(IIR_FCR, 1);
        bench.serial.input_break();
        assert_eq!(bench.read(LSR) & 0x11, 0x11);
    }

    proptest! {
        /// Accesses of any size anywhere, and input at any time.
        #[test]
        fn any_accesses(steps in proptest::collection::vec((0u8..3, 0u64..12, any::<u64>(), 0u32..4), 0..60)) {
            let bench = bench();
            for (kind, offset, value, size) in steps {
                let mut data = value.to_le_bytes();
                let data = &mut data[..1 << size];
                match kind {
                    0 => bench.serial.read(offset, data),
                    1 => bench.serial.write(offset, data),
                    _ => bench.serial.input(data),
                }
                prop_assert!(bench.serial.state.lock().backlog.len() <= MAX_BACKLOG);
            }
            let mut data = [0; 8];
            bench.serial.read(PORTS, &mut data);
            prop_assert_eq!(data, [0xff; 8]);
        }
    }
}
