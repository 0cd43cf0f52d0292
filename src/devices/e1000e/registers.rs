//! The registers of BAR 0 as a state machine, which says what is to be done. Pure: rings and packets are others' work.

use super::causes::{Causes, Mode};
use super::nvm::Nvm;
use super::phy::Phy;
use super::regs::*;
use super::ring::Ring;
use super::stats::Stats;

/// Bytes of the registers that there are; behind them all read as zero.
const END: u32 = 0xc000;
/// Of MDIC: the register, the PHY's address, and what is done with it.
const MDIC_REGISTER: u32 = 16;
const MDIC_PHY: u32 = 21;
const MDIC_OPERATION: u32 = 26;
const MDIC_WRITE: u32 = 1;
const MDIC_READ: u32 = 2;
/// The address of the one PHY.
const PHY_ADDRESS: u32 = 1;

/// What a write leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Somebody looks whether an interrupt is due.
    Settle,
    /// There may be packets to send, or room for those that come.
    Work,
    /// The controller was reset: what its rings were at is forgotten.
    Reset,
}

/// The registers.
pub struct Registers {
    /// Those that only keep what was written.
    values: Vec<u32>,
    pub causes: Causes,
    pub stats: Stats,
    phy: Phy,
    nvm: Nvm,
    mac: [u8; 6],
    /// Whether there is somebody at the other end.
    pub link: bool,
}

impl Registers {
    /// After power-on.
    pub fn new(mac: [u8; 6], nvm: Nvm) -> Registers {
        let mut registers = Registers {
            values: vec![0; (END / 4) as usize],
            causes: Causes::default(),
            stats: Stats::default(),
            phy: Phy::default(),
            nvm,
            mac,
            link: true,
        };
        registers.start();
        registers
    }

    /// As after power-on.
    pub fn power_on(&mut self) {
        self.phy = Phy::default();
        self.start();
    }

    /// What a reset by CTRL does: the PHY stays as it is.
    fn start(&mut self) {
        self.values.fill(0);
        self.causes = Causes::default();
        self.stats = Stats::default();
        let [a, b, c, d, e, f] = self.mac;
        for (register, value) in [
            (CTRL, CTRL_START),
            (PBA, PBA_START),
            (MDIC, MDIC_READY),
            (RA, u32::from_le_bytes([a, b, c, d])),
            (RA + 4, u32::from_le_bytes([e, f, 0, 0]) | RAH_VALID),
        ] {
            self.set(register, value);
        }
    }

    /// A register's value as it was written last.
    pub fn get(&self, register: u32) -> u32 {
        self.values.get((register / 4) as usize).copied().unwrap_or(0)
    }

    fn set(&mut self, register: u32, value: u32) {
        if let Some(place) = self.values.get_mut((register / 4) as usize) {
            *place = value;
        }
    }

    /// A ring, whose registers begin there.
    pub fn ring(&self, at: u32) -> Ring {
        let base = u64::from(self.get(at + BASE_HIGH)) << 32 | u64::from(self.get(at + BASE_LOW));
        Ring::new(base, self.get(at + LENGTH), self.get(at + HEAD), self.get(at + TAIL))
    }

    /// Moves a ring's head.
    pub fn set_head(&mut self, at: u32, head: u32) {
        self.set(at + HEAD, head);
    }

    /// Whether the driver lets the controller reach memory.
    pub fn may_master(&self) -> bool {
        self.get(CTRL) & CTRL_NO_MASTER == 0
    }

    /// The link comes or goes.
    pub fn set_link(&mut self, up: bool, mode: Mode) {
        if self.link != up {
            self.link = up;
            self.causes.raise(CAUSE_LINK, mode);
        }
    }

    /// A driver's read of a dword.
    pub fn read(&mut self, register: u32, mode: Mode) -> u32 {
        let value = self.get(register);
        match register {
            STATUS => {
                let when = |is: bool, bit: u32| if is { bit } else { 0 };
                STATUS_FIXED | when(self.link, STATUS_LINK) | when(self.may_master(), STATUS_MASTER)
            }
            EECD => {
                let granted = if value & EECD_REQUEST != 0 { EECD_GRANT } else { 0 };
                value | granted | EECD_FIXED
            }
            ICR => self.causes.take(mode),
            ICS => self.causes.set,
            IMS | IMC => self.causes.mask,
            EIAC => self.causes.auto_clear,
            IAM => self.causes.auto_mask,
            IVAR => self.causes.vectors,
            SWSM => {
                self.set(SWSM, value | SWSM_TAKEN);
                value
            }
            register if STATISTICS.contains(&register) => self.stats.take(register),
            _ => value,
        }
    }

    /// A driver's write of a dword.
    pub fn write(&mut self, register: u32, value: u32, mode: Mode) -> Action {
        match register {
            CTRL if value & CTRL_RESET != 0 => {
                if value & CTRL_PHY_RESET != 0 {
                    self.phy = Phy::default();
                }
                self.start();
                return Action::Reset;
            }
            CTRL => {
                self.set(CTRL, value & !CTRL_PHY_RESET);
                if value & CTRL_PHY_RESET != 0 {
                    self.phy = Phy::default();
                    self.causes.raise(CAUSE_LINK, mode);
                }
                return Action::Work;
            }
            CTRL_EXT => {
                self.set(CTRL_EXT, value);
                self.causes.control = value;
            }
            EECD => self.set(EECD, value & EECD_REQUEST),
            EERD => {
                let word = u32::from(self.nvm.word(value >> 2 & 0x3fff));
                let read = word << 16 | value & 0xfffc | EERD_DONE;
                self.set(EERD, if value & EERD_START != 0 { read } else { value });
            }
            MDIC => {
                self.mdic(value, mode);
                return Action::Settle;
            }
            ICR => self.causes.clear(value),
            ICS => self.causes.raise(value, mode),
            IMS => self.causes.mask |= value & !CAUSE_ASSERTED,
            IMC => self.causes.mask &= !value,
            EIAC => self.causes.auto_clear = value,
            IAM => self.causes.auto_mask = value,
            IVAR => self.causes.vectors = value,
            PBA => {
                // What is not for packets that come is for those that go.
                let receive = (value & 0xffff).min(PBA_TOTAL);
                self.set(PBA, (PBA_TOTAL - receive) << 16 | receive);
            }
            STATUS | FWSM => {}
            register if STATISTICS.contains(&register) => {}
            _ => self.set(register, value),
        }
        match register {
            ICR | ICS | IMS | IMC | EIAC | IAM | IVAR | CTRL_EXT => Action::Settle,
            RCTL | TCTL => Action::Work,
            _ if register & !RING == RX_RING + TAIL || register & !RING == TX_RING + TAIL => Action::Work,
            _ => Action::None,
        }
    }

    /// An access to the PHY, which is done at once.
    fn mdic(&mut self, value: u32, mode: Mode) {
        let register = (value >> MDIC_REGISTER & 0x1f) as u8;
        let request = value & !(MDIC_READY | MDIC_ERROR);
        let answer = match (value >> MDIC_PHY & 0x1f, value >> MDIC_OPERATION & 3) {
            (PHY_ADDRESS, MDIC_READ) => request & !0xffff | u32::from(self.phy.read(register, self.link)),
            (PHY_ADDRESS, MDIC_WRITE) => {
                if self.phy.write(register, value as u16) {
                    self.causes.raise(CAUSE_LINK, mode);
                }
                request
            }
            _ => request | MDIC_ERROR,
        };
        self.set(MDIC, answer | MDIC_READY);
        if value & MDIC_INTERRUPT != 0 {
            self.causes.raise(CAUSE_MDAC, mode);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    fn registers() -> Registers {
        Registers::new(MAC, Nvm::new(MAC, 0x10d3, (0x8086, 0)))
    }

    #[test]
    fn a_driver_probes() {
        let mut it = registers();
        assert_eq!(it.read(STATUS, Mode::Pin), 0x0008_0083);
        it.write(CTRL, it.get(CTRL) | CTRL_NO_MASTER, Mode::Pin);
        assert_eq!(it.read(STATUS, Mode::Pin), 0x83);
        assert_eq!(it.write(CTRL, CTRL_RESET, Mode::Pin), Action::Reset);
        assert_eq!(it.read(CTRL, Mode::Pin) & (CTRL_RESET | CTRL_NO_MASTER), 0);
        assert_eq!(it.read(EECD, Mode::Pin) & 0x300, 0x300);
        it.write(EERD, 1 << 2 | EERD_START, Mode::Pin);
        assert_eq!(it.read(EERD, Mode::Pin), 0x1200 << 16 | 1 << 2 | EERD_DONE);
        assert_eq!((it.read(RA, Mode::Pin), it.read(RA + 4, Mode::Pin)), (0x1200_5452, 0x8000_5634));
        // The identifier of the PHY; there is one PHY.
        it.write(MDIC, 2 << 26 | 1 << 21 | 3 << 16, Mode::Pin);
        assert_eq!(it.read(MDIC, Mode::Pin), MDIC_READY | 2 << 26 | 1 << 21 | 3 << 16 | 0x0cb1);
        it.write(MDIC, 2 << 26 | 2 << 21, Mode::Pin);
        assert_ne!(it.read(MDIC, Mode::Pin) & MDIC_ERROR, 0);
        assert_eq!([it.read(SWSM, Mode::Pin), it.read(SWSM, Mode::Pin)], [0, SWSM_TAKEN]);
        it.write(PBA, 36, Mode::Pin);
        assert_eq!(it.read(PBA, Mode::Pin), 4 << 16 | 36);
    }

    #[test]
    fn tails_and_switches_are_work() {
        let mut it = registers();
        for register in [TX_RING + TAIL, TX_RING + RING + TAIL, RX_RING + TAIL, RCTL, TCTL] {
            assert_eq!(it.write(register, 2, Mode::Pin), Action::Work, "{register:#x}");
        }
        assert_eq!(it.write(IMS, CAUSE_LINK, Mode::Pin), Action::Settle);
        it.set_link(false, Mode::Pin);
        it.set_link(false, Mode::Pin);
        assert_eq!(it.read(ICR, Mode::Pin), CAUSE_LINK | CAUSE_ASSERTED);
        assert_eq!(it.read(ICR, Mode::Pin), 0);
    }

    proptest! {
        /// Whatever is written wherever, nothing breaks, and a reset brings all back.
        #[test]
        fn a_reset_forgets(writes in prop::collection::vec((0u32..0x2_0000, any::<u32>()), 0..200)) {
            let mut it = registers();
            for (register, value) in writes {
                it.write(register & !3, value, Mode::Msix);
                it.read(register & !3, Mode::Msix);
                it.causes.settle(Mode::Msix);
            }
            it.power_on();
            let mut fresh = registers();
            for register in (0..END).step_by(4) {
                prop_assert_eq!(it.read(register, Mode::Pin), fresh.read(register, Mode::Pin), "{:#x}", register);
            }
        }
    }
}
