//! Sense data: how a unit says what was wrong with a command (SPC-4 4.5).

/// Length of sense data of fixed format, as far as it says anything.
pub const SENSE_LEN: usize = 18;

/// Response code: an error of the present command, in fixed format.
const CURRENT_FIXED: u8 = 0x70;

/// Sense key, additional sense code and its qualifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense(pub u8, pub u8, pub u8);

impl Sense {
    /// Nothing was wrong.
    pub const NONE: Sense = Sense(0, 0, 0);
    /// There is no medium, and the tray is open.
    pub const NO_MEDIUM: Sense = Sense(2, 0x3a, 2);
    /// The medium could not be read.
    pub const READ_ERROR: Sense = Sense(3, 0x11, 0);
    /// The medium could not be written.
    pub const WRITE_ERROR: Sense = Sense(3, 0x0c, 0);
    /// A list of parameters is shorter than it must be.
    pub const PARAMETER_LENGTH: Sense = Sense(5, 0x1a, 0);
    /// There is no such command.
    pub const UNKNOWN_COMMAND: Sense = Sense(5, 0x20, 0);
    /// The blocks are not there.
    pub const OUT_OF_RANGE: Sense = Sense(5, 0x21, 0);
    /// Something in the command is not possible.
    pub const INVALID_FIELD: Sense = Sense(5, 0x24, 0);
    /// There is no such logical unit.
    pub const NO_UNIT: Sense = Sense(5, 0x25, 0);
    /// Something in a list of parameters is not possible.
    pub const INVALID_PARAMETER: Sense = Sense(5, 0x26, 0);
    /// The medium must not be taken out.
    pub const REMOVAL_PREVENTED: Sense = Sense(5, 0x53, 2);
    /// There may be another medium.
    pub const MEDIUM_CHANGED: Sense = Sense(6, 0x28, 0);
    /// The unit was switched on or reset.
    pub const RESET: Sense = Sense(6, 0x29, 0);
    /// The unit is read-only.
    pub const WRITE_PROTECTED: Sense = Sense(7, 0x27, 0);
    /// The medium is full.
    pub const FULL: Sense = Sense(7, 0x27, 7);

    /// In fixed format (SPC-4 4.5.3).
    pub fn fixed(self) -> [u8; SENSE_LEN] {
        let mut data = [0; SENSE_LEN];
        data[0] = CURRENT_FIXED;
        data[2] = self.0;
        data[7] = SENSE_LEN as u8 - 8;
        data[12] = self.1;
        data[13] = self.2;
        data
    }
}
