//! Expansion ROMs: the chain of images in one, and what is wrong with it (PCI 6.3, PCI Firmware 3.3 section 5.1). Pure.
//!
//! A ROM is a list of images, each for another kind of firmware: a header with the signature 55AAh points to the PCI
//! data structure ("PCIR"), which says whose image it is, how long, and whether another one follows. NVIDIA's cards go
//! on after their last PCIR image with images of the same form and other signatures, and tools that read a card's whole
//! flash put an "NVGI" header of NVIDIA's before the ROM.
//!
//! Bytes come from devices and files, so [`parse`] takes anything; its work is bounded by [`MAX_SIZE`] and
//! [`MAX_IMAGES`].

use std::fmt;

/// The largest ROM that a register can show, in bytes (PCIe 7.5.1.2.4).
pub const MAX_SIZE: usize = 16 << 20;
/// Images of one ROM that are looked at; cards have up to five.
pub const MAX_IMAGES: usize = 32;
/// Devices of an image's list that are looked at.
const MAX_DEVICES: usize = 64;
/// The unit of lengths and the alignment of images, in bytes.
const BLOCK: usize = 512;
/// How far into a file its first image may begin: the headers of flash tools have up to some 40 KiB.
const MAX_PREFIX: usize = 256 << 10;

/// The first two bytes of an image; NVIDIA's further images have the second one.
const SIGNATURE: u16 = 0xaa55;
const SIGNATURE_NVIDIA: u16 = 0xbb77;
/// Registers of the header: length of a BIOS image in blocks, pointer to the data structure.
const HEADER_BLOCKS: usize = 0x02;
const HEADER_POINTER: usize = 0x18;
/// Those of an EFI image (UEFI 14.4.2): signature, subsystem, machine, compression.
const EFI_SIGNATURE: usize = 0x04;
const EFI_MAGIC: u32 = 0x0ef1;
const EFI_SUBSYSTEM: usize = 0x08;
const EFI_MACHINE: usize = 0x0a;
const EFI_COMPRESSION: usize = 0x0c;
/// Signatures of the data structure, NVIDIA's besides the standard's, and its fields.
const DATA: &[u8] = b"PCIR";
const DATA_NVIDIA: [&[u8]; 2] = [b"NPDS", b"RGIS"];
const DATA_VENDOR: usize = 0x04;
const DATA_DEVICE: usize = 0x06;
const DATA_LIST: usize = 0x08;
const DATA_REVISION: usize = 0x0c;
const DATA_CLASS: usize = 0x0d;
const DATA_BLOCKS: usize = 0x10;
const DATA_CODE: usize = 0x14;
const DATA_INDICATOR: usize = 0x15;
const DATA_LEN: usize = 0x18;
/// Indicator: the last image of the ROM.
const LAST: u8 = 1 << 7;
/// From this revision of the data structure on there is a list of devices.
const REVISION_LIST: u8 = 3;
/// What begins the files of NVIDIA's flash tools.
const NVIDIA_FILE: [&[u8]; 2] = [b"NVGI", b"RFRD"];

/// What runs an image (field "code type").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// 0: a PC's BIOS.
    Bios,
    /// 1: Open Firmware.
    OpenFirmware,
    /// 2: PA-RISC.
    PaRisc,
    /// 3: UEFI.
    Efi,
    /// Reserved, or a vendor's own.
    Other(u8),
}

impl Code {
    fn of(code: u8) -> Code {
        match code {
            0 => Code::Bios,
            1 => Code::OpenFirmware,
            2 => Code::PaRisc,
            3 => Code::Efi,
            other => Code::Other(other),
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Code::Bios => f.write_str("BIOS"),
            Code::OpenFirmware => f.write_str("Open Firmware"),
            Code::PaRisc => f.write_str("PA-RISC"),
            Code::Efi => f.write_str("EFI"),
            Code::Other(code) => write!(f, "code type {code:#x}"),
        }
    }
}

/// The header of an EFI image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Efi {
    /// Machine that it runs on, as in a PE file: 8664h is x86-64.
    pub machine: u16,
    /// Subsystem, as in a PE file: 11 is a boot service driver.
    pub subsystem: u16,
    /// Whether the driver is compressed.
    pub compressed: bool,
}

/// The machine field of x86-64.
pub const MACHINE_X86_64: u16 = 0x8664;

impl Efi {
    /// The machine's usual name, where it has one.
    pub fn machine_name(&self) -> Option<&'static str> {
        Some(match self.machine {
            0x014c => "ia32",
            0x0200 => "ia64",
            0x01c2 => "arm",
            MACHINE_X86_64 => "x86-64",
            0xaa64 => "aarch64",
            0x5064 => "riscv64",
            0x6264 => "loongarch64",
            0x0ebc => "EFI byte code",
            _ => return None,
        })
    }
}

/// One image of a ROM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it begins, in bytes from the ROM's start.
    pub offset: usize,
    /// Its length in bytes: as it says, cut at the end of the data.
    pub len: usize,
    /// Vendor and device that it is for.
    pub vendor: u16,
    /// The device.
    pub device: u16,
    /// More devices of the same vendor that it is for.
    pub devices: Vec<u16>,
    /// Class code: interface, subclass, class.
    pub class: [u8; 3],
    /// What runs it.
    pub code: Code,
    /// The further header of an EFI image.
    pub efi: Option<Efi>,
    /// Whether the sum of the bytes is zero, as it must be; `None` where nothing asks for it.
    pub checksum: Option<bool>,
    /// Whether it says that no other image follows.
    pub last: bool,
}

impl Image {
    /// Whether it is for this device.
    pub fn is_for(&self, vendor: u16, device: u16) -> bool {
        self.vendor == vendor && (self.device == device || self.devices.contains(&device))
    }
}

/// What is wrong with a ROM. The images before it can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// It has no bytes.
    Empty,
    /// It has more bytes than a register can show.
    TooLarge,
    /// Every byte is the same: nobody answered, or the flash is blank.
    Blank(u8),
    /// No image begins at this offset, where one must.
    NoSignature(usize),
    /// The image at this offset has no data structure.
    NoData(usize),
    /// The image at this offset says that it has no length.
    NoLength(usize),
    /// The image at this offset reaches beyond the end.
    CutOff(usize),
    /// The bytes of the BIOS image at this offset do not sum up to zero.
    Checksum(usize),
    /// There is no end after [`MAX_IMAGES`].
    TooMany,
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Defect::Empty => f.write_str("it is empty"),
            Defect::TooLarge => write!(f, "it has more than {} MiB", MAX_SIZE >> 20),
            Defect::Blank(byte) => write!(f, "every byte is {byte:02x}h: the device did not answer, or has no ROM"),
            Defect::NoSignature(at) => write!(f, "at {at:#x} there is no signature (55h AAh)"),
            Defect::NoData(at) => write!(f, "the image at {at:#x} has no PCI data structure (PCIR)"),
            Defect::NoLength(at) => write!(f, "the image at {at:#x} says that it has no length"),
            Defect::CutOff(at) => write!(f, "the image at {at:#x} reaches beyond the end"),
            Defect::Checksum(at) => write!(f, "the checksum of the image at {at:#x} is wrong"),
            Defect::TooMany => write!(f, "there is no end after {MAX_IMAGES} images"),
        }
    }
}

/// What a file or a device's ROM contains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rom {
    /// Bytes before the first image, which are no part of the ROM.
    pub prefix: usize,
    /// Whether these are the header of NVIDIA's flash tools.
    pub nvidia_prefix: bool,
    /// The images; offsets are from the end of the prefix.
    pub images: Vec<Image>,
    /// Bytes of all images.
    pub len: usize,
    /// What is wrong, in the order of the bytes.
    pub defects: Vec<Defect>,
}

impl Rom {
    /// Whether an image is for this device; `None` if there is no image at all.
    pub fn is_for(&self, vendor: u16, device: u16) -> Option<bool> {
        (!self.images.is_empty()).then(|| self.images.iter().any(|image| image.is_for(vendor, device)))
    }

    /// The bytes that a device shows: without what stands before the first image.
    pub fn trimmed<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(self.prefix..).unwrap_or_default()
    }
}

/// Reads the chain of images. Never fails: what is wrong is in [`Rom::defects`], and there may be no image.
pub fn parse(bytes: &[u8]) -> Rom {
    let mut rom = Rom::default();
    let blank = bytes.first().filter(|first| bytes.iter().all(|byte| byte == *first));
    let hopeless = match (bytes.len(), blank) {
        (0, _) => Some(Defect::Empty),
        (MAX_SIZE.., _) if bytes.len() > MAX_SIZE => Some(Defect::TooLarge),
        (_, Some(byte)) => Some(Defect::Blank(*byte)),
        _ => None,
    };
    if let Some(defect) = hopeless {
        rom.defects.push(defect);
        return rom;
    }
    match first_image(bytes) {
        Some(prefix) => rom.prefix = prefix,
        None => {
            let defect = if is_signature(bytes, 0) { Defect::NoData(0) } else { Defect::NoSignature(0) };
            rom.defects.push(defect);
            return rom;
        }
    }
    rom.nvidia_prefix = rom.prefix > 0 && NVIDIA_FILE.iter().any(|magic| bytes.starts_with(magic));
    chain(bytes.get(rom.prefix..).unwrap_or_default(), &mut rom);
    rom
}

/// Follows the images from the start of `bytes` on.
fn chain(bytes: &[u8], rom: &mut Rom) {
    let mut at = 0;
    loop {
        if rom.images.len() == MAX_IMAGES {
            return rom.defects.push(Defect::TooMany);
        }
        let Some(data) = data_at(bytes, at) else {
            let after_last = rom.images.last().is_some_and(|image| image.last);
            // NVIDIA's own images follow the last standard one; anything else there is filling.
            if !after_last {
                rom.defects.push(if is_signature(bytes, at) { Defect::NoData(at) } else { Defect::NoSignature(at) });
            }
            return;
        };
        let (image, defect) = image(bytes, at, data);
        rom.defects.extend(defect);
        let end = at + image.len;
        rom.len = end;
        let stop = image.len == 0 || matches!(defect, Some(Defect::CutOff(_) | Defect::NoLength(_)));
        rom.images.push(image);
        if stop {
            return;
        }
        let last = rom.images.last().is_some_and(|image| image.last);
        if end >= bytes.len() {
            if !last {
                rom.defects.push(Defect::NoSignature(end));
            }
            return;
        }
        if last && !is_nvidia(bytes, end) {
            return;
        }
        at = end;
    }
}

/// The image at `at`, whose data structure is at `data`.
fn image(bytes: &[u8], at: usize, data: usize) -> (Image, Option<Defect>) {
    let byte = |offset: usize| bytes.get(offset).copied().unwrap_or(0);
    let code = Code::of(byte(data + DATA_CODE));
    let said = usize::from(u16_at(bytes, data + DATA_BLOCKS).unwrap_or(0)) * BLOCK;
    let len = said.min(bytes.len() - at);
    let efi = (u32_at(bytes, at + EFI_SIGNATURE) == Some(EFI_MAGIC) && code == Code::Efi).then(|| Efi {
        machine: u16_at(bytes, at + EFI_MACHINE).unwrap_or(0),
        subsystem: u16_at(bytes, at + EFI_SUBSYSTEM).unwrap_or(0),
        compressed: u16_at(bytes, at + EFI_COMPRESSION).unwrap_or(0) != 0,
    });
    // Only a PC's BIOS checks it, over the length in the header; that of the data structure may be larger.
    let summed = usize::from(byte(at + HEADER_BLOCKS)) * BLOCK;
    let checksum = (code == Code::Bios && summed > 0)
        .then(|| bytes.get(at..at + summed))
        .flatten()
        .map(|bytes| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0);
    let defect = match (said, checksum) {
        (0, _) => Some(Defect::NoLength(at)),
        (said, _) if said > len => Some(Defect::CutOff(at)),
        (_, Some(false)) => Some(Defect::Checksum(at)),
        _ => None,
    };
    let image = Image {
        offset: at,
        len,
        vendor: u16_at(bytes, data + DATA_VENDOR).unwrap_or(0),
        device: u16_at(bytes, data + DATA_DEVICE).unwrap_or(0),
        devices: device_list(bytes, data),
        class: [byte(data + DATA_CLASS), byte(data + DATA_CLASS + 1), byte(data + DATA_CLASS + 2)],
        code,
        efi,
        checksum,
        last: byte(data + DATA_INDICATOR) & LAST != 0,
    };
    (image, defect)
}

/// The list that ends with a zero; its pointer counts from the data structure.
fn device_list(bytes: &[u8], data: usize) -> Vec<u16> {
    let list = u16_at(bytes, data + DATA_LIST).map_or(0, usize::from);
    if list == 0 || bytes.get(data + DATA_REVISION).is_none_or(|revision| *revision < REVISION_LIST) {
        return Vec::new();
    }
    let device = |index: usize| u16_at(bytes, data + list + 2 * index).filter(|device| *device != 0);
    (0..MAX_DEVICES).map_while(device).collect()
}

/// Where the first image with a data structure of the standard's begins.
fn first_image(bytes: &[u8]) -> Option<usize> {
    let standard = |at: &usize| data_at(bytes, *at).is_some_and(|data| bytes.get(data..data + 4) == Some(DATA));
    // Headers before it end at a multiple of 4 in all files seen; the scan is bounded.
    (0..bytes.len().min(MAX_PREFIX)).step_by(4).find(standard)
}

fn is_signature(bytes: &[u8], at: usize) -> bool {
    matches!(u16_at(bytes, at), Some(SIGNATURE | SIGNATURE_NVIDIA))
}

fn is_nvidia(bytes: &[u8], at: usize) -> bool {
    data_at(bytes, at).and_then(|data| bytes.get(data..data + 4)).is_some_and(|magic| DATA_NVIDIA.contains(&magic))
}

/// Where the data structure of the image at `at` is, if there is an image and all of the structure.
fn data_at(bytes: &[u8], at: usize) -> Option<usize> {
    if !is_signature(bytes, at) {
        return None;
    }
    let data = at.checked_add(usize::from(u16_at(bytes, at + HEADER_POINTER)?))?;
    let magic = bytes.get(data..data.checked_add(DATA_LEN)?)?.get(..4)?;
    (magic == DATA || DATA_NVIDIA.contains(&magic)).then_some(data)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|field| u16::from_le_bytes(*field))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|field| u32::from_le_bytes(*field))
}

#[cfg(test)]
pub(crate) mod tests;
