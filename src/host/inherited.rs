//! Descriptors that came with the process (`fd=N`): a helper that may open a node opens it, and passthru needs no right
//! to. What such a number is said to be is checked before it is believed.

use std::fs::File;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::Host;
use crate::error::{Code, Error, Result, explain_io};

/// Standard input, output and error are not for devices.
const FIRST: RawFd = 3;

/// Descriptor `number` is not what was wanted.
pub fn bad(number: RawFd, wanted: &str) -> Error {
    Error::new(Code::BadDescriptor, format!("descriptor {number} is not {wanted}"))
}

/// The folder in sysfs of the character device behind a descriptor that the process was started with.
///
/// # Errors
/// [`Code::BadDescriptor`] if it is anything else, or was taken already. `wanted`: what it should be, for people.
pub fn device_folder(host: &Host, number: RawFd, wanted: &str) -> Result<PathBuf> {
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

/// Makes the process's descriptor `number`, which [`device_folder`] has looked at, a file that closes it.
///
/// # Errors
/// [`Code::SystemFailed`].
pub fn take(number: RawFd) -> Result<File> {
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

    #[test]
    fn a_descriptor_is_taken_once() {
        let fd = OwnedFd::from(File::open("/dev/null").unwrap());
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let number = fd.into_raw_fd();
        let host = Host::real();
        assert!(device_folder(&host, number, "a tap").unwrap().ends_with("null"));
        let file = take(number).unwrap();
        assert_eq!(file.as_raw_fd(), number);
        let again = device_folder(&host, number, "a tap").unwrap_err();
        assert!(again.to_string().contains("taken it already"), "{again}");
    }
}
