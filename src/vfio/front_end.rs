//! The device type `vfio-pci`: its properties, and how one is made of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::object::{self, Descriptor, IommufdRef};
use super::rom::{self, RomSource};
use super::{Attachment, IommuChoice, PeerToPeer, VfToken, VfioPci, VfioPciOptions, Wish};
use crate::bdf::{Bdf, DeviceAddr};
use crate::device::{Cx, OnError, Plug, Policy};
use crate::error::{Code, Error, Result};
use crate::memory::{Backing, Memory};
use crate::object::{Args, Create, Int, OnOffAuto, Props, TypeInfo, props};
use crate::pci::rom::Rom as Images;
use crate::pci::vga::LEGACY;

/// The name of the type.
pub const NAME: &str = "vfio-pci";

/// The row of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<VfioPciType>();

props! {
    /// A PCI device of the host, owned by the guest.
    struct VfioPciProps {
        /// Address of the device on the host, as `lspci -D` prints it; without a function all of them, in one slot; or its name
        host: Option<DeviceAddr>,
        /// Folder of the device in sysfs, instead of host
        sysfsdev: Option<PathBuf>,
        /// Kernel interface that it is opened by; auto: iommufd where its nodes can be opened, else its group by type1
        iommu: IommuChoice = "auto",
        /// Object iommufd that it is put on
        iommufd: Option<IommufdRef>,
        /// Descriptor of the device's node (/dev/vfio/devices/vfioN) that passthru was started with, instead of host
        fd: Option<Descriptor>,
        /// Token of a physical function on vfio-pci, and of its virtual functions; the physical function's guest sets it
        #[name = "vf-token"]
        vf_token: Option<VfToken>,
        /// Whether other passed-through devices may reach its BARs by DMA; auto: if there are any
        p2p: OnOffAuto = "auto",
        /// Expansion ROM that the guest sees: the device's own, none, or a file's
        rom: RomSource = "auto",
        /// QEMU's word: 0 is rom=off
        rombar: Int<0, 1> = "1",
        /// QEMU's word for rom=file:PATH
        romfile: Option<PathBuf>,
        /// Whether it answers at the legacy VGA memory and ports; one device of a machine can
        #[name = "x-vga"]
        vga: bool = "off",
        /// What is done after an uncorrectable error of the device (AER); detach takes it away from the guest
        #[name = "on-error"]
        on_error: OnError = "pause",
        /// Seconds that the guest has to give the device up when the host wants it back; 0: it is taken away at once
        #[name = "request-timeout"]
        request_timeout: Int<0, 3600> = "20",
        /// Trap every access to the BARs, to see what a driver does
        #[name = "x-no-mmap"]
        no_mmap: bool = "off",
    }
}

struct VfioPciType;

impl Create<Plug, Cx> for VfioPciType {
    const NAME: &'static str = NAME;
    const GROUP: &'static str = "Host devices";
    const BUS: Option<&'static str> = Some("PCI");
    type Props = VfioPciProps;

    fn check(props: &VfioPciProps) -> Result<()> {
        source(props)?;
        wish(props).check()?;
        if let RomSource::File(path) = rom_source(props)? {
            rom::file(&path)?;
        }
        Ok(())
    }

    fn create(props: VfioPciProps, cx: &Cx) -> Result<Plug> {
        let bdf = match source(&props)? {
            Source::Address(bdf) => bdf,
            Source::Descriptor(number) => cx.vfio.device_of_descriptor(number)?,
        };
        if props.vga {
            vga_window_is_free(&cx.memory)?;
        }
        let options = VfioPciOptions {
            id: cx.id.to_string(),
            wish: wish(&props),
            p2p: match props.p2p {
                OnOffAuto::Auto => PeerToPeer::Auto,
                OnOffAuto::On => PeerToPeer::On,
                OnOffAuto::Off => PeerToPeer::Off,
            },
            rom: rom_source(&props)?,
            no_mmap: props.no_mmap,
            vga: props.vga,
            policy: Policy {
                on_error: props.on_error,
                request_timeout: Duration::from_secs(props.request_timeout.get()),
            },
            attachment: if cx.on_root_bus { Attachment::RootBus } else { Attachment::Port },
        };
        Ok(Plug::function(VfioPci::open(&cx.vfio, bdf, &cx.router, options)?))
    }
}

/// A running guest has RAM where VGA has its memory, unless a device had that from the start.
fn vga_window_is_free(memory: &Memory) -> Result<()> {
    let [window, ..] = LEGACY;
    match memory.view(window.space).find(window.base).map(|range| &range.backing) {
        Some(Backing::Ram(_)) => {
            Err(Error::new(Code::VgaUnavailable, "a device with x-vga=on cannot be plugged in later")
                .fix("start the guest with it"))
        }
        _ => Ok(()),
    }
}

/// The ROM that the three properties name together.
fn rom_source(props: &VfioPciProps) -> Result<RomSource> {
    match (&props.rom, props.rombar.get(), &props.romfile) {
        (rom, 1, None) => Ok(rom.clone()),
        (RomSource::Auto | RomSource::Off, _, None) => Ok(RomSource::Off),
        (RomSource::Auto, 1, Some(path)) => Ok(RomSource::File(path.clone())),
        _ => Err(Error::new(Code::BadProperty, "rom=, rombar= and romfile= contradict each other")
            .fix("write rom=auto, rom=off or rom=file:PATH alone")),
    }
}

/// What names the device.
#[derive(Debug, PartialEq)]
enum Source {
    Address(Bdf),
    Descriptor(i32),
}

fn source(props: &VfioPciProps) -> Result<Source> {
    match (props.fd, props.host.is_some() || props.sysfsdev.is_some()) {
        (None, _) => address(props.host, props.sysfsdev.as_deref()).map(Source::Address),
        (Some(fd), false) => Ok(Source::Descriptor(object::number(fd))),
        (Some(_), true) => {
            Err(Error::new(Code::BadProperty, "fd= is the device's node: host= and fd= both name the device")
                .fix("leave one of them out"))
        }
    }
}

fn wish(props: &VfioPciProps) -> Wish {
    Wish {
        iommu: props.iommu,
        object: props.iommufd.as_ref().map(|id| id.as_str().into()),
        fd: props.fd.map(object::number),
        token: props.vf_token,
    }
}

/// How the device of these properties is to be opened.
///
/// # Errors
/// [`Code::BadProperty`].
pub fn wish_of(args: &Args) -> Result<Wish> {
    Ok(wish(&VfioPciProps::parse(&mut args.clone())?))
}

/// The address that a line names its device by, if it does: a descriptor says nothing before it is opened.
pub fn address_of(args: &Args) -> Option<Bdf> {
    let props = VfioPciProps::parse(&mut args.clone()).ok()?;
    address(props.host, props.sysfsdev.as_deref()).ok()
}

/// The file that a line takes its ROM from, and what is in it.
pub fn rom_file(args: &Args) -> Option<(PathBuf, Images)> {
    let props = VfioPciProps::parse(&mut args.clone()).ok()?;
    let RomSource::File(path) = rom_source(&props).ok()? else { return None };
    let (_, images) = rom::file(&path).ok()?;
    Some((path, images))
}

/// Whether the guest is shown the device's own ROM, if it has one.
pub fn shows_own_rom(args: &Args) -> bool {
    VfioPciProps::parse(&mut args.clone()).is_ok_and(|props| matches!(rom_source(&props), Ok(RomSource::Auto)))
}

/// The device that either property names. A whole one stands for its function 0: `machine::functions` has made one line of
/// each function before any device is made.
fn address(host: Option<DeviceAddr>, sysfsdev: Option<&Path>) -> Result<Bdf> {
    match (host, sysfsdev) {
        (Some(DeviceAddr { domain, bus, device, function }), None) => {
            Ok(Bdf { domain, bus, device, function: function.unwrap_or(0) })
        }
        (None, Some(path)) => {
            // The folder below /sys/devices has the address for its name, and so has the link to it.
            let name = path.file_name().and_then(|name| name.to_str());
            name.and_then(|name| name.parse().ok()).ok_or_else(|| {
                Error::new(Code::BadProperty, format!("`{}` is not the folder of a PCI device", path.display()))
                    .fix("write sysfsdev=/sys/bus/pci/devices/0000:01:00.0 with the device's address")
            })
        }
        (None, None) => Err(Error::new(Code::BadProperty, "vfio-pci needs a device of the host")
            .fix("name it with host=01:00.0; `passthru devices` lists the addresses")),
        (Some(_), Some(_)) => {
            Err(Error::new(Code::BadProperty, "host= and sysfsdev= both name the device").fix("leave one of them out"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_property_names_the_device_and_never_both() {
        let bdf: Bdf = "0000:01:00.0".parse().unwrap();
        let folder = |path: &'static str| Some(Path::new(path));
        assert_eq!(address(Some(bdf.into()), None).unwrap(), bdf);
        assert_eq!(address(None, folder("/sys/bus/pci/devices/0000:01:00.0/")).unwrap(), bdf);
        for (host, path) in
            [(None, None), (Some(bdf.into()), folder("/x/0000:01:00.0")), (None, folder("/sys/class/net/eth0"))]
        {
            assert_eq!(address(host, path).unwrap_err().code(), Code::BadProperty);
        }
    }
}
