//! passthru: a virtual machine monitor for x86_64 Linux/KVM whose reason to exist is device passthrough.
//!
//! | module | what |
//! |---|---|
//! | [`cli`] | the command line: one file per subcommand; [`error`] is the table of what can go wrong |
//! | [`host`] | the host before any VFIO descriptor is opened: facts, uses, bind, release, recover |
//! | [`placement`] | which of the host's CPUs and memory nodes a guest gets; pure |
//! | [`machine`] | builds a machine from options, starts it, starts it again, takes it down |
//! | [`monitor`] | the control socket: QEMU's machine protocol for a running machine |
//! | [`object`] | the grammar of `type,key=value`, `props!`, the tables of types and their help |
//! | [`memory`], [`irq`] | the guest's one memory map and its one table of interrupt routes |
//! | [`pci`], [`vfio`] | PCI Express as the guest sees it; functions of the host on it |
//! | [`virtio`], [`scsi`] | virtio devices behind their PCI transport; the disks of a SCSI host adapter |
//! | [`devices`], [`backends`] | the board's emulated devices, and where their bytes go |
//! | [`kvm`], [`cpu`], [`boot`] | the VM descriptor and vCPU threads; CPUID and topology; kernel, ACPI, entry state |
//!
//! **The path of one guest access**: the guest touches an address that KVM cannot answer, and KVM_RUN returns
//! ([`kvm`]). [`memory::Memory::read`] or `write` loads the current flat view, finds the range, and calls its
//! [`memory::IoHandler`] without holding a lock. If that was a register that moves a BAR, [`pci`] computes the new place and
//! changes the map in one transaction; KVM's slots and the IOMMU's mappings follow as listeners. An access to a mapped BAR
//! of a passed-through device never gets here: it goes to the hardware.
//!
//! docs/architecture.md has the whole story and the lock order.

pub mod backends;
pub mod bdf;
pub mod boot;
pub mod boot_trace;
pub mod cli;
pub mod cpu;
pub mod device;
pub mod devices;
pub mod error;
pub mod event_loop;
pub mod host;
pub mod irq;
pub mod kvm;
pub mod log;
pub mod machine;
pub mod memory;
pub mod monitor;
pub mod object;
pub mod pci;
pub mod pci_names;
pub mod placement;
pub mod scsi;
pub mod terminal;
pub mod vfio;
pub mod virtio;
