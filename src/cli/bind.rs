//! `passthru bind`: devices from their host drivers to vfio-pci.

use clap::Args;

use super::output;
use crate::bdf::DeviceAddr;
use crate::error::Result;
use crate::host::bind::Bound;
use crate::host::{self, Host};

/// Take devices from their host drivers, so that guests can own them
///
/// The former drivers are remembered: `passthru release` gives the devices back to them. A device that the host itself
/// uses (a mounted file system, swap space, the way to the network) is refused.
#[derive(Debug, Args)]
pub(super) struct BindArgs {
    /// Addresses of the devices as `lspci -D` prints them, such as 0000:01:00.0 or 01:00.0; 01:00 means all functions of a
    /// device
    #[arg(value_name = "BDF", required = true)]
    devices: Vec<DeviceAddr>,
    /// Take a device even if the host itself uses it
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &BindArgs, host: &Host) -> Result<()> {
    let devices = output::functions(&args.devices, |addr| host.functions(addr))?;
    output::each(&devices, args.json, |&device| host::bind(host, device, args.force), text)
}

/// What `bind` did: a line about the device, and one about each member of its group that must be bound, too.
fn text(bound: &Bound) -> String {
    let device = &bound.device;
    let former = bound.former_driver.as_deref().unwrap_or("no driver");
    let mut text = match (bound.changed, bound.ours) {
        (true, _) => format!("{} {}: {former} -> {}\n", device.bdf, device.name(), device.driver_text()),
        (false, true) => format!("{} {}: already on {}\n", device.bdf, device.name(), device.driver_text()),
        (false, false) => format!(
            "{} {}: already on {}, but not by passthru, which will not release it\n",
            device.bdf,
            device.name(),
            device.driver_text()
        ),
    };
    for companion in bound.companions.iter().filter(|companion| companion.blocks) {
        let driver = companion.member.driver.as_deref().unwrap_or("no driver");
        text += &format!("  {} is in the same IOMMU group, on {driver}: bind it, too\n", companion.member.name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::{TestTree, bdf};

    #[test]
    fn the_device_and_what_blocks_its_group_are_told() {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").driver("e1000e").group(1).add();
        tree.pci("0000:01:00.1").driver("igb").group(1).add();
        let bind = |address| text(&host::bind(&tree.host(), bdf(address), false).unwrap());
        let name = tree.host().device(bdf("01:00.0")).unwrap().name();
        assert_eq!(
            bind("01:00.0"),
            format!(
                "0000:01:00.0 {name}: e1000e -> vfio-pci\n  \
                 0000:01:00.1 is in the same IOMMU group, on igb: bind it, too\n"
            )
        );
        assert_eq!(bind("01:00.1"), format!("0000:01:00.1 {name}: igb -> vfio-pci\n"));
        assert_eq!(bind("01:00.0"), format!("0000:01:00.0 {name}: already on vfio-pci\n"));
    }

    #[test]
    fn a_device_that_someone_else_bound_is_told() {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").driver("vfio-pci").group(1).add();
        let bound = host::bind(&tree.host(), bdf("01:00.0"), false).unwrap();
        assert!(text(&bound).ends_with(": already on vfio-pci, but not by passthru, which will not release it\n"));
    }
}
