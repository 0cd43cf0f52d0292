//! KVM: the VM descriptor with its interrupt chips, the memory slots, and the vCPU threads with their run loop.
//!
//! The guest's restart is a fresh [`Vm`] beside the kept memory and VFIO container, so every type here can be dropped
//! and made again in one process. The order of an end: stop and join the [`VcpuSet`]; take what was posted to
//! [`VmEvents`] meanwhile; drop the `Listening` of doorbells and slots; let go of the [`KvmVfio`]; `Router::clear_chip`; drop the last
//! `Arc<Vm>`. Only then may a new chip be connected: while the old descriptor lives its irqfds would take the new one's
//! interrupts.
//!
//! Everything follows Linux Documentation/virt/kvm/api.rst.

pub mod doorbells;
pub mod events;
mod exits;
mod gate;
mod kick;
mod run;
pub mod slots;
mod start;
pub mod system;
mod vcpu;
mod vcpus;
pub mod vfio;
pub mod vm;

pub use doorbells::KvmDoorbells;
pub use events::{VmEvent, VmEvents};
pub use exits::ExitCounts;
pub use slots::KvmSlots;
pub use system::Kvm;
pub use vcpus::VcpuSet;
pub use vfio::KvmVfio;
pub use vm::Vm;

use crate::error::{Code, Error};

/// What KVM answered to an ioctl that should have succeeded.
fn refused(request: &str, error: kvm_ioctls::Error) -> Error {
    Error::new(Code::KvmFailed, format!("KVM refused {request}")).evidence(crate::error::explain_io(&error.into()))
}
