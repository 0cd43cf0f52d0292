//! `passthru rom`: what is in an expansion ROM.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::output;
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};
use crate::host::Host;
use crate::pci::rom::{self, Image, Rom};
use crate::pci_names;

/// Look into expansion ROMs
#[derive(Debug, Args)]
pub(super) struct RomArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the images of a ROM, and what is wrong with them
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// A file, or the address of a device of the host such as 01:00.0
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &RomArgs, host: &Host) -> Result<()> {
    let Command::Inspect(args) = &args.command;
    let path = place(&args.file, host);
    let bytes = read(&path)?;
    let rom = rom::parse(&bytes);
    if args.json {
        output::print_json(&Report::of(&rom, bytes.len()))?;
    }
    if rom.images.is_empty() {
        return Err(no_rom(&path, &rom));
    }
    if args.json { Ok(()) } else { output::print(&page(&rom, bytes.len())) }
}

/// The file that the word names: a device's address stands for the `rom` of its folder in sysfs.
fn place(word: &Path, host: &Host) -> PathBuf {
    let bdf = word.to_str().and_then(|text| text.parse::<Bdf>().ok()).filter(|_| !word.exists());
    bdf.map_or_else(|| word.to_owned(), |bdf| host.device_path(bdf).join("rom"))
}

/// The error for a file without any image.
fn no_rom(path: &Path, rom: &Rom) -> Error {
    let error = Error::new(Code::RomUnusable, format!("{} is no expansion ROM", path.display()));
    rom.defects.iter().fold(error, |error, defect| error.evidence(defect.to_string()))
}

/// All of a file, up to the size that a ROM can have. The one in sysfs reads only after it was switched on.
fn read(path: &Path) -> Result<Vec<u8>> {
    let refuse = |error: io::Error| {
        Error::new(Code::RomUnusable, format!("{} cannot be read", path.display())).evidence(explain_io(&error))
    };
    let switched = is_sysfs_rom(path);
    let mut file = OpenOptions::new().read(true).write(switched).open(path).map_err(refuse)?;
    if switched {
        file.write_all(b"1").and_then(|()| file.seek(SeekFrom::Start(0)).map(drop)).map_err(refuse)?;
    }
    let mut bytes = Vec::new();
    let done = Read::by_ref(&mut file).take(rom::MAX_SIZE as u64 + 1).read_to_end(&mut bytes);
    if switched {
        switch_off(&mut file);
    }
    done.map_err(|error| match (switched, error.raw_os_error()) {
        (true, Some(libc::EIO | libc::EINVAL)) => {
            refuse(error).fix("load a driver that switches the device's memory on, or dump the ROM on another host")
        }
        _ => refuse(error),
    })?;
    Ok(bytes)
}

fn switch_off(file: &mut File) {
    if let Err(error) = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(b"0")) {
        crate::log::warn(format_args!("the ROM could not be switched off again: {}", explain_io(&error)));
    }
}

/// Whether it is the `rom` of a PCI device's folder.
fn is_sysfs_rom(path: &Path) -> bool {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    real.file_name().is_some_and(|name| name == "rom") && real.with_file_name("config").exists()
}

/// A ROM as `--json` shows it.
#[derive(Serialize)]
struct Report {
    bytes: usize,
    rom_offset: usize,
    nvidia_header: bool,
    rom_bytes: usize,
    images: Vec<Row>,
    defects: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    offset: usize,
    bytes: usize,
    code: String,
    vendor: String,
    device: String,
    more_devices: Vec<String>,
    class: String,
    checksum: Option<bool>,
    last: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    efi: Option<EfiRow>,
}

#[derive(Serialize)]
struct EfiRow {
    machine: String,
    subsystem: u16,
    compressed: bool,
}

impl Report {
    fn of(rom: &Rom, bytes: usize) -> Report {
        Report {
            bytes,
            rom_offset: rom.prefix,
            nvidia_header: rom.nvidia_prefix,
            rom_bytes: rom.len,
            images: rom.images.iter().map(Row::of).collect(),
            defects: rom.defects.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Row {
    fn of(image: &Image) -> Row {
        let [interface, sub, base] = image.class;
        Row {
            offset: image.offset,
            bytes: image.len,
            code: image.code.to_string(),
            vendor: format!("{:04x}", image.vendor),
            device: format!("{:04x}", image.device),
            more_devices: image.devices.iter().map(|device| format!("{device:04x}")).collect(),
            class: format!("{base:02x}{sub:02x}{interface:02x}"),
            checksum: image.checksum,
            last: image.last,
            efi: image.efi.map(|efi| EfiRow {
                machine: efi.machine_name().map_or_else(|| format!("{:04x}", efi.machine), str::to_owned),
                subsystem: efi.subsystem,
                compressed: efi.compressed,
            }),
        }
    }
}

/// A ROM in words.
fn page(rom: &Rom, bytes: usize) -> String {
    let mut out = format!("{bytes} bytes, of which the ROM's images are {}\n", rom.len);
    if rom.prefix > 0 {
        let whose = if rom.nvidia_prefix { "the header of NVIDIA's flash tools" } else { "no part of the ROM" };
        out += &format!("the first {} bytes are {whose}; rom=file: leaves them out\n", rom.prefix);
    }
    for image in &rom.images {
        out += &line(image);
    }
    for defect in &rom.defects {
        out += &format!("defect: {defect}\n");
    }
    out
}

fn line(image: &Image) -> String {
    let Image { offset, len, vendor, device, class: [_, sub, base], .. } = *image;
    let name = [pci_names::vendor(vendor), pci_names::device(vendor, device)];
    let name = name.into_iter().flatten().collect::<Vec<_>>().join(" ");
    let class = pci_names::class(base, sub).unwrap_or("unknown class");
    let mut facts = vec![format!("[{vendor:04x}:{device:04x}] {name}").trim_end().to_owned(), class.to_owned()];
    if !image.devices.is_empty() {
        facts.push(format!("and {} more devices", image.devices.len()));
    }
    if let Some(efi) = image.efi {
        let machine = efi.machine_name().map_or_else(|| format!("machine {:04x}", efi.machine), str::to_owned);
        facts.push(format!("for {machine}{}", if efi.compressed { ", compressed" } else { "" }));
    }
    facts.extend(image.checksum.map(|good| format!("checksum {}", if good { "right" } else { "wrong" })));
    facts.extend(image.last.then(|| "last image".to_owned()));
    format!("{offset:#x}+{len:#x}  {}: {}\n", image.code, facts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::rom::tests::image;

    #[test]
    fn a_rom_is_told_in_lines() {
        let mut file = b"NVGI".to_vec();
        file.resize(0x400, 0);
        file.extend([image(0, 2, false), image(3, 1, true)].concat());
        let text = page(&rom::parse(&file), file.len());
        let expected = "2560 bytes, of which the ROM's images are 1536\n\
            the first 1024 bytes are the header of NVIDIA's flash tools; rom=file: leaves them out\n\
            0x0+0x400  BIOS: [8086:10d3] Intel Corporation 82574L Gigabit Network Connection, Ethernet controller, checksum right\n\
            0x400+0x200  EFI: [8086:10d3] Intel Corporation 82574L Gigabit Network Connection, Ethernet controller, for x86-64, \
            compressed, last image\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_file_without_an_image_has_a_code() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rom");
        std::fs::write(&path, [0xff; 512]).unwrap();
        assert!(!is_sysfs_rom(&path));
        let rom = rom::parse(&read(&path).unwrap());
        let error = no_rom(&path, &rom);
        assert_eq!(error.code(), Code::RomUnusable);
        assert!(error.evidence_lines()[0].contains("ffh"));
        assert_eq!(read(&dir.path().join("absent")).unwrap_err().code(), Code::RomUnusable);
    }

    #[test]
    fn a_roms_file_in_sysfs_is_switched_on_and_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rom");
        std::fs::write(&path, image(0, 1, true)).unwrap();
        std::fs::write(dir.path().join("config"), []).unwrap();
        assert!(is_sysfs_rom(&path));
        // A plain file takes the switch for its first byte.
        assert_eq!(read(&path).unwrap()[0], b'1');
        assert_eq!(std::fs::read(&path).unwrap()[0], b'0');
    }
}
