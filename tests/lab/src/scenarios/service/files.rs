//! Files that a package leaves behind.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::l1::L1;

/// Files of the system, without what others keep: the package manager's own notes, logs and caches.
pub struct Files(BTreeSet<String>);

impl Files {
    pub fn of(l1: &mut L1) -> Result<Self> {
        let text = l1.ok("find /etc /usr /var /boot -xdev -path /var/lib/dpkg -prune -o -path /var/log -prune \
             -o -path /var/cache -prune -o -path /var/lib/systemd -prune -o -path /var/tmp -prune -o -print | grep passthru || true")?;
        Ok(Self(text.lines().map(str::to_owned).collect()))
    }

    pub fn new_since(&self, later: &Self) -> Vec<String> {
        later.0.difference(&self.0).cloned().collect()
    }
}
