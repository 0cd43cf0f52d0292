//! Descriptors of VFIO that came with the process: the node of a device, and of /dev/iommu.

use std::fs::File;
use std::os::fd::RawFd;
use std::path::Path;

use crate::bdf::Bdf;
use crate::error::Result;
use crate::host::Host;
use crate::host::inherited::{bad, device_folder, take};

/// The PCI device whose node the process was given as descriptor `number`.
///
/// # Errors
/// [`crate::error::Code::BadDescriptor`] if it is anything else.
pub fn device_of(host: &Host, number: RawFd) -> Result<Bdf> {
    const WANTED: &str = "the node of a VFIO device, such as /dev/vfio/devices/vfio0";
    let at = device_folder(host, number, WANTED)?;
    device_in(&at).ok_or_else(|| bad(number, WANTED).evidence(format!("it is {}", at.display())))
}

/// Takes the node of a device, which [`device_of`] has found descriptor `number` to be.
///
/// # Errors
/// [`crate::error::Code::BadDescriptor`].
pub fn take_device(host: &Host, number: RawFd) -> Result<File> {
    device_of(host, number)?;
    take(number)
}

/// Takes descriptor `number`, an open /dev/iommu.
///
/// # Errors
/// [`crate::error::Code::BadDescriptor`] if it is anything else.
pub fn take_iommufd(host: &Host, number: RawFd) -> Result<File> {
    const WANTED: &str = "an open /dev/iommu";
    let at = device_folder(host, number, WANTED)?;
    if at.file_name().is_none_or(|name| name != "iommu") {
        return Err(bad(number, WANTED).evidence(format!("it is {}", at.display())));
    }
    take(number)
}

/// The function whose folder has the folder of a VFIO device: `.../0000:01:00.0/vfio-dev/vfio0`.
fn device_in(folder: &Path) -> Option<Bdf> {
    let class = folder.parent().filter(|class| class.file_name().is_some_and(|name| name == "vfio-dev"))?;
    class.parent()?.file_name()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;
    use crate::error::Code;

    /// /dev/null, as if the process had been started with it.
    fn given(path: &str) -> OwnedFd {
        let fd = OwnedFd::from(File::open(path).unwrap());
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        fd
    }

    #[test]
    fn a_number_is_not_believed() {
        let host = Host::real();
        let table: [(OwnedFd, &str); 3] = [
            (given("/dev/null"), "/null"),
            (given("/proc/self/stat"), "no character device"),
            (File::open("/dev/null").unwrap().into(), "was not started with it"),
        ];
        for (fd, why) in &table {
            for error in [
                device_of(&host, fd.as_raw_fd()).unwrap_err(),
                take_device(&host, fd.as_raw_fd()).unwrap_err(),
                take_iommufd(&host, fd.as_raw_fd()).unwrap_err(),
            ] {
                assert_eq!(error.code(), Code::BadDescriptor);
                assert!(error.to_string().contains(why), "{error}");
            }
        }
        for (number, why) in [(-1, "standard"), (0, "standard"), (2, "standard"), (1 << 20, "EBADF")] {
            let error = take_iommufd(&host, number).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn a_vfio_device_lies_in_its_function() {
        let folder = |path: &str| device_in(Path::new(path)).map(|bdf| bdf.to_string());
        assert_eq!(folder("/sys/devices/pci0000:00/0000:00:02.0/0000:01:00.0/vfio-dev/vfio7").unwrap(), "0000:01:00.0");
        assert_eq!(folder("/sys/devices/virtual/misc/iommu"), None);
        assert_eq!(folder("/sys/devices/pci0000:00/0000:00:02.0/net/eth0"), None);
    }
}
