//! The table of snapshots inside an image, which QEMU makes and passthru keeps.

use std::io;

use super::header::Header;
use crate::backends::block::BlockNode;
use crate::backends::block::io::read_into;

/// Bytes of an entry before its variable parts.
const FIXED: usize = 40;
/// Most that is read of the table.
const MAX_TABLE: u64 = 64 << 20;

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number, as text.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where its L1 table is.
    pub l1_offset: u64,
    /// Number of entries of that.
    pub l1_entries: u32,
    /// Seconds since 1970.
    pub date_sec: u32,
    /// And nanoseconds.
    pub date_nsec: u32,
    /// Bytes of the state of a VM that it holds.
    pub vm_state_size: u64,
}

/// The snapshots of an image, and the length of their table.
pub fn read(file: &dyn BlockNode, header: &Header) -> io::Result<Vec<Snapshot>> {
    read_with_len(file, header).map(|(all, _)| all)
}

/// The same, and the bytes of the table.
pub(super) fn read_with_len(file: &dyn BlockNode, header: &Header) -> io::Result<(Vec<Snapshot>, u64)> {
    if header.snapshots == 0 {
        return Ok((Vec::new(), 0));
    }
    let there = file.info().len.saturating_sub(header.snapshots_offset).min(MAX_TABLE);
    let mut table = vec![0; there as usize];
    read_into(file, header.snapshots_offset, &mut table)?;
    parse(&table, header.snapshots)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the table of snapshots ends too early"))
}

fn parse(table: &[u8], count: u32) -> Option<(Vec<Snapshot>, u64)> {
    let number = |at: usize, len: usize| -> Option<u64> {
        let bytes = table.get(at..at.checked_add(len)?)?;
        Some(bytes.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)))
    };
    let mut at = 0usize;
    let mut all = Vec::new();
    for _ in 0..count {
        let (id_len, name_len) = (number(at + 12, 2)? as usize, number(at + 14, 2)? as usize);
        let extra = number(at + 36, 4)? as usize;
        let id_at = at.checked_add(FIXED)?.checked_add(extra)?;
        let text =
            |at: usize, len: usize| Some(String::from_utf8_lossy(table.get(at..at.checked_add(len)?)?).into_owned());
        // The extra data begin with the same length in 64 bits.
        let vm_state_size = if extra >= 8 { number(at + FIXED, 8)? } else { number(at + 32, 4)? };
        all.push(Snapshot {
            id: text(id_at, id_len)?,
            name: text(id_at + id_len, name_len)?,
            l1_offset: number(at, 8)?,
            l1_entries: u32::try_from(number(at + 8, 4)?).ok()?,
            date_sec: u32::try_from(number(at + 16, 4)?).ok()?,
            date_nsec: u32::try_from(number(at + 20, 4)?).ok()?,
            vm_state_size,
        });
        at = (id_at + id_len + name_len).next_multiple_of(8);
    }
    Some((all, at as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries() {
        let mut table = vec![0; 64];
        table[7] = 0x10;
        table[11] = 2;
        table[13] = 1;
        table[15] = 4;
        table[19] = 9;
        table[39] = 8;
        table[47] = 77;
        table[48..53].copy_from_slice(b"1name");
        let (all, len) = parse(&table, 1).unwrap();
        assert_eq!((all[0].id.as_str(), all[0].name.as_str(), all[0].l1_entries), ("1", "name", 2));
        assert_eq!((all[0].vm_state_size, all[0].date_sec, len), (77, 9, 56));
        assert_eq!(parse(&table, 2), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(table in prop::collection::vec(any::<u8>(), 0..300), count in any::<u32>()) {
            let _ = parse(&table, count);
        }
    }
}
