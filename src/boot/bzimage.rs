//! The header of a bzImage (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"), checked before anything
//! of the file is believed.
//!
//! The kernel is entered at its 64-bit entry point, 0x200 behind the start of the protected-mode code, which is loaded
//! where the kernel prefers to run: it would move itself there from anywhere else, and touch that much more memory.

use std::mem::size_of;
use std::ops::Range;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::layout::{HIGH_MEMORY, PAGE};

/// File offset of the setup header.
const HEADER: usize = 0x1f1;
/// File offset of the magic number, and of the jump's end from which the header's length is counted.
const MAGIC_OFFSET: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
/// File offset of the second byte of the jump over the header: the header ends this many bytes behind the magic's
/// offset.
const LENGTH_OFFSET: usize = 0x201;
/// Where the last field that is needed here ends (`init_size`).
const NEEDED_END: usize = 0x264;
/// Bytes of the file that [`BzImage::parse`] wants to see.
pub const HEAD_LEN: usize = HEADER + size_of::<setup_header>();

/// Protocol 2.12 (Linux 3.8) is the first that tells whether there is a 64-bit entry point.
const VERSION_MIN: u16 = 0x020c;
/// `loadflags`: the protected-mode code is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: there is a 64-bit entry point at 0x200.
const XLF_KERNEL_64: u16 = 1 << 0;
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;
/// `setup_sects` of 0 means 4, for kernels of the last century.
const SETUP_SECTORS_DEFAULT: u64 = 4;
/// `cmdline_size` of 0 means 255.
const CMDLINE_DEFAULT: u64 = 255;

/// A bzImage whose header is sound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BzImage {
    /// The header, zero beyond the length that it states.
    pub header: setup_header,
    payload_len: u64,
}

impl BzImage {
    /// Reads the header from `head`, the first [`HEAD_LEN`] bytes of a file (fewer if the file is shorter) of
    /// `file_len` bytes. The error is the evidence: what was found where.
    pub fn parse(head: &[u8], file_len: u64) -> Result<BzImage, String> {
        let magic = head.get(MAGIC_OFFSET..MAGIC_OFFSET + MAGIC.len());
        if magic != Some(MAGIC) {
            return Err(match magic {
                Some(found) => format!(
                    "the magic at {MAGIC_OFFSET:#x} is \"{}\", a bzImage has \"HdrS\" there",
                    found.escape_ascii()
                ),
                None => format!("the file has {file_len} bytes, too few for a bzImage"),
            });
        }
        let stated = head.get(LENGTH_OFFSET).map_or(0, |&length| MAGIC_OFFSET + usize::from(length));
        if stated < NEEDED_END || head.len() < NEEDED_END {
            return Err(format!("the setup header ends at {stated:#x}, before {NEEDED_END:#x}"));
        }
        let mut header = setup_header::default();
        let fields = head.get(HEADER..stated.min(HEAD_LEN).min(head.len())).unwrap_or_default();
        for (to, from) in header.as_mut_slice().iter_mut().zip(fields) {
            *to = *from;
        }
        let (version, xloadflags) = (header.version, header.xloadflags);
        if version < VERSION_MIN {
            let (major, minor) = (version >> 8, version & 0xff);
            return Err(format!("boot protocol {major}.{minor:02} at 0x206, 2.12 or newer is needed"));
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err("bit 0 of loadflags at 0x211 is clear: a zImage, not a bzImage".into());
        }
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(format!("xloadflags at 0x236 is {xloadflags:#x}: the kernel has no 64-bit entry point"));
        }
        let sectors = match header.setup_sects {
            0 => SETUP_SECTORS_DEFAULT,
            sectors => u64::from(sectors),
        };
        let setup_len = (sectors + 1) * SECTOR;
        let payload_len = file_len.checked_sub(setup_len).filter(|&len| len > ENTRY_64).ok_or_else(|| {
            format!("the file has {file_len} bytes, of which {setup_len} are setup code: the kernel is cut off")
        })?;
        let address = header.pref_address;
        if address < HIGH_MEMORY || address % PAGE != 0 || address > u64::from(u32::MAX) {
            return Err(format!("pref_address at 0x258 is {address:#x}"));
        }
        Ok(BzImage { header, payload_len })
    }

    /// Where the protected-mode code is loaded.
    pub fn load_address(&self) -> u64 {
        self.header.pref_address
    }

    /// The guest-physical addresses that the file's contents take.
    pub fn loaded(&self) -> Range<u64> {
        let start = self.load_address();
        start..start.saturating_add(self.payload_len)
    }

    /// The memory that the kernel needs until it has a memory map of its own: contents and room to unpack itself.
    pub fn needed(&self) -> Range<u64> {
        let start = self.load_address();
        start..self.loaded().end.max(start.saturating_add(u64::from(self.header.init_size)))
    }

    /// The 64-bit entry point.
    pub fn entry(&self) -> u64 {
        self.load_address() + ENTRY_64
    }

    /// The longest command line, without its final NUL.
    pub fn cmdline_max(&self) -> u64 {
        match self.header.cmdline_size {
            0 => CMDLINE_DEFAULT,
            size => u64::from(size),
        }
    }

    /// The end (exclusive) of the memory that an initial RAM disk may be in.
    pub fn initrd_limit(&self) -> u64 {
        u64::from(self.header.initrd_addr_max) + 1
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file with a sound header: four setup sectors, a payload of `payload` bytes that counts up.
    pub fn image(payload: usize) -> Vec<u8> {
        let mut file = vec![0; 5 * 512];
        let mut put = |offset: usize, bytes: &[u8]| file[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[4]);
        put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(0x202, b"HdrS");
        put(0x206, &0x020fu16.to_le_bytes());
        put(0x211, &[1]);
        put(0x214, &0x10_0000u32.to_le_bytes());
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x230, &0x20_0000u32.to_le_bytes());
        put(0x234, &[1]);
        put(0x236, &0x7fu16.to_le_bytes());
        put(0x238, &2047u32.to_le_bytes());
        put(0x258, &0x100_0000u64.to_le_bytes());
        put(0x260, &0x40_0000u32.to_le_bytes());
        // Code that follows the header: must not be taken for header fields.
        put(0x26c, &[0xcc; 0x40]);
        file.extend((0..payload).map(|i| i as u8));
        file
    }

    fn parse(file: &[u8]) -> Result<BzImage, String> {
        BzImage::parse(&file[..file.len().min(HEAD_LEN)], file.len() as u64)
    }

    #[test]
    fn sound_header_is_read() {
        let image = parse(&image(0x3000)).unwrap();
        assert_eq!(image.entry(), 0x100_0200);
        assert_eq!(image.loaded(), 0x100_0000..0x100_3000);
        assert_eq!(image.needed(), 0x100_0000..0x140_0000);
        assert_eq!((image.cmdline_max(), image.initrd_limit()), (2047, 0x8000_0000));
    }

    #[test]
    fn header_is_cut_to_its_stated_length() {
        let mut file = image(0x3000);
        file[0x264..0x26c].fill(0xcc);
        file[LENGTH_OFFSET] = 0x62; // up to and with init_size
        let image = parse(&file).unwrap();
        assert_eq!((image.header.handover_offset, { image.header.kernel_info_offset }), (0, 0));
        assert_eq!({ image.header.init_size }, 0x40_0000);
        file[LENGTH_OFFSET] = 0x61;
        assert!(parse(&file).unwrap_err().contains("0x263"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |change: fn(&mut Vec<u8>)| {
            let mut file = image(0x3000);
            change(&mut file);
            parse(&file).unwrap_err()
        };
        assert!(wrong(|f| f.truncate(100)).contains("100 bytes"));
        assert!(wrong(|f| f[0x202..0x206].copy_from_slice(b"Hd\0S")).contains(r#"is "Hd\x00S""#));
        assert!(wrong(|f| f[0x206] = 0x0b).contains("2.11"));
        assert!(wrong(|f| f[0x211] = 0).contains("zImage"));
        assert!(wrong(|f| f[0x236] = 2).contains("64-bit"));
        assert!(wrong(|f| f.truncate(5 * 512 + 0x200)).contains("cut off"));
        assert!(wrong(|f| f[0x258..0x260].fill(0)).contains("pref_address"));
        assert!(wrong(|f| f[0x258..0x260].fill(0xff)).contains("pref_address"));
    }

    proptest! {
        #[test]
        fn hostile_headers_neither_panic_nor_overflow(
            at in 0x1f1usize..HEAD_LEN, bytes in prop::collection::vec(any::<u8>(), 1..16), len in 0usize..0x3000,
        ) {
            let mut file = image(0x2000);
            for (to, from) in file.iter_mut().skip(at).zip(bytes) {
                *to = from;
            }
            file.truncate(len);
            if let Ok(image) = parse(&file) {
                prop_assert!(image.needed().start >= HIGH_MEMORY && image.needed().end >= image.loaded().end);
                prop_assert!(image.loaded().contains(&image.entry()));
            }
        }
    }
}
