//! The seam between the command line and what it commands.

use crate::bdf::Bdf;
use crate::error::Result;
use crate::object::Catalogue;

use super::run::RunOptions;

/// What the command line can have done. The binary connects it to the machine and the host; tests record the calls.
pub trait Commands {
    /// The device types that `--device` knows. Called without any privilege, for help.
    fn devices(&self) -> &dyn Catalogue;

    /// The machine types that `-M` knows. Called without any privilege, for help.
    fn machines(&self) -> &dyn Catalogue;

    /// Runs a guest until it powers off, or reboots with `--no-reboot`.
    fn run(&self, options: RunOptions) -> Result<()>;

    /// Takes a device from its host driver; `force` even if the host uses it.
    fn bind(&self, device: Bdf, force: bool) -> Result<DriverChange>;

    /// Gives a device back to the driver that it had before.
    fn release(&self, device: Bdf) -> Result<DriverChange>;

    /// Gives back every device that a crash left without its driver.
    fn recover(&self) -> Result<Vec<DriverChange>>;
}

/// A device that has, or could have, changed its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverChange {
    /// The device.
    pub device: Bdf,
    /// The driver that it had.
    pub from: Option<String>,
    /// The driver that it has now; the same as `from` where there was nothing to do.
    pub to: Option<String>,
}
