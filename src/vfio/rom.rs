//! The expansion ROM that the guest sees: the device's own or a file's, as memory that is read without an exit (PCI 6.3).
//!
//! The device's is read once, when the guest first switches it on: a ROM is slow, some devices can decode their ROM or
//! their registers but not both, and most guests never look. VFIO reads it only while memory decoding is on, which it is
//! then. What is wrong with it is a warning: a ROM is never a reason not to start.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::seams::{HostPci, RegionIndex};
use crate::error::{Code, Error, Result, explain_io};
use crate::guest_error;
use crate::memory::host::{PAGE, PageSize};
use crate::memory::{Backing, HostMem, Piece};
use crate::object::{Invalid, PropValue};
use crate::pci::rom::{self, Rom as Images};

/// Bytes that are read in one request; a ROM is slow, and a request cannot be interrupted.
const CHUNK: usize = 64 << 10;

/// Where the guest's ROM comes from (`rom=`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RomSource {
    /// The device, if it has one.
    #[default]
    Auto,
    /// The guest sees none.
    Off,
    /// A file.
    File(PathBuf),
}

impl PropValue for RomSource {
    const KIND: &'static str = "auto|off|file:PATH";

    fn parse(text: &str) -> Result<Self, Invalid> {
        match (text, text.strip_prefix("file:")) {
            ("auto", _) => Ok(RomSource::Auto),
            ("off", _) => Ok(RomSource::Off),
            (_, Some(path)) => PathBuf::parse(path).map(RomSource::File),
            _ => Err(Invalid::expected("auto, off or file: with the name of a file")),
        }
    }
}

/// The ROM's BAR: memory of its size, and where its bytes come from.
pub struct Rom {
    mem: Arc<HostMem>,
    /// Size of the BAR in bytes.
    size: u64,
    /// Whether the bytes are there. Held while they are read, so that nobody sees half of them.
    filled: Mutex<bool>,
}

impl Rom {
    /// The device's own, of which nothing has been read yet. `None` if it has none or one of a size that no register
    /// shows.
    ///
    /// # Errors
    /// [`Code::SystemFailed`] if there is no memory for it.
    pub fn of_device(host: &dyn HostPci) -> Result<Option<Rom>> {
        let region = host.region(RegionIndex::Rom);
        if region.size == 0 || !region.readable || region.size > rom::MAX_SIZE as u64 {
            return Ok(None);
        }
        Rom::empty(region.size).map(Some)
    }

    /// A file's, for the device with these ids.
    ///
    /// # Errors
    /// [`Code::RomUnusable`] as [`file`], [`Code::SystemFailed`] if there is no memory for it.
    pub fn of_file(path: &Path, name: &str, vendor: u16, device: u16) -> Result<Rom> {
        let (bytes, images) = file(path)?;
        let path = path.display();
        if images.is_for(vendor, device) == Some(false) {
            crate::log::warn(format_args!(
                "{path} is the ROM of another device than {name} [{vendor:04x}:{device:04x}]: firmware will not run it"
            ));
        }
        if images.prefix > 0 {
            let whose = if images.nvidia_prefix { "a header of NVIDIA's flash tools" } else { "no part of the ROM" };
            crate::log::warn(format_args!("{path}: its first {} bytes are {whose} and are left out", images.prefix));
        }
        for defect in &images.defects {
            crate::log::warn(format_args!("{path}: {defect}"));
        }
        let rom = Rom::empty(bytes.len() as u64)?;
        rom.fill(&bytes);
        *rom.filled.lock() = true;
        Ok(rom)
    }

    fn empty(bytes: u64) -> Result<Rom> {
        // At least a page: the guest reads whole pages of it without an exit.
        let size = bytes.next_power_of_two().max(PAGE);
        let mem = HostMem::anonymous(size, PageSize::Small)
            .map_err(|error| Error::system("get memory for an expansion ROM", &error))?;
        Ok(Rom { mem: Arc::new(mem), size, filled: Mutex::new(false) })
    }

    /// Size of the BAR in bytes, a power of two.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What the BAR consists of.
    pub fn piece(&self) -> Piece {
        Piece { range: 0..self.size, backing: Backing::Rom(self.mem.slice()) }
    }

    /// Sees to the bytes before the guest does. Called when the ROM is switched on and the hardware decodes memory, before
    /// it is mapped. What cannot be read reads as ones, and is tried again when it is switched on next.
    pub fn load(&self, host: &dyn HostPci) {
        let mut filled = self.filled.lock();
        if *filled {
            return;
        }
        match read(host) {
            Ok(bytes) => {
                let images = rom::parse(&bytes);
                for defect in &images.defects {
                    guest_error!(host.name(), "its expansion ROM: {defect}");
                }
                self.fill(&bytes);
                *filled = true;
            }
            Err(error) => {
                guest_error!(host.name(), "its expansion ROM cannot be read: {}", explain_io(&error));
                self.fill(&[]);
            }
        }
    }

    fn fill(&self, bytes: &[u8]) {
        let slice = self.mem.slice();
        slice.write(0, bytes);
        let ones = [0xff; PAGE as usize];
        let mut at = bytes.len() as u64;
        while at < self.size {
            let len = (PAGE - at % PAGE).min(self.size - at);
            slice.write(at, &ones[..len as usize]);
            at += len;
        }
    }
}

/// The ROM as the device gives it.
fn read(host: &dyn HostPci) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0xff; host.region(RegionIndex::Rom).size.min(rom::MAX_SIZE as u64) as usize];
    for (chunk, at) in bytes.chunks_mut(CHUNK).zip((0..).step_by(CHUNK)) {
        host.read(RegionIndex::Rom, at, chunk)?;
    }
    Ok(bytes)
}

/// The bytes of a ROM file from the first image on, and what is in it.
///
/// # Errors
/// [`Code::RomUnusable`] if it cannot be read, is too large, or holds no image.
pub fn file(path: &Path) -> Result<(Vec<u8>, Images)> {
    let refuse = |cause: &str| Error::new(Code::RomUnusable, format!("{} {cause}", path.display()));
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(rom::MAX_SIZE as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| refuse("cannot be read").evidence(explain_io(&error)))?;
    let images = rom::parse(&bytes);
    if images.images.is_empty() {
        let error = refuse("is no expansion ROM").fix("`passthru rom inspect` shows what is in a file");
        return Err(images.defects.iter().fold(error, |error, defect| error.evidence(defect.to_string())));
    }
    Ok((images.trimmed(&bytes).to_vec(), images))
}

#[cfg(test)]
mod tests {
    use super::super::seams::RegionInfo;
    use super::super::testing::{Failure, FakePci};
    use super::*;
    use crate::pci::rom::tests::image;

    fn with_rom(bytes: &[u8], size: u64) -> FakePci {
        let mut host = FakePci::new(vec![0; 256], &[]);
        let region = RegionInfo { size, readable: true, ..RegionInfo::default() };
        host.regions.insert(RegionIndex::Rom, region);
        let mut memory = host.memory.lock();
        for at in 0..size {
            memory.insert((RegionIndex::Rom, at), bytes.get(at as usize).copied().unwrap_or(0xff));
        }
        drop(memory);
        host
    }

    fn shown(rom: &Rom, at: u64) -> u8 {
        let mut byte = [0];
        rom.mem.slice().read(at, &mut byte);
        byte[0]
    }

    #[test]
    fn sources() {
        assert_eq!(RomSource::parse("auto"), Ok(RomSource::Auto));
        assert_eq!(RomSource::parse("off"), Ok(RomSource::Off));
        assert_eq!(RomSource::parse("file:/x y"), Ok(RomSource::File("/x y".into())));
        for text in ["", "on", "file:", "/x"] {
            assert!(RomSource::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_devices_rom_is_read_once_and_kept() {
        let host = with_rom(&image(3, 1, true), 0x2000);
        let rom = Rom::of_device(&host).unwrap().unwrap();
        assert_eq!(rom.size(), 0x2000);
        rom.load(&host);
        assert_eq!([shown(&rom, 0), shown(&rom, 1), shown(&rom, 0x1fff)], [0x55, 0xaa, 0xff]);
        *host.failure.lock() = Failure::Broken;
        rom.load(&host);
        assert_eq!(shown(&rom, 0), 0x55);
    }

    #[test]
    fn one_that_cannot_be_read_reads_as_ones_until_it_can() {
        let host = with_rom(&image(3, 1, true), 0x800);
        let rom = Rom::of_device(&host).unwrap().unwrap();
        *host.failure.lock() = Failure::Broken;
        rom.load(&host);
        assert_eq!((rom.size(), shown(&rom, 0), shown(&rom, 0xfff)), (0x1000, 0xff, 0xff));
        *host.failure.lock() = Failure::None;
        rom.load(&host);
        assert_eq!(shown(&rom, 0), 0x55);
    }

    #[test]
    fn no_size_and_impossible_sizes_are_no_rom() {
        for size in [0, (16 << 20) + 1, u64::MAX] {
            let mut host = FakePci::new(vec![0; 256], &[]);
            host.regions.insert(RegionIndex::Rom, RegionInfo { size, readable: true, ..RegionInfo::default() });
            assert!(Rom::of_device(&host).unwrap().is_none(), "{size:#x}");
        }
        let mut host = with_rom(&[], 0x800);
        host.regions.get_mut(&RegionIndex::Rom).unwrap().readable = false;
        assert!(Rom::of_device(&host).unwrap().is_none());
    }

    #[test]
    fn a_file_is_trimmed_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("card.rom");
        let mut bytes = b"NVGI".to_vec();
        bytes.resize(0x200, 0);
        bytes.extend(image(0, 9, true));
        std::fs::write(&path, &bytes).unwrap();
        let rom = Rom::of_file(&path, "0000:01:00.0", 0x8086, 0x10d3).unwrap();
        assert_eq!((rom.size(), shown(&rom, 0), shown(&rom, 0x1fff)), (0x2000, 0x55, 0xff));
        // Another device's ROM is only warned about.
        Rom::of_file(&path, "0000:01:00.0", 0x10de, 1).unwrap();
        std::fs::write(&path, b"text").unwrap();
        assert_eq!(file(&path).unwrap_err().code(), Code::RomUnusable);
        assert_eq!(file(&dir.path().join("absent")).unwrap_err().code(), Code::RomUnusable);
    }
}
