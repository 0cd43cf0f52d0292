//! The registers (NVMe 3.1), as a state machine that says what is to be done and does nothing itself.

/// Entries of a queue at most.
pub const MAX_ENTRIES: u16 = 2048;
/// Where the doorbells begin; they are 4 bytes apart.
pub const DOORBELLS: u64 = 0x1000;
/// Bytes of a page, the only size that there is.
pub const PAGE: u64 = 4096;

/// Offsets.
const CAP: u64 = 0x00;
const VS: u64 = 0x08;
const INTMS: u64 = 0x0c;
const INTMC: u64 = 0x10;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const END: usize = 0x40;

/// Capabilities: entries, contiguous queues, half of a second times 15 until it is ready, the NVM command set.
const CAP_VALUE: u64 = (MAX_ENTRIES as u64 - 1) | 1 << 16 | 15 << 24 | 1 << 37;
/// Version 1.4.
const VS_VALUE: u32 = 0x0001_0400;

const CC_ENABLE: u32 = 1;
const CC_COMMAND_SET: u32 = 7 << 4;
const CC_PAGE_SIZE: u32 = 0xf << 7;
const CC_SHUTDOWN: u32 = 3 << 14;
/// The bits that can be written: those and arbitration, and the sizes of entries.
const CC_MASK: u32 = 0x00ff_fff1;

const CSTS_READY: u32 = 1;
const CSTS_FATAL: u32 = 1 << 1;
const CSTS_SHUTDOWN_DONE: u32 = 2 << 2;

/// What a write leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The driver wants the controller to run, with the admin queues that [`Registers::admin`] says.
    Start,
    /// The driver has switched it off.
    Stop,
    /// The driver will do no more: what was written goes to the media.
    ShutDown,
    /// The mask of the pin's interrupts has changed.
    Mask,
}

/// The admin queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admin {
    pub sq: u64,
    pub sq_entries: u16,
    pub cq: u64,
    pub cq_entries: u16,
}

/// The registers.
#[derive(Debug, Default)]
pub struct Registers {
    cc: u32,
    csts: u32,
    mask: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
}

impl Registers {
    /// Reads; what is no register is zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let mut all = [0; END];
        let mut put = |at: u64, bytes: &[u8]| all[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        put(CAP, &CAP_VALUE.to_le_bytes());
        put(VS, &VS_VALUE.to_le_bytes());
        put(INTMS, &self.mask.to_le_bytes());
        put(INTMC, &self.mask.to_le_bytes());
        put(CC, &self.cc.to_le_bytes());
        put(CSTS, &self.csts.to_le_bytes());
        put(AQA, &self.aqa.to_le_bytes());
        put(ASQ, &self.asq.to_le_bytes());
        put(ACQ, &self.acq.to_le_bytes());
        let at = usize::try_from(offset).unwrap_or(END).min(END);
        data.fill(0);
        let len = data.len().min(END - at);
        data[..len].copy_from_slice(&all[at..at + len]);
    }

    /// Writes 4 or 8 bytes; others, and what lies across two registers, are no access of a driver's.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Action> {
        match *data {
            [a, b, c, d] => self.write_half(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if matches!(offset, ASQ | ACQ) => {
                self.write_half(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_half(offset + 4, u32::from_le_bytes([e, f, g, h]))
            }
            _ => None,
        }
    }

    fn write_half(&mut self, offset: u64, value: u32) -> Option<Action> {
        const HIGH: u64 = 0xffff_ffff_0000_0000;
        let (low, high) = (u64::from(value) & !(PAGE - 1), u64::from(value) << 32);
        match offset {
            INTMS => self.mask |= value,
            INTMC => self.mask &= !value,
            CC => return self.control(value & CC_MASK),
            AQA => self.aqa = value & 0x0fff_0fff,
            ASQ => self.asq = self.asq & HIGH | low,
            0x2c => self.asq = self.asq & !HIGH | high,
            ACQ => self.acq = self.acq & HIGH | low,
            0x34 => self.acq = self.acq & !HIGH | high,
            _ => return None,
        }
        matches!(offset, INTMS | INTMC).then_some(Action::Mask)
    }

    fn control(&mut self, value: u32) -> Option<Action> {
        let before = std::mem::replace(&mut self.cc, value);
        match (before & CC_ENABLE != 0, value & CC_ENABLE != 0) {
            (false, true) => Some(Action::Start),
            (true, false) => {
                self.csts = 0;
                Some(Action::Stop)
            }
            _ if value & CC_SHUTDOWN != 0 && before & CC_SHUTDOWN == 0 => Some(Action::ShutDown),
            _ => {
                if value & CC_SHUTDOWN == 0 {
                    self.csts &= !CSTS_SHUTDOWN_DONE;
                }
                None
            }
        }
    }

    /// The admin queues, if the controller can run as the driver wants it.
    pub fn admin(&self) -> Option<Admin> {
        let entries = |value: u32| (value & 0xfff) as u16 + 1;
        let admin =
            Admin { sq: self.asq, sq_entries: entries(self.aqa), cq: self.acq, cq_entries: entries(self.aqa >> 16) };
        let possible = self.cc & (CC_COMMAND_SET | CC_PAGE_SIZE) == 0 && admin.sq_entries >= 2 && admin.cq_entries >= 2;
        possible.then_some(admin)
    }

    /// The controller runs, or cannot.
    pub fn started(&mut self, runs: bool) {
        self.csts = if runs { CSTS_READY } else { CSTS_FATAL };
    }

    /// All that was written is on the media.
    pub fn shut_down(&mut self) {
        self.csts |= CSTS_SHUTDOWN_DONE;
    }

    /// The interrupts that the pin does not tell.
    pub fn mask(&self) -> u32 {
        self.mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(registers: &mut Registers, offset: u64, value: u32) -> Option<Action> {
        registers.write(offset, &value.to_le_bytes())
    }

    fn status(registers: &Registers) -> u32 {
        let mut data = [0; 4];
        registers.read(CSTS, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_controller_starts_and_stops() {
        let mut registers = Registers::default();
        write(&mut registers, AQA, 0x001f_000f);
        registers.write(ASQ, &0x1234_5678_9000u64.to_le_bytes());
        write(&mut registers, ACQ, 0x5fff);
        assert_eq!(write(&mut registers, CC, 0x0046_0001), Some(Action::Start));
        let expected = Admin { sq: 0x1234_5678_9000, sq_entries: 16, cq: 0x5000, cq_entries: 32 };
        assert_eq!(registers.admin(), Some(expected));
        registers.started(true);
        assert_eq!(status(&registers), 1);
        assert_eq!(write(&mut registers, CC, 0x0046_4001), Some(Action::ShutDown));
        registers.shut_down();
        assert_eq!(status(&registers), 9);
        assert_eq!(write(&mut registers, CC, 0), Some(Action::Stop));
        assert_eq!(status(&registers), 0);
        // A page size that there is not.
        assert_eq!(write(&mut registers, CC, 0x81), Some(Action::Start));
        assert_eq!(registers.admin(), None);
    }

    #[test]
    fn masks_are_set_and_cleared() {
        let mut registers = Registers::default();
        assert_eq!(write(&mut registers, INTMS, 6), Some(Action::Mask));
        write(&mut registers, INTMC, 2);
        assert_eq!(registers.mask(), 4);
        assert_eq!(registers.write(CC, &[1]), None, "a byte is no access");
        assert_eq!(write(&mut registers, 0x38, 1), None);
    }
}
