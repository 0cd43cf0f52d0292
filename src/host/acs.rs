//! The patch that splits IOMMU groups which the hardware does not keep apart (kernel's command line:
//! `pcie_acs_override=`, of no kernel.org kernel): whoever uses it must know what its groups are worth.

use super::{Host, read};
use crate::error::{Code, Error};

/// The option of the patched kernel.
const OPTION: &str = "pcie_acs_override=";

impl Host {
    /// [`Code::AcsOverridden`] as a warning, if the kernel was started with the option.
    pub fn acs_overridden(&self) -> Option<Error> {
        let line = read::text(self.proc("cmdline"))?;
        let word = line.split_whitespace().find(|word| word.starts_with(OPTION))?;
        Some(
            Error::new(Code::AcsOverridden, "the IOMMU groups of this host are not real")
                .evidence(format!("{word} on the kernel's command line"))
                .fix("give devices of groups that it has split only to guests that may read and write each other's memory"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::TestTree;

    #[test]
    fn the_option_is_found() {
        let tree = TestTree::new();
        assert!(tree.host().acs_overridden().is_none());
        tree.file("proc/cmdline", "quiet pcie_acs_override=downstream,multifunction iommu=pt\n");
        let warning = tree.host().acs_overridden().unwrap();
        assert_eq!(warning.code(), Code::AcsOverridden);
        assert!(warning.to_string().contains("pcie_acs_override=downstream,multifunction on"), "{warning}");
    }
}
