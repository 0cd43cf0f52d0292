//! What the guest's processors look like: their number and arrangement ([`topology`]), what `--cpu` asks for
//! ([`model`]), and the CPUID leaves that say so ([`cpuid`]). Pure: KVM's offer comes in as data, a [`CpuPlan`] goes out.

pub mod cpuid;
pub mod features;
pub mod model;
pub mod topology;

pub use cpuid::{CpuPlan, HostCpu, Vendor};
pub use model::{Model, Switch};
pub use topology::{SmpRequest, Topology};
