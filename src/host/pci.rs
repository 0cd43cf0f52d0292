//! Facts about one PCI function, read from sysfs (kernel: Documentation/ABI/testing/sysfs-bus-pci). No descriptor of
//! the device is opened and none of its registers beyond the common header is read.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use serde::Serialize;

use super::{Host, read};
use crate::bdf::{Bdf, DeviceAddr};
use crate::error::{Code, Error, Result};

/// Class 06, subclasses 04 and 09: PCI-to-PCI and semi-transparent bridges, for when the header cannot be read.
const BRIDGE_CLASSES: [u32; 2] = [0x0604, 0x0609];
/// Offset and mask of the header type in configuration space (PCIe 7.5.1.1.9); bit 7 is the multi-function bit.
const HEADER_TYPE: (usize, u8) = (0x0e, 0x7f);
/// Flags of a line of `resource` (kernel: include/linux/ioport.h).
const IORESOURCE_IO: u64 = 0x100;
const IORESOURCE_MEM: u64 = 0x200;
const IORESOURCE_PREFETCH: u64 = 0x2000;
const IORESOURCE_MEM_64: u64 = 0x10_0000;
/// The expansion ROM's place in `resource`, after the six BARs.
pub const ROM_INDEX: usize = 6;
/// Six BARs and the ROM: what `resource` lists before bridge windows and SR-IOV BARs.
const RESOURCES: usize = ROM_INDEX + 1;
/// How many devices with a similar address an error names.
const MAX_SIMILAR: usize = 4;

/// What sysfs says about a PCI function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PciDevice {
    /// Its address.
    pub bdf: Bdf,
    /// Vendor and device ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class code: base class, subclass, programming interface (24 bits).
    pub class: u32,
    /// The vendor's name in pci.ids.
    pub vendor_name: Option<&'static str>,
    /// The device's name in pci.ids.
    pub device_name: Option<&'static str>,
    /// The subclass's name in pci.ids.
    pub class_name: Option<&'static str>,
    /// The driver that is bound now.
    pub driver: Option<String>,
    /// The only driver that may bind, if one is set.
    pub driver_override: Option<String>,
    /// The IOMMU group's number.
    pub iommu_group: Option<u32>,
    /// How the kernel would reset it, best first; empty also before Linux 5.15.
    pub reset_methods: Vec<String>,
    /// The NUMA node that it is attached to.
    pub numa_node: Option<u32>,
    /// BARs and ROM that are implemented.
    pub resources: Vec<Resource>,
    /// Whether it is a bridge (header type 1 or 2): a bridge is never given to a guest.
    pub bridge: bool,
    /// Whether a driver has enabled it.
    pub enabled: bool,
    /// The physical function that a virtual function belongs to.
    pub physfn: Option<Bdf>,
    /// Enabled virtual functions of a physical function.
    pub virtual_functions: u16,
    /// How many virtual functions a physical function can have.
    pub max_virtual_functions: u16,
    /// Whether the firmware draws on it: the display that the host booted on.
    pub boot_display: bool,
}

/// Base class of display devices.
const CLASS_DISPLAY: u32 = 0x03;

/// One BAR or the expansion ROM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Resource {
    /// 0 to 5: a BAR; 6: the ROM.
    pub index: usize,
    /// The host's physical address or port.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Ports or memory.
    pub kind: ResourceKind,
    /// Reads have no side effects.
    pub prefetchable: bool,
}

/// What a BAR decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ResourceKind {
    /// I/O ports.
    Io,
    /// Memory, by a 32-bit BAR.
    Mem32,
    /// Memory, by a 64-bit BAR.
    Mem64,
}

/// Whether a driver is one that hands its device to user space: vfio-pci or a variant for one vendor's devices.
pub fn is_vfio_driver(driver: &str) -> bool {
    driver.ends_with("vfio-pci") || driver.ends_with("vfio_pci")
}

impl PciDevice {
    /// Whether it is a display device (base class 03h).
    pub fn is_display(&self) -> bool {
        self.class >> 16 == CLASS_DISPLAY
    }

    /// Whether a vfio driver has it.
    pub fn on_vfio(&self) -> bool {
        self.driver.as_deref().is_some_and(is_vfio_driver)
    }

    /// What a person calls it: `Intel Corporation 82574L Gigabit Network Connection [8086:10d3]`.
    pub fn name(&self) -> String {
        let vendor = self.vendor_name.unwrap_or("unknown vendor");
        let device = self.device_name.or(self.class_name).unwrap_or("device");
        format!("{vendor} {device} [{:04x}:{:04x}]", self.vendor, self.device)
    }

    /// The name that is short enough for a list: without the vendor's legal form and the IDs.
    pub fn short_name(&self) -> String {
        let vendor =
            self.vendor_name.map_or_else(|| format!("{:04x}", self.vendor), |name| short_vendor(name).to_owned());
        let device = self.device_name.map_or_else(|| format!("{:04x}", self.device), str::to_owned);
        format!("{vendor} {device}")
    }

    /// The driver's name, or `no driver`.
    pub fn driver_text(&self) -> &str {
        self.driver.as_deref().unwrap_or("no driver")
    }
}

impl Host {
    /// The sysfs folder of a PCI function, whether it exists or not.
    pub fn device_path(&self, bdf: Bdf) -> PathBuf {
        self.sys("bus/pci/devices").join(bdf.to_string())
    }

    /// The addresses of all PCI functions, in order.
    pub fn addresses(&self) -> Vec<Bdf> {
        let mut all: Vec<Bdf> =
            read::names(self.sys("bus/pci/devices")).iter().filter_map(|name| name.parse().ok()).collect();
        all.sort();
        all
    }

    /// All PCI functions, in order of their addresses.
    pub fn devices(&self) -> Vec<PciDevice> {
        self.addresses().into_iter().filter_map(|bdf| self.facts(bdf)).collect()
    }

    /// One PCI function; `Code::DeviceAbsent` names those with a similar address.
    pub fn device(&self, bdf: Bdf) -> Result<PciDevice> {
        self.facts(bdf).ok_or_else(|| self.absent(bdf))
    }

    /// The functions that an address means, ascending: one, or all of a device.
    ///
    /// # Errors
    /// `Code::DeviceAbsent` if there is none; `Code::BadProperty` for a whole device of virtual functions, which have
    /// nothing in common but their physical function.
    pub fn functions(&self, addr: DeviceAddr) -> Result<Vec<Bdf>> {
        if let Some(bdf) = addr.bdf() {
            return self.device(bdf).map(|_| vec![bdf]);
        }
        let all: Vec<Bdf> = self.addresses().into_iter().filter(|bdf| addr.contains(*bdf)).collect();
        let virtual_function = all.iter().find(|bdf| self.device_path(**bdf).join("physfn").exists());
        if let Some(bdf) = virtual_function {
            return Err(Error::new(
                Code::BadProperty,
                format!("{addr} is no device but a place for virtual functions"),
            )
            .evidence(format!("{bdf} is a virtual function"))
            .fix(format!("name one of them, such as {bdf}")));
        }
        match all.first() {
            Some(_) => Ok(all),
            None => Err(self.absent(Bdf { domain: addr.domain, bus: addr.bus, device: addr.device, function: 0 })),
        }
    }

    /// The virtual functions of a function that are on.
    pub(super) fn virtual_functions(&self, device: &PciDevice) -> Vec<Bdf> {
        let folder = self.device_path(device.bdf);
        let link = |number| read::link_name(folder.join(format!("virtfn{number}")))?.parse().ok();
        (0..device.virtual_functions).filter_map(link).collect()
    }

    /// The driver that is bound now.
    pub fn driver(&self, bdf: Bdf) -> Option<String> {
        read::link_name(self.device_path(bdf).join("driver"))
    }

    /// The driver override that is set now.
    pub fn driver_override(&self, bdf: Bdf) -> Option<String> {
        // The kernel prints a pointer that is not set as `(null)`.
        read::text(self.device_path(bdf).join("driver_override")).filter(|name| !name.is_empty() && name != "(null)")
    }

    fn facts(&self, bdf: Bdf) -> Option<PciDevice> {
        let at = self.device_path(bdf);
        let vendor = u16::try_from(read::hex(at.join("vendor"))?).ok()?;
        let device = u16::try_from(read::hex(at.join("device"))?).ok()?;
        let class = read::hex(at.join("class")).unwrap_or(0) & 0xff_ffff;
        Some(PciDevice {
            bdf,
            vendor,
            device,
            class,
            vendor_name: crate::pci_names::vendor(vendor),
            device_name: crate::pci_names::device(vendor, device),
            class_name: class_name(class),
            driver: self.driver(bdf),
            driver_override: self.driver_override(bdf),
            iommu_group: read::link_name(at.join("iommu_group")).and_then(|name| name.parse().ok()),
            reset_methods: words(read::text(at.join("reset_method"))),
            numa_node: read::number::<i32>(at.join("numa_node")).and_then(|node| u32::try_from(node).ok()),
            resources: resources(&read::lines(at.join("resource"))),
            bridge: self.header_type(bdf).map_or(BRIDGE_CLASSES.contains(&(class >> 8)), |header| header != 0),
            enabled: read::number::<u32>(at.join("enable")).is_some_and(|count| count > 0),
            physfn: read::link_name(at.join("physfn")).and_then(|name| name.parse().ok()),
            virtual_functions: read::number(at.join("sriov_numvfs")).unwrap_or(0),
            max_virtual_functions: read::number(at.join("sriov_totalvfs")).unwrap_or(0),
            boot_display: read::number::<u8>(at.join("boot_vga")) == Some(1),
        })
    }

    fn header_type(&self, bdf: Bdf) -> Option<u8> {
        let (offset, mask) = HEADER_TYPE;
        let mut header = [0u8; 64];
        File::open(self.device_path(bdf).join("config")).ok()?.read_exact(&mut header).ok()?;
        // A device that has fallen off the bus reads all-ones; its class, kept by the kernel, still tells what it is.
        header.get(offset).copied().filter(|&byte| byte != 0xff).map(|byte| byte & mask)
    }

    fn absent(&self, bdf: Bdf) -> Error {
        let error = Error::new(Code::DeviceAbsent, format!("there is no PCI device at {bdf}"))
            .evidence(format!("{} does not exist", self.device_path(bdf).display()))
            .fix("`passthru devices` lists what there is");
        similar(bdf, &self.devices())
            .iter()
            .fold(error, |error, other| error.evidence(format!("there is {} {}", other.bdf, other.name())))
    }
}

/// Devices whose address differs in one part only: a mistyped digit, a card in another slot, another function.
fn similar(bdf: Bdf, devices: &[PciDevice]) -> Vec<&PciDevice> {
    let parts = |bdf: Bdf| [bdf.domain, bdf.bus.into(), bdf.device.into(), bdf.function.into()];
    let differ = |other: Bdf| parts(bdf).iter().zip(parts(other)).filter(|(a, b)| **a != *b).count();
    devices.iter().filter(|device| differ(device.bdf) == 1 && !device.bridge).take(MAX_SIMILAR).collect()
}

/// `Advanced Micro Devices, Inc. [AMD/ATI]` -> `AMD/ATI`, `Intel Corporation` -> `Intel`.
fn short_vendor(name: &str) -> &str {
    const FORMS: [&str; 10] =
        ["Corporation", "Corp.", "Co.,", "Co.", "Co", "Inc.", "Inc", "Ltd.", "Ltd", "Technologies"];
    if let Some((_, short)) = name.strip_suffix(']').and_then(|name| name.rsplit_once('[')) {
        return short;
    }
    let mut rest = name;
    while let Some((front, last)) = rest.rsplit_once(' ')
        && FORMS.contains(&last)
    {
        rest = front.trim_end_matches(',');
    }
    rest
}

fn class_name(class: u32) -> Option<&'static str> {
    let [_, base, sub, _] = class.to_be_bytes();
    crate::pci_names::class(base, sub)
}

fn words(text: Option<String>) -> Vec<String> {
    text.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// The lines of `resource`: start, end and flags, in hexadecimal; all zero where nothing is implemented.
fn resources(lines: &[String]) -> Vec<Resource> {
    lines.iter().take(RESOURCES).enumerate().filter_map(|(index, line)| resource(index, line)).collect()
}

fn resource(index: usize, line: &str) -> Option<Resource> {
    let mut fields = line.split_whitespace().map(|field| u64::from_str_radix(field.trim_start_matches("0x"), 16));
    let (start, end, flags) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
    let kind = match flags {
        _ if flags & IORESOURCE_IO != 0 => ResourceKind::Io,
        _ if flags & IORESOURCE_MEM_64 != 0 => ResourceKind::Mem64,
        _ if flags & IORESOURCE_MEM != 0 => ResourceKind::Mem32,
        _ => return None,
    };
    let size = end.checked_sub(start)?.checked_add(1)?;
    Some(Resource { index, start, size, kind, prefetchable: flags & IORESOURCE_PREFETCH != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::{TestTree, bdf};
    use proptest::prelude::*;

    #[test]
    fn every_fact_is_read() {
        let tree = TestTree::new();
        tree.pci("0000:00:02.0").bridge().driver("pcieport").group(1).add();
        tree.pci("0000:01:00.0")
            .below("0000:00:02.0")
            .ids(0x8086, 0x10d3)
            .class(0x020000)
            .driver("e1000e")
            .group(2)
            .add();
        tree.attribute("0000:01:00.0", "reset_method", "flr bus\n");
        tree.attribute("0000:01:00.0", "numa_node", "-1\n");
        tree.attribute("0000:01:00.0", "enable", "1\n");
        tree.attribute(
            "0000:01:00.0",
            "resource",
            "0x00000000fe800000 0x00000000fe81ffff 0x0000000000040200\n\
             0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
             0x000000000000c000 0x000000000000c01f 0x0000000000040101\n\
             0x0000008000000000 0x000000801fffffff 0x000000000014220c\n",
        );
        let device = tree.host().device(bdf("01:00.0")).unwrap();
        assert_eq!(device.name(), "Intel Corporation 82574L Gigabit Network Connection [8086:10d3]");
        assert_eq!(device.class_name, Some("Ethernet controller"));
        assert_eq!((device.driver.as_deref(), device.driver_override.as_deref()), (Some("e1000e"), None));
        assert_eq!((device.iommu_group, device.numa_node, device.enabled), (Some(2), None, true));
        assert_eq!(device.reset_methods, ["flr", "bus"]);
        let shapes: Vec<_> = device.resources.iter().map(|r| (r.index, r.size, r.kind, r.prefetchable)).collect();
        assert_eq!(
            shapes,
            [
                (0, 0x2_0000, ResourceKind::Mem32, false),
                (2, 0x20, ResourceKind::Io, false),
                (3, 0x2000_0000, ResourceKind::Mem64, true)
            ]
        );
        assert!(!device.bridge);
        assert!(tree.host().device(bdf("00:02.0")).unwrap().bridge);
        assert_eq!(tree.host().devices().len(), 2);
    }

    #[test]
    fn an_absent_device_names_the_path_and_its_neighbours() {
        let tree = TestTree::new();
        tree.pci("0000:02:00.0").ids(0x8086, 0x10d3).add();
        tree.pci("0000:05:1f.0").ids(0x1b36, 0x0010).add();
        let error = tree.host().device(bdf("01:00.0")).unwrap_err();
        assert_eq!(error.code(), Code::DeviceAbsent);
        assert!(error.evidence_lines()[0].ends_with("sys/bus/pci/devices/0000:01:00.0 does not exist"));
        assert!(error.evidence_lines()[1].starts_with("there is 0000:02:00.0 Intel"), "{error}");
        assert_eq!(error.evidence_lines().len(), 2);
        assert!(error.fix_text().unwrap().contains("passthru devices"));
    }

    #[test]
    fn vendors_have_short_names() {
        let table = [
            ("Intel Corporation", "Intel"),
            ("Advanced Micro Devices, Inc. [AMD/ATI]", "AMD/ATI"),
            ("Realtek Semiconductor Co., Ltd.", "Realtek Semiconductor"),
            ("Samsung Electronics Co Ltd", "Samsung Electronics"),
            ("Red Hat, Inc.", "Red Hat"),
            ("Inc.", "Inc."),
        ];
        for (name, short) in table {
            assert_eq!(short_vendor(name), short);
        }
    }

    #[test]
    fn vfio_drivers_are_known_by_name() {
        for driver in ["vfio-pci", "mlx5_vfio_pci", "nvgrace-gpu-vfio-pci"] {
            assert!(is_vfio_driver(driver), "{driver}");
        }
        for driver in ["nvme", "vfio", "pci-stub", ""] {
            assert!(!is_vfio_driver(driver), "{driver}");
        }
    }

    proptest! {
        #[test]
        fn no_resource_line_panics(line in "[0-9a-fx ]{0,60}", index: usize) {
            let _ = resource(index, &line);
        }
    }
}
