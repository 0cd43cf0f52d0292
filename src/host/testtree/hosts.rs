//! Whole made-up hosts, as people have them: what `devices` and `check` say of each is compared with the files of
//! tests/cli/hosts.

use super::TestTree;

/// A host's name and how it is made.
pub(crate) type MadeUp = (&'static str, fn() -> TestTree);

/// Every host.
pub(crate) const ALL: [MadeUp; 9] = [
    ("desktop-one-gpu", desktop_one_gpu),
    ("desktop-two-gpus", desktop_two_gpus),
    ("twin-nics", twin_nics),
    ("laptop", laptop),
    ("no-iommu", no_iommu),
    ("no-acs", no_acs),
    ("nvme-in-use", nvme_in_use),
    ("sriov-server", sriov_server),
    ("acs-override", acs_override),
];

/// A host on which a guest could run: KVM, VFIO, memory, interrupt remapping.
fn machine(model: &str, flag: &str) -> TestTree {
    let tree = TestTree::new();
    tree.file("proc/cpuinfo", &format!("processor\t: 0\nmodel name\t: {model}\nflags\t\t: fpu msr pae {flag}\naddress sizes\t: 39 bits physical, 48 bits virtual\n"));
    tree.file("proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/nvme0n1p2 quiet\n");
    tree.file("proc/sys/kernel/osrelease", "6.12.57-amd64\n");
    tree.file(
        "proc/meminfo",
        "MemTotal:       32768000 kB\nMemFree:        20000000 kB\nMemAvailable:   24000000 kB\n",
    );
    tree.file("proc/interrupts", "            CPU0\n   8:          0   IR-IO-APIC    8-edge      rtc0\n");
    tree.file("proc/self/limits", "Limit   Soft Limit  Hard Limit  Units\nMax locked memory   8388608   8388608   bytes\nMax open files   1024   524288   files\n");
    tree.file("dev/kvm", "");
    tree.file("dev/iommu", "");
    huge_pages(&tree, 0, 0, 0);
    tree
}

/// The pool of 2 MiB pages of a node.
fn huge_pages(tree: &TestTree, node: u32, total: u32, free: u32) {
    let at = format!("sys/devices/system/node/node{node}");
    tree.file(format!("{at}/hugepages/hugepages-2048kB/nr_hugepages"), &format!("{total}\n"));
    tree.file(format!("{at}/hugepages/hugepages-2048kB/free_hugepages"), &format!("{free}\n"));
    tree.file(
        format!("{at}/meminfo"),
        &format!("Node {node} MemTotal: 32768000 kB\nNode {node} MemFree: 20000000 kB\n"),
    );
}

/// Host bridge, LPC bridge, SMBus: what every board has.
fn board(tree: &TestTree) {
    tree.pci("0000:00:00.0").ids(0x8086, 0x4660).class(0x060000).group(0).add();
    for (address, device, class, driver) in [
        ("0000:00:1f.0", 0x7a84, 0x060100, ""),
        ("0000:00:1f.3", 0x7ad0, 0x040300, "snd_hda_intel"),
        ("0000:00:1f.4", 0x7aa3, 0x0c0500, "i801_smbus"),
    ] {
        let function = tree.pci(address).ids(0x8086, device).class(class).group(12);
        if driver.is_empty() { function.add() } else { function.driver(driver).add() }
    }
}

/// A graphics card with its sound function, both in one group, behind a port of a group of its own.
fn graphics(tree: &TestTree, port: &str, bus: &str, group: u32, (vendor, card, sound): (u16, u16, u16), driver: &str) {
    let (gpu, audio) = (format!("0000:{bus}:00.0"), format!("0000:{bus}:00.1"));
    tree.pci(port).ids(0x8086, 0x460d).bridge().driver("pcieport").group(group - 1).add();
    tree.pci(&gpu).below(port).ids(vendor, card).class(0x030000).driver(driver).group(group).add();
    tree.pci(&audio).below(port).ids(vendor, sound).class(0x040300).driver("snd_hda_intel").group(group).add();
    tree.attribute(&gpu, "reset_method", "bus\n");
    for (name, text) in [
        ("current_link_speed", "16.0 GT/s PCIe\n"),
        ("current_link_width", "16\n"),
        ("max_link_speed", "16.0 GT/s PCIe\n"),
        ("max_link_width", "16\n"),
    ] {
        tree.attribute(&gpu, name, text);
    }
}

/// An NVMe drive with the root file system.
fn system_drive(tree: &TestTree, port: &str, address: &str, group: u32) {
    tree.pci(port).ids(0x8086, 0x464d).bridge().driver("pcieport").group(group - 1).add();
    tree.pci(address).below(port).ids(0x144d, 0xa80a).class(0x010802).driver("nvme").group(group).add();
    tree.attribute(address, "reset_method", "flr bus\n");
    tree.disk(address, "nvme/nvme0/nvme0n1", 2, 0);
    tree.mount(2, "/", "ext4", "/dev/nvme0n1p2");
    tree.mount(1, "/boot/efi", "vfat", "/dev/nvme0n1p1");
}

/// The interface of the default route.
fn uplink(tree: &TestTree, address: &str, name: &str) {
    tree.net(address, name);
    tree.route(name, "00000000", "00000000");
}

fn desktop_one_gpu() -> TestTree {
    let tree = machine("Intel(R) Core(TM) i7-12700K", "vmx");
    board(&tree);
    graphics(&tree, "0000:00:01.0", "01", 14, (0x10de, 0x2206, 0x1aef), "nouveau");
    tree.attribute("0000:01:00.0", "boot_vga", "1\n");
    tree.attribute("0000:01:00.0", "drm/card0/card0-DP-1/enabled", "enabled\n");
    tree.node("0000:01:00.0", "drm/card0", "dri/card0");
    tree.process(1312, "gnome-shell", &[&tree.host().dev("dri/card0")]);
    system_drive(&tree, "0000:00:06.0", "0000:02:00.0", 16);
    tree.pci("0000:03:00.0").ids(0x8086, 0x15f3).class(0x020000).driver("igc").group(17).add();
    uplink(&tree, "0000:03:00.0", "enp3s0");
    tree
}

fn desktop_two_gpus() -> TestTree {
    let tree = machine("AMD Ryzen 9 7950X 16-Core Processor", "svm");
    tree.pci("0000:00:00.0").ids(0x1022, 0x14d8).class(0x060000).group(0).add();
    graphics(&tree, "0000:00:01.1", "01", 14, (0x10de, 0x2684, 0x22ba), "vfio-pci");
    graphics(&tree, "0000:00:03.1", "0b", 21, (0x1002, 0x743f, 0xab28), "amdgpu");
    tree.attribute("0000:0b:00.0", "boot_vga", "1\n");
    tree.node("0000:0b:00.0", "drm/card0", "dri/card0");
    tree.attribute("0000:0b:00.0", "drm/card0/card0-HDMI-A-1/enabled", "enabled\n");
    tree.process(990, "Xorg", &[&tree.host().dev("dri/card0")]);
    system_drive(&tree, "0000:00:02.1", "0000:02:00.0", 16);
    tree
}

fn twin_nics() -> TestTree {
    let tree = machine("Intel(R) Xeon(R) E-2388G", "vmx");
    board(&tree);
    tree.pci("0000:00:1c.0").ids(0x8086, 0x43b8).bridge().driver("pcieport").group(4).add();
    for (address, group, name) in [("0000:04:00.0", 20, "eno1"), ("0000:04:00.1", 21, "eno2")] {
        tree.pci(address).below("0000:00:1c.0").ids(0x8086, 0x1521).driver("igb").group(group).add();
        tree.attribute(address, "reset_method", "flr pm\n");
        tree.attribute(address, "sriov_totalvfs", "7\n");
        tree.net(address, name);
    }
    tree.route("eno1", "00000000", "00000000");
    tree
}

fn laptop() -> TestTree {
    let tree = machine("11th Gen Intel(R) Core(TM) i7-1185G7", "vmx");
    board(&tree);
    tree.pci("0000:00:02.0").ids(0x8086, 0x9a49).class(0x030000).driver("i915").group(1).add();
    tree.attribute("0000:00:02.0", "boot_vga", "1\n");
    tree.node("0000:00:02.0", "drm/card0", "dri/card0");
    tree.attribute("0000:00:02.0", "drm/card0/card0-eDP-1/enabled", "enabled\n");
    tree.pci("0000:00:14.0").ids(0x8086, 0xa0ed).class(0x0c0330).driver("xhci_hcd").group(8).add();
    let controller = "0000:00:14.0";
    tree.usb(
        controller,
        "usb1",
        &[
            ("idVendor", "1d6b"),
            ("idProduct", "0002"),
            ("bDeviceClass", "09"),
            ("devnum", "1"),
            ("manufacturer", "Linux 6.12 xhci-hcd"),
            ("product", "xHCI Host Controller"),
            ("speed", "480"),
        ],
    );
    tree.usb(
        controller,
        "usb1/1-4",
        &[
            ("idVendor", "05e3"),
            ("idProduct", "0610"),
            ("bDeviceClass", "09"),
            ("product", "USB2.1 Hub"),
            ("speed", "480"),
        ],
    );
    tree.usb(
        controller,
        "usb1/1-4/1-4.1",
        &[
            ("idVendor", "046d"),
            ("idProduct", "c31c"),
            ("devnum", "3"),
            ("manufacturer", "Logitech"),
            ("product", "USB Keyboard"),
            ("speed", "1.5"),
        ],
    );
    tree.node(controller, "usb1/1-4/1-4.1/1-4.1:1.0/input/input7/event7", "input/event7");
    tree.usb(
        controller,
        "usb1/1-4/1-4.2",
        &[
            ("idVendor", "0781"),
            ("idProduct", "5581"),
            ("devnum", "4"),
            ("manufacturer", "SanDisk"),
            ("product", "Ultra"),
            ("serial", "4C530001"),
            ("speed", "480"),
        ],
    );
    tree.disk(controller, "usb1/1-4/1-4.2/1-4.2:1.0/host2/target2:0:0/2:0:0:0/block/sdb", 1, 60);
    tree.mount(61, "/media/stick", "exfat", "/dev/sdb1");
    tree.process(1188, "sway", &[&tree.host().dev("dri/card0"), &tree.host().dev("input/event7")]);
    tree.pci("0000:00:14.3").ids(0x8086, 0xa0f0).class(0x028000).driver("iwlwifi").group(9).add();
    uplink(&tree, "0000:00:14.3", "wlp0s20f3");
    system_drive(&tree, "0000:00:06.0", "0000:01:00.0", 16);
    tree
}

fn no_iommu() -> TestTree {
    let tree = machine("Intel(R) Core(TM) i5-7500", "vmx");
    tree.file("proc/interrupts", "            CPU0\n   8:          0   IO-APIC    8-edge      rtc0\n");
    tree.pci("0000:00:00.0").ids(0x8086, 0x591f).class(0x060000).add();
    tree.pci("0000:01:00.0").ids(0x10de, 0x1c03).class(0x030000).driver("nouveau").add();
    tree.pci("0000:02:00.0").ids(0x8086, 0x10d3).driver("e1000e").add();
    uplink(&tree, "0000:02:00.0", "eth0");
    tree
}

/// Ports without Access Control Services: all that is behind them is one group.
fn no_acs() -> TestTree {
    let tree = machine("Intel(R) Core(TM) i7-4790", "vmx");
    board(&tree);
    for port in ["0000:00:1c.0", "0000:00:1c.2", "0000:00:1c.3"] {
        tree.pci(port).ids(0x8086, 0x8c90).bridge().driver("pcieport").group(5).add();
    }
    tree.pci("0000:02:00.0").below("0000:00:1c.0").ids(0x10ec, 0x8168).driver("r8169").group(5).add();
    uplink(&tree, "0000:02:00.0", "enp2s0");
    tree.pci("0000:03:00.0")
        .below("0000:00:1c.2")
        .ids(0x1b21, 0x1042)
        .class(0x0c0330)
        .driver("xhci_hcd")
        .group(5)
        .add();
    tree.pci("0000:04:00.0").below("0000:00:1c.3").ids(0x1b4b, 0x9172).class(0x010601).driver("ahci").group(5).add();
    tree
}

fn nvme_in_use() -> TestTree {
    let tree = machine("AMD EPYC 4464P 12-Core Processor", "svm");
    tree.pci("0000:00:00.0").ids(0x1022, 0x14d8).class(0x060000).group(0).add();
    system_drive(&tree, "0000:00:01.1", "0000:01:00.0", 16);
    tree.pci("0000:00:01.2").ids(0x1022, 0x14db).bridge().driver("pcieport").group(17).add();
    tree.pci("0000:02:00.0").below("0000:00:01.2").ids(0x144d, 0xa80a).class(0x010802).driver("nvme").group(18).add();
    tree.attribute("0000:02:00.0", "reset_method", "flr bus\n");
    tree.disk("0000:02:00.0", "nvme/nvme1/nvme1n1", 1, 20);
    tree.mapper("nvme1n1p1", "dm-0", "vg-data", 50);
    tree.pci("0000:00:01.3").ids(0x1022, 0x14db).bridge().driver("pcieport").group(19).add();
    tree.pci("0000:03:00.0").below("0000:00:01.3").ids(0x144d, 0xa80a).class(0x010802).driver("nvme").group(20).add();
    tree.attribute("0000:03:00.0", "reset_method", "flr bus\n");
    tree.disk("0000:03:00.0", "nvme/nvme2/nvme2n1", 0, 40);
    tree
}

fn sriov_server() -> TestTree {
    let tree = machine("AMD EPYC 9354 32-Core Processor", "svm");
    huge_pages(&tree, 0, 8192, 8192);
    huge_pages(&tree, 1, 8192, 1024);
    tree.file("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "9216\n");
    tree.file("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "16384\n");
    tree.pci("0000:c0:00.0").ids(0x1022, 0x14a4).class(0x060000).group(0).add();
    tree.pci("0000:c0:01.1").ids(0x1022, 0x14ab).bridge().driver("pcieport").group(1).add();
    let card = "0000:c1:00.0";
    tree.pci(card).below("0000:c0:01.1").ids(0x8086, 0x1592).driver("ice").group(30).add();
    for (name, text) in [
        ("reset_method", "flr bus\n"),
        ("numa_node", "1\n"),
        ("sriov_totalvfs", "128\n"),
        ("sriov_numvfs", "8\n"),
        ("current_link_speed", "8.0 GT/s PCIe\n"),
        ("current_link_width", "8\n"),
        ("max_link_speed", "16.0 GT/s PCIe\n"),
        ("max_link_width", "16\n"),
    ] {
        tree.attribute(card, name, text);
    }
    uplink(&tree, card, "ens1");
    for number in 0..8u32 {
        let address = format!("0000:c1:01.{number}");
        let driver = if number < 2 { "vfio-pci" } else { "iavf" };
        tree.pci(&address).below("0000:c0:01.1").ids(0x8086, 0x1889).driver(driver).group(40 + number).add();
        tree.attribute(&address, "reset_method", "flr\n");
        tree.attribute(&address, "numa_node", "1\n");
        tree.link(tree.pci_path(&address).join("physfn"), "../0000:c1:00.0");
        tree.link(tree.pci_path(card).join(format!("virtfn{number}")), format!("../{address}"));
    }
    tree.process(4242, "passthru", &[&tree.host().group_node(40)]);
    tree
}

fn acs_override() -> TestTree {
    let tree = no_acs();
    tree.file("proc/cmdline", "BOOT_IMAGE=/vmlinuz intel_iommu=on pcie_acs_override=downstream,multifunction\n");
    tree
}
