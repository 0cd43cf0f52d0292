//! The NVM: 64 words, of which drivers read the address, the ids and the checksum (82574 datasheet, section 6.1).

/// Words of it.
const WORDS: usize = 64;
/// What all words add up to.
const CHECKSUM: u16 = 0xbaba;
/// Where the subsystem's ids and the device's are.
const SUBSYSTEM: usize = 0x0b;
const SUBSYSTEM_VENDOR: usize = 0x0c;
const DEVICE: usize = 0x0d;

/// Its words.
pub struct Nvm([u16; WORDS]);

impl Nvm {
    /// Of a controller with this address and these ids.
    pub fn new(mac: [u8; 6], device: u16, subsystem: (u16, u16)) -> Nvm {
        let mut words = [0; WORDS];
        for (word, pair) in words.iter_mut().zip(mac.as_chunks::<2>().0) {
            *word = u16::from_le_bytes(*pair);
        }
        words[SUBSYSTEM] = subsystem.1;
        words[SUBSYSTEM_VENDOR] = subsystem.0;
        words[DEVICE] = device;
        let sum = words.iter().fold(0u16, |sum, word| sum.wrapping_add(*word));
        words[WORDS - 1] = CHECKSUM.wrapping_sub(sum);
        Nvm(words)
    }

    /// A word; ones where there is none.
    pub fn word(&self, at: u32) -> u16 {
        usize::try_from(at).ok().and_then(|at| self.0.get(at)).copied().unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_add_up_and_carry_the_address() {
        let nvm = Nvm::new([0x52, 0x54, 0, 0x12, 0x34, 0x56], 0x10d3, (0x8086, 0));
        assert_eq!([nvm.word(0), nvm.word(1), nvm.word(2)], [0x5452, 0x1200, 0x5634]);
        assert_eq!((0..64).fold(0u16, |sum, at| sum.wrapping_add(nvm.word(at))), 0xbaba);
        assert_eq!([nvm.word(64), nvm.word(u32::MAX)], [0xffff; 2]);
    }
}
