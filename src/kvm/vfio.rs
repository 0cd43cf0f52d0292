//! KVM's VFIO pseudo device: tells KVM which VFIO groups or devices the guest owns, so that it honours the guest's cache
//! attributes for DMA that does not snoop (GPUs) and allows posted interrupts (Documentation/virt/kvm/devices/vfio.rst).

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
use crate::vfio::seams::GroupSink;

/// The list of one VM. It ends with the VM: a guest that starts again gets a fresh one.
pub struct KvmVfio {
    vm: Arc<Vm>,
    /// Made with the first file: a machine without passthrough has none. Held over the ioctls.
    device: Mutex<Option<DeviceFd>>,
}

impl KvmVfio {
    /// The list of `vm`, empty.
    pub fn new(vm: Arc<Vm>) -> Arc<KvmVfio> {
        Arc::new(KvmVfio { vm, device: Mutex::new(None) })
    }
}

impl GroupSink for KvmVfio {
    fn add_group(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let mut device = self.device.lock();
        let device = match &mut *device {
            Some(device) => device,
            none => none.insert(create(&self.vm)?),
        };
        set(device, KVM_DEV_VFIO_FILE_ADD, fd.as_raw_fd())
            .map_err(|error| refused("a VFIO group (KVM_DEV_VFIO_FILE_ADD)", error))
    }

    fn del_group(&self, fd: BorrowedFd<'_>) {
        if let Some(device) = &*self.device.lock()
            && let Err(error) = set(device, KVM_DEV_VFIO_FILE_DEL, fd.as_raw_fd())
        {
            crate::log::warn(format_args!("KVM did not let go of a VFIO group: {error}"));
        }
    }
}

fn create(vm: &Vm) -> Result<DeviceFd> {
    let mut request = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
    vm.fd
        .create_device(&mut request)
        .map_err(|error| refused("its VFIO device (KVM_CREATE_DEVICE)", error).fix("use a kernel with CONFIG_KVM_VFIO"))
}

fn set(device: &DeviceFd, change: u32, file: RawFd) -> std::result::Result<(), kvm_ioctls::Error> {
    let attribute = kvm_device_attr {
        group: KVM_DEV_VFIO_FILE,
        attr: u64::from(change),
        // The kernel reads one 32-bit descriptor there, during the call only.
        addr: std::ptr::from_ref(&file) as u64,
        flags: 0,
    };
    device.set_device_attr(&attribute)
}
