//! The tables of types: what `-M` and `--device` choose from, and what `help` is made of.

use super::back_ends::ObjectCommon;
use crate::backends::block::{BLOCKDEVS, throttle};
use crate::backends::chardev::CHARDEVS;
use crate::backends::memory::{self, MemoryRef};
use crate::backends::net::NETDEVS;
use crate::backends::{entropy, iothread};
use crate::device::{Cx, ObjectCx, PCI, Plug};
use crate::devices::{e1000e, i6300esb, ivshmem, nvme, pvpanic, serial};
use crate::error::Result;
use crate::object::{Catalogue, Common, Create, Kind, PciPlace, Props, Registry, TypeInfo, prop_enum, props};
use crate::{pci, scsi, vfio, virtio};

/// The names without their bus, which QEMU has for these devices as well.
const ALIASES: &[(&str, &str)] = &[
    ("virtio-balloon", "virtio-balloon-pci"),
    ("virtio-blk", "virtio-blk-pci"),
    ("virtio-mem", "virtio-mem-pci"),
    ("virtio-net", "virtio-net-pci"),
    ("virtio-pmem", "virtio-pmem-pci"),
    ("virtio-rng", "virtio-rng-pci"),
    ("virtio-scsi", "virtio-scsi-pci"),
    ("virtio-serial", "virtio-serial-pci"),
];

/// The device types of `--device`, grouped as help lists them.
pub static DEVICES: Registry<Plug, Cx> = Registry {
    what: "device type",
    option: "--device",
    key: "driver",
    common: Common::TABLE,
    on_bus: &[(PCI, PciPlace::TABLE)],
    aliases: ALIASES,
    types: &[
        &pci::root_port::TYPE,
        &pci::pcie_pci_bridge::TYPE,
        &vfio::front_end::TYPE,
        &virtio::blk::TYPE,
        &virtio::scsi::TYPE,
        &scsi::DISK,
        &scsi::CD,
        &nvme::TYPE,
        &nvme::NAMESPACE,
        &virtio::pmem::TYPE,
        &virtio::net::TYPE,
        &e1000e::TYPE,
        &virtio::rng::TYPE,
        &virtio::balloon::TYPE,
        &virtio::mem::TYPE,
        &virtio::vhost::user::types::RNG,
        &virtio::vhost::user::types::BLK,
        &virtio::vhost::user::types::SCSI_ADAPTER,
        &virtio::vhost::user::types::FS,
        &virtio::vhost::user::types::VSOCK,
        &virtio::vhost::user::types::GPIO,
        &virtio::vhost::user::types::I2C,
        &virtio::vhost::user::types::INPUT_DEVICE,
        &virtio::vhost::user::types::SOUND,
        &virtio::vhost::user::types::SCMI,
        &ivshmem::TYPE,
        &pvpanic::TYPE,
        &i6300esb::TYPE,
        &serial::isa::TYPE,
        &serial::pci::TYPE,
        &virtio::serial::TYPE,
        &virtio::serial::CONSOLE,
        &virtio::serial::PORT,
    ],
};

/// The object types of `--object`.
pub static OBJECTS: Registry<(), ObjectCx> = Registry {
    what: "object type",
    option: "--object",
    key: "qom-type",
    common: ObjectCommon::TABLE,
    on_bus: &[],
    aliases: &[],
    types: &[
        &vfio::object::TYPE,
        &memory::RAM,
        &memory::FILE,
        &memory::MEMFD,
        &throttle::GROUP,
        &entropy::RANDOM,
        &entropy::BUILTIN,
        &iothread::TYPE,
    ],
};

/// The types that the option of a kind of back end or object chooses from.
pub fn back_ends(kind: Kind) -> &'static dyn Catalogue {
    match kind {
        Kind::Object => &OBJECTS,
        Kind::Chardev => &CHARDEVS,
        Kind::Node => &BLOCKDEVS,
        Kind::Netdev => &NETDEVS,
    }
}

/// The machine types of `-M`.
pub static MACHINES: Registry<Q35, ()> = Registry {
    what: "machine type",
    option: "-M",
    key: "type",
    common: &[],
    on_bus: &[],
    aliases: &[],
    types: &[&Q35_TYPE],
};

static Q35_TYPE: TypeInfo<Q35, ()> = TypeInfo::of::<Q35Type>();

props! {
    /// PC with PCI Express: bus pcie.0, ACPI, no firmware.
    pub struct Q35 {
        /// Offer configuration mechanism 1 (ports 0xcf8 and 0xcfc) beside the ECAM, which takes half of the exits
        cf8: bool = "off",
        /// Let the guest read configuration space without an exit, of passed-through functions until a driver uses them
        #[name = "config-pages"]
        config_pages: bool = "on",
        /// When guest memory is mapped for DMA: auto, while the guest boots, until it lets a device master the bus; sync,
        /// before it starts
        #[name = "dma-map"]
        dma_map: DmaMap = "auto",
        /// The object that is the guest's memory, whose size is that of -m
        #[name = "memory-backend"]
        memory_backend: Option<MemoryRef>,
        /// What runs the guest's instructions, as QEMU command lines have it: there is KVM alone
        accel: Accel = "kvm",
        /// QEMU's word, as the three after it: the machine has no USB controller of its own
        usb: Absent = "off",
        /// No port of VMware's
        vmport: Absent = "off",
        /// No system management mode
        smm: Absent = "off",
        /// No HPET
        hpet: Absent = "off",
        /// Let a core dump of passthru have the guest's memory in it
        #[name = "dump-guest-core"]
        dump_guest_core: bool = "on",
        /// Let the host join equal pages of the guest's memory with others' (KSM); what a passed-through device has pinned
        /// it leaves alone
        #[name = "mem-merge"]
        mem_merge: bool = "off",
        /// Who has the interrupt controllers, as QEMU command lines have it: KVM has all of them
        #[name = "kernel-irqchip"]
        kernel_irqchip: Irqchip = "on",
    }
}

prop_enum! {
    /// A part that the machine does not have.
    pub enum Absent {
        /// It is not there.
        Off = "off",
    }
}

prop_enum! {
    /// Who has the interrupt controllers.
    pub enum Irqchip {
        /// KVM.
        On = "on",
    }
}

prop_enum! {
    /// What runs the guest's instructions.
    pub enum Accel {
        /// The host's processor.
        Kvm = "kvm",
    }
}

prop_enum! {
    /// When guest memory is mapped for DMA. One choice for the machine, because all devices share the mappings.
    pub enum DmaMap {
        /// While the guest boots; bus mastering waits for it.
        Auto = "auto",
        /// Before the vCPUs start.
        Sync = "sync",
    }
}

struct Q35Type;

impl Create<Q35, ()> for Q35Type {
    const NAME: &'static str = "q35";
    const GROUP: &'static str = "Machines";
    type Props = Q35;

    fn create(props: Q35, (): &()) -> Result<Q35> {
        let (Accel::Kvm, Irqchip::On) = (props.accel, props.kernel_irqchip);
        Ok(props)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::testing::check_registry;

    #[test]
    fn the_tables_are_sound() {
        check_registry(&DEVICES);
        check_registry(&MACHINES);
        check_registry(&OBJECTS);
    }
}
