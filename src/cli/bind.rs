//! `passthru bind`, `release` and `recover`: devices between their host drivers and vfio-pci.

use clap::Args;

use super::{Commands, DriverChange, output};
use crate::bdf::Bdf;
use crate::error::Result;

/// Take devices from their host drivers, so that guests can own them
///
/// The former drivers are remembered: `passthru release` gives the devices back to them. A device that the host itself
/// uses (a mounted file system, swap space, the way to the network) is refused.
#[derive(Debug, Args)]
pub(super) struct BindArgs {
    /// Addresses of the devices as `lspci -D` prints them, such as 0000:01:00.0 or 01:00.0
    #[arg(value_name = "BDF", required = true)]
    devices: Vec<Bdf>,
    /// Take a device even if the host itself uses it
    #[arg(long)]
    force: bool,
}

/// Give devices back to the drivers that they had before
#[derive(Debug, Args)]
pub(super) struct ReleaseArgs {
    /// Addresses of the devices as `lspci -D` prints them, such as 0000:01:00.0 or 01:00.0
    #[arg(value_name = "BDF", required = true)]
    devices: Vec<Bdf>,
}

/// Give back every device that a crash left without its driver
#[derive(Debug, Args)]
pub(super) struct RecoverArgs {}

pub(super) fn bind(args: &BindArgs, commands: &dyn Commands) -> Result<()> {
    // Each change is told as it is made: a later device that fails does not hide it.
    args.devices.iter().try_for_each(|&device| tell(&commands.bind(device, args.force)?))
}

pub(super) fn release(args: &ReleaseArgs, commands: &dyn Commands) -> Result<()> {
    args.devices.iter().try_for_each(|&device| tell(&commands.release(device)?))
}

pub(super) fn recover(commands: &dyn Commands) -> Result<()> {
    let changes = commands.recover()?;
    if changes.is_empty() {
        return output::print("Nothing is left to recover.\n");
    }
    changes.iter().try_for_each(tell)
}

fn tell(change: &DriverChange) -> Result<()> {
    output::print(&(sentence(change) + "\n"))
}

/// `0000:01:00.0: e1000e -> vfio-pci`
fn sentence(change: &DriverChange) -> String {
    let name = |driver: &Option<String>| driver.clone().unwrap_or_else(|| "no driver".to_owned());
    if change.from == change.to {
        return format!("{}: already on {}", change.device, name(&change.to));
    }
    format!("{}: {} -> {}", change.device, name(&change.from), name(&change.to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_line() {
        let change = |from: Option<&str>, to: Option<&str>| {
            let device = "01:00.0".parse().unwrap();
            sentence(&DriverChange { device, from: from.map(str::to_owned), to: to.map(str::to_owned) })
        };
        assert_eq!(change(Some("nvme"), Some("vfio-pci")), "0000:01:00.0: nvme -> vfio-pci");
        assert_eq!(change(Some("vfio-pci"), None), "0000:01:00.0: vfio-pci -> no driver");
        assert_eq!(change(Some("vfio-pci"), Some("vfio-pci")), "0000:01:00.0: already on vfio-pci");
    }
}
