//! The headers of an ELF vmlinux for x86-64 (System V ABI, chapters 4 and 5), checked before the file is loaded:
//! linux-loader trusts the program headers' sizes and offsets.

use std::ops::Range;

use super::layout::HIGH_MEMORY;

/// The first bytes of every ELF file.
pub const MAGIC: &[u8] = b"\x7fELF";
/// Length of the ELF header.
pub const HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
/// A vmlinux has about five program headers.
const PROGRAM_HEADERS_MAX: u16 = 64;
/// A vmlinux has less than 1 KiB of notes. linux-loader walks them one system call at a time.
const NOTES_MAX: u64 = 64 << 10;

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// What the ELF header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Physical address of the 64-bit entry point.
    pub entry: u64,
    /// File offsets of the program headers.
    table: (u64, u64),
}

impl Header {
    /// Reads the ELF header from the first [`HEADER_LEN`] bytes of a file of `file_len` bytes. The error is the
    /// evidence: what was found where.
    pub fn parse(head: &[u8], file_len: u64) -> Result<Header, String> {
        let head = head.first_chunk::<HEADER_LEN>().ok_or_else(|| format!("the file has {file_len} bytes"))?;
        if (head[4], head[5]) != (CLASS_64, LITTLE_ENDIAN) {
            return Err(format!("class {} and byte order {} at 0x4: not a 64-bit little-endian ELF", head[4], head[5]));
        }
        let machine = u16::from_le_bytes([head[18], head[19]]);
        if machine != MACHINE_X86_64 {
            return Err(format!("machine {machine} at 0x12, x86-64 is {MACHINE_X86_64}"));
        }
        let entry_len = u16::from_le_bytes([head[54], head[55]]);
        let count = u16::from_le_bytes([head[56], head[57]]);
        let offset = u64_at(head, 32);
        let table_len = u64::from(count) * PROGRAM_HEADER_LEN as u64;
        let end = offset.checked_add(table_len).filter(|&end| end <= file_len);
        match end {
            Some(end)
                if usize::from(entry_len) == PROGRAM_HEADER_LEN
                    && (1..=PROGRAM_HEADERS_MAX).contains(&count)
                    && offset >= HEADER_LEN as u64 =>
            {
                Ok(Header { entry: u64_at(head, 24), table: (offset, end) })
            }
            _ => Err(format!("{count} program headers of {entry_len} bytes at {offset:#x} in {file_len} bytes")),
        }
    }

    /// File offsets of the program headers: at most 64 of 56 bytes each, within the file.
    pub fn table(&self) -> Range<u64> {
        self.table.0..self.table.1
    }
}

/// A vmlinux whose headers are sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Physical address of the 64-bit entry point.
    pub entry: u64,
    /// All memory of the segments, from the lowest to the highest address.
    pub memory: Range<u64>,
    /// Parts of the segments that the file has no bytes for, and that must read as zero.
    pub zero: Vec<Range<u64>>,
}

impl Image {
    /// Checks the program headers in `table` (the bytes at [`Header::table`]) of a file of `file_len` bytes.
    pub fn plan(header: &Header, table: &[u8], file_len: u64) -> Result<Image, String> {
        let mut memory: Option<Range<u64>> = None;
        let mut zero = Vec::new();
        let mut entered = false;
        let (headers, _) = table.as_chunks::<PROGRAM_HEADER_LEN>();
        for (index, program) in headers.iter().enumerate() {
            let kind = u32::from_le_bytes([program[0], program[1], program[2], program[3]]);
            let (offset, address) = (u64_at(program, 8), u64_at(program, 24));
            let (in_file, in_memory) = (u64_at(program, 32), u64_at(program, 40));
            if !matches!(kind, PT_LOAD | PT_NOTE) {
                continue;
            }
            let wrong = |what| format!("program header {index} {what}: offset {offset:#x}, {in_file:#x} bytes");
            if offset.checked_add(in_file).is_none_or(|end| end > file_len) {
                return Err(wrong(format!("reaches beyond the file's {file_len:#x} bytes")));
            }
            if kind == PT_NOTE {
                if in_file > NOTES_MAX {
                    return Err(wrong(format!("has more than {NOTES_MAX} bytes of notes")));
                }
                continue;
            }
            let Some(end) = address.checked_add(in_memory).filter(|_| in_file <= in_memory) else {
                return Err(wrong(format!("has {in_memory:#x} bytes of memory at {address:#x}")));
            };
            if in_memory == 0 {
                continue;
            }
            if address < HIGH_MEMORY {
                return Err(wrong(format!("is to be loaded at {address:#x}, below 1 MiB")));
            }
            memory = Some(match memory {
                Some(range) => range.start.min(address)..range.end.max(end),
                None => address..end,
            });
            if in_file < in_memory {
                zero.push(address + in_file..end);
            }
            entered |= (address..end).contains(&header.entry);
        }
        match memory {
            Some(memory) if entered => Ok(Image { entry: header.entry, memory, zero }),
            _ => Err(format!("the entry point {:#x} at 0x18 lies in no segment", header.entry)),
        }
    }
}

/// The little-endian number at `offset`, which the callers' array lengths guarantee.
fn u64_at<const N: usize>(bytes: &[u8; N], offset: usize) -> u64 {
    bytes.iter().skip(offset).take(8).rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Program header: kind, file offset, address, bytes in the file, bytes in memory.
    pub type Program = (u32, u64, u64, u64, u64);

    /// An ELF file with these program headers, `data` behind them (at 0x1000).
    pub fn file(entry: u64, programs: &[Program], data: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 0x1000];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16..20].copy_from_slice(&[2, 0, 62, 0]);
        file[24..32].copy_from_slice(&entry.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..58].copy_from_slice(&[56, 0, programs.len() as u8, 0]);
        for (index, &(kind, offset, address, in_file, in_memory)) in programs.iter().enumerate() {
            let at = 64 + index * 56;
            file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            for (field, value) in [offset, address, address, in_file, in_memory, 4].into_iter().enumerate() {
                file[at + 8 + field * 8..at + 16 + field * 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        file.extend_from_slice(data);
        file
    }

    fn plan(file: &[u8]) -> Result<Image, String> {
        let header = Header::parse(&file[..file.len().min(HEADER_LEN)], file.len() as u64)?;
        let table = header.table();
        Image::plan(&header, &file[table.start as usize..table.end as usize], file.len() as u64)
    }

    #[test]
    fn segments_are_planned() {
        let programs = [
            (PT_LOAD, 0x1000, 0x100_0000, 0x10, 0x20),
            (PT_LOAD, 0x1008, 0x200_0000, 8, 8),
            (PT_NOTE, 0x1000, 0, 16, 16),
            (0x6474_e551, 0, 0, u64::MAX, 0),
        ];
        let image = plan(&file(0x100_0004, &programs, &[0; 0x10])).unwrap();
        assert_eq!((image.entry, image.memory), (0x100_0004, 0x100_0000..0x200_0008));
        assert_eq!(image.zero, vec![0x100_0010..0x100_0020]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |program: Program| plan(&file(0x100_0000, &[program], &[0; 0x10])).unwrap_err();
        assert!(wrong((PT_LOAD, 0x1000, 0x100_0000, 0x11, 0x20)).contains("beyond the file"));
        assert!(wrong((PT_LOAD, u64::MAX, 0x100_0000, 0x10, 0x20)).contains("beyond the file"));
        assert!(wrong((PT_LOAD, 0x1000, 0x100_0000, 0x10, 0x8)).contains("0x8 bytes of memory"));
        assert!(wrong((PT_LOAD, 0x1000, u64::MAX, 0x10, 0x10)).contains("bytes of memory"));
        assert!(wrong((PT_LOAD, 0x1000, 0x7c00, 0x10, 0x10)).contains("below 1 MiB"));
        assert!(wrong((PT_LOAD, 0x1000, 0x200_0000, 0x10, 0x10)).contains("entry point 0x1000000"));
        let mut notes = file(0x100_0000, &[(PT_NOTE, 0, 0, NOTES_MAX + 1, 0)], &[]);
        notes.resize(NOTES_MAX as usize + 1, 0);
        assert!(plan(&notes).unwrap_err().contains("bytes of notes"));

        let sound = file(0x100_0000, &[(PT_LOAD, 0x1000, 0x100_0000, 0x10, 0x20)], &[0; 0x10]);
        let changed = |at: usize, to: u8| {
            let mut file = sound.clone();
            file[at] = to;
            plan(&file).unwrap_err()
        };
        assert!(changed(4, 1).contains("class 1"));
        assert!(changed(18, 40).contains("machine 40"));
        assert!(changed(56, 0).contains("0 program headers"));
        assert!(changed(57, 0xff).contains("program headers"));
        assert!(changed(39, 0xff).contains("program headers"));
    }

    proptest! {
        #[test]
        fn hostile_headers_neither_panic_nor_overflow(
            at in 4usize..0x100, bytes in prop::collection::vec(any::<u8>(), 1..24),
        ) {
            let mut file = file(0x100_0000, &[(PT_LOAD, 0x1000, 0x100_0000, 0x10, 0x20); 2], &[0; 0x10]);
            for (to, from) in file.iter_mut().skip(at).zip(bytes) {
                *to = from;
            }
            if let Ok(image) = plan(&file) {
                prop_assert!(image.memory.start >= HIGH_MEMORY && image.memory.contains(&image.entry));
                prop_assert!(image.zero.iter().all(|z| z.start < z.end && z.end <= image.memory.end));
            }
        }
    }
}
