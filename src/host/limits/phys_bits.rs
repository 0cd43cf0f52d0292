//! The width of physical addresses: guest memory and BARs must lie below the CPU's highest one, since the CPU's second
//! level of page tables translates no more (Intel SDM volume 3, 4.1.4; AMD APM volume 2, 5.3).

use crate::error::{Code, Error, Result};
use crate::host::{Host, read};

/// Widths that a 64-bit CPU can have.
const POSSIBLE: std::ops::RangeInclusive<u8> = 32..=52;

/// Whether a guest whose addresses end at `end` (the first that is not used) fits; `Code::PhysBits` if not.
pub fn check_phys_bits(end: u64, bits: u8) -> Result<()> {
    let limit = 1u64.checked_shl(bits.into()).unwrap_or(u64::MAX);
    if end <= limit {
        return Ok(());
    }
    // The last address decides: an end of 2^40 needs 40 bits.
    let needed = u64::BITS - end.saturating_sub(1).leading_zeros();
    Err(Error::new(Code::PhysBits, format!("the guest needs {needed} physical address bits, and the CPU has {bits}"))
        .evidence(format!("the guest's addresses end at {end:#x}, the CPU's at {limit:#x}"))
        .fix("give the guest less memory or fewer devices with large BARs"))
}

impl Host {
    /// The CPU's physical address bits, by /proc/cpuinfo.
    pub fn phys_bits(&self) -> Option<u8> {
        let lines = read::lines(self.proc("cpuinfo"));
        let sizes = lines.iter().find_map(|line| line.strip_prefix("address sizes"))?;
        let bits = sizes.trim_start_matches([':', ' ', '\t']).split(' ').next()?.parse().ok()?;
        POSSIBLE.contains(&bits).then_some(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::TestTree;

    #[test]
    fn bits_are_read() {
        let read = |line: &str| {
            let tree = TestTree::new();
            tree.file("proc/cpuinfo", &format!("processor\t: 0\n{line}\npower management:\n"));
            tree.host().phys_bits()
        };
        assert_eq!(read("address sizes\t: 39 bits physical, 48 bits virtual"), Some(39));
        assert_eq!(read("address sizes\t: 99 bits physical, 48 bits virtual"), None);
        assert_eq!(read("bogomips\t: 1"), None);
    }

    #[test]
    fn the_last_address_decides() {
        for (end, bits, fits) in [(1 << 39, 39, true), ((1 << 39) + 1, 39, false), (u64::MAX, 52, false), (0, 32, true)]
        {
            assert_eq!(check_phys_bits(end, bits).is_ok(), fits, "{end:#x}");
        }
        let error = check_phys_bits((1 << 40) + 4096, 39).unwrap_err();
        assert_eq!(error.code(), Code::PhysBits);
        assert_eq!(error.cause(), "the guest needs 41 physical address bits, and the CPU has 39");
        assert!(check_phys_bits(u64::MAX, 64).is_ok());
    }
}
