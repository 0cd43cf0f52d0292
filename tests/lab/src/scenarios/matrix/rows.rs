//! The devices of the matrix. A new one is a line here.

use super::work::Work;

/// Where a device sits on the PC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Socket {
    /// Behind a root port of its own.
    Port,
    /// On the root bus, as conventional devices must: behind QEMU's PCIe-to-PCI bridge their DMA has no translation.
    Root,
}

/// First slot of root ports; slot 1 is an AMD IOMMU's.
const FIRST_PORT: usize = 2;
/// First slot of devices on the root bus.
const FIRST_ROOT: usize = 0x10;

/// A device.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    pub socket: Socket,
    /// QEMU's device on L0, and what belongs to it. `{at}` stands for the place, `{nic}` for a network, `{id}` for the
    /// row's own id.
    device: &'static str,
    /// Driver, as sysfs names it; an empty one for a device that has none.
    pub driver: &'static str,
    /// Modules that make it work, in L1 and in the guest.
    pub modules: &'static str,
    pub work: Work,
    /// Shell text in L1 that makes the device's first virtual function: this is what is passed. `$pf` is the device.
    pub virtual_function: Option<&'static str>,
}

impl Row {
    const fn new(
        name: &'static str,
        socket: Socket,
        device: &'static str,
        driver: &'static str,
        modules: &'static str,
        work: Work,
    ) -> Self {
        Self { name, socket, device, driver, modules, work, virtual_function: None }
    }

    /// The same device on the root bus.
    const fn on_root(mut self) -> Self {
        self.socket = Socket::Root;
        self
    }

    /// What is passed is the first virtual function, which `script` makes.
    const fn virtual_function(mut self, script: &'static str) -> Self {
        self.virtual_function = Some(script);
        self
    }
}

use Socket::{Port, Root};

/// A namespace that a controller and its virtual function share.
const NVME_SRIOV: &str = "nvme-subsys,id={id}s -device nvme,{at},id={id},serial={id},subsys={id}s,\
    sriov_max_vfs=1,sriov_vq_flexible=2,sriov_vi_flexible=1 -device nvme-ns,bus={id},drive={id}d";
/// As QEMU's documentation has it (`docs/system/devices/nvme`, "SR-IOV"): the controller gives its flexible resources
/// up, which takes a reset; the function gets them and goes online; then a driver can have it.
const MAKE_NVME_VF: &str = "c=/dev/$(ls $pf/nvme | head -n 1); nvme virt-mgmt $c -c 0 -r 1 -a 1 -n 0; \
    nvme virt-mgmt $c -c 0 -r 0 -a 1 -n 0; echo 1 > $pf/reset; sleep 1; echo 1 > $pf/sriov_numvfs; \
    nvme virt-mgmt $c -c 1 -r 1 -a 8 -n 1; nvme virt-mgmt $c -c 1 -r 0 -a 8 -n 2; \
    nvme virt-mgmt $c -c 1 -r 0 -a 9 -n 0; vf=$(basename $(readlink $pf/virtfn0)); \
    [ -e $pf/virtfn0/driver ] || echo $vf > /sys/bus/pci/drivers/nvme/bind";
const MAKE_IGB_VF: &str = "ip link set $(ls $pf/net) up; echo 1 > $pf/sriov_numvfs";

// Devices of more than one PC.
const E1000E: Row = Row::new("e1000e", Port, "e1000e,{at},{nic}", "e1000e", "e1000e", Work::Nic);
const IGB_VF: Row =
    Row::new("igb VF", Port, "igb,{at},{nic}", "igbvf", "igb igbvf", Work::Nic).virtual_function(MAKE_IGB_VF);
const RTL8139: Row = Row::new("rtl8139", Root, "rtl8139,{at},{nic}", "8139cp", "8139cp", Work::Nic);
const NVME: Row = Row::new("nvme", Port, "nvme,{at},drive={id}d,serial={id}", "nvme", "nvme", Work::Drive);

/// Network cards.
pub static NICS: &[Row] = &[
    E1000E,
    Row::new("e1000", Root, "e1000,{at},{nic}", "e1000", "e1000", Work::Nic),
    Row::new("igb", Port, "igb,{at},{nic}", "igb", "igb", Work::Nic),
    IGB_VF,
    RTL8139,
    Row::new(
        "virtio-net",
        Port,
        "virtio-net-pci,{at},{nic},disable-legacy=on,iommu_platform=on",
        "virtio-pci",
        "virtio_net",
        Work::Nic,
    ),
];

/// Drives and what has drives.
pub static DRIVES: &[Row] = &[
    NVME,
    Row::new("nvme VF", Port, NVME_SRIOV, "nvme", "nvme", Work::Drive).virtual_function(MAKE_NVME_VF),
    Row::new(
        "ich9-ahci",
        Root,
        "ich9-ahci,{at},id={id} -device ide-hd,bus={id}.0,drive={id}d",
        "ahci",
        "ahci sd_mod",
        Work::Drive,
    ),
    Row::new(
        "qemu-xhci",
        Port,
        "qemu-xhci,{at},id={id} -device usb-storage,bus={id}.0,drive={id}d",
        "xhci_hcd",
        "xhci-pci usb-storage sd_mod",
        Work::Drive,
    ),
];

/// Sound, displays, and what has no driver.
pub static OTHERS: &[Row] = &[
    Row::new(
        "ich9-intel-hda",
        Root,
        "ich9-intel-hda,{at},id={id} -device hda-output,bus={id}.0,audiodev={id}a,mixer=off,use-timer=off",
        "snd_hda_intel",
        "snd-hda-codec-generic snd-hda-intel",
        Work::Sound,
    ),
    Row::new("edu", Root, "edu,{at}", "", "uio_pci_generic", Work::Edu),
    Row::new("VGA", Root, "VGA,{at},id={id}", "bochs-drm", "bochs", Work::Display { bits: 8 }),
    Row::new("bochs-display", Port, "bochs-display,{at},id={id}", "bochs-drm", "bochs", Work::Display { bits: 8 }),
    Row::new("cirrus-vga", Root, "cirrus-vga,{at},id={id}", "cirrus", "cirrus", Work::Display { bits: 5 }),
];

/// One of each kind that differs for an IOMMU: a card, a virtual function, an INTx device, a drive.
pub static SUBSET: &[Row] = &[E1000E, IGB_VF, RTL8139, NVME];

/// The same for a PC on which nothing may be passed that sits behind a bridge when the PC starts.
pub static SUBSET_ON_ROOT: &[Row] = &[E1000E.on_root(), IGB_VF, RTL8139, NVME.on_root()];

/// The rows of all PCs.
#[cfg(test)]
pub static ALL: &[&[Row]] = &[NICS, DRIVES, OTHERS];

/// Where each row's device sits: its slot on the root bus, or that of its root port, and then its bus.
fn places(rows: &[Row]) -> Vec<(usize, Option<usize>)> {
    let (mut ports, mut roots) = (0, 0);
    let place = |row: &Row| match row.socket {
        Port => {
            ports += 1;
            (FIRST_PORT + ports - 1, Some(ports))
        }
        Root => {
            roots += 1;
            (FIRST_ROOT + roots - 1, None)
        }
    };
    rows.iter().map(place).collect()
}

/// Each row's address in L1, where buses are numbered in the order of their ports.
pub fn addresses(rows: &[Row]) -> Vec<String> {
    let address = |(slot, bus): (usize, Option<usize>)| match bus {
        Some(bus) => format!("{bus:02x}:00.0"),
        None => format!("00:{slot:02x}.0"),
    };
    places(rows).into_iter().map(address).collect()
}

/// A row's id on L0.
pub fn id(index: usize) -> String {
    format!("m{index}")
}

/// QEMU's arguments for a PC with `rows`; `{drive}` stands for the drive's image.
pub fn arguments(rows: &[Row]) -> Vec<String> {
    let mut words = Vec::new();
    for (index, (row, (slot, bus))) in rows.iter().zip(places(rows)).enumerate() {
        let id = id(index);
        let at = match bus {
            Some(bus) => {
                words.push(format!("-device pcie-root-port,x-speed=5,id={id}p,bus=pcie.0,addr={slot:x},chassis={bus}"));
                format!("bus={id}p")
            }
            None => format!("bus=pcie.0,addr={slot:x}"),
        };
        words.push(row.work.backend(&id));
        let nic = format!("netdev={id}n,mac=52:54:00:00:02:{index:02x}");
        let device = row.device.replace("{at}", &at).replace("{nic}", &nic).replace("{id}", &id);
        words.push(format!("-device {device}"));
    }
    words
}
