//! passthru: main -> command line -> exit code.

use std::process::ExitCode;

use passthru::boot_trace;
use passthru::cli::{self, Platform};
use passthru::error::Result;
use passthru::host::Host;
use passthru::host::findings::Finding;
use passthru::machine::options::RunOptions;
use passthru::machine::{self, types};
use passthru::object::{Catalogue, Kind};
use passthru::placement::Plan;

fn main() -> ExitCode {
    boot_trace::begin();
    ExitCode::from(cli::main(std::env::args_os(), &ThisHost { host: Host::real() }))
}

/// The machine's types and the real host behind the command line.
struct ThisHost {
    host: Host,
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
