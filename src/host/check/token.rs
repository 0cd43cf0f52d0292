//! The errors of the token that a physical function and its virtual functions share (kernel: `vfio_pci_core_match`).

use std::io;

use super::VfioStep;
use crate::bdf::Bdf;
use crate::error::{Code, Error, explain_io};
use crate::host::Host;

/// What a device is to the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A virtual function whose physical function VFIO has as well.
    Virtual(Bdf),
    /// A physical function.
    Physical,
    /// Anything else: it has no token.
    None,
}

/// The error for a device that VFIO refused at `step` because of a token, `given` or not; `None` if the cause is another.
pub fn token_error(step: VfioStep, answer: &io::Error, device: Bdf, role: Role, given: bool) -> Option<Error> {
    let errno = answer.raw_os_error().unwrap_or(0);
    let seen = format!("{}: {}", step.request(), explain_io(answer));
    let error = match (step, errno, role) {
        (VfioStep::GetDevice | VfioStep::BindIommufd, libc::EACCES, Role::Virtual(physfn)) if given => {
            Error::new(Code::VfToken, format!("{device} has another token"))
                .evidence(format!("its physical function {physfn} is on vfio-pci, too, and whoever opened that set it"))
                .fix(format!("give {device} and {physfn} the same vf-token="))
        }
        (VfioStep::GetDevice | VfioStep::BindIommufd, libc::EACCES, Role::Virtual(physfn)) => {
            Error::new(Code::VfToken, format!("{device} needs a token"))
                .evidence(format!("its physical function {physfn} is on vfio-pci, too"))
                .fix(format!(
                    "add vf-token= with the UUID that {physfn} was opened with; or give that back to its host driver: \
                     `passthru release {physfn}`"
                ))
        }
        (VfioStep::GetDevice | VfioStep::BindIommufd, libc::EACCES, Role::Physical) => {
            let cause = if given { "has another token" } else { "needs a token" };
            Error::new(Code::VfToken, format!("{device} {cause}"))
                .evidence("some of its virtual functions are in use with the token that it had before")
                .fix("write the same vf-token= as they have, or stop the guests that have them")
        }
        (VfioStep::GetDevice | VfioStep::BindIommufd, libc::EINVAL, Role::None) if given => {
            Error::new(Code::VfTokenUnused, format!("{device} has no token"))
                .evidence("it is neither a physical function nor a virtual one whose physical function is on vfio-pci")
                .fix("leave out vf-token=")
        }
        (VfioStep::BindIommufd, libc::EINVAL, _) if given => {
            Error::new(Code::VfTokenIommufd, format!("the kernel's iommufd takes no token for {device}"))
                .fix("use iommu=type1, or a kernel from Linux 6.17 on")
        }
        _ => return None,
    };
    Some(error.evidence(seen))
}

impl Host {
    /// As [`token_error`]; looks at what the device is.
    pub fn token_error(&self, bdf: Bdf, step: VfioStep, answer: &io::Error, given: bool) -> Option<Error> {
        let device = self.device(bdf).ok()?;
        // iommufd says EINVAL of a device that somebody else has bound, too.
        if step == VfioStep::BindIommufd && !self.holders(&device).processes.is_empty() {
            return None;
        }
        let role = match device.physfn {
            Some(physfn) if self.device(physfn).is_ok_and(|it| it.on_vfio()) => Role::Virtual(physfn),
            None if self.device_path(bdf).join("sriov_numvfs").exists() => Role::Physical,
            _ => Role::None,
        };
        token_error(step, answer, bdf, role, given)
    }
}

#[cfg(test)]
#[allow(clippy::type_complexity, reason = "tables")]
mod tests {
    use super::*;
    use crate::host::testtree::TestTree;

    fn errno(number: i32) -> io::Error {
        io::Error::from_raw_os_error(number)
    }

    #[test]
    fn step_answer_and_role_give_the_error() {
        use VfioStep::{AttachIoas, BindIommufd, GetDevice, OpenGroup};
        let virtual_one = Role::Virtual("0000:01:00.0".parse().unwrap());
        let table: [(VfioStep, i32, Role, bool, Option<(Code, &str)>); 14] = [
            (GetDevice, libc::EACCES, virtual_one, false, Some((Code::VfToken, "needs a token"))),
            (GetDevice, libc::EACCES, virtual_one, true, Some((Code::VfToken, "has another token"))),
            (BindIommufd, libc::EACCES, virtual_one, false, Some((Code::VfToken, "`passthru release 0000:01:00.0`"))),
            (GetDevice, libc::EACCES, Role::Physical, false, Some((Code::VfToken, "needs a token"))),
            (GetDevice, libc::EACCES, Role::Physical, true, Some((Code::VfToken, "has another token"))),
            (GetDevice, libc::EACCES, Role::None, false, None),
            (GetDevice, libc::EINVAL, Role::None, true, Some((Code::VfTokenUnused, "leave out vf-token="))),
            (GetDevice, libc::EINVAL, Role::None, false, None),
            (BindIommufd, libc::EINVAL, Role::None, true, Some((Code::VfTokenUnused, "(EINVAL)"))),
            (BindIommufd, libc::EINVAL, virtual_one, true, Some((Code::VfTokenIommufd, "iommu=type1"))),
            (BindIommufd, libc::EINVAL, virtual_one, false, None),
            (BindIommufd, libc::EPERM, virtual_one, true, None),
            (AttachIoas, libc::EINVAL, virtual_one, true, None),
            (OpenGroup, libc::EACCES, virtual_one, true, None),
        ];
        for (step, number, role, given, expected) in table {
            let error = token_error(step, &errno(number), "0000:01:10.0".parse().unwrap(), role, given);
            let row = format!("{step:?} {number} {role:?} {given}");
            assert_eq!(error.as_ref().map(Error::code), expected.map(|(code, _)| code), "{row}");
            if let (Some(error), Some((_, words))) = (error, expected) {
                assert!(error.to_string().contains(words), "{row}: {error}");
                assert!(error.fix_text().is_some(), "{row}");
            }
        }
    }

    #[test]
    fn the_host_says_what_a_device_is() {
        let tree = TestTree::new();
        let (card, function) = ("0000:01:00.0", "0000:01:10.0");
        tree.pci(card).driver("vfio-pci").group(2).add();
        tree.pci(function).driver("vfio-pci").group(3).add();
        let refused = |bdf: &str, number: i32, given: bool| {
            let error = tree.host().token_error(bdf.parse().unwrap(), VfioStep::GetDevice, &errno(number), given);
            error.map(|error| error.code())
        };
        assert_eq!(refused(function, libc::EINVAL, true), Some(Code::VfTokenUnused));
        std::os::unix::fs::symlink(tree.pci_path(card), tree.pci_path(function).join("physfn")).unwrap();
        assert_eq!(refused(function, libc::EACCES, false), Some(Code::VfToken));
        assert_eq!(refused(card, libc::EACCES, false), None);
        std::fs::write(tree.pci_path(card).join("sriov_numvfs"), "1\n").unwrap();
        assert_eq!(refused(card, libc::EACCES, false), Some(Code::VfToken));
        tree.pci("0000:03:00.0").driver("igb").add();
        assert_eq!(refused("0000:03:00.0", libc::EACCES, true), None);
    }
}
