//! Whether the host can hold the guest, found out before anything is allocated: memory, locked memory, the width of
//! physical addresses, and descriptors for interrupts. Each has a planner (data in, verdict out) and a method of [`Host`](super::Host) that reads
//! the data.

pub mod cgroup;
pub mod descriptors;
pub mod memlock;
pub mod memory;
pub mod phys_bits;

use super::{Host, read};

/// No limit (RLIM_INFINITY).
pub const UNLIMITED: u64 = u64::MAX;

impl Host {
    /// This process's soft and hard limit in the row of /proc/self/limits with that name.
    fn resource_limit(&self, name: &str) -> (u64, u64) {
        let rows = read::lines(self.proc("self/limits"));
        let row = rows.iter().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let mut limits = row.split_whitespace().map(|word| word.parse().unwrap_or(UNLIMITED));
        (limits.next().unwrap_or(UNLIMITED), limits.next().unwrap_or(UNLIMITED))
    }
}

/// A number of bytes in the largest unit that leaves at least 1: `768 MiB`, `7.5 GiB`. Rounded down to tenths.
pub(crate) fn size_text(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let Some((unit, shift)) = UNITS.into_iter().find(|(_, shift)| bytes >> shift > 0) else {
        return format!("{bytes} bytes");
    };
    let (whole, rest) = (bytes >> shift, bytes & ((1 << shift) - 1));
    // The rest is below 2^40: ten times it cannot overflow.
    match (rest * 10) >> shift {
        0 => format!("{whole} {unit}"),
        tenth => format!("{whole}.{tenth} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_read_well() {
        let table = [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (768 << 20, "768 MiB"),
            ((7 << 30) + (1 << 29), "7.5 GiB"),
            ((8 << 30) - 1, "7.9 GiB"),
            (1 << 40, "1 TiB"),
            (u64::MAX, "16777215.9 TiB"),
        ];
        for (bytes, text) in table {
            assert_eq!(size_text(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn no_size_panics(bytes: u64) {
            prop_assert!(!size_text(bytes).is_empty());
        }
    }
}
