//! Descriptors that came with the process (`fd=N`): a helper that may open a node opens it, and passthru needs no right
//! to. What such a number is said to be is checked before it is believed.

use std::fs::File;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};
use crate::host::Host;

/// Standard input, output and error are not for devices.
const FIRST: RawFd = 3;

/// The PCI device whose node the process was given as descriptor `number`.
///
/// # Errors
/// [`Code::BadDescriptor`] if it is anything else.
pub fn device_of(host: &Host, number: RawFd) -> Result<Bdf> {
    const WANTED: &str = "the node of a VFIO device, such as /dev/vfio/devices/vfio0";
    let at = device_folder(host, number, WANTED)?;
    device_in(&at).ok_or_else(|| bad(number, WANTED).evidence(format!("it is {}", at.display())))
}

/// Takes the node of a device, which [`device_of`] has found descriptor `number` to be.
///
/// # Errors
/// [`Code::BadDescriptor`].
pub fn take_device(host: &Host, number: RawFd) -> Result<File> {
    device_of(host, number)?;
    take(number)
}

/// Takes descriptor `number`, an open /dev/iommu.
///
/// # Errors
/// [`Code::BadDescriptor`] if it is anything else.
pub fn take_iommufd(host: &Host, number: RawFd) -> Result<File> {
    const WANTED: &str = "an open /dev/iommu";
    let at = device_folder(host, number, WANTED)?;
    if at.file_name().is_none_or(|name| name != "iommu") {
        return Err(bad(number, WANTED).evidence(format!("it is {}", at.display())));
    }
    take(number)
}

fn bad(number: RawFd, wanted: &str) -> Error {
    Error::new(Code::BadDescriptor, format!("descriptor {number} is not {wanted}"))
}

/// The folder in sysfs of the character device behind a descriptor that the process was started with.
fn device_folder(host: &Host, number: RawFd, wanted: &str) -> Result<PathBuf> {
    if number < FIRST {
        return Err(bad(number, wanted).evidence("0, 1 and 2 are the standard input, output and error"));
    }
    // SAFETY: the borrow ends with the call, which fails on a number that is not open.
    let flags = fcntl(unsafe { BorrowedFd::borrow_raw(number) }, FcntlArg::F_GETFD)
        .map_err(|error| bad(number, wanted).evidence(explain_io(&error.into())))?;
    // A descriptor that has outlived exec(2) does not have the flag; all of passthru's own have it, and those that were
    // taken before.
    if FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC) {
        return Err(bad(number, wanted).evidence("passthru was not started with it, or has taken it already"));
    }
    let node = std::fs::metadata(host.proc(format!("self/fd/{number}")))
        .map_err(|error| bad(number, wanted).evidence(explain_io(&error)))?;
    if !node.file_type().is_char_device() {
        return Err(bad(number, wanted).evidence("it is no character device"));
    }
    let (major, minor) = (nix::sys::stat::major(node.rdev()), nix::sys::stat::minor(node.rdev()));
    let link = host.sys(format!("dev/char/{major}:{minor}"));
    std::fs::canonicalize(&link)
        .map_err(|error| bad(number, wanted).evidence(format!("{}: {}", link.display(), explain_io(&error))))
}

/// The function whose folder has the folder of a VFIO device: `.../0000:01:00.0/vfio-dev/vfio0`.
fn device_in(folder: &Path) -> Option<Bdf> {
    let class = folder.parent().filter(|class| class.file_name().is_some_and(|name| name == "vfio-dev"))?;
    class.parent()?.file_name()?.to_str()?.parse().ok()
}

/// Makes the process's descriptor `number`, which has been looked at, a file that closes it.
fn take(number: RawFd) -> Result<File> {
    // SAFETY: the descriptor came with the process, for this option alone: no other part of passthru has opened it or
    // will take it, because from here on it has the flag that `device_folder` refuses.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .map_err(|error| Error::system(format!("take descriptor {number}"), &error.into()))?;
    Ok(fd.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

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
    fn a_descriptor_is_taken_once() {
        let number = given("/dev/null").into_raw_fd();
        let file = take(number).unwrap();
        assert_eq!(file.as_raw_fd(), number);
        let again = device_of(&Host::real(), number).unwrap_err();
        assert!(again.to_string().contains("taken it already"), "{again}");
    }

    #[test]
    fn a_vfio_device_lies_in_its_function() {
        let folder = |path: &str| device_in(Path::new(path)).map(|bdf| bdf.to_string());
        assert_eq!(folder("/sys/devices/pci0000:00/0000:00:02.0/0000:01:00.0/vfio-dev/vfio7").unwrap(), "0000:01:00.0");
        assert_eq!(folder("/sys/devices/virtual/misc/iommu"), None);
        assert_eq!(folder("/sys/devices/pci0000:00/0000:00:02.0/net/eth0"), None);
    }
}
