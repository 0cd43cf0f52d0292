//! The zero page (`struct boot_params`, Documentation/arch/x86/zero-page.rst): what the Linux boot protocol tells the
//! kernel about the machine.
//!
//! The screen fields stay zero: without lines and columns the kernel does not look for a VGA text console.

use std::ops::Range;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};

use super::e820;
use super::layout::CMDLINE;

/// `type_of_loader`: a boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `boot_flag` and `header` of a valid setup header.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// The protocol version of the header that is made up for a kernel without one: 2.15.
const VERSION: u16 = 0x020f;

/// What the zero page says beside the setup header.
#[derive(Debug)]
pub struct Machine<'a> {
    /// The memory map; what does not fit in the zero page's 128 entries is left out.
    pub memory: &'a [e820::Entry],
    /// The initial RAM disk, below 4 GiB.
    pub initrd: Option<Range<u64>>,
    /// Address of the RSDP.
    pub rsdp: u64,
}

/// The setup header for a kernel that has none (an ELF vmlinux by its 64-bit entry); `cmdline_len` is the length of the
/// command line at [`CMDLINE`], without its final NUL.
pub fn made_up_header(cmdline_len: u32) -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: VERSION,
        cmdline_size: cmdline_len,
        ..Default::default()
    }
}

/// The zero page for a kernel with this setup header.
pub fn build(header: setup_header, machine: &Machine) -> boot_params {
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: machine.rsdp, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    params.hdr.setup_data = 0;
    if let Some(initrd) = &machine.initrd {
        params.hdr.ramdisk_image = initrd.start as u32;
        params.hdr.ramdisk_size = (initrd.end - initrd.start) as u32;
    }
    let mut table = params.e820_table;
    let mut count = 0;
    for (slot, entry) in table.iter_mut().zip(machine.memory) {
        *slot = boot_e820_entry {
            addr: entry.range.start,
            size: entry.range.end - entry.range.start,
            r#type: entry.kind as u32,
        };
        count += 1;
    }
    params.e820_table = table;
    params.e820_entries = count;
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::ByteValued;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn fields_are_where_the_protocol_has_them() {
        let memory = [
            e820::Entry { range: 0..0x9_fc00, kind: e820::Kind::Ram },
            e820::Entry { range: 0xe000_0000..0xe010_0000, kind: e820::Kind::Reserved },
        ];
        let machine = Machine { memory: &memory, initrd: Some(0x700_0000..0x700_1801), rsdp: 0xe_0000 };
        let params = build(made_up_header(4), &machine);
        let bytes = params.as_slice();
        assert_eq!(bytes.len(), 4096);
        assert_eq!(u32_at(bytes, 0x70), 0xe_0000);
        assert_eq!(bytes[0x1e8], 2);
        assert_eq!(&bytes[0x1fe..0x200], [0x55, 0xaa]);
        assert_eq!(&bytes[0x202..0x206], b"HdrS");
        assert_eq!(bytes[0x210], 0xff);
        assert_eq!(u32_at(bytes, 0x218), 0x700_0000);
        assert_eq!(u32_at(bytes, 0x21c), 0x1801);
        assert_eq!(u32_at(bytes, 0x228), 0x2_0000);
        assert_eq!((u32_at(bytes, 0x2d8), u32_at(bytes, 0x2e0)), (0x9_fc00, 1));
        assert_eq!((u32_at(bytes, 0x2e4), u32_at(bytes, 0x2ec), u32_at(bytes, 0x2f4)), (0xe000_0000, 0x10_0000, 2));
        assert!(bytes[..0x70].iter().all(|&byte| byte == 0), "no screen");
    }

    #[test]
    fn long_memory_map_is_cut() {
        let memory = vec![e820::Entry { range: 0..1, kind: e820::Kind::Ram }; 300];
        let params = build(made_up_header(0), &Machine { memory: &memory, initrd: None, rsdp: 0 });
        assert_eq!(params.e820_entries, 128);
    }
}
