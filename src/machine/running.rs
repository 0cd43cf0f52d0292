//! One start of the guest: a fresh VM descriptor with its slots, interrupt chips and vCPUs.

use std::ops::Range;
use std::sync::Arc;

use super::Machine;
use super::board::SILENT_PORTS;
use crate::boot::acpi::{AcpiInput, Tables};
use crate::boot::cpu_state::CpuState;
use crate::boot::layout::{Layout, PIO_BARS};
use crate::boot_trace::{self, phases};
use crate::devices::rtc::RTC_BASE;
use crate::error::Result;
use crate::irq::Router;
use crate::kvm::{ExitCounts, KvmDoorbells, KvmSlots, KvmVfio, VcpuSet, Vm};
use crate::memory::ram::GuestRam;
use crate::memory::{IoHandler, Listening, Space, Stage};
use crate::monitor::control::Status;
use crate::pci::assign::{self, Apertures};
use crate::pci::cf8;
use crate::pci::pages::ConfigPages;
use crate::vfio::space::Vfio;

/// A VM that runs. Dropping it stops the vCPUs and takes the VM descriptor down; memory and devices stay.
pub struct Running {
    vcpus: Option<VcpuSet>,
    pages: Option<ConfigPages>,
    slots: Option<Listening>,
    doorbells: Option<Listening>,
    vm: Arc<Vm>,
    kvm_slots: Arc<KvmSlots>,
    router: Arc<Router>,
    vfio: Arc<Vfio>,
}

impl Running {
    /// Makes a VM on the machine's memory and devices, which are in the state after power-on, loads the kernel, and lets
    /// the vCPUs run, or stand still if the machine is paused.
    pub fn start(machine: &Machine) -> Result<Running> {
        let Machine { memory, router, vfio, layout, cpus, root, .. } = machine;
        vfio.release_waiters(false);
        let vm = Vm::new(&machine.kvm)?;
        router.set_chip(vm.clone())?;
        vm.collect_writes(RTC_BASE)?;
        let hidden = (!machine.cf8.is_there()).then_some(cf8::BASE);
        for port in SILENT_PORTS.into_iter().chain(hidden) {
            vm.ignore_writes(port)?;
        }
        let kvm_slots = KvmSlots::new(vm.clone())?;
        // Each of these is undone by the drop of `running` from here on.
        let mut running = Running {
            vcpus: None,
            pages: None,
            slots: Some(memory.listen(Stage::Guest, kvm_slots.clone())?),
            doorbells: Some(memory.listen(Stage::Guest, KvmDoorbells::new(vm.clone()))?),
            vm: vm.clone(),
            kvm_slots,
            router: router.clone(),
            vfio: vfio.clone(),
        };
        vfio.set_kvm(Some(KvmVfio::new(vm.clone())))?;

        boot_trace::lap(phases::KVM);
        assign::plan(&root.nodes(), &apertures(layout))?.apply(root);
        root.route_legacy_vga();
        if machine.config_pages {
            let ecam: Arc<dyn IoHandler> = machine.ecam.clone();
            running.pages = Some(ConfigPages::show(root, memory, layout.ecam.start, &ecam)?);
        }
        let ram = GuestRam::of(&memory.view(Space::Mmio))?;
        let apic_ids: Vec<u32> = cpus.topology().apic_ids().collect();
        let tables = Tables::build(&AcpiInput {
            power_button: true,
            serial_port: machine.board.has_serial(),
            legacy_vga: root.has_legacy_vga(),
            numa: machine.numa.as_ref(),
            ..AcpiInput::new(layout, &apic_ids)
        })?;
        tables.write(ram.memory())?;
        let entry = machine.image.load(ram.memory(), layout, tables.rsdp())?;
        boot_trace::lap(phases::LOAD);
        let vcpus = VcpuSet::new(&vm, cpus, Some(&CpuState::at(entry)), memory, &machine.events)?;
        let vcpus = running.vcpus.insert(vcpus);
        if machine.status != Status::Running {
            vcpus.pause();
        }
        vcpus.on_thread_start(machine.stay.on_vcpu());
        vcpus.start()?;
        machine.stay.settle();
        boot_trace::lap(phases::ENTRY);
        boot_trace::started();
        Ok(running)
    }

    /// Makes the vCPUs stand still.
    pub fn pause(&self) {
        self.vcpus.iter().for_each(VcpuSet::pause);
    }

    /// Lets the vCPUs go on.
    pub fn resume(&self) {
        self.vcpus.iter().for_each(VcpuSet::resume);
    }

    /// Sends the first processor a non-maskable interrupt.
    ///
    /// # Errors
    /// [`crate::error::Code::KvmFailed`].
    pub fn inject_nmi(&self) -> Result<()> {
        self.vm.inject_nmi()
    }

    /// Exits to user space of this start.
    pub fn exits(&self) -> ExitCounts {
        self.vcpus.as_ref().map(VcpuSet::exits).unwrap_or_default()
    }

    /// How many memory slots are in use.
    pub fn memory_slots(&self) -> usize {
        self.kvm_slots.in_use()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A vCPU that waits for RAM to be mapped goes on without what it waited for, and stops.
        self.vfio.release_waiters(true);
        // The order that crate::kvm asks for. Stopped and joined first.
        self.vcpus = None;
        self.pages = None;
        self.doorbells = None;
        self.slots = None;
        if let Err(error) = self.vfio.set_kvm(None) {
            crate::log::warn(format_args!("{error}"));
        }
        self.router.clear_chip();
    }
}

/// The largest of each kind of window.
fn apertures(layout: &Layout) -> Apertures {
    let largest = |ranges: &[Range<u64>]| ranges.iter().max_by_key(|range| range.end - range.start).cloned();
    Apertures {
        io: u64::from(PIO_BARS.start)..u64::from(PIO_BARS.end),
        low: largest(&layout.mmio32).unwrap_or_default(),
        high: largest(&layout.mmio64).unwrap_or_default(),
    }
}
