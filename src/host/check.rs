//! Which error a failed request really is.
use super::PciDevice;
use crate::error::{Code, Error};
/// No IOMMU.
pub fn no_iommu_error(device: &PciDevice, groups: usize) -> Error {
    Error::new(Code::NoIommu, format!("{} {groups}", device.bdf))
}
