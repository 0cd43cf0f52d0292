//! What must be the same after a scenario as before it: the devices' drivers, the
//! processes, the IOMMU's users.

use std::collections::BTreeSet;

use anyhow::Result;

use super::L1;

/// A picture of L1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State(BTreeSet<String>);

/// One line for each fact. Kernel threads and the agent's own children are left out.
const PICTURE: &str = r#"
for d in /sys/bus/pci/devices/*; do
    [ -e "$d/driver" ] && driver=$(readlink "$d/driver") || driver=none
    echo "driver ${d##*/} ${driver##*/} override $(cat "$d/driver_override")"
done
for p in /proc/[0-9]*; do
    exe=$(readlink "$p/exe") || continue
    pid=${p##*/}
    [ "$pid" = $$ ] || echo "process $pid ${exe##*/}"
done
awk '{ if ($2 != "/sys/kernel/tracing") print "mount", $2 }' /proc/mounts
grep -sH . /sys/module/vfio_pci/refcnt /sys/module/kvm_amd/refcnt || true
"#;

impl State {
    /// Takes the picture.
    pub fn of(l1: &mut L1) -> Result<Self> {
        let text = l1.ok(PICTURE)?;
        // The picture's own helpers come and go.
        let lines =
            text.lines().filter(|l| !l.ends_with(" readlink") && !l.ends_with(" gawk") && !l.ends_with(" mawk"));
        Ok(Self(lines.map(str::to_owned).collect()))
    }

    /// What `later` has too much or too little, in words.
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let gone = self.0.difference(&later.0).map(|l| format!("no longer: {l}"));
        let new = later.0.difference(&self.0).map(|l| format!("left behind: {l}"));
        gone.chain(new).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_both_sides() {
        let state = |lines: &[&str]| State(lines.iter().map(|l| (*l).to_owned()).collect());
        let before = state(&["driver 01 e1000e", "process 5 lab"]);
        let after = state(&["driver 01 vfio-pci", "process 5 lab"]);
        assert_eq!(before.differences(&after), ["no longer: driver 01 e1000e", "left behind: driver 01 vfio-pci"]);
        assert!(before.differences(&before).is_empty());
    }
}
