//! What must be the same after a scenario as before it: the devices' drivers, the
//! processes, the IOMMU's users.

use std::collections::BTreeSet;

use anyhow::Result;

use super::L1;

/// A picture of L1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State(BTreeSet<String>);

impl State {
    /// Takes the picture.
    pub fn of(l1: &mut L1) -> Result<Self> {
        Ok(Self(l1.picture()?.into_iter().collect()))
    }

    /// The driver of the device at `bdf` of domain 0, or `none`.
    pub fn driver(&self, bdf: &str) -> Option<&str> {
        let prefix = format!("driver 0000:{bdf} ");
        self.0.iter().find_map(|line| line.strip_prefix(&prefix)?.split(' ').next())
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

    fn state(lines: &[&str]) -> State {
        State(lines.iter().map(|line| (*line).to_owned()).collect())
    }

    #[test]
    fn a_driver_is_found_by_its_device() {
        let state =
            state(&["driver 0000:01:00.0 e1000e override (null)", "driver 0000:01:00.1 none override vfio-pci"]);
        assert_eq!(state.driver("01:00.0"), Some("e1000e"));
        assert_eq!(state.driver("01:00.1"), Some("none"));
        assert_eq!(state.driver("02:00.0"), None);
    }

    #[test]
    fn differences_name_both_sides() {
        let before = state(&["driver 01 e1000e", "process 5 lab"]);
        let after = state(&["driver 01 vfio-pci", "process 5 lab"]);
        assert_eq!(before.differences(&after), ["no longer: driver 01 e1000e", "left behind: driver 01 vfio-pci"]);
        assert!(before.differences(&before).is_empty());
    }
}
