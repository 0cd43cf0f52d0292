//! KVM's VFIO pseudo device: tells KVM which VFIO groups or devices the guest owns, so that it honours the guest's cache
//! attributes for DMA that does not snoop (GPUs) and allows posted interrupts (Documentation/virt/kvm/devices/vfio.rst).
//!
//! The list outlives the VM: a restarted guest gets a fresh VM and a fresh pseudo device with the same groups.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::DeviceFd;
use parking_lot::Mutex;

use super::{Vm, refused};
use crate::error::Result;

/// The VFIO files that KVM knows of.
#[derive(Default)]
pub struct KvmVfio {
    /// Held over the ioctls, so that list and device never differ. No other lock is taken inside.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    vm: Option<Arc<Vm>>,
    /// Made with the first file: a machine without passthrough has none.
    device: Option<DeviceFd>,
    /// Descriptors of VFIO groups or devices. Numbers only: another open descriptor would keep the group busy.
    files: Vec<RawFd>,
}

impl KvmVfio {
    /// No VM and no files yet.
    pub fn new() -> Arc<KvmVfio> {
        Arc::default()
    }

    /// Tells a new VM about every file.
    ///
    /// # Errors
    /// [`crate::error::Code::KvmFailed`]; nothing is connected then.
    pub fn connect(&self, vm: Arc<Vm>) -> Result<()> {
        let mut state = self.state.lock();
        state.device = None;
        state.vm = Some(vm);
        for file in state.files.clone() {
            if let Err(error) = state.tell_added(file) {
                state.device = None;
                state.vm = None;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Lets go of the VM, which is about to end. The files are remembered.
    pub fn disconnect(&self) {
        let mut state = self.state.lock();
        state.device = None;
        state.vm = None;
    }

    /// Adds a VFIO group's (or VFIO device's) descriptor. The caller keeps it open until [`KvmVfio::del_group`].
    pub fn add_group(&self, file: BorrowedFd<'_>) -> Result<()> {
        let mut state = self.state.lock();
        state.tell_added(file.as_raw_fd())?;
        state.files.push(file.as_raw_fd());
        Ok(())
    }

    /// Takes a descriptor away again. Cannot fail: if KVM refuses, that is logged.
    pub fn del_group(&self, file: BorrowedFd<'_>) {
        let mut state = self.state.lock();
        let Some(index) = state.files.iter().position(|&other| other == file.as_raw_fd()) else { return };
        state.files.remove(index);
        if let Some(device) = &state.device
            && let Err(error) = set(device, KVM_DEV_VFIO_FILE_DEL, file.as_raw_fd())
        {
            crate::log::warn(format_args!("KVM did not let go of a VFIO group: {error}"));
        }
    }
}

impl State {
    fn tell_added(&mut self, file: RawFd) -> Result<()> {
        let Some(vm) = &self.vm else { return Ok(()) };
        let device = match self.device.take() {
            Some(device) => device,
            None => create(vm)?,
        };
        let told = set(&device, KVM_DEV_VFIO_FILE_ADD, file);
        self.device = Some(device);
        told.map_err(|error| refused("a VFIO group (KVM_DEV_VFIO_FILE_ADD)", error))
    }
}

fn create(vm: &Vm) -> Result<DeviceFd> {
    let mut request = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
    vm.fd
        .create_device(&mut request)
        .map_err(|error| refused("its VFIO device (KVM_CREATE_DEVICE)", error).fix("use a kernel with CONFIG_KVM_VFIO"))
}

fn set(device: &DeviceFd, change: u32, file: RawFd) -> Result<(), kvm_ioctls::Error> {
    let attribute = kvm_device_attr {
        group: KVM_DEV_VFIO_FILE,
        attr: u64::from(change),
        // The kernel reads one 32-bit descriptor there, during the call only.
        addr: std::ptr::from_ref(&file) as u64,
        flags: 0,
    };
    device.set_device_attr(&attribute)
}
