//! Whether the tables of an image agree: every cluster is counted as often as it is used.
//!
//! Nothing is changed. What is read is what the format's text says (QEMU: docs/interop/qcow2.txt); memory is bounded by four
//! bytes for each cluster of the file.

use std::collections::BTreeSet;
use std::io;

use super::header::Header;
use super::snapshots;
use crate::backends::block::BlockNode;
use crate::backends::block::io::read_into;

/// Most clusters that are counted: 1 GiB of counters.
const MAX_CLUSTERS: u64 = 1 << 28;
/// Most findings that are put into words.
const MAX_WORDS: usize = 32;
/// Bits of an entry that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit of an entry: its cluster is used once, and may be written.
const COPIED: u64 = 1 << 63;
/// Bit of an L2 entry: its cluster is compressed.
const COMPRESSED: u64 = 1 << 62;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Contradictions that make the image unsafe to use.
    pub corruptions: u64,
    /// Clusters that nothing uses and that are not free.
    pub leaks: u64,
    /// Clusters of the disk that have a place in the file.
    pub allocated: u64,
    /// Clusters of the disk.
    pub total: u64,
    /// Of the allocated ones those that are compressed.
    pub compressed: u64,
    /// The end of what is used.
    pub end: u64,
    /// The first contradictions, in words.
    pub words: Vec<String>,
}

/// Reads all tables of the image on `file`.
///
/// # Errors
/// Those of the file, and [`io::ErrorKind::Unsupported`] for an image with too many clusters to count.
pub fn check(file: &dyn BlockNode, header: &Header) -> io::Result<Report> {
    let len = file.info().len;
    let clusters = len.div_ceil(header.cluster_size());
    if clusters > MAX_CLUSTERS {
        return Err(io::Error::new(io::ErrorKind::Unsupported, format!("{clusters} clusters are too many to count")));
    }
    let mut check = Check {
        file,
        header,
        len,
        uses: vec![0; clusters as usize],
        copied: BTreeSet::new(),
        report: Report { total: header.size.div_ceil(header.cluster_size()), ..Report::default() },
    };
    check.run()?;
    Ok(check.report)
}

struct Check<'a> {
    file: &'a dyn BlockNode,
    header: &'a Header,
    len: u64,
    /// How often each cluster of the file is used.
    uses: Vec<u32>,
    /// Clusters whose entry says that they are used once.
    copied: BTreeSet<u64>,
    report: Report,
}

impl Check<'_> {
    fn run(&mut self) -> io::Result<()> {
        let size = self.header.cluster_size();
        self.mark(0, size, "the header");
        let active = (self.header.l1_offset, self.header.l1_entries);
        self.tables(active, true)?;
        let (snapshots, table) = snapshots::read_with_len(self.file, self.header)?;
        self.mark(self.header.snapshots_offset, table, "the table of snapshots");
        for snapshot in &snapshots {
            if u64::from(snapshot.l1_entries) * 8 > super::header::MAX_L1 {
                self.corrupt(|| {
                    format!("snapshot {} has {} entries of the L1 table", snapshot.id, snapshot.l1_entries)
                });
                continue;
            }
            self.tables((snapshot.l1_offset, snapshot.l1_entries), false)?;
        }
        self.refcounts()
    }

    /// Counts an L1 table with all below it. `active`: it is that of the disk, not of a snapshot.
    fn tables(&mut self, (offset, entries): (u64, u32), active: bool) -> io::Result<()> {
        let bytes = u64::from(entries) * 8;
        if !self.mark(offset, bytes, "an L1 table") {
            return Ok(());
        }
        // Each has a cluster of its own; a table that leads to the same ones again and again would take for ever.
        let mut left = self.uses.len();
        for (index, entry) in self.entries(offset, bytes)?.into_iter().enumerate() {
            let table = entry & OFFSET;
            if table == 0 {
                continue;
            }
            if left == 0 {
                self.corrupt(|| {
                    format!("the L1 table at {offset:#x} leads to more L2 tables than the file has room for")
                });
                break;
            }
            left -= 1;
            if !self.mark(table, self.header.cluster_size(), "an L2 table") {
                continue;
            }
            self.remember(table, entry, active);
            for (at, entry) in self.entries(table, self.header.cluster_size())?.into_iter().enumerate() {
                self.data(index as u64 * (self.header.cluster_size() / 8) + at as u64, entry, active);
            }
        }
        Ok(())
    }

    /// Counts what an entry of an L2 table leads to.
    fn data(&mut self, cluster: u64, entry: u64, active: bool) {
        let size = self.header.cluster_size();
        if entry & COMPRESSED != 0 {
            // The offset's bits are followed by the number of further sectors.
            let shift = 62 - (self.header.cluster_bits - 8);
            let offset = entry & ((1 << shift) - 1);
            let sectors = ((entry & !COMPRESSED & !COPIED) >> shift) + 1;
            let start = offset / 512 * 512;
            let end = (start + sectors * 512).min(self.len.next_multiple_of(size));
            if start >= self.len {
                self.corrupt(|| format!("cluster {cluster} of the disk is compressed behind the file's end"));
                return;
            }
            for at in start / size..end.div_ceil(size) {
                self.count(at);
            }
            self.report.compressed += u64::from(active);
        } else {
            let offset = entry & OFFSET;
            if offset == 0 {
                return;
            }
            if !self.mark(offset, size, "data") {
                return;
            }
            self.remember(offset, entry, active);
        }
        self.report.allocated += u64::from(active);
    }

    fn remember(&mut self, offset: u64, entry: u64, active: bool) {
        if active && entry & COPIED != 0 {
            self.copied.insert(offset / self.header.cluster_size());
        }
    }

    /// Counts the clusters of something; `false` if it lies where nothing is.
    fn mark(&mut self, offset: u64, bytes: u64, what: &str) -> bool {
        if bytes == 0 {
            return true;
        }
        let size = self.header.cluster_size();
        if !offset.is_multiple_of(size) || offset.checked_add(bytes).is_none() || offset >= self.len {
            self.corrupt(|| format!("{what} at {offset:#x}, where no cluster of the file begins"));
            return false;
        }
        // The last cluster need not be there in full.
        let end = (offset + bytes).div_ceil(size);
        if end > self.uses.len() as u64 {
            self.corrupt(|| format!("{what} at {offset:#x} ends behind the file"));
            return false;
        }
        (offset / size..end).for_each(|at| self.count(at));
        true
    }

    fn count(&mut self, cluster: u64) {
        if let Some(uses) = self.uses.get_mut(cluster as usize) {
            *uses = uses.saturating_add(1);
            self.report.end = self.report.end.max((cluster + 1) * self.header.cluster_size());
        }
    }

    fn corrupt(&mut self, words: impl FnOnce() -> String) {
        self.report.corruptions += 1;
        if self.report.words.len() < MAX_WORDS {
            self.report.words.push(words());
        }
    }

    /// Compares the refcounts with what was counted.
    fn refcounts(&mut self) -> io::Result<()> {
        let size = self.header.cluster_size();
        let table_len = u64::from(self.header.refcount_table_clusters) * size;
        if !self.mark(self.header.refcount_table_offset, table_len, "the refcount table") {
            return Ok(());
        }
        let table = self.entries(self.header.refcount_table_offset, table_len)?;
        // All blocks first: they count each other.
        let blocks: Vec<Option<u64>> = table
            .iter()
            .map(|entry| Some(entry & !0x1ff).filter(|at| *at != 0 && self.mark(*at, size, "a refcount block")))
            .collect();
        let per_block = (size * 8) >> self.header.refcount_order;
        for (index, block) in blocks.into_iter().enumerate() {
            let first = index as u64 * per_block;
            let bytes = match block {
                Some(at) => self.read(at, size)?,
                None => Vec::new(),
            };
            for within in 0..per_block {
                let cluster = first + within;
                let uses = u64::from(self.uses.get(cluster as usize).copied().unwrap_or(0));
                if block.is_none() && (uses == 0 || cluster >= self.uses.len() as u64) {
                    if cluster >= self.uses.len() as u64 {
                        break;
                    }
                    continue;
                }
                self.compare(cluster, uses, refcount(&bytes, within, self.header.refcount_order));
            }
        }
        // What no block is there for has the refcount 0.
        for cluster in table.len() as u64 * per_block..self.uses.len() as u64 {
            let uses = u64::from(self.uses[cluster as usize]);
            self.compare(cluster, uses, 0);
        }
        Ok(())
    }

    fn compare(&mut self, cluster: u64, uses: u64, refcount: u64) {
        if refcount > uses {
            self.report.leaks += 1;
        } else if refcount < uses {
            self.corrupt(|| format!("cluster {cluster} of the file is used {uses} times and counted {refcount} times"));
        } else if refcount > 1 && self.copied.contains(&cluster) {
            self.corrupt(|| format!("cluster {cluster} of the file is shared and not marked so"));
        }
    }

    fn entries(&self, offset: u64, bytes: u64) -> io::Result<Vec<u64>> {
        let read = self.read(offset, bytes)?;
        let (words, _) = read.as_chunks::<8>();
        Ok(words.iter().map(|word| u64::from_be_bytes(*word)).collect())
    }

    /// Reads what is there; what lies behind the file's end are zeros.
    fn read(&self, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
        let mut read = vec![0; bytes as usize];
        let there = self.len.saturating_sub(offset).min(bytes) as usize;
        read_into(self.file, offset, &mut read[..there])?;
        Ok(read)
    }
}

/// The refcount of number `index` in a block, of `1 << order` bits.
fn refcount(block: &[u8], index: u64, order: u32) -> u64 {
    let bits = 1u64 << order;
    if bits < 8 {
        let per_byte = 8 / bits;
        let byte = block.get((index / per_byte) as usize).copied().unwrap_or(0);
        return u64::from(byte) >> (index % per_byte * bits) & ((1 << bits) - 1);
    }
    let (at, len) = ((index * bits / 8) as usize, (bits / 8) as usize);
    block.get(at..at + len).map_or(0, |bytes| bytes.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Qcow2;
    use super::super::create::{New, create};
    use super::*;
    use crate::backends::block::Child;
    use crate::backends::block::io::write_from;
    use crate::backends::block::testing::MemoryNode;
    use proptest::prelude::*;

    fn bytes() -> Vec<u8> {
        let file = Arc::new(MemoryNode::new(Vec::new()));
        create(file.clone(), &New { cluster_size: 4096, ..New::of(4 << 20) }).unwrap();
        let image = Qcow2::open(Child::own(file.clone(), "f"), None, false, true).unwrap();
        for at in 0..40 {
            write_from(&image, at * 50_000, &mut [1; 9000]).unwrap();
        }
        image.discard(50_000..80_000).unwrap();
        drop(image);
        file.bytes()
    }

    fn report(bytes: &[u8]) -> Report {
        let header = Header::parse(bytes, bytes.len() as u64).unwrap();
        check(&MemoryNode::new(bytes.to_vec()), &header).unwrap()
    }

    #[test]
    fn an_image_of_ours_is_sound() {
        let found = report(&bytes());
        assert_eq!((found.corruptions, found.leaks), (0, 0), "{:?}", found.words);
        assert!(found.allocated > 80 && found.total == 1024, "{found:?}");
    }

    #[test]
    fn damage_is_found() {
        let whole = bytes();
        let header = Header::parse(&whole, whole.len() as u64).unwrap();
        let block =
            u64::from_be_bytes(whole[header.refcount_table_offset as usize..][..8].try_into().unwrap()) as usize;
        let mut leaking = whole.clone();
        leaking[block + 1] += 1;
        assert_eq!((report(&leaking).leaks, report(&leaking).corruptions), (1, 0));
        let mut lost = whole.clone();
        lost[block + 1] = 0;
        assert_eq!((report(&lost).leaks, report(&lost).corruptions), (0, 1));
        let mut astray = whole.clone();
        astray[header.l1_offset as usize + 2] = 0x10;
        assert!(report(&astray).corruptions >= 1);
        let mut endless = whole.clone();
        let table = header.l1_offset as usize;
        endless[36..40].copy_from_slice(&512u32.to_be_bytes());
        (1..512).for_each(|at| endless.copy_within(table..table + 8, table + at * 8));
        assert!(report(&endless).words[0].contains("more L2 tables than the file has room for"));
        let mut twice = whole;
        let table = header.l1_offset as usize;
        let first: Vec<u8> = twice[table..table + 8].to_vec();
        twice[table + 8..table + 16].copy_from_slice(&first);
        assert!(report(&twice).corruptions > 1);
    }

    #[test]
    fn refcounts_of_all_widths() {
        let block = [0b1110_0100, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde];
        for (order, index, value) in [
            (0, 2, 1),
            (0, 0, 0),
            (1, 1, 1),
            (1, 3, 3),
            (2, 1, 14),
            (3, 1, 0x12),
            (4, 1, 0x3456),
            (5, 1, 0x789a_bcde),
            (6, 1, 0),
        ] {
            assert_eq!(refcount(&block, index, order), value, "{order} {index}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn nothing_panics(places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let mut bytes = bytes();
            for (at, byte) in places {
                let at = at.index(20_000);
                bytes[at] = byte;
            }
            if let Ok(header) = Header::parse(&bytes, bytes.len() as u64) {
                let _ = check(&MemoryNode::new(bytes), &header);
            }
        }
    }
}
