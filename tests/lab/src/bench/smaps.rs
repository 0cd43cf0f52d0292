//! Memory of the VMM itself: `/proc/PID/smaps` (proc(5)) without the guest's RAM.

use serde::{Deserialize, Serialize};

/// A mapping of at least this size is guest RAM, KiB.
const GUEST_RAM_KIB: u64 = 200 << 10;

/// Sums over the VMM's own mappings, KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub resident: u64,
    pub private_dirty: u64,
}

/// Reads the text of an smaps file.
pub fn parse(text: &str) -> Memory {
    let mut sum = Memory::default();
    let mut own = true;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        let Ok(kib) = value.parse::<u64>() else {
            continue;
        };
        match key {
            // The first line of each mapping's block of values.
            "Size:" => own = kib < GUEST_RAM_KIB,
            "Rss:" if own => sum.resident += kib,
            "Private_Dirty:" if own => sum.private_dirty += kib,
            _ => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_left_out() {
        let text = "7f00-7f10 rw-p 00000000 00:00 0 \nSize:  1048576 kB\nRss: 1048576 kB\nPrivate_Dirty: 1048576 kB\n\
            5500-5600 r-xp 00000000 08:01 12 /bin/x\nSize: 400 kB\nRss: 300 kB\nPrivate_Dirty: 20 kB\nVmFlags: rd\n\
            5600-5700 rw-p 00000000 00:00 0 [heap]\nSize: 100 kB\nRss: 80 kB\nPrivate_Dirty: 80 kB\n";
        let expected = Memory { resident: 380, private_dirty: 100 };
        assert_eq!(parse(text), expected);
    }
}
