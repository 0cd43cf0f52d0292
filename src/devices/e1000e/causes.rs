//! Interrupt causes and masks, and what they make of MSI-X, MSI and the pin (82574 datasheet, sections 7.4 and 10.2.4).
//! Pure: who fires is the caller.

use super::regs::{CAUSE_ASSERTED, CAUSE_OTHER, CAUSE_RXQ0, CTRL_EXT_MESSAGE_MASKS, CTRL_EXT_READ_MASKS, OTHERS};

/// Vectors of MSI-X.
pub const VECTORS: u16 = 5;
/// Causes with a vector of their own, from [`CAUSE_RXQ0`] on: both queues each way, and the others.
const QUEUES: u32 = 5;
/// Of a vector's four bits in IVAR: it is used.
const VALID: u32 = 1 << 3;

/// How the guest gets interrupts now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By the pin.
    Pin,
    /// By the one message of MSI.
    Msi,
    /// By the messages of MSI-X.
    Msix,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fire {
    /// These vectors, by their bits; bit 0 alone for MSI.
    pub vectors: u8,
    /// The pin's level.
    pub pin: bool,
}

/// The registers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Causes {
    /// Causes that were not taken yet (ICR).
    pub set: u32,
    /// Those that may interrupt (IMS).
    pub mask: u32,
    /// Those that a message clears (EIAC).
    pub auto_clear: u32,
    /// Those that are masked by an interrupt or by reading the causes (IAM).
    pub auto_mask: u32,
    /// The vectors (IVAR).
    pub vectors: u32,
    /// CTRL_EXT, which says who masks.
    pub control: u32,
    /// Causes that were told of and have not gone since.
    told: u32,
}

impl Causes {
    /// Something has happened.
    pub fn raise(&mut self, causes: u32, mode: Mode) {
        self.set |= causes & !CAUSE_ASSERTED;
        if mode == Mode::Msix && causes & OTHERS != 0 {
            self.set |= CAUSE_OTHER;
        }
        // What happens again is told again.
        self.told &= !causes;
    }

    fn asserted(&self) -> u32 {
        self.set & self.mask
    }

    /// The driver reads the causes, which takes them where they are why it was interrupted.
    pub fn take(&mut self, mode: Mode) -> u32 {
        let asserted = self.asserted() != 0;
        let causes = self.set | if asserted { CAUSE_ASSERTED } else { 0 };
        if asserted || self.mask == 0 || mode == Mode::Msix {
            self.set = 0;
        }
        if asserted && self.control & CTRL_EXT_READ_MASKS != 0 {
            self.mask &= !self.auto_mask;
        }
        causes
    }

    /// The driver writes the causes that it has served.
    pub fn clear(&mut self, causes: u32) {
        if self.asserted() != 0 && self.control & CTRL_EXT_READ_MASKS != 0 {
            self.mask &= !self.auto_mask;
        }
        self.set &= !causes;
    }

    /// What follows from all that.
    pub fn settle(&mut self, mode: Mode) -> Fire {
        let mut fire = Fire::default();
        let fresh = self.asserted() & !self.told;
        match mode {
            Mode::Pin => fire.pin = self.asserted() != 0,
            Mode::Msi => fire.vectors = u8::from(fresh != 0),
            Mode::Msix => {
                for index in 0..QUEUES {
                    let cause = CAUSE_RXQ0 << index;
                    let entry = self.vectors >> (4 * index) & 0xf;
                    if fresh & cause == 0 || entry & VALID == 0 || entry & !VALID >= VECTORS.into() {
                        continue;
                    }
                    fire.vectors |= 1 << (entry & !VALID);
                    self.set &= !(cause & self.auto_clear);
                    if self.control & CTRL_EXT_MESSAGE_MASKS != 0 {
                        self.mask &= !(cause & self.auto_mask);
                    }
                }
            }
        }
        self.told = self.asserted();
        fire
    }
}

#[cfg(test)]
mod tests {
    use super::super::regs::{CAUSE_LINK, CAUSE_RXT0, CAUSE_TXQ0};
    use super::*;

    #[test]
    fn msix_messages_clear_and_mask_their_cause() {
        // As Linux sets it up: vectors 0 to 2 for receive, transmit, other.
        let mut causes = Causes {
            auto_clear: CAUSE_RXQ0 | CAUSE_TXQ0,
            auto_mask: u32::MAX,
            vectors: 1 << 31 | 0xa << 16 | 9 << 8 | 8,
            control: CTRL_EXT_MESSAGE_MASKS,
            ..Causes::default()
        };
        causes.raise(CAUSE_RXQ0 | CAUSE_RXT0, Mode::Msix);
        assert_eq!(causes.settle(Mode::Msix).vectors, 0, "masked");
        causes.mask = CAUSE_RXQ0 | CAUSE_TXQ0 | CAUSE_OTHER | CAUSE_LINK;
        assert_eq!(causes.settle(Mode::Msix).vectors, 1);
        assert_eq!((causes.set, causes.mask & CAUSE_RXQ0), (CAUSE_RXT0, 0));
        // It happens again while the driver is at it, which unmasks then.
        causes.raise(CAUSE_RXQ0, Mode::Msix);
        assert_eq!(causes.settle(Mode::Msix).vectors, 0);
        causes.mask |= CAUSE_RXQ0;
        assert_eq!(causes.settle(Mode::Msix).vectors, 1);
        causes.raise(CAUSE_TXQ0 | CAUSE_LINK, Mode::Msix);
        assert_eq!(causes.settle(Mode::Msix).vectors, 0b110);
        assert_eq!(causes.settle(Mode::Msix).vectors, 0, "told once");
        assert_eq!(causes.take(Mode::Msix) & (CAUSE_LINK | CAUSE_OTHER), CAUSE_LINK | CAUSE_OTHER);
        assert_eq!(causes.set, 0);
    }

    #[test]
    fn the_pin_is_high_until_the_causes_are_read() {
        let mut causes =
            Causes { auto_mask: u32::MAX, control: CTRL_EXT_READ_MASKS, mask: CAUSE_RXT0, ..Causes::default() };
        causes.raise(CAUSE_LINK, Mode::Pin);
        assert!(!causes.settle(Mode::Pin).pin);
        assert_eq!(causes.take(Mode::Pin), CAUSE_LINK, "not why the driver was interrupted");
        assert_eq!(causes.set, CAUSE_LINK);
        causes.raise(CAUSE_RXT0, Mode::Pin);
        assert!(causes.settle(Mode::Pin).pin);
        assert_eq!(causes.take(Mode::Pin), CAUSE_LINK | CAUSE_RXT0 | CAUSE_ASSERTED);
        assert_eq!((causes.settle(Mode::Pin).pin, causes.mask), (false, 0));
    }

    #[test]
    fn msi_is_an_edge_for_each_new_cause() {
        let mut causes = Causes { mask: CAUSE_RXT0 | CAUSE_LINK, ..Causes::default() };
        causes.raise(CAUSE_RXT0, Mode::Msi);
        assert_eq!([causes.settle(Mode::Msi).vectors, causes.settle(Mode::Msi).vectors], [1, 0]);
        causes.raise(CAUSE_LINK, Mode::Msi);
        assert_eq!(causes.settle(Mode::Msi).vectors, 1);
        causes.clear(u32::MAX);
        assert_eq!(causes.settle(Mode::Msi).vectors, 0);
        // Vectors that there are not are not used.
        let mut causes = Causes { mask: u32::MAX, vectors: 0x000f_7fff, auto_clear: u32::MAX, ..Causes::default() };
        causes.raise(u32::MAX, Mode::Msix);
        assert_eq!(causes.settle(Mode::Msix).vectors, 0);
    }
}
