//! `--sysroot`: the commands that only read can look at another machine's copied /sys, /proc and /dev.

use std::path::PathBuf;

use clap::Args;

use crate::host::Host;

/// Where the host's trees are.
#[derive(Debug, Args)]
pub(super) struct Sysroot {
    /// Read the sys, proc, dev and run folders below DIR instead of those of this machine
    #[arg(long, value_name = "DIR")]
    sysroot: Option<PathBuf>,
}

impl Sysroot {
    /// Whether this machine is looked at, and no copy.
    pub(super) fn is_this_machine(&self) -> bool {
        self.sysroot.is_none()
    }

    /// The host to look at: the given one, or the copy.
    pub(super) fn host(&self, host: &Host) -> Host {
        self.sysroot.as_deref().map_or_else(|| host.clone(), Host::copied_to)
    }
}
