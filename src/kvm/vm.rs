//! One VM descriptor with the interrupt chips that KVM emulates: two 8259s, an IOAPIC, local APICs and a PIT.

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting, kvm_irq_routing_entry, kvm_msi, kvm_pit_config,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Kvm, refused};
use crate::boot::layout::LOCAL_APIC;
use crate::error::{Error, Result};
use crate::irq::{IrqChip, MsiMessage, Route, Target};

/// Where KVM on Intel keeps three pages that it needs to run real-mode code. The address map must leave them out.
pub const TSS_ADDRESS: u64 = 0xfffb_d000;
/// Where KVM on Intel keeps the page table for guests without paging.
pub const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// All of KVM's own pages: the identity map and the TSS, 16 KiB in all.
pub const KVM_PAGES: std::ops::Range<u64> = IDENTITY_MAP_ADDRESS..TSS_ADDRESS + 0x3000;

/// Delivery mode 100b of a message's data: NMI, whatever the vector.
const DELIVER_NMI: u32 = 0b100 << 8;

/// A virtual machine in the kernel. It ends when the last owner and the last vCPU are gone.
pub struct Vm {
    pub(super) fd: VmFd,
    slots: u32,
}

impl Vm {
    /// A VM without memory and without vCPUs.
    ///
    /// # Errors
    /// [`crate::error::Code::KvmFailed`] with the request that was refused.
    pub fn new(kvm: &Kvm) -> Result<Arc<Vm>> {
        let fd = loop {
            match kvm.fd.create_vm() {
                // A signal during the creation, such as a change of the terminal's size: try again.
                Err(error) if error.errno() == libc::EINTR => {}
                other => break other.map_err(|error| refused("a new VM (KVM_CREATE_VM)", error))?,
            }
        };
        // Intel needs both before the first vCPU, and the identity map before the chips on some kernels; AMD ignores them.
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(|error| refused("the identity map's address (KVM_SET_IDENTITY_MAP_ADDR)", error))?;
        fd.set_tss_address(TSS_ADDRESS as usize)
            .map_err(|error| refused("the TSS's address (KVM_SET_TSS_ADDR)", error))?;
        fd.create_irq_chip().map_err(|error| refused("the interrupt chips (KVM_CREATE_IRQCHIP)", error))?;
        // The dummy answers port 0x61, which kernels read to calibrate the TSC, without an exit.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(|error| refused("the interval timer (KVM_CREATE_PIT2)", error))?;
        Ok(Arc::new(Vm { fd, slots: kvm.slots() }))
    }

    /// How many memory slots the VM can have.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Lets writes that begin at `port` do nothing, without an exit to user space: for a port whose writes nobody hears.
    ///
    /// # Errors
    /// [`crate::error::Code::KvmFailed`] with the request that was refused.
    pub fn ignore_writes(&self, port: u16) -> Result<()> {
        // KVM signals an eventfd instead of leaving the guest, and keeps its own reference to it.
        let nobody =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|error| Error::system("make an eventfd", &error))?;
        self.fd
            .register_ioevent(&nobody, &IoEventAddress::Pio(port.into()), NoDatamatch)
            .map_err(|error| refused("to ignore writes to a port (KVM_IOEVENTFD)", error))
    }

    /// Sends the processor with APIC id 0 a non-maskable interrupt, as a message that names one (Intel SDM, volume 3, "Message
    /// Data Register Format"). The others have it masked by LINT1 in all systems of today.
    ///
    /// # Errors
    /// [`crate::error::Code::KvmFailed`] with the request that was refused.
    pub fn inject_nmi(&self) -> Result<()> {
        let message = kvm_msi { address_lo: LOCAL_APIC.start as u32, data: DELIVER_NMI, ..Default::default() };
        self.fd
            .signal_msi(message)
            .map(drop)
            .map_err(|error| refused("a non-maskable interrupt (KVM_SIGNAL_MSI)", error))
    }

    /// Collects byte writes to `port` in KVM's ring until the next port access that leaves the guest, which sees them
    /// first: for an index register that has no effect of its own.
    ///
    /// # Errors
    /// [`crate::error::Code::KvmFailed`] with the request that was refused.
    pub fn collect_writes(&self, port: u16) -> Result<()> {
        self.fd
            .register_coalesced_mmio(IoEventAddress::Pio(port.into()), 1)
            .map_err(|error| refused("to collect writes to a port (KVM_REGISTER_COALESCED_MMIO)", error))
    }
}

impl IrqChip for Vm {
    fn set_level(&self, gsi: u32, high: bool) -> io::Result<()> {
        Ok(self.fd.set_irq_line(gsi, high)?)
    }

    fn commit_routes(&self, routes: &[Route]) -> io::Result<()> {
        let entries: Vec<kvm_irq_routing_entry> = routes.iter().map(entry).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(self.fd.set_gsi_routing(&table)?)
    }

    fn attach(&self, gsi: u32, fd: &EventFd, resample: Option<&EventFd>) -> io::Result<()> {
        match resample {
            None => self.fd.register_irqfd(fd, gsi)?,
            Some(resample) => self.fd.register_irqfd_with_resample(fd, resample, gsi)?,
        }
        Ok(())
    }

    fn detach(&self, gsi: u32, fd: &EventFd) -> io::Result<()> {
        Ok(self.fd.unregister_irqfd(fd, gsi)?)
    }
}

/// A route as KVM_SET_GSI_ROUTING wants it.
fn entry(route: &Route) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi: route.gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    match route.target {
        Target::Pic { chip, pin } => {
            entry.u.irqchip.irqchip = if chip == 0 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
            entry.u.irqchip.pin = pin;
        }
        Target::IoApic { pin } => {
            entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
            entry.u.irqchip.pin = pin;
        }
        Target::Msi(MsiMessage { address, data }) => {
            entry.type_ = KVM_IRQ_ROUTING_MSI;
            entry.u.msi.address_lo = address as u32;
            entry.u.msi.address_hi = (address >> 32) as u32;
            entry.u.msi.data = data;
        }
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::{GSI_COUNT, IOAPIC_PINS, pin_routes};

    #[test]
    fn routes_are_translated() {
        let pin = |target| {
            let entry = entry(&Route { gsi: 9, target });
            assert_eq!((entry.gsi, entry.type_), (9, KVM_IRQ_ROUTING_IRQCHIP));
            // SAFETY: the type says that the entry is of the kind with a chip and a pin.
            let irqchip = unsafe { entry.u.irqchip };
            (irqchip.irqchip, irqchip.pin)
        };
        assert_eq!(pin(Target::Pic { chip: 0, pin: 7 }), (KVM_IRQCHIP_PIC_MASTER, 7));
        assert_eq!(pin(Target::Pic { chip: 1, pin: 1 }), (KVM_IRQCHIP_PIC_SLAVE, 1));
        assert_eq!(pin(Target::IoApic { pin: 23 }), (KVM_IRQCHIP_IOAPIC, 23));
        let msi = entry(&Route { gsi: 30, target: Target::Msi(MsiMessage { address: 0x1_fee0_1000, data: 0x4021 }) });
        assert_eq!((msi.gsi, msi.type_), (30, KVM_IRQ_ROUTING_MSI));
        // SAFETY: the type says that the entry is a message.
        let message = unsafe { msi.u.msi };
        assert_eq!((message.address_lo, message.address_hi, message.data), (0xfee0_1000, 1, 0x4021));
    }

    #[test]
    fn the_largest_table_has_room() {
        let vectors = (GSI_COUNT - IOAPIC_PINS) as usize;
        assert!(pin_routes().len() + vectors <= kvm_bindings::KVM_MAX_IRQ_ROUTES);
    }
}
