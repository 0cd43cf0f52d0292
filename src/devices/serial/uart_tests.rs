//! Register-level tests of the 16550A in the data sheet's terms, and the sequences by which Linux probes it.

use proptest::prelude::*;

use super::*;

/// A UART with the FIFOs on and a trigger level of 8.
fn with_fifos() -> Uart {
    let mut uart = Uart::default();
    set(&mut uart, IIR_FCR, 0x81);
    uart
}

/// Writes a register that sends nothing.
fn set(uart: &mut Uart, register: u8, value: u8) {
    assert_eq!(uart.write(register, value), None);
}

fn cause(iir: u8) -> u8 {
    iir & 0x0f
}

#[test]
fn after_power_on() {
    let mut uart = Uart::default();
    assert_eq!(uart.read(IER_DLM), 0);
    assert_eq!(uart.read(IIR_FCR), 0x01);
    assert_eq!(uart.read(LCR), 0);
    assert_eq!(uart.read(MCR), 0);
    assert_eq!(uart.read(LSR), 0x60);
    assert_eq!(uart.read(MSR), 0xb0);
    assert!(!uart.interrupt());
    assert_eq!(uart.read(8), 0xff);
}

#[test]
fn divisor_latch_hides_data_and_ier() {
    let mut uart = Uart::default();
    set(&mut uart, IER_DLM, 0x05);
    set(&mut uart, LCR, LCR_DLAB | 3);
    set(&mut uart, RBR_THR_DLL, 0x01);
    set(&mut uart, IER_DLM, 0x02);
    assert_eq!((uart.read(RBR_THR_DLL), uart.read(IER_DLM)), (0x01, 0x02));
    set(&mut uart, LCR, 3);
    assert_eq!(uart.read(IER_DLM), 0x05);
    assert_eq!(uart.write(RBR_THR_DLL, b'a'), Some(b'a'));
}

#[test]
fn trigger_level_divides_data_available_from_timeout() {
    for (bits, level) in [(0x00, 1), (0x40, 4), (0x80, 8), (0xc0, 14)] {
        let mut uart = Uart::default();
        set(&mut uart, IIR_FCR, bits | 1);
        set(&mut uart, IER_DLM, Ier::RDA.bits());
        for count in 1..=FIFO_SIZE {
            uart.receive(b'x');
            let expected = if count >= level { Cause::DataAvailable } else { Cause::Timeout };
            assert_eq!(uart.read(IIR_FCR), 0xc0 | expected as u8, "level {level}, {count} bytes");
        }
        for _ in 0..FIFO_SIZE {
            assert!(uart.interrupt());
            uart.read(RBR_THR_DLL);
        }
        assert!(!uart.interrupt());
    }
}

#[test]
fn thre_interrupt_is_cleared_by_iir_and_raised_by_each_write() {
    let mut uart = with_fifos();
    set(&mut uart, IER_DLM, Ier::THRE.bits());
    assert_eq!(cause(uart.read(IIR_FCR)), 0x02);
    assert_eq!(cause(uart.read(IIR_FCR)), 0x01);
    assert_eq!(uart.write(RBR_THR_DLL, b'a'), Some(b'a'));
    assert!(uart.interrupt());
    assert_eq!(cause(uart.read(IIR_FCR)), 0x02);
    assert!(!uart.interrupt());
}

#[test]
fn reading_iir_for_a_higher_cause_keeps_thre() {
    let mut uart = with_fifos();
    uart.receive(b'x');
    set(&mut uart, IER_DLM, (Ier::THRE | Ier::RDA).bits());
    assert_eq!(cause(uart.read(IIR_FCR)), 0x0c);
    assert_eq!(uart.read(RBR_THR_DLL), b'x');
    assert_eq!(cause(uart.read(IIR_FCR)), 0x02);
}

#[test]
fn priorities() {
    let mut uart = with_fifos();
    set(&mut uart, IER_DLM, 0x0f);
    for _ in 0..FIFO_SIZE {
        uart.receive(b'x');
    }
    uart.receive(b'y');
    set(&mut uart, MCR, Mcr::LOOP.bits());
    assert_eq!(cause(uart.read(IIR_FCR)), 0x06);
    assert_eq!(uart.read(LSR), 0x63);
    assert_eq!(cause(uart.read(IIR_FCR)), 0x04);
    set(&mut uart, IIR_FCR, 0x83);
    assert_eq!(cause(uart.read(IIR_FCR)), 0x02);
    assert_eq!(cause(uart.read(IIR_FCR)), 0x00);
    assert_eq!(uart.read(MSR), 0x0b);
    assert_eq!(cause(uart.read(IIR_FCR)), 0x01);
}

#[test]
fn overrun_keeps_the_fifo_but_overwrites_a_single_buffer() {
    let mut uart = with_fifos();
    for byte in 0..=16 {
        uart.receive(byte);
    }
    assert_eq!(uart.read(LSR) & 0x03, 0x03);
    assert_eq!(uart.read(LSR) & 0x03, 0x01);
    let bytes: Vec<u8> = (0..16).map(|_| uart.read(RBR_THR_DLL)).collect();
    assert_eq!(bytes, (0..16).collect::<Vec<u8>>());
    assert_eq!(uart.read(LSR) & 0x01, 0);

    let mut uart = Uart::default();
    uart.receive(b'a');
    assert_eq!(uart.room(), 0);
    uart.receive(b'b');
    assert_eq!(uart.read(LSR) & 0x03, 0x03);
    assert_eq!(uart.read(RBR_THR_DLL), b'b');
}

#[test]
fn break_is_reported_once_at_the_head_of_the_fifo() {
    let mut uart = with_fifos();
    set(&mut uart, IER_DLM, Ier::RLS.bits());
    uart.receive(b'a');
    uart.receive_break();
    assert!(!uart.interrupt());
    assert_eq!(uart.read(LSR), 0xe1);
    assert_eq!(uart.read(RBR_THR_DLL), b'a');
    assert_eq!(cause(uart.read(IIR_FCR)), 0x06);
    assert_eq!(uart.read(LSR), 0xf1);
    assert_eq!(uart.read(LSR), 0x61);
    assert_eq!(uart.read(RBR_THR_DLL), 0);
    assert_eq!(uart.read(LSR), 0x60);
}

#[test]
fn changing_the_fifo_enable_clears_the_fifo() {
    let mut uart = with_fifos();
    uart.receive(b'a');
    set(&mut uart, IIR_FCR, 0x81);
    assert_eq!(uart.read(LSR) & 1, 1, "the same mode again keeps the bytes");
    set(&mut uart, IIR_FCR, 0);
    assert_eq!(uart.read(LSR) & 1, 0);
    assert_eq!(uart.read(IIR_FCR), 0x01);
    uart.receive(b'a');
    set(&mut uart, IIR_FCR, 0x02);
    assert_eq!(uart.read(LSR) & 1, 1, "without bit 0 the other bits do nothing");
}

#[test]
fn full_transmitter() {
    let mut uart = with_fifos();
    set(&mut uart, IER_DLM, Ier::THRE.bits());
    uart.read(IIR_FCR);
    uart.set_ready(false);
    assert_eq!(uart.read(LSR), 0);
    assert_eq!(uart.write(RBR_THR_DLL, b'a'), Some(b'a'));
    assert!(!uart.interrupt());
    uart.set_ready(true);
    assert!(uart.interrupt());
    assert_eq!(uart.read(LSR), 0x60);
}

#[test]
fn loopback_turns_outputs_into_inputs() {
    let mut uart = with_fifos();
    for (mcr, msr) in [(0x10, 0x00), (0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80), (0x1f, 0xf0)] {
        set(&mut uart, MCR, mcr);
        assert_eq!(uart.read(MSR) & 0xf0, msr, "MCR {mcr:#x}");
        assert_eq!(uart.read(MSR) & 0x0f, 0, "reading clears the deltas");
    }
    set(&mut uart, MCR, 0x1b);
    assert_eq!(uart.read(MSR), 0xb4, "trailing edge of RI");
    set(&mut uart, RBR_THR_DLL, b'l');
    uart.receive(b'c');
    assert_eq!(uart.room(), 0, "the cable is cut");
    assert_eq!(uart.read(RBR_THR_DLL), b'l');
    assert_eq!(uart.read(LSR) & 1, 0);
    set(&mut uart, MCR, 0x0b);
    assert_eq!(uart.room(), FIFO_SIZE);
}

/// Linux drivers/tty/serial/8250/8250_port.c, autoconfig(), restated as register accesses.
#[test]
fn linux_autoconfig_finds_a_16550a() {
    let mut uart = Uart::default();
    // Does the IER hold its four bits, and nothing else?
    set(&mut uart, IER_DLM, 0x00);
    assert_eq!(uart.read(IER_DLM) & 0x0f, 0x00);
    set(&mut uart, IER_DLM, 0xff);
    assert_eq!(uart.read(IER_DLM), 0x0f);
    set(&mut uart, IER_DLM, 0x00);
    // Loopback test: OUT2 and RTS come back as DCD and CTS.
    set(&mut uart, MCR, 0x1a);
    assert_eq!(uart.read(MSR) & 0xf0, 0x90);
    set(&mut uart, MCR, 0x00);
    // FIFO test.
    set(&mut uart, LCR, 0xbf);
    set(&mut uart, IIR_FCR, 0x00);
    set(&mut uart, LCR, 0x00);
    set(&mut uart, IIR_FCR, 0x01);
    assert_eq!(uart.read(IIR_FCR) >> 6, 3, "FIFOs that work: 16550A");
    // None of its better descendants: no EFR with LCR 0x80 or 0xbf ...
    for lcr in [0x80, 0xbf] {
        set(&mut uart, LCR, lcr);
        assert_ne!(uart.read(IIR_FCR), 0);
    }
    // ... no National Semiconductor EXCR1, which would mirror MCR's loop bit ...
    for mcr in [0x00, 0x10] {
        set(&mut uart, LCR, 0x00);
        set(&mut uart, MCR, mcr);
        set(&mut uart, LCR, 0xe0);
        assert_eq!(uart.read(IIR_FCR) & 0x10, 0);
    }
    set(&mut uart, LCR, 0x00);
    set(&mut uart, MCR, 0x00);
    // ... no 64-byte FIFO of a 16750 (IIR bit 5), with or without DLAB ...
    for lcr in [0x00, 0x80] {
        set(&mut uart, LCR, lcr);
        set(&mut uart, IIR_FCR, 0x21);
        assert_eq!(uart.read(IIR_FCR) & 0xe0, 0xc0);
        set(&mut uart, IIR_FCR, 0x01);
    }
    set(&mut uart, LCR, 0x00);
    // ... no UUE bit of an XScale.
    set(&mut uart, IER_DLM, 0x40);
    assert_eq!(uart.read(IER_DLM), 0x00);
}

/// Linux 8250_port.c, serial8250_do_startup(): the tests that decide whether a timer has to mend lost interrupts.
#[test]
fn linux_startup_finds_no_bugs() {
    let mut uart = Uart::default();
    set(&mut uart, IIR_FCR, 0x01);
    set(&mut uart, IIR_FCR, 0x07);
    set(&mut uart, IIR_FCR, 0x00);
    assert_ne!(uart.read(LSR), 0xff);
    for register in [RBR_THR_DLL, IIR_FCR, MSR] {
        uart.read(register);
    }
    set(&mut uart, LCR, 0x03);
    // UART_BUG_THRE: the interrupt must come again when IER is cleared and set.
    set(&mut uart, IER_DLM, 0x02);
    assert_eq!(uart.read(IIR_FCR) & 1, 0);
    set(&mut uart, IER_DLM, 0x00);
    assert_eq!(uart.read(IIR_FCR) & 1, 1);
    set(&mut uart, IER_DLM, 0x02);
    assert_eq!(uart.read(IIR_FCR) & 1, 0);
    set(&mut uart, IER_DLM, 0x00);
    // UART_BUG_TXEN: an empty transmitter must raise it as soon as it is enabled.
    set(&mut uart, MCR, 0x0b);
    set(&mut uart, IER_DLM, 0x02);
    assert_eq!(uart.read(LSR) & 0x40, 0x40);
    assert_eq!(uart.read(IIR_FCR) & 1, 0);
}

proptest! {
    /// Whatever a guest does: no panic, a bounded FIFO, and an IIR that agrees with the pin.
    #[test]
    fn any_accesses(steps in proptest::collection::vec((0u8..5, any::<u8>(), any::<u8>()), 0..200)) {
        let mut uart = Uart::default();
        for (kind, register, value) in steps {
            match kind {
                0 => { uart.read(register % 10); }
                1 => { let _ = uart.write(register % 10, value); }
                2 => uart.receive(value),
                3 => uart.receive_break(),
                _ => uart.set_ready(value & 1 == 0),
            }
            prop_assert!(uart.received.len() <= FIFO_SIZE);
            let pin = uart.interrupt();
            prop_assert_eq!(uart.read(IIR_FCR) & 1 == 0, pin);
        }
    }

    /// Bytes that respect `room` arrive complete and in order.
    #[test]
    fn no_loss_within_room(bytes in proptest::collection::vec(any::<u8>(), 0..100), fifos: bool) {
        let mut uart = Uart::default();
        let _ = uart.write(IIR_FCR, u8::from(fifos));
        let mut seen = Vec::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() || uart.read(LSR) & 1 != 0 {
            let (now, later) = rest.split_at(rest.len().min(uart.room()));
            now.iter().for_each(|&byte| uart.receive(byte));
            rest = later;
            prop_assert_eq!(uart.read(LSR) & 0x02, 0);
            seen.push(uart.read(RBR_THR_DLL));
        }
        prop_assert_eq!(seen, bytes);
    }
}
