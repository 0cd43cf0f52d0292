//! Files that a package leaves behind.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::l1::L1;

/// Files of the system, without what others keep: the package manager's own notes, logs and caches.
pub struct Files(BTreeSet<String>);

impl Files {
    pub fn of(l1: &mut L1) -> Result<Self> {
        // All of it lies on L0: some seconds, or a minute where L0 is busy.
        let output = l1.sh_within(
            "find /etc /usr /var /boot -xdev -path /var/lib/dpkg -prune -o -path /var/log -prune \
             -o -path /var/cache -prune -o -path /var/lib/systemd -prune -o -path /var/tmp -prune -o -print | grep passthru || true",
            Duration::from_secs(200),
        )?;
        ensure!(output.code == 0, "{}", output.stderr);
        Ok(Self(output.stdout.lines().map(str::to_owned).collect()))
    }

    pub fn new_since(&self, later: &Self) -> Vec<String> {
        later.0.difference(&self.0).cloned().collect()
    }
}
