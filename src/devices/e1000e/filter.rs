//! Which frames the driver wants (82574 datasheet, section 7.1.2), and the VLAN tag of those that have one. Pure.

use super::registers::Registers;
use super::regs::*;

/// Bytes of two addresses and the type behind them, and of a VLAN tag.
pub const HEADER: usize = 14;
pub const TAG: usize = 4;
/// Where the tag is.
pub const TAG_AT: usize = 12;
/// The longest frame without a long one being allowed: with a tag, without its check sequence.
const LONGEST: usize = 1518;
/// The longest that the controller takes at all, without its check sequence.
const LONGEST_JUMBO: usize = 9230;
/// Which bits of an address choose the bit of the multicast table (RCTL.MO).
const OFFSETS: [u32; 4] = [4, 3, 2, 0];

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Take,
    Drop,
    TooLong,
}

/// The tag of a frame, if its type says that it has one.
pub fn tag(registers: &Registers, frame: &[u8]) -> Option<u16> {
    let tag = frame.get(TAG_AT..TAG_AT + TAG)?;
    let kind = u16::from_be_bytes([tag[0], tag[1]]);
    (u32::from(kind) == registers.get(VET) & 0xffff && kind != 0).then(|| u16::from_be_bytes([tag[2], tag[3]]))
}

/// Whether the driver wants a frame.
pub fn verdict(registers: &Registers, frame: &[u8]) -> Verdict {
    let rctl = registers.get(RCTL);
    let most = if rctl & RCTL_LONG != 0 { LONGEST_JUMBO } else { LONGEST };
    if frame.len() > most {
        return Verdict::TooLong;
    }
    let Some(to) = frame.first_chunk::<6>().filter(|_| frame.len() >= HEADER) else { return Verdict::Drop };
    let wanted_tag = rctl & RCTL_VLAN_FILTER == 0
        || tag(registers, frame).is_none_or(|tag| {
            let number = u32::from(tag & 0xfff);
            registers.get(VFTA + 4 * (number >> 5)) >> (number & 31) & 1 != 0
        });
    match wanted_tag && wanted_address(registers, rctl, to) {
        true => Verdict::Take,
        false => Verdict::Drop,
    }
}

fn wanted_address(registers: &Registers, rctl: u32, to: &[u8; 6]) -> bool {
    if *to == [0xff; 6] {
        return rctl & (RCTL_BROADCAST | RCTL_MULTICAST) != 0;
    }
    let group = to[0] & 1 != 0;
    let all = if group { RCTL_MULTICAST } else { RCTL_UNICAST };
    rctl & all != 0 || one_of_ours(registers, to) || group && in_table(registers, rctl, to)
}

fn one_of_ours(registers: &Registers, to: &[u8; 6]) -> bool {
    let [a, b, c, d, e, f] = *to;
    let (low, high) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, 0, 0]) | RAH_VALID);
    (0..RA_COUNT).any(|index| {
        registers.get(RA + 8 * index) == low && registers.get(RA + 8 * index + 4) & (RAH_VALID | 0xffff) == high
    })
}

fn in_table(registers: &Registers, rctl: u32, to: &[u8; 6]) -> bool {
    let shift = OFFSETS[(rctl >> 12 & 3) as usize];
    let bit = (u32::from(to[5]) << 8 | u32::from(to[4])) >> shift & 0xfff;
    registers.get(MTA + 4 * (bit >> 5)) >> (bit & 31) & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::super::causes::Mode;
    use super::super::nvm::Nvm;
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    fn frame(to: [u8; 6], rest: &[u8]) -> Vec<u8> {
        [&to[..], &[2; 6], rest, &[0; 60]].concat()
    }

    #[test]
    fn addresses() {
        let mut registers = Registers::new(MAC, Nvm::new(MAC, 0, (0, 0)));
        let other = [0x52, 0x54, 0, 0, 0, 1];
        let group = [0x33, 0x33, 0, 0, 0x34, 0x12];
        // The bit of that group: 0x1234 >> 4.
        let table = (0x123, MTA + 4 * (0x123 >> 5));
        for (rctl, to, wanted) in [
            (0, MAC, true),
            (0, other, false),
            (RCTL_UNICAST, other, true),
            (RCTL_MULTICAST, other, false),
            (0, [0xff; 6], false),
            (RCTL_BROADCAST, [0xff; 6], true),
            (RCTL_UNICAST, group, false),
            (RCTL_MULTICAST, group, true),
        ] {
            registers.write(RCTL, rctl, Mode::Pin);
            let is = verdict(&registers, &frame(to, &[8, 0])) == Verdict::Take;
            assert_eq!(is, wanted, "{rctl:#x} {to:x?}");
        }
        registers.write(RCTL, 0, Mode::Pin);
        registers.write(table.1, 1 << (table.0 & 31), Mode::Pin);
        assert_eq!(verdict(&registers, &frame(group, &[8, 0])), Verdict::Take);
        assert_eq!(verdict(&registers, &MAC), Verdict::Drop, "no whole header");
    }

    #[test]
    fn tags_and_lengths() {
        let mut registers = Registers::new(MAC, Nvm::new(MAC, 0, (0, 0)));
        let tagged = frame(MAC, &[0x81, 0, 0x20, 5]);
        assert_eq!(tag(&registers, &tagged), None, "no type is set");
        registers.write(VET, 0x8100, Mode::Pin);
        assert_eq!(tag(&registers, &tagged), Some(0x2005));
        registers.write(RCTL, RCTL_VLAN_FILTER, Mode::Pin);
        assert_eq!(verdict(&registers, &tagged), Verdict::Drop);
        assert_eq!(verdict(&registers, &frame(MAC, &[8, 0])), Verdict::Take, "without a tag");
        registers.write(VFTA, 1 << 5, Mode::Pin);
        assert_eq!(verdict(&registers, &tagged), Verdict::Take);
        let long = [&tagged[..], &[0; 1500]].concat();
        assert_eq!(verdict(&registers, &long), Verdict::TooLong);
        registers.write(RCTL, RCTL_LONG, Mode::Pin);
        assert_eq!(verdict(&registers, &long), Verdict::Take);
    }
}
