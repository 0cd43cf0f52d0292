//! Open descriptors: each interrupt vector of a device is an eventfd, and RLIMIT_NOFILE limits them.

use std::io;

use nix::sys::resource::{Resource, setrlimit};

use crate::error::{Code, Error, Result};
use crate::host::{Host, read};

/// Descriptors that are left to all else: memory, sockets, journals, groups, vCPUs.
const HEADROOM: u64 = 256;

/// What this process may open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorRights {
    /// The limit that is enforced.
    pub soft: u64,
    /// What the process may raise the soft limit to by itself.
    pub hard: u64,
    /// What is open already.
    pub open: u64,
}

/// The soft limit that `needed` descriptors more ask for; `None` if the present one suffices. It is raised to the hard
/// one at once, for the next device may have as many vectors.
pub fn plan(needed: u64, rights: &DescriptorRights) -> Result<Option<u64>> {
    let total = rights.open.saturating_add(needed).saturating_add(HEADROOM);
    if total <= rights.soft {
        return Ok(None);
    }
    if rights.hard > rights.soft && total <= rights.hard {
        return Ok(Some(rights.hard));
    }
    let DescriptorRights { soft, hard, open } = rights;
    Err(Error::new(Code::TooManyDescriptors, format!("{needed} interrupt vectors need as many open files"))
        .evidence(format!("RLIMIT_NOFILE of this process: soft {soft}, hard {hard}, open {open}"))
        .fix(format!("`LimitNOFILE={total}` in the systemd unit; `prlimit --nofile={total}` or `ulimit -n {total}` as root before it")))
}

/// Sees to it that the process may open `needed` descriptors more.
///
/// # Errors
/// [`Code::TooManyDescriptors`] if the hard limit is too low, [`Code::SystemFailed`] if the soft one cannot be raised.
pub fn make_room(host: &Host, needed: u64) -> Result<()> {
    let rights = host.descriptor_rights();
    let Some(limit) = plan(needed, &rights)? else { return Ok(()) };
    setrlimit(Resource::RLIMIT_NOFILE, limit, rights.hard)
        .map_err(|errno| Error::system("raise the soft limit of open files", &io::Error::from(errno)))
}

impl Host {
    /// What this process may open.
    pub fn descriptor_rights(&self) -> DescriptorRights {
        let (soft, hard) = self.resource_limit("Max open files");
        DescriptorRights { soft, hard, open: read::names(self.proc("self/fd")).len() as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::limits::UNLIMITED;

    #[test]
    fn verdicts() {
        let plan =
            |needed, soft, hard| plan(needed, &DescriptorRights { soft, hard, open: 20 }).map_err(|error| error.code());
        assert_eq!(plan(5, 1024, 4096), Ok(None));
        assert_eq!(plan(748, 1024, 4096), Ok(None));
        assert_eq!(plan(749, 1024, 4096), Ok(Some(4096)));
        assert_eq!(plan(2048, 1024, 1024), Err(Code::TooManyDescriptors));
        assert_eq!(plan(4096, 1024, 4096), Err(Code::TooManyDescriptors));
        assert_eq!(plan(u64::MAX, UNLIMITED, UNLIMITED), Ok(None));
    }

    #[test]
    fn the_kernels_own_files_are_read() {
        let rights = Host::real().descriptor_rights();
        let (soft, hard) = nix::sys::resource::getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((rights.soft, rights.hard), (soft, hard));
        assert!(rights.open > 2);
    }
}
