//! USB devices of the host, from sysfs (kernel: Documentation/ABI/testing/sysfs-bus-usb). A device is named by its bus and
//! the ports that lead to it: `1-4.2` is at port 2 of the hub at port 4 of bus 1.

use serde::Serialize;

use super::names::Name;
use super::usage::Uses;
use super::{Host, Use, read};
use crate::bdf::Bdf;

/// Class of hubs (USB 2.0, 11.23.1).
const CLASS_HUB: u32 = 0x09;

/// A USB device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UsbDevice {
    /// Bus and ports: `1-4.2`; `usb1` for the root hub of bus 1.
    pub name: String,
    /// The bus.
    pub bus: u32,
    /// Its number on the bus, as in /dev/bus/usb/BUS/NUMBER; another one whenever it is plugged.
    pub number: u32,
    /// Vendor ID.
    pub vendor: u16,
    /// Product ID.
    pub product: u16,
    /// What it calls its maker.
    pub maker: Option<String>,
    /// What it calls itself.
    pub title: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its speed in Mbit/s, as the kernel writes it: `1.5`, `480`, `5000`.
    pub speed: Option<String>,
    /// Whether it is a hub.
    pub hub: bool,
    /// The drivers of its interfaces, each once.
    pub drivers: Vec<String>,
    /// The PCI function whose controller it hangs on.
    pub controller: Option<Bdf>,
    /// What the host uses it for; nothing for hubs, behind which others are used.
    pub uses: Vec<Use>,
    /// The names by which devices.d claims it for guests.
    pub claims: Vec<Name>,
}

impl UsbDevice {
    /// How many hubs are between it and its root hub.
    pub fn depth(&self) -> usize {
        self.name.matches('.').count()
    }
}

impl Host {
    /// All USB devices, by buses and ports.
    pub fn usb_devices(&self) -> Vec<UsbDevice> {
        let mut devices = self.read_usb(Some(&self.read_uses()));
        let claims = self.usb_claims(&devices);
        for (device, claims) in devices.iter_mut().zip(claims) {
            device.claims = claims;
        }
        devices
    }

    /// The same without what the host uses them for, which takes a look into every process, and without claims.
    pub(super) fn usb_devices_without_uses(&self) -> Vec<UsbDevice> {
        self.read_usb(None)
    }

    fn read_usb(&self, uses: Option<&Uses>) -> Vec<UsbDevice> {
        let folder = self.sys("bus/usb/devices");
        let mut devices: Vec<UsbDevice> = read::names(&folder)
            .into_iter()
            .filter(|name| !name.contains(':'))
            .filter_map(|name| {
                let at = read::real(folder.join(&name))?;
                let text = |file: &str| read::text(at.join(file)).filter(|text| !text.is_empty());
                let id = |file: &str| u16::try_from(read::hex(at.join(file))?).ok();
                let hub = read::hex(at.join("bDeviceClass")) == Some(CLASS_HUB);
                let interfaces = read::names(&at).into_iter().filter(|it| it.contains(':'));
                let mut drivers: Vec<String> =
                    interfaces.filter_map(|it| read::link_name(at.join(it).join("driver"))).collect();
                drivers.sort();
                drivers.dedup();
                Some(UsbDevice {
                    bus: read::number(at.join("busnum"))?,
                    number: read::number(at.join("devnum"))?,
                    vendor: id("idVendor")?,
                    product: id("idProduct")?,
                    maker: text("manufacturer"),
                    title: text("product"),
                    serial: text("serial"),
                    speed: text("speed"),
                    hub,
                    drivers,
                    controller: at.iter().filter_map(|part| part.to_str()?.parse().ok()).next_back(),
                    uses: uses.filter(|_| !hub).map(|uses| uses.below(&name, &at)).unwrap_or_default(),
                    claims: Vec::new(),
                    name,
                })
            })
            .collect();
        devices.sort_by_cached_key(|device| (device.bus, ports(&device.name)));
        devices
    }
}

/// `1-4.2` -> 4, 2: ports are numbers, and 10 comes after 9. None for a root hub, which comes first.
fn ports(name: &str) -> Vec<u32> {
    let ports = name.split_once('-').map_or("", |(_, ports)| ports);
    ports.split('.').filter_map(|port| port.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::{TestTree, bdf};

    #[test]
    fn devices_are_in_the_order_of_their_ports() {
        let tree = TestTree::new();
        tree.pci("0000:00:14.0").class(0x0c0330).driver("xhci_hcd").add();
        tree.usb("0000:00:14.0", "usb1", &[("idVendor", "1d6b"), ("idProduct", "0002"), ("bDeviceClass", "09")]);
        tree.usb("0000:00:14.0", "usb1/1-10", &[("idVendor", "046d"), ("idProduct", "c31c"), ("speed", "1.5")]);
        tree.usb(
            "0000:00:14.0",
            "usb1/1-9",
            &[("idVendor", "0781"), ("idProduct", "5581"), ("product", "Ultra\u{1b}[31m")],
        );
        tree.usb("0000:00:14.0", "usb1/1-9/1-9.2", &[("idVendor", "0bda"), ("idProduct", "8153")]);
        tree.disk("0000:00:14.0", "usb1/1-9/1-9:1.0/host2/target2:0:0/2:0:0:0/block/sdb", 1, 0);
        tree.mount(1, "/media", "ext4", "/dev/sdb1");
        let devices = tree.host().usb_devices();
        let names: Vec<_> = devices.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names, ["usb1", "1-9", "1-9.2", "1-10"]);
        assert_eq!(devices[1].title.as_deref(), Some("Ultra\u{fffd}[31m"));
        assert_eq!(devices[1].controller, Some(bdf("00:14.0")));
        assert_eq!(devices[1].uses.iter().map(Use::to_string).collect::<Vec<_>>(), ["sdb1 mounted on /media"]);
        assert!(devices[0].hub && devices[3].uses.is_empty());
        assert_eq!((devices[2].depth(), devices[3].speed.as_deref()), (1, Some("1.5")));
    }
}
