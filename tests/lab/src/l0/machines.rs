//! The PCs that scenarios run on, as data. Every machine puts its devices behind root
//! ports at fixed slots, so that their addresses in L1 are known.

use crate::scenarios::matrix::rows::{self, Row};

/// What translates the devices' memory accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Iommu {
    /// VT-d with interrupt remapping.
    Intel,
    /// VT-d without: type1 refuses devices unless told otherwise.
    IntelWithoutRemapping,
    /// AMD-Vi.
    Amd,
    None,
}

impl Iommu {
    /// Options for L1's kernel.
    pub fn kernel_options(self) -> &'static str {
        match self {
            // Not strict: with an invalidation after each packet QEMU's VT-d lost a virtio NIC of L1's own in two runs of
            // three (docs/lab.md, traps).
            Self::Intel | Self::IntelWithoutRemapping => "intel_iommu=on iommu=nopt",
            // QEMU 10.0's AMD-Vi takes every device that is behind a bridge when the PC starts for one of bus 0, because no
            // bus has its number yet: it translates a device at 01:00.0 as it does 00:00.0. With translation for L1's
            // own drivers none of them would work, and what is passed must sit on the root bus; virtual functions come later
            // and are right. Of the page tables' sizes it knows those that a level has, not those in between.
            Self::Amd => "iommu=pt amd_iommu=v2_pgsizes_only",
            Self::None => "intel_iommu=off",
        }
    }
}

/// What a PC's time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The host's; two processors.
    Host,
    /// The instructions that its one processor has executed. Times are the same in every run, however busy the host is;
    /// it takes several times as long.
    Instructions,
}

impl Clock {
    /// Arguments for QEMU.
    pub fn arguments(self) -> &'static str {
        match self {
            Self::Host => "-accel tcg,thread=multi -smp 2",
            Self::Instructions => "-accel tcg,thread=single -smp 1 -icount shift=1,sleep=off",
        }
    }
}

/// What process 1 of L1 is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// The lab's own: it starts in a second. Nothing that L1 writes outlives it.
    Lab,
    /// systemd with udev, as on a user's machine. What L1 writes to its root outlives a reboot and a power cut; passthru is
    /// not there until its package is installed.
    Systemd,
}

/// A PC.
#[derive(Debug)]
pub struct Machine {
    /// Name for `--devices`.
    pub name: &'static str,
    /// One line for `--help`.
    pub about: &'static str,
    pub iommu: Iommu,
    pub clock: Clock,
    /// Memory of the PC, MiB.
    pub memory_mib: u64,
    /// QEMU arguments; `{drive}` stands for the drive's image.
    pub devices: &'static [&'static str],
    /// Devices of the matrix: they bring their own arguments and modules.
    pub rows: &'static [Row],
    /// Modules that L1 loads at start.
    pub modules: &'static [&'static str],
    /// Whether L1's VFIO is the one that the lab has built, with iommufd and device nodes, not Debian's.
    pub iommufd: bool,
    pub init: Init,
}

// At more than 5 GT/s Linux waits after a reset for a bit that these ports never set ("Traps" in docs/lab.md).
// Slot 1 is what QEMU gives to the PCI function of an AMD IOMMU.
const ROOT_PORT_1: &str = "-device pcie-root-port,x-speed=5,id=rp1,bus=pcie.0,addr=2,chassis=1";
const ROOT_PORT_2: &str = "-device pcie-root-port,x-speed=5,id=rp2,bus=pcie.0,addr=3,chassis=2";
const NIC: &str = "-netdev user,id=net1 -device e1000e,id=nic1,netdev=net1,bus=rp1,mac=52:54:00:00:00:01";
const DRIVE: &str = "-drive file={drive},format=raw,if=none,id=drive1,snapshot=on";
const NVME: &str = "-device nvme,id=nvme1,drive=drive1,serial=lab1,bus=rp2";
const MODULES: &[&str] = &["kvm-amd", "vfio-pci", "vfio_iommu_type1", "e1000e", "nvme"];

/// Memory of most machines: two guests of 1 GiB and the tree's working set.
const MEMORY_MIB: u64 = 3072;

/// The machine used unless another one is asked for.
pub static DEFAULT: Machine = Machine {
    name: "default",
    about: "e1000e at 01:00.0, NVMe at 02:00.0 (MSI-X table inside BAR 0)",
    iommu: Iommu::Intel,
    clock: Clock::Host,
    memory_mib: MEMORY_MIB,
    devices: &[ROOT_PORT_1, ROOT_PORT_2, NIC, DRIVE, NVME],
    rows: &[],
    modules: MODULES,
    iommufd: false,
    init: Init::Lab,
};

/// For times that can be compared.
pub static ONE_PROCESSOR: Machine = Machine {
    name: "one-processor",
    about: "as default, with one processor, whose time is the number of its instructions",
    clock: Clock::Instructions,
    ..DEFAULT
};

/// The other layout of an NVMe drive's MSI-X table.
pub static NVME_EXCLUSIVE: Machine = Machine {
    name: "nvme-exclusive",
    about: "as default, but the NVMe drive's MSI-X table has a BAR of its own",
    devices: &[
        ROOT_PORT_1,
        ROOT_PORT_2,
        NIC,
        DRIVE,
        "-device nvme,id=nvme1,drive=drive1,serial=lab1,bus=rp2,msix-exclusive-bar=on",
    ],
    ..DEFAULT
};

pub static SRIOV: Machine = Machine {
    name: "sriov",
    about: "igb with SR-IOV at 01:00.0, NVMe at 02:00.0",
    devices: &[
        ROOT_PORT_1,
        ROOT_PORT_2,
        "-netdev user,id=net1 -device igb,id=nic1,netdev=net1,bus=rp1,mac=52:54:00:00:00:01",
        DRIVE,
        NVME,
    ],
    modules: &["kvm-amd", "vfio-pci", "vfio_iommu_type1", "igb", "nvme"],
    ..DEFAULT
};

pub static SHARED_GROUP: Machine = Machine {
    name: "shared-group",
    about: "rtl8139 and Intel HD audio in one group, behind a PCIe-to-PCI bridge",
    devices: &[
        ROOT_PORT_1,
        ROOT_PORT_2,
        "-device pcie-pci-bridge,id=bridge1,bus=rp1",
        "-netdev user,id=net1 -device rtl8139,id=nic1,netdev=net1,bus=bridge1,addr=1,mac=52:54:00:00:00:01",
        "-audiodev none,id=audio1 -device ich9-intel-hda,id=hda1,bus=bridge1,addr=2 -device hda-output,audiodev=audio1,bus=hda1.0",
        DRIVE,
        NVME,
    ],
    modules: &["kvm-amd", "vfio-pci", "vfio_iommu_type1", "8139cp", "snd-hda-intel", "nvme"],
    ..DEFAULT
};

pub static MULTI_FUNCTION: Machine = Machine {
    name: "multi-function",
    about: "e1000e at 01:00.0 and rtl8139 at 01:00.1, one card with two functions",
    devices: &[
        ROOT_PORT_1,
        "-netdev user,id=net1 -device e1000e,id=nic1,netdev=net1,bus=rp1,addr=0.0,multifunction=on,mac=52:54:00:00:00:01",
        "-netdev user,id=net2 -device rtl8139,id=nic2,netdev=net2,bus=rp1,addr=0.1,mac=52:54:00:00:00:02",
    ],
    modules: &["kvm-amd", "vfio-pci", "vfio_iommu_type1", "e1000e", "8139cp"],
    ..DEFAULT
};

pub static DISPLAY: Machine = Machine {
    name: "display",
    about: "VGA at 00:05.0",
    devices: &["-device VGA,id=vga1,bus=pcie.0,addr=5"],
    modules: &["kvm-amd", "vfio-pci", "vfio_iommu_type1", "bochs"],
    ..DEFAULT
};

pub static NO_IOMMU: Machine =
    Machine { name: "no-iommu", about: "as default, without an IOMMU", iommu: Iommu::None, ..DEFAULT };

pub static NO_INTREMAP: Machine = Machine {
    name: "no-intremap",
    about: "as default, with an IOMMU that cannot remap interrupts",
    iommu: Iommu::IntelWithoutRemapping,
    ..DEFAULT
};

pub static AMD_IOMMU: Machine = Machine {
    name: "amd-iommu",
    about: "e1000e at 00:10.0, NVMe at 00:11.0, with an AMD IOMMU",
    iommu: Iommu::Amd,
    devices: &[
        "-netdev user,id=net1 -device e1000e,id=nic1,netdev=net1,bus=pcie.0,addr=10,mac=52:54:00:00:00:01",
        DRIVE,
        "-device nvme,id=nvme1,drive=drive1,serial=lab1,bus=pcie.0,addr=11",
    ],
    ..DEFAULT
};

pub static LARGE: Machine =
    Machine { name: "large", about: "as default, with 8 GiB of memory", memory_mib: 8192, ..DEFAULT };

pub static IOMMUFD: Machine =
    Machine { name: "iommufd", about: "as default, with iommufd and VFIO device nodes", iommufd: true, ..DEFAULT };

pub static AER: Machine = Machine {
    name: "aer",
    about: "as default, with a virtio NIC that can report errors (QEMU's e1000e has no error reporting to switch on)",
    devices: &[
        ROOT_PORT_1,
        ROOT_PORT_2,
        "-netdev user,id=net1 -device virtio-net-pci,id=nic1,netdev=net1,bus=rp1,mac=52:54:00:00:00:01,\
         disable-legacy=on,iommu_platform=on,aer=on",
        DRIVE,
        NVME,
    ],
    modules: &["kvm-amd", "vfio-pci", "vfio_iommu_type1", "virtio_pci", "nvme"],
    ..DEFAULT
};

/// Modules without those of any device.
const NO_DEVICES: &[&str] = &["kvm-amd", "vfio-pci", "vfio_iommu_type1"];

pub static MATRIX_NICS: Machine = Machine {
    name: "matrix-nics",
    about: "network cards of the device matrix",
    devices: &[],
    rows: rows::NICS,
    modules: NO_DEVICES,
    ..DEFAULT
};

pub static MATRIX_DRIVES: Machine = Machine {
    name: "matrix-drives",
    about: "drives of the device matrix",
    devices: &[],
    rows: rows::DRIVES,
    modules: NO_DEVICES,
    ..DEFAULT
};

pub static MATRIX_OTHERS: Machine = Machine {
    name: "matrix-others",
    about: "sound and displays of the device matrix",
    devices: &[],
    rows: rows::OTHERS,
    modules: NO_DEVICES,
    ..DEFAULT
};

pub static MATRIX_AMD: Machine = Machine {
    name: "matrix-amd-iommu",
    about: "some devices of the device matrix, with an AMD IOMMU",
    rows: rows::SUBSET_ON_ROOT,
    iommu: Iommu::Amd,
    ..MATRIX_NICS
};

/// Where its display controller is.
pub const VGA_AT: &str = "00:08.0";

pub static VGA: Machine = Machine {
    name: "vga",
    about: "as default, with a VGA controller at 00:08.0",
    devices: &[ROOT_PORT_1, ROOT_PORT_2, NIC, DRIVE, NVME, "-device VGA,id=vga1,bus=pcie.0,addr=8"],
    ..DEFAULT
};

pub static MATRIX_IOMMUFD: Machine = Machine {
    name: "matrix-iommufd",
    about: "some of the device matrix, with iommufd",
    rows: rows::SUBSET,
    iommufd: true,
    ..MATRIX_NICS
};

pub static MATRIX_NICS_IOMMUFD: Machine =
    Machine { name: "matrix-nics-iommufd", about: "as matrix-nics, with iommufd", iommufd: true, ..MATRIX_NICS };

pub static MATRIX_DRIVES_IOMMUFD: Machine =
    Machine { name: "matrix-drives-iommufd", about: "as matrix-drives, with iommufd", iommufd: true, ..MATRIX_DRIVES };

pub static MATRIX_OTHERS_IOMMUFD: Machine =
    Machine { name: "matrix-others-iommufd", about: "as matrix-others, with iommufd", iommufd: true, ..MATRIX_OTHERS };

/// Two NICs that a guest can own, each on a wire with one of the host's: what comes in on one wire reaches the other only by
/// way of a guest. And two keyboards that differ in their serial numbers alone.
pub static SERVICE: Machine = Machine {
    name: "service",
    about: "systemd; e1000e twins at 01:00.0 and 02:00.0, each wired to a virtio NIC of the host's, at 00:06.0 and 00:07.0; \
            two USB keyboards",
    init: Init::Systemd,
    devices: &[
        ROOT_PORT_1,
        ROOT_PORT_2,
        "-netdev hubport,hubid=1,id=net1 -device e1000e,id=nic1,netdev=net1,bus=rp1,mac=52:54:00:00:00:01",
        "-netdev hubport,hubid=2,id=net2 -device e1000e,id=nic2,netdev=net2,bus=rp2,mac=52:54:00:00:00:02",
        "-netdev hubport,hubid=1,id=net3 -device virtio-net-pci,id=nic3,netdev=net3,addr=6,mac=52:54:00:00:00:03",
        "-netdev hubport,hubid=2,id=net4 -device virtio-net-pci,id=nic4,netdev=net4,addr=7,mac=52:54:00:00:00:04",
        "-device qemu-xhci,id=xhci1,addr=8",
        "-device usb-kbd,bus=xhci1.0,serial=lab-a -device usb-kbd,bus=xhci1.0,serial=lab-b",
    ],
    // The others are udev's matter.
    modules: &["kvm-amd"],
    ..DEFAULT
};

/// All machines.
pub static ALL: &[&Machine] = &[
    &DEFAULT,
    &ONE_PROCESSOR,
    &NVME_EXCLUSIVE,
    &SRIOV,
    &SHARED_GROUP,
    &MULTI_FUNCTION,
    &DISPLAY,
    &NO_IOMMU,
    &NO_INTREMAP,
    &AMD_IOMMU,
    &LARGE,
    &VGA,
    &AER,
    &IOMMUFD,
    &MATRIX_NICS,
    &MATRIX_DRIVES,
    &MATRIX_OTHERS,
    &MATRIX_AMD,
    &MATRIX_IOMMUFD,
    &MATRIX_NICS_IOMMUFD,
    &MATRIX_DRIVES_IOMMUFD,
    &MATRIX_OTHERS_IOMMUFD,
    &SERVICE,
];

/// The machine of that name.
pub fn find(name: &str) -> Option<&'static Machine> {
    ALL.iter().copied().find(|m| m.name == name)
}
