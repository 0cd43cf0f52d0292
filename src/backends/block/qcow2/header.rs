//! The header of a qcow2 image (QEMU: docs/interop/qcow2.txt), read before anything else is done with the file.
//!
//! The crate that reads images checks little of it, and takes an encrypted image for a plain one. So everything is refused here
//! that would make it read or write the wrong bytes, or use memory without bound.

use std::fmt;

/// The first bytes of an image.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes that hold the header with all that is read of it: it lies in the first cluster, and names are short.
pub const MAX_HEADER: usize = 64 << 10;

/// Length of the header of version 2.
const V2_LEN: usize = 72;
/// Least length of the header of version 3.
const V3_LEN: usize = 104;
/// Longest name of a backing file, by the format.
const MAX_BACKING_NAME: usize = 1023;
/// Most extensions that are looked at.
const MAX_EXTENSIONS: usize = 64;
/// Largest L1 table, bytes (QEMU's limit: an image of 2 EiB has one).
pub(super) const MAX_L1: u64 = 32 << 20;
/// Largest refcount table, bytes (QEMU's limit).
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// Most internal snapshots (QEMU's limit).
const MAX_SNAPSHOTS: u32 = 65536;

/// Extensions: the format of the backing file; names of features.
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
/// Bytes of a feature's name with what it names.
const FEATURE_NAME: usize = 48;

/// Incompatible features, by their bits.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
/// Compatible feature: refcounts may be written late.
const LAZY_REFCOUNTS: u64 = 1 << 0;

/// What an image's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Length of the disk, bytes.
    pub size: u64,
    /// Length of a cluster, as a power of two: 9 to 21.
    pub cluster_bits: u32,
    /// Number of entries of the L1 table.
    pub l1_entries: u32,
    /// Where the L1 table is.
    pub l1_offset: u64,
    /// Where the table of refcount blocks is.
    pub refcount_table_offset: u64,
    /// Its length in clusters.
    pub refcount_table_clusters: u32,
    /// Bits of a refcount, as a power of two: 0 to 6.
    pub refcount_order: u32,
    /// How many internal snapshots there are.
    pub snapshots: u32,
    /// Where their table is.
    pub snapshots_offset: u64,
    /// The backing file, as the header names it.
    pub backing: Option<String>,
    /// Its format.
    pub backing_format: Option<String>,
    /// Whether refcounts may be written late.
    pub lazy_refcounts: bool,
}

/// Why an image cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It is no qcow2 image.
    Magic,
    /// It needs something that is not had: in words.
    Unsupported(String),
    /// It was not closed: the refcounts are to be made anew.
    Dirty,
    /// It says itself that it is damaged.
    Corrupt,
    /// It contradicts itself: in words.
    Invalid(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Magic => write!(f, "it is no qcow2 image"),
            Refused::Unsupported(what) => write!(f, "it needs {what}"),
            Refused::Dirty => write!(f, "it was not closed by its last user (dirty bit)"),
            Refused::Corrupt => write!(f, "it is marked as damaged (corrupt bit)"),
            Refused::Invalid(what) => write!(f, "its header is wrong: {what}"),
        }
    }
}

impl Header {
    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Reads the header of a file of `file_len` bytes, which begins with `bytes` ([`MAX_HEADER`] of them, or all there are).
    pub fn parse(bytes: &[u8], file_len: u64) -> Result<Header, Refused> {
        let from = Fields(bytes);
        if bytes.get(..4) != Some(&MAGIC) {
            return Err(Refused::Magic);
        }
        let version = from.u32(4)?;
        if !matches!(version, 2 | 3) {
            return Err(Refused::Unsupported(format!("version {version} of the format")));
        }
        if from.u32(32)? != 0 {
            return Err(Refused::Unsupported("encryption".to_owned()));
        }
        let (incompatible, compatible, refcount_order, header_len) = match version {
            2 => (0, 0, 4, V2_LEN),
            _ => (from.u64(72)?, from.u64(80)?, from.u32(96)?, from.u32(100)? as usize),
        };
        check_features(incompatible, || from.0.get(V3_LEN).copied().filter(|_| header_len > V3_LEN))?;
        let header = Header {
            version,
            size: from.u64(24)?,
            cluster_bits: from.u32(20)?,
            l1_entries: from.u32(36)?,
            l1_offset: from.u64(40)?,
            refcount_table_offset: from.u64(48)?,
            refcount_table_clusters: from.u32(56)?,
            refcount_order,
            snapshots: from.u32(60)?,
            snapshots_offset: from.u64(64)?,
            backing: None,
            backing_format: None,
            lazy_refcounts: compatible & LAZY_REFCOUNTS != 0,
        };
        header.check(file_len)?;
        if version == 3 && !(V3_LEN..=header.cluster_size() as usize).contains(&header_len) {
            return Err(Refused::Invalid(format!("a length of {header_len} bytes")));
        }
        let backing = backing_name(from, header.cluster_size())?;
        let backing_format = match version {
            // There the name may follow at once, without an end of the list.
            2 => backing_format(from.until(from.u64(8)?), header_len).unwrap_or_default(),
            _ => backing_format(from.until(header.cluster_size()), header_len)?,
        };
        Ok(Header { backing, backing_format, ..header })
    }

    /// Whether the numbers fit to each other and into the file.
    fn check(&self, file_len: u64) -> Result<(), Refused> {
        let invalid = |what: String| Err(Refused::Invalid(what));
        if !(9..=21).contains(&self.cluster_bits) {
            return invalid(format!("clusters of 2^{} bytes", self.cluster_bits));
        }
        if self.refcount_order > 6 {
            return invalid(format!("refcounts of 2^{} bits", self.refcount_order));
        }
        if self.size > i64::MAX as u64 {
            return invalid(format!("a length of {} bytes", self.size));
        }
        // An entry of the L1 table leads to a cluster of entries of 8 bytes, each of which leads to a cluster.
        let per_entry = u128::from(self.cluster_size()) * u128::from(self.cluster_size() / 8);
        let needed = u128::from(self.size).div_ceil(per_entry);
        let l1_len = u64::from(self.l1_entries) * 8;
        if l1_len > MAX_L1 || needed * 8 > u128::from(MAX_L1) {
            return Err(Refused::Unsupported(format!("an L1 table of more than {} MiB", MAX_L1 >> 20)));
        }
        if u128::from(self.l1_entries) < needed {
            return invalid(format!("{} entries of the L1 table where {needed} are needed", self.l1_entries));
        }
        let refcounts = u64::from(self.refcount_table_clusters) * self.cluster_size();
        if refcounts > MAX_REFCOUNT_TABLE {
            return Err(Refused::Unsupported(format!(
                "a refcount table of more than {} MiB",
                MAX_REFCOUNT_TABLE >> 20
            )));
        }
        if self.snapshots > MAX_SNAPSHOTS {
            return invalid(format!("{} snapshots", self.snapshots));
        }
        let tables = [
            ("the L1 table", self.l1_offset, l1_len),
            ("the refcount table", self.refcount_table_offset, refcounts),
            ("the table of snapshots", self.snapshots_offset, u64::from(self.snapshots)),
        ];
        for (name, offset, len) in tables {
            if len == 0 {
                continue;
            }
            if offset == 0 || !offset.is_multiple_of(self.cluster_size()) {
                return invalid(format!("{name} at {offset:#x}"));
            }
            // What QEMU made ends with a cluster that need not be there in full.
            if offset >= file_len {
                return invalid(format!("{name} at {offset:#x}, behind the file's end at {file_len:#x}"));
            }
        }
        Ok(())
    }
}

fn check_features(incompatible: u64, compression: impl Fn() -> Option<u8>) -> Result<(), Refused> {
    let unsupported = |what: &str| Err(Refused::Unsupported(what.to_owned()));
    if incompatible & CORRUPT != 0 {
        return Err(Refused::Corrupt);
    }
    if incompatible & DATA_FILE != 0 {
        return unsupported("an external data file");
    }
    if incompatible & EXTENDED_L2 != 0 {
        return unsupported("extended L2 entries");
    }
    if incompatible & COMPRESSION != 0 {
        return unsupported(if compression() == Some(1) { "compression by zstd" } else { "an unknown compression" });
    }
    let unknown = incompatible & !(DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2);
    if unknown != 0 {
        return Err(Refused::Unsupported(format!("unknown features ({unknown:#x})")));
    }
    if incompatible & DIRTY != 0 { Err(Refused::Dirty) } else { Ok(()) }
}

fn backing_name(from: Fields, cluster_size: u64) -> Result<Option<String>, Refused> {
    let (offset, len) = (from.u64(8)?, from.u32(16)? as usize);
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    let invalid = || Refused::Invalid(format!("a backing file's name of {len} bytes at {offset:#x}"));
    if len > MAX_BACKING_NAME || offset > cluster_size {
        return Err(invalid());
    }
    let name = from.bytes(usize::try_from(offset).map_err(|_| invalid())?, len)?;
    match str::from_utf8(name) {
        Ok(name) if !name.contains('\0') => Ok(Some(name.to_owned())),
        _ => Err(Refused::Unsupported("a backing file whose name is not UTF-8".to_owned())),
    }
}

/// The format of the backing file, by the extensions that follow the header. All of them are looked at, because the crate
/// does so, without bounds.
fn backing_format(from: Fields, header_len: usize) -> Result<Option<String>, Refused> {
    let mut at = header_len;
    let mut format = None;
    for _ in 0..MAX_EXTENSIONS {
        let (kind, len) = (from.u32(at)?, from.u32(at + 4)? as usize);
        let content = from.bytes(at + 8, len)?;
        match kind {
            0 => return Ok(format),
            BACKING_FORMAT => format = str::from_utf8(content).ok().filter(|name| name.len() < 16).map(str::to_owned),
            FEATURE_NAMES if !len.is_multiple_of(FEATURE_NAME) => {
                return Err(Refused::Invalid(format!("names of features in {len} bytes")));
            }
            _ => {}
        }
        at += 8 + len.next_multiple_of(8);
    }
    Err(Refused::Unsupported(format!("more than {MAX_EXTENSIONS} extensions of the header")))
}

/// Numbers in a header: big-endian.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// What is in front of `end`; all of it if that is 0.
    fn until(self, end: u64) -> Fields<'a> {
        let end = usize::try_from(end).unwrap_or(usize::MAX).min(self.0.len());
        if end == 0 { self } else { Fields(&self.0[..end]) }
    }

    fn bytes(self, at: usize, len: usize) -> Result<&'a [u8], Refused> {
        let found = at.checked_add(len).and_then(|end| self.0.get(at..end));
        found.ok_or_else(|| Refused::Invalid(format!("it ends at {} bytes", self.0.len())))
    }

    fn u32(self, at: usize) -> Result<u32, Refused> {
        self.bytes(at, 4).map(|bytes| bytes.iter().fold(0, |all, byte| all << 8 | u32::from(*byte)))
    }

    fn u64(self, at: usize) -> Result<u64, Refused> {
        self.bytes(at, 8).map(|bytes| bytes.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An image of 1 GiB in clusters of 64 KiB, with a backing file.
    fn header() -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC);
        put(4, &3u32.to_be_bytes());
        put(8, &0x100u64.to_be_bytes());
        put(16, &8u32.to_be_bytes());
        put(20, &16u32.to_be_bytes());
        put(24, &(1u64 << 30).to_be_bytes());
        put(36, &2u32.to_be_bytes());
        put(40, &0x30000u64.to_be_bytes());
        put(48, &0x10000u64.to_be_bytes());
        put(56, &1u32.to_be_bytes());
        put(96, &4u32.to_be_bytes());
        put(100, &104u32.to_be_bytes());
        put(104, &BACKING_FORMAT.to_be_bytes());
        put(108, &5u32.to_be_bytes());
        put(112, b"qcow2");
        put(0x100, b"base.img");
        bytes
    }

    fn with(at: usize, value: &[u8]) -> Result<Header, Refused> {
        let mut bytes = header();
        bytes[at..at + value.len()].copy_from_slice(value);
        Header::parse(&bytes, 0x40000)
    }

    #[test]
    fn what_it_says() {
        let header = Header::parse(&header(), 0x40000).unwrap();
        assert_eq!((header.version, header.size, header.cluster_size(), header.l1_entries), (3, 1 << 30, 65536, 2));
        assert_eq!((header.backing.as_deref(), header.backing_format.as_deref()), (Some("base.img"), Some("qcow2")));
        assert!(!header.lazy_refcounts);
    }

    #[test]
    fn what_is_refused() {
        let refused = |at, value: &[u8]| with(at, value).unwrap_err().to_string();
        for (at, value, words) in [
            (0, &b"LUKS"[..], "no qcow2 image"),
            (4, &4u32.to_be_bytes(), "version 4"),
            (32, &1u32.to_be_bytes(), "it needs encryption"),
            (32, &2u32.to_be_bytes(), "it needs encryption"),
            (79, &[1], "dirty bit"),
            (79, &[3], "corrupt bit"),
            (79, &[4], "external data file"),
            (79, &[8], "compression"),
            (79, &[16], "extended L2"),
            (72, &[1], "unknown features"),
            (20, &8u32.to_be_bytes(), "clusters of 2^8"),
            (20, &22u32.to_be_bytes(), "clusters of 2^22"),
            (96, &7u32.to_be_bytes(), "refcounts of 2^7"),
            (24, &[0xff], "a length of"),
            (24, &[0x7f], "L1 table of more than 32 MiB"),
            (36, &1u32.to_be_bytes(), "1 entries of the L1 table where 2 are needed"),
            (36, &[0xff], "L1 table of more than 32 MiB"),
            (40, &[0x10], "the L1 table at"),
            (40, &0x30200u64.to_be_bytes(), "the L1 table at 0x30200"),
            (48, &0x40000u64.to_be_bytes(), "behind the file's end"),
            (56, &[1], "refcount table of more than"),
            (60, &[1], "snapshots"),
            (16, &1024u32.to_be_bytes(), "a backing file's name of 1024"),
            (8, &[1], "a backing file's name"),
            (0x100, &[0], "not UTF-8"),
            (100, &80u32.to_be_bytes(), "a length of 80"),
            (108, &[1], "it ends at 1024 bytes"),
            (112, &[&[0; 8][..], &FEATURE_NAMES.to_be_bytes(), &49u32.to_be_bytes()].concat(), "in 49 bytes"),
        ] {
            let error = refused(at, value);
            assert!(error.contains(words), "{at}: {error}");
        }
        assert_eq!(Header::parse(b"QFI\xfb\0\0\0\x03", 8), Err(Refused::Invalid("it ends at 8 bytes".to_owned())));
        assert_eq!(Header::parse(b"", 0), Err(Refused::Magic));
    }

    proptest! {
        #[test]
        fn nothing_panics_and_tables_are_bounded(
            at in 4usize..128,
            value in prop::collection::vec(any::<u8>(), 1..24),
            file_len in any::<u64>(),
        ) {
            let mut bytes = header();
            bytes[at..at + value.len()].copy_from_slice(&value);
            if let Ok(header) = Header::parse(&bytes, file_len) {
                prop_assert!(u64::from(header.l1_entries) * 8 <= MAX_L1);
                prop_assert!(u64::from(header.refcount_table_clusters) * header.cluster_size() <= MAX_REFCOUNT_TABLE);
            }
        }
    }
}
