//! The register core of a 16550A: Texas Instruments PC16550D data sheet, "Registers" and "FIFO interrupt mode
//! operation". Pure: bytes in, bytes out, the state of the INTR pin.
//!
//! The line's speed is infinite: a byte leaves the transmitter at once, and the receiver's time-out of four character
//! times has always passed. What paces the sender is [`Uart::set_ready`], which stands for a full transmitter.

use std::collections::VecDeque;

use bitflags::bitflags;

/// Number of registers, and of ports that they take.
pub const REGISTERS: u64 = 8;
/// Depth of the receiver FIFO in bytes.
pub const FIFO_SIZE: usize = 16;

/// Receiver buffer (read), transmitter holding register (write), divisor latch low (DLAB).
pub const RBR_THR_DLL: u8 = 0;
/// Interrupt enable register, divisor latch high (DLAB).
pub const IER_DLM: u8 = 1;
/// Interrupt identification register (read), FIFO control register (write).
pub const IIR_FCR: u8 = 2;
/// Line control register.
pub const LCR: u8 = 3;
/// Modem control register.
pub const MCR: u8 = 4;
/// Line status register.
pub const LSR: u8 = 5;
/// Modem status register.
pub const MSR: u8 = 6;
/// Scratchpad register.
pub const SCR: u8 = 7;

/// LCR: divisor latch access bit.
pub const LCR_DLAB: u8 = 1 << 7;

bitflags! {
    /// Interrupt enable register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Ier: u8 {
        /// Received data available, and time-out.
        const RDA = 1 << 0;
        /// Transmitter holding register empty.
        const THRE = 1 << 1;
        /// Receiver line status.
        const RLS = 1 << 2;
        /// Modem status.
        const MS = 1 << 3;
    }

    /// FIFO control register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Fcr: u8 {
        /// Enables both FIFOs; a change clears them.
        const ENABLE = 1 << 0;
        /// Clears the receiver FIFO.
        const CLEAR_RX = 1 << 1;
        /// Receiver trigger level, low bit.
        const TRIGGER_LOW = 1 << 6;
        /// Receiver trigger level, high bit.
        const TRIGGER_HIGH = 1 << 7;
    }

    /// Modem control register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Mcr: u8 {
        /// Data terminal ready.
        const DTR = 1 << 0;
        /// Request to send.
        const RTS = 1 << 1;
        /// Output 1.
        const OUT1 = 1 << 2;
        /// Output 2 (a PC's gate of the interrupt; as on other virtual machines it gates nothing here).
        const OUT2 = 1 << 3;
        /// Local loopback for diagnostics.
        const LOOP = 1 << 4;
    }

    /// Line status register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Lsr: u8 {
        /// Data ready.
        const DR = 1 << 0;
        /// Overrun error.
        const OE = 1 << 1;
        /// Break interrupt.
        const BI = 1 << 4;
        /// Transmitter holding register empty.
        const THRE = 1 << 5;
        /// Transmitter empty.
        const TEMT = 1 << 6;
        /// A character in the receiver FIFO carries an error.
        const FIFO_ERROR = 1 << 7;
    }

    /// Modem status register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Msr: u8 {
        /// CTS has changed.
        const DCTS = 1 << 0;
        /// DSR has changed.
        const DDSR = 1 << 1;
        /// RI has gone from on to off.
        const TERI = 1 << 2;
        /// DCD has changed.
        const DDCD = 1 << 3;
        /// Clear to send.
        const CTS = 1 << 4;
        /// Data set ready.
        const DSR = 1 << 5;
        /// Ring indicator.
        const RI = 1 << 6;
        /// Data carrier detect.
        const DCD = 1 << 7;
        /// What has changed since the last read.
        const DELTAS = 0x0f;
    }
}

/// The peer at the other end of the cable is always there.
const PEER: Msr = Msr::CTS.union(Msr::DSR).union(Msr::DCD);
/// Divisor after power-on: 9600 baud from the 1.8432 MHz crystal.
const DEFAULT_DIVISOR: [u8; 2] = [12, 0];
/// Receiver trigger levels in bytes, by FCR bits 7:6.
const TRIGGER_LEVELS: [usize; 4] = [1, 4, 8, 14];

/// What the IIR reports, highest priority first (data sheet, "Interrupt control functions").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// Overrun or break.
    LineStatus = 0x06,
    /// The receiver FIFO has reached its trigger level.
    DataAvailable = 0x04,
    /// The receiver FIFO holds less than the trigger level, and no more is coming.
    Timeout = 0x0c,
    /// The transmitter has become empty.
    TransmitterEmpty = 0x02,
    /// A modem status input has changed.
    ModemStatus = 0x00,
}

/// IIR: no interrupt is pending.
pub const IIR_NONE: u8 = 0x01;
/// IIR: the FIFOs are enabled.
pub const IIR_FIFOS: u8 = 0xc0;

/// A received character and whether it is a break.
#[derive(Debug, Clone, Copy)]
struct Received {
    byte: u8,
    is_break: bool,
}

/// The registers of one 16550A.
#[derive(Debug)]
pub struct Uart {
    ier: Ier,
    lcr: u8,
    mcr: Mcr,
    msr: Msr,
    scratch: u8,
    divisor: [u8; 2],
    fifos: bool,
    trigger: usize,
    /// Never longer than `capacity()`.
    received: VecDeque<Received>,
    overrun: bool,
    /// The break of the character at the head of the FIFO has been read from the LSR.
    break_seen: bool,
    /// The THRE interrupt condition: set when the transmitter becomes empty, cleared by reading the IIR.
    thre_pending: bool,
    ready: bool,
}

impl Default for Uart {
    fn default() -> Self {
        Uart {
            ier: Ier::empty(),
            lcr: 0,
            mcr: Mcr::empty(),
            msr: PEER,
            scratch: 0,
            divisor: DEFAULT_DIVISOR,
            fifos: false,
            trigger: TRIGGER_LEVELS[0],
            received: VecDeque::with_capacity(FIFO_SIZE),
            overrun: false,
            break_seen: false,
            thre_pending: false,
            ready: true,
        }
    }
}

impl Uart {
    /// Reads a register; numbers above [`SCR`] read all-ones.
    pub fn read(&mut self, register: u8) -> u8 {
        match register {
            RBR_THR_DLL if self.dlab() => self.divisor[0],
            RBR_THR_DLL => self.take_received(),
            IER_DLM if self.dlab() => self.divisor[1],
            IER_DLM => self.ier.bits(),
            IIR_FCR => self.read_iir(),
            LCR => self.lcr,
            MCR => self.mcr.bits(),
            LSR => self.read_lsr(),
            MSR => self.read_msr(),
            SCR => self.scratch,
            _ => 0xff,
        }
    }

    /// Writes a register; returns the byte that leaves by the cable, if the write sends one.
    #[must_use]
    pub fn write(&mut self, register: u8, value: u8) -> Option<u8> {
        match register {
            RBR_THR_DLL if self.dlab() => self.divisor[0] = value,
            RBR_THR_DLL => return self.transmit(value),
            IER_DLM if self.dlab() => self.divisor[1] = value,
            IER_DLM => self.write_ier(Ier::from_bits_truncate(value)),
            IIR_FCR => self.write_fcr(Fcr::from_bits_truncate(value)),
            LCR => self.lcr = value,
            MCR => self.write_mcr(Mcr::from_bits_truncate(value)),
            SCR => self.scratch = value,
            // LSR and MSR are read-only: "writing to it is for factory testing".
            _ => {}
        }
        None
    }

    /// How many bytes the cable may deliver without an overrun. In loopback the receiver is off the cable.
    pub fn room(&self) -> usize {
        if self.mcr.contains(Mcr::LOOP) { 0 } else { self.capacity().saturating_sub(self.received.len()) }
    }

    /// A byte arrives by the cable.
    pub fn receive(&mut self, byte: u8) {
        if !self.mcr.contains(Mcr::LOOP) {
            self.store(Received { byte, is_break: false });
        }
    }

    /// A break arrives by the cable.
    pub fn receive_break(&mut self) {
        if !self.mcr.contains(Mcr::LOOP) {
            self.store(Received { byte: 0, is_break: true });
        }
    }

    /// Says whether the transmitter can take bytes. While it cannot, LSR shows a full transmitter.
    pub fn set_ready(&mut self, ready: bool) {
        if ready != self.ready {
            self.thre_pending = ready;
        }
        self.ready = ready;
    }

    /// The level of the INTR pin.
    pub fn interrupt(&self) -> bool {
        self.cause().is_some()
    }

    /// The pending interrupt of the highest priority.
    pub fn cause(&self) -> Option<Cause> {
        let data = self.received.len();
        if self.ier.contains(Ier::RLS) && (self.overrun || self.break_at_head()) {
            Some(Cause::LineStatus)
        } else if self.ier.contains(Ier::RDA) && data >= self.trigger_level() {
            Some(Cause::DataAvailable)
        } else if self.ier.contains(Ier::RDA) && data > 0 {
            Some(Cause::Timeout)
        } else if self.ier.contains(Ier::THRE) && self.thre_pending {
            Some(Cause::TransmitterEmpty)
        } else if self.ier.contains(Ier::MS) && self.msr.intersects(Msr::DELTAS) {
            Some(Cause::ModemStatus)
        } else {
            None
        }
    }

    fn dlab(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    fn capacity(&self) -> usize {
        if self.fifos { FIFO_SIZE } else { 1 }
    }

    fn trigger_level(&self) -> usize {
        if self.fifos { self.trigger } else { 1 }
    }

    fn break_at_head(&self) -> bool {
        !self.break_seen && self.received.front().is_some_and(|head| head.is_break)
    }

    fn take_received(&mut self) -> u8 {
        self.break_seen = false;
        self.received.pop_front().map_or(0, |head| head.byte)
    }

    fn store(&mut self, received: Received) {
        if self.received.len() < self.capacity() {
            self.received.push_back(received);
            return;
        }
        self.overrun = true;
        // With the FIFOs on, the FIFO is kept and the newcomer lost; without, the newcomer overwrites the RBR.
        if !self.fifos {
            self.clear_received();
            self.received.push_back(received);
        }
    }

    fn clear_received(&mut self) {
        self.received.clear();
        self.break_seen = false;
    }

    fn transmit(&mut self, byte: u8) -> Option<u8> {
        // The write fills the transmitter and, at infinite speed, empties it: the interrupt condition arises anew.
        self.thre_pending = self.ready;
        if self.mcr.contains(Mcr::LOOP) {
            self.store(Received { byte, is_break: false });
            return None;
        }
        Some(byte)
    }

    fn read_iir(&mut self) -> u8 {
        let cause = self.cause();
        if cause == Some(Cause::TransmitterEmpty) {
            self.thre_pending = false;
        }
        cause.map_or(IIR_NONE, |cause| cause as u8) | if self.fifos { IIR_FIFOS } else { 0 }
    }

    fn read_lsr(&mut self) -> u8 {
        let mut lsr = Lsr::empty();
        lsr.set(Lsr::DR, !self.received.is_empty());
        lsr.set(Lsr::OE, self.overrun);
        lsr.set(Lsr::BI, self.break_at_head());
        lsr.set(Lsr::THRE | Lsr::TEMT, self.ready);
        lsr.set(Lsr::FIFO_ERROR, self.fifos && self.unread_break());
        self.overrun = false;
        self.break_seen = self.received.front().is_some_and(|head| head.is_break);
        lsr.bits()
    }

    fn unread_break(&self) -> bool {
        self.break_at_head() || self.received.iter().skip(1).any(|character| character.is_break)
    }

    fn read_msr(&mut self) -> u8 {
        let msr = self.msr;
        self.msr.remove(Msr::DELTAS);
        msr.bits()
    }

    fn write_ier(&mut self, ier: Ier) {
        // Switching the THRE interrupt on while the transmitter is empty raises it: Linux tests for exactly this.
        if ier.contains(Ier::THRE) && !self.ier.contains(Ier::THRE) && self.ready {
            self.thre_pending = true;
        }
        self.ier = ier;
    }

    fn write_fcr(&mut self, fcr: Fcr) {
        let enable = fcr.contains(Fcr::ENABLE);
        if enable != self.fifos || (enable && fcr.contains(Fcr::CLEAR_RX)) {
            self.clear_received();
        }
        self.fifos = enable;
        // The other bits are only programmed while bit 0 is written as one.
        if enable {
            self.trigger = TRIGGER_LEVELS[usize::from(fcr.bits() >> 6)];
        }
    }

    fn write_mcr(&mut self, mcr: Mcr) {
        self.mcr = mcr;
        let mut inputs = PEER;
        if mcr.contains(Mcr::LOOP) {
            inputs = Msr::empty();
            inputs.set(Msr::CTS, mcr.contains(Mcr::RTS));
            inputs.set(Msr::DSR, mcr.contains(Mcr::DTR));
            inputs.set(Msr::RI, mcr.contains(Mcr::OUT1));
            inputs.set(Msr::DCD, mcr.contains(Mcr::OUT2));
        }
        let before = self.msr;
        let changed = before.symmetric_difference(inputs);
        let mut deltas = before.intersection(Msr::DELTAS);
        deltas.set(Msr::DCTS, deltas.contains(Msr::DCTS) || changed.contains(Msr::CTS));
        deltas.set(Msr::DDSR, deltas.contains(Msr::DDSR) || changed.contains(Msr::DSR));
        deltas.set(Msr::DDCD, deltas.contains(Msr::DDCD) || changed.contains(Msr::DCD));
        let ring_ended = before.contains(Msr::RI) && !inputs.contains(Msr::RI);
        deltas.set(Msr::TERI, deltas.contains(Msr::TERI) || ring_ended);
        self.msr = inputs | deltas;
    }
}

#[cfg(test)]
#[path = "uart_tests.rs"]
mod tests;
