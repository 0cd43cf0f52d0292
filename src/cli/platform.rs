//! The seam between the command line and what it commands.

use crate::error::Result;
use crate::host::Host;
use crate::host::findings::Finding;
use crate::object::{Catalogue, Kind};
use crate::placement::Plan;

use crate::machine::options::RunOptions;
use crate::machine::{self, types};

/// What the command line stands on. The binary connects it to the machine and the real host; tests record what is
/// asked for, on made-up hosts.
pub trait Platform {
    /// The device types that `--device` knows. Called without any privilege, for help.
    fn devices(&self) -> &dyn Catalogue;

    /// The machine types that `-M` knows. Called without any privilege, for help.
    fn machines(&self) -> &dyn Catalogue;

    /// The types of back ends or objects that the option of this kind knows. Called without any privilege, for help.
    fn back_ends(&self, kind: Kind) -> &dyn Catalogue;

    /// The host whose devices are bound and released.
    fn host(&self) -> &Host;

    /// What speaks for and against a guest with these options on `host`, without opening or changing anything; `kernel`:
    /// whether the options name one.
    fn examine(&self, options: &RunOptions, kernel: bool, host: &Host) -> Result<Vec<Finding>>;

    /// Which CPUs and memory nodes of `host` a guest with these options would get.
    fn place(&self, options: &RunOptions, host: &Host) -> Result<Plan>;

    /// Runs a guest until it powers off, or reboots with `--no-reboot`.
    fn run(&self, options: RunOptions) -> Result<()>;
}

/// The machine's types and a host behind the command line.
#[derive(Debug)]
pub struct ThisHost {
    /// The host.
    pub host: Host,
}

impl Platform for ThisHost {
    fn devices(&self) -> &dyn Catalogue {
        &types::DEVICES
    }

    fn machines(&self) -> &dyn Catalogue {
        &types::MACHINES
    }

    fn back_ends(&self, kind: Kind) -> &dyn Catalogue {
        types::back_ends(kind)
    }

    fn host(&self) -> &Host {
        &self.host
    }

    fn examine(&self, options: &RunOptions, kernel: bool, host: &Host) -> Result<Vec<Finding>> {
        machine::examine(options, kernel, host)
    }

    fn place(&self, options: &RunOptions, host: &Host) -> Result<Plan> {
        machine::place(options, host)
    }

    fn run(&self, options: RunOptions) -> Result<()> {
        machine::run(options, &self.host)
    }
}
