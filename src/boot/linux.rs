//! A Linux kernel with its initial RAM disk and command line, ready to be loaded at every start of the guest.
//!
//! The files stay open and are read straight into guest memory each time: nothing of them is kept in the process, and
//! a guest that reboots gets an unspoilt kernel. What the files say is checked again at each load, since they can
//! change in between.

use std::ops::Range;
use std::path::Path;

use linux_loader::loader::{self, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::bzimage::{self, BzImage};
use super::cpu_state::{CpuState, Entry, Protocol};
use super::layout::{CMDLINE, CMDLINE_LEN, HIGH_MEMORY, LOW_RAM_MAX, Layout, PVH_START_INFO, ZERO_PAGE};
use super::source::Source;
use super::{e820, elf, initrd, paging, pvh, zero_page};
use crate::error::{Code, Error, Result};

/// The longest command line of an x86 kernel that does not say it (COMMAND_LINE_SIZE less the final NUL).
const ELF_CMDLINE_MAX: u64 = 2047;
/// Zeros are written in pieces of this many bytes.
static ZEROS: [u8; 4096] = [0; 4096];
/// How much of an unknown file is shown.
const SHOWN: usize = 8;

fn unwritable(what: &str, error: &GuestMemoryError) -> Error {
    Error::new(Code::SystemFailed, format!("{what} could not be written to the guest's memory"))
        .evidence(error.to_string())
}

/// A kernel file whose headers are sound.
#[derive(Debug)]
enum Kernel {
    BzImage(Box<BzImage>),
    Elf(elf::Image),
}

impl Kernel {
    fn read(source: &Source) -> Result<Kernel> {
        let file_len = source.len()?;
        let head = source.head(bzimage::HEAD_LEN)?;
        if !head.starts_with(elf::MAGIC) {
            return match BzImage::parse(&head, file_len) {
                Ok(image) => Ok(Kernel::BzImage(Box::new(image))),
                Err(evidence) => Err(source.not_a_kernel(evidence).evidence(format!(
                    "the file starts with \"{}\", an ELF vmlinux with \"\\x7fELF\"",
                    head.get(..SHOWN).unwrap_or(&head).escape_ascii()
                ))),
            };
        }
        let header = elf::Header::parse(&head, file_len).map_err(|evidence| source.not_a_kernel(evidence))?;
        let table = header.table();
        let mut bytes = vec![0; (table.end - table.start) as usize];
        source.read_at(&mut bytes, table.start)?;
        let image = elf::Image::plan(&header, &bytes, file_len).map_err(|evidence| source.not_a_kernel(evidence))?;
        Ok(Kernel::Elf(image))
    }

    /// The memory that the kernel needs to start.
    fn needed(&self) -> Range<u64> {
        match self {
            Kernel::BzImage(image) => image.needed(),
            Kernel::Elf(image) => image.memory.clone(),
        }
    }

    fn cmdline_max(&self) -> u64 {
        match self {
            Kernel::BzImage(image) => image.cmdline_max().min(CMDLINE_LEN - 1),
            Kernel::Elf(_) => ELF_CMDLINE_MAX,
        }
    }

    /// End (exclusive) of the memory that the initial RAM disk may be in.
    fn initrd_limit(&self) -> u64 {
        match self {
            Kernel::BzImage(image) => image.initrd_limit(),
            Kernel::Elf(_) => LOW_RAM_MAX,
        }
    }
}

/// A kernel, an optional initial RAM disk and a command line.
#[derive(Debug)]
pub struct LinuxImage {
    kernel: Source,
    initrd: Option<Source>,
    cmdline: String,
}

impl LinuxImage {
    /// Opens the files and checks what can be checked without a guest: the kernel's headers and the command line's
    /// length.
    pub fn open(kernel: &Path, initrd: Option<&Path>, cmdline: &str) -> Result<LinuxImage> {
        let image = LinuxImage {
            kernel: Source::open(kernel)?,
            initrd: initrd.map(Source::open).transpose()?,
            cmdline: cmdline.into(),
        };
        image.read_kernel()?;
        Ok(image)
    }

    /// Reads the kernel's headers, and checks the command line against them.
    fn read_kernel(&self) -> Result<Kernel> {
        let kernel = Kernel::read(&self.kernel)?;
        let (len, max) = (self.cmdline.len() as u64, kernel.cmdline_max());
        if len > max || self.cmdline.contains('\0') {
            return Err(Error::new(Code::Usage, "the kernel cannot take this command line")
                .evidence(format!("it has {len} bytes, this kernel takes {max}, none of them 0"))
                .fix("shorten the text of --append"));
        }
        Ok(kernel)
    }

    /// Loads everything into the guest's memory, which is laid out as `layout` says; `rsdp` is the address of the
    /// ACPI tables' root. To be called at every start, with all vCPUs stopped; memory that nothing is loaded to stays
    /// as it is.
    pub fn load(&self, mem: &GuestMemoryMmap, layout: &Layout, rsdp: u64) -> Result<Entry> {
        let kernel = self.read_kernel()?;
        let room = HIGH_MEMORY..layout.low_ram.end;
        let needed = kernel.needed();
        if needed.start < room.start || needed.end > room.end {
            return Err(self.kernel.too_large("the kernel", &needed, &room));
        }
        let initrd_room = needed.end..room.end.min(kernel.initrd_limit());
        let initrd = self.initrd.as_ref().map(|source| initrd::load(source, &initrd_room, mem)).transpose()?;

        let memory = e820::map(layout);
        mem.write_slice(self.cmdline.as_bytes(), GuestAddress(CMDLINE))
            .and_then(|()| mem.write_obj(0u8, GuestAddress(CMDLINE + self.cmdline.len() as u64)))
            .map_err(|e| unwritable("the command line", &e))?;
        let machine = zero_page::Machine { memory: &memory, initrd, rsdp };
        let entry = match &kernel {
            Kernel::BzImage(image) => self.load_bzimage(image, &machine, mem)?,
            Kernel::Elf(image) => self.load_elf(image, &machine, mem)?,
        };
        CpuState::at(entry).write_gdt(mem).map_err(|e| unwritable("the GDT", &e))?;
        if entry.protocol == Protocol::Linux64 {
            paging::write(mem).map_err(|e| unwritable("the page tables", &e))?;
        }
        Ok(entry)
    }

    fn load_bzimage(&self, image: &BzImage, machine: &zero_page::Machine, mem: &GuestMemoryMmap) -> Result<Entry> {
        let address = GuestAddress(image.load_address());
        let loaded = loader::BzImage::load(mem, Some(address), &mut self.kernel.file(), None)
            .map_err(|e| self.kernel.not_a_kernel(e.to_string()))?;
        self.unchanged(loaded.kernel_end, image.loaded().end)?;
        mem.write_obj(zero_page::build(image.header, machine), GuestAddress(ZERO_PAGE))
            .map_err(|e| unwritable("the zero page", &e))?;
        Ok(Entry { protocol: Protocol::Linux64, address: image.entry() })
    }

    fn load_elf(&self, image: &elf::Image, machine: &zero_page::Machine, mem: &GuestMemoryMmap) -> Result<Entry> {
        let loaded = loader::Elf::load(mem, None, &mut self.kernel.file(), None)
            .map_err(|e| self.kernel.not_a_kernel(e.to_string()))?;
        self.unchanged(loaded.kernel_end.max(image.memory.end), image.memory.end)?;
        // linux-loader leaves the zero-filled rest of a segment as it was, and after a reboot it is not zero.
        for range in &image.zero {
            write_zeros(mem, range.clone()).map_err(|e| unwritable("the kernel", &e))?;
        }
        match loaded.pvh_boot_cap {
            loader::PvhBootCapability::PvhEntryPresent(address) => {
                if !image.memory.contains(&address.0) {
                    let evidence = format!("the PVH note's entry point {:#x} lies outside the kernel", address.0);
                    return Err(self.kernel.not_a_kernel(evidence));
                }
                let page = pvh::build(machine.memory, machine.initrd.as_ref(), machine.rsdp);
                mem.write_slice(&page, GuestAddress(PVH_START_INFO)).map_err(|e| unwritable("PVH's start info", &e))?;
                Ok(Entry { protocol: Protocol::Pvh32, address: address.0 })
            }
            _ => {
                let header = zero_page::made_up_header(self.cmdline.len() as u32);
                mem.write_obj(zero_page::build(header, machine), GuestAddress(ZERO_PAGE))
                    .map_err(|e| unwritable("the zero page", &e))?;
                Ok(Entry { protocol: Protocol::Linux64, address: image.entry })
            }
        }
    }

    /// The loader has read the headers a second time: what it loaded must end where it was planned to.
    fn unchanged(&self, loaded_end: u64, planned_end: u64) -> Result<()> {
        if loaded_end == planned_end {
            return Ok(());
        }
        Err(Error::new(Code::FileUnusable, format!("{} changed while it was read", self.kernel.path().display())))
    }
}

/// Clears a range of guest memory.
fn write_zeros(mem: &GuestMemoryMmap, mut range: Range<u64>) -> Result<(), GuestMemoryError> {
    while !range.is_empty() {
        let len = (range.end - range.start).min(ZEROS.len() as u64);
        mem.write_slice(ZEROS.get(..len as usize).unwrap_or(&ZEROS), GuestAddress(range.start))?;
        range.start += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use tempfile::NamedTempFile;

    const MIB: u64 = 1 << 20;

    fn file(bytes: &[u8]) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn guest(mib: u64) -> (GuestMemoryMmap, Layout) {
        let layout = Layout::new(mib * MIB, 40, 0).unwrap();
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), (mib * MIB) as usize)]).unwrap();
        (mem, layout)
    }

    fn bytes(mem: &GuestMemoryMmap, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn bzimage() -> NamedTempFile {
        file(&bzimage::tests::image(0x3000))
    }

    /// A vmlinux at 16 MiB with a zero-filled tail; `note_type` 18 is PVH's.
    fn vmlinux(note_type: u32) -> NamedTempFile {
        let mut data = vec![0x90; 0x20];
        for word in [4, 4, note_type, u32::from_le_bytes(*b"Xen\0"), 0x100_0008] {
            data.extend_from_slice(&u32::to_le_bytes(word));
        }
        let programs = [(1, 0x1000, 0x100_0000, 0x20, 0x2_0000), (4, 0x1020, 0, 20, 20)];
        file(&elf::tests::file(0x100_0000, &programs, &data))
    }

    #[test]
    fn bzimage_is_loaded_and_loaded_again() {
        let (kernel, disk) = (bzimage(), file(&[7; 0x1801]));
        let image = LinuxImage::open(kernel.path(), Some(disk.path()), "console=ttyS0").unwrap();
        let (mem, layout) = guest(64);
        for _ in 0..2 {
            let entry = image.load(&mem, &layout, 0xe_0000).unwrap();
            assert_eq!(entry, Entry { protocol: Protocol::Linux64, address: 0x100_0200 });
            assert_eq!(bytes(&mem, 0x100_0000, 4), [0, 1, 2, 3]);
            assert_eq!(bytes(&mem, 0x100_2fff, 1), [0xff]);
            assert_eq!(bytes(&mem, CMDLINE, 14), b"console=ttyS0\0");
            assert_eq!(bytes(&mem, ZERO_PAGE + 0x218, 4), 0x3ff_e000u32.to_le_bytes());
            assert_eq!(bytes(&mem, ZERO_PAGE + 0x21c, 4), 0x1801u32.to_le_bytes());
            assert_eq!(bytes(&mem, ZERO_PAGE + 0x26c, 4), [0; 4], "nothing beyond the header");
            assert_eq!(bytes(&mem, 0x3ff_e000, 0x1801), [7; 0x1801]);
            assert_eq!(bytes(&mem, 0x1010, 8), 0x00af_9b00_0000_ffffu64.to_le_bytes());
            // What a guest might do to all of it.
            for at in [0x100_0000, ZERO_PAGE, CMDLINE, 0x3ff_e000, 0x1000] {
                mem.write_slice(&[0x55; 4096], GuestAddress(at)).unwrap();
            }
        }
    }

    #[test]
    fn vmlinux_is_entered_by_its_pvh_note() {
        let (kernel, disk) = (vmlinux(18), file(&[7; 100]));
        let image = LinuxImage::open(kernel.path(), Some(disk.path()), "quiet").unwrap();
        let (mem, layout) = guest(32);
        mem.write_slice(&[0x55; 0x2_0000], GuestAddress(0x100_0000)).unwrap();
        let entry = image.load(&mem, &layout, 0xe_0000).unwrap();
        assert_eq!(entry, Entry { protocol: Protocol::Pvh32, address: 0x100_0008 });
        assert_eq!(bytes(&mem, 0x100_0000, 0x20), [0x90; 0x20]);
        assert_eq!(bytes(&mem, 0x100_0020, 0x1_ffe0), vec![0; 0x1_ffe0]);
        assert_eq!(bytes(&mem, PVH_START_INFO, 4), 0x336e_c578u32.to_le_bytes());
        assert_eq!(bytes(&mem, PVH_START_INFO + 0x40, 8), 0x1ff_f000u64.to_le_bytes());
    }

    #[test]
    fn vmlinux_without_the_note_is_entered_in_long_mode() {
        let kernel = vmlinux(17);
        let image = LinuxImage::open(kernel.path(), None, "quiet").unwrap();
        let (mem, layout) = guest(32);
        let entry = image.load(&mem, &layout, 0xe_0000).unwrap();
        assert_eq!(entry, Entry { protocol: Protocol::Linux64, address: 0x100_0000 });
        assert_eq!(bytes(&mem, ZERO_PAGE + 0x202, 4), b"HdrS");
        assert_eq!(bytes(&mem, ZERO_PAGE + 0x238, 4), 5u32.to_le_bytes());
    }

    #[test]
    fn other_files_are_refused_with_evidence() {
        let text = file("#!/bin/sh\n".repeat(100).as_bytes());
        let error = LinuxImage::open(text.path(), None, "").unwrap_err();
        assert_eq!(error.code(), Code::NotAKernel);
        let evidence = error.evidence_lines().join("\n");
        assert!(evidence.contains("0x202") && evidence.contains("#!/bin/s"), "{evidence}");

        let open = |path: &Path| LinuxImage::open(path, None, "").unwrap_err();
        assert_eq!(open(Path::new("/nonexistent/kernel")).code(), Code::FileUnusable);
        assert_eq!(open(Path::new("/dev/null")).code(), Code::FileUnusable);
        assert_eq!(open(Path::new("/")).code(), Code::FileUnusable);
        assert_eq!(open(file(b"").path()).code(), Code::FileUnusable);
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(open(&pipe).cause(), format!("{} is not a regular file", pipe.display()));
        assert_eq!(open(file(b"\x7fELF").path()).code(), Code::NotAKernel);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        let (kernel, disk) = (bzimage(), file(&vec![7; 12 << 20]));
        let image = LinuxImage::open(kernel.path(), Some(disk.path()), "").unwrap();
        let load = |mib| {
            let (mem, layout) = guest(mib);
            image.load(&mem, &layout, 0xe_0000)
        };
        let error = load(18).unwrap_err();
        assert_eq!(error.code(), Code::NoMemory);
        assert!(error.evidence_lines()[0].contains("4096 KiB at 0x1000000"), "{error}");
        let error = load(31).unwrap_err();
        assert!(error.cause().contains("initial RAM disk"), "{error}");
        assert!(error.evidence_lines()[0].contains("12288 KiB at 0x1400000"), "{error}");
        assert!(load(32).is_ok());
    }

    #[test]
    fn long_and_odd_command_lines_are_refused() {
        let kernel = bzimage();
        let open = |cmdline: &str| LinuxImage::open(kernel.path(), None, cmdline);
        assert!(open(&"x".repeat(2047)).is_ok());
        assert_eq!(open(&"x".repeat(2048)).unwrap_err().code(), Code::Usage);
        assert_eq!(open("a\0b").unwrap_err().code(), Code::Usage);
    }

    #[test]
    fn file_that_changes_is_checked_again() {
        let kernel = bzimage();
        let image = LinuxImage::open(kernel.path(), None, "").unwrap();
        kernel.as_file().set_len(0x300).unwrap();
        let (mem, layout) = guest(32);
        assert_eq!(image.load(&mem, &layout, 0xe_0000).unwrap_err().code(), Code::NotAKernel);
    }
    proptest! {
        #[test]
        fn hostile_notes_neither_panic_nor_hang(notes in prop::collection::vec(any::<u8>(), 0..80), small: bool) {
            // Small numbers look like lengths that a note could have.
            let notes: Vec<u8> = notes.iter().map(|byte| if small { byte & 0x13 } else { *byte }).collect();
            let programs = [(1, 0x1000, 0x100_0000, 1, 1), (4, 0x1001, 0, notes.len() as u64, 0)];
            let kernel = file(&elf::tests::file(0x100_0000, &programs, &[&[0x90], notes.as_slice()].concat()));
            let (mem, layout) = guest(32);
            match LinuxImage::open(kernel.path(), None, "").unwrap().load(&mem, &layout, 0) {
                Ok(entry) => prop_assert_eq!(entry.address, 0x100_0000),
                Err(error) => prop_assert_eq!(error.code(), Code::NotAKernel),
            }
        }
    }
}
