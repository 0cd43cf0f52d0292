//! The PHY behind MDIC: registers of IEEE 802.3 clause 22, and the few of its own that drivers ask for the link's speed
//! (82574 datasheet, section 10.2.15). Its partner can do all that it can.

/// Control: reset, power down, negotiate again; the last and the first clear themselves.
const CONTROL: u8 = 0;
const CONTROL_RESET: u16 = 1 << 15;
const CONTROL_RESTART: u16 = 1 << 9;
/// Negotiation, full duplex, 1000 Mb/s.
const CONTROL_START: u16 = 0x1140;
const STATUS: u8 = 1;
/// All modes of 10 and 100 Mb/s, extended status, negotiation is possible and done.
const STATUS_FIXED: u16 = 0x7969;
const STATUS_LINK: u16 = 1 << 2;
/// The identifier that the driver knows the 82574's PHY by.
const IDENTIFIER: [u16; 2] = [0x0141, 0x0cb1];
/// What is advertised to the partner and by it, and that it negotiates.
const ADVERTISED: u8 = 4;
const ADVERTISED_START: u16 = 0x0de1;
const PARTNER: u8 = 5;
const PARTNER_FIXED: u16 = 0xcde1;
const EXPANSION: u8 = 6;
/// The same for 1000 Mb/s.
const GIGABIT: u8 = 9;
const GIGABIT_START: u16 = 0x0e00;
const GIGABIT_STATUS: u8 = 10;
const GIGABIT_STATUS_FIXED: u16 = 0x3c00;
const EXTENDED_STATUS: u8 = 15;
/// 1000 Mb/s over copper, full and half duplex.
const EXTENDED_STATUS_FIXED: u16 = 0x3000;
/// Its own: control, status, page.
const OWN_CONTROL: u8 = 16;
const OWN_STATUS: u8 = 17;
/// 1000 Mb/s, full duplex, resolved; the link in real time.
const OWN_STATUS_FIXED: u16 = 0xa800;
const OWN_STATUS_LINK: u16 = 1 << 10;
const PAGE: u8 = 22;
/// From here on a register is another on each page.
const PAGED: u8 = 16;

/// Its registers.
pub struct Phy {
    control: u16,
    advertised: u16,
    gigabit: u16,
    own: u16,
    page: u16,
}

impl Default for Phy {
    fn default() -> Phy {
        Phy { control: CONTROL_START, advertised: ADVERTISED_START, gigabit: GIGABIT_START, own: 0, page: 0 }
    }
}

impl Phy {
    /// A register, of 32.
    pub fn read(&self, register: u8, link: bool) -> u16 {
        let when = |bit: u16| if link { bit } else { 0 };
        match register {
            PAGE => self.page,
            // Nothing is on the other pages.
            PAGED.. if self.page != 0 => 0,
            CONTROL => self.control,
            STATUS => STATUS_FIXED | when(STATUS_LINK),
            2 | 3 => IDENTIFIER[usize::from(register - 2)],
            ADVERTISED => self.advertised,
            PARTNER => when(PARTNER_FIXED),
            EXPANSION => when(1),
            GIGABIT => self.gigabit,
            GIGABIT_STATUS => when(GIGABIT_STATUS_FIXED),
            EXTENDED_STATUS => EXTENDED_STATUS_FIXED,
            OWN_CONTROL => self.own,
            OWN_STATUS => OWN_STATUS_FIXED | when(OWN_STATUS_LINK),
            _ => 0,
        }
    }

    /// Writes a register; says whether the link was negotiated again.
    pub fn write(&mut self, register: u8, value: u16) -> bool {
        match register {
            PAGE => self.page = value,
            PAGED.. if self.page != 0 => {}
            CONTROL if value & CONTROL_RESET != 0 => {
                *self = Phy::default();
                return true;
            }
            CONTROL => {
                self.control = value & !CONTROL_RESTART;
                return value & CONTROL_RESTART != 0;
            }
            ADVERTISED => self.advertised = value,
            GIGABIT => self.gigabit = value,
            OWN_CONTROL => self.own = value,
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_finds_its_phy_and_a_link() {
        let mut phy = Phy::default();
        assert_eq!([phy.read(2, true), phy.read(3, true)], [0x0141, 0x0cb1]);
        assert!(phy.write(CONTROL, 0x1340), "negotiated at once");
        assert_eq!(phy.read(CONTROL, true), 0x1140);
        assert_eq!([phy.read(STATUS, true), phy.read(STATUS, false)], [0x796d, 0x7969]);
        assert_eq!(phy.read(OWN_STATUS, true), 0xac00);
        assert!(!phy.write(PAGE, 769));
        assert_eq!([phy.read(OWN_STATUS, true), phy.read(STATUS, true)], [0, 0x796d]);
        assert!(phy.write(CONTROL, CONTROL_RESET));
        assert_eq!(phy.read(PAGE, true), 0);
        assert!((0..32).all(|register| !phy.write(register, 0)));
    }
}
