//! passthru: main -> command line -> exit code.

use std::process::ExitCode;

use passthru::bdf::Bdf;
use passthru::cli::{self, Commands, DriverChange, run::RunOptions};
use passthru::error::{Code, Error, Result};
use passthru::object::{Catalogue, Common, Props, Registry};

fn main() -> ExitCode {
    ExitCode::from(cli::main(std::env::args_os(), &Unconnected))
}

/// The command line alone, without the machine and the host behind it.
struct Unconnected;

static DEVICES: Registry<(), ()> =
    Registry { what: "device type", option: "--device", key: "driver", common: Common::TABLE, types: &[] };
static MACHINES: Registry<(), ()> =
    Registry { what: "machine type", option: "-M", key: "type", common: &[], types: &[] };

fn unconnected<T>() -> Result<T> {
    Err(Error::new(Code::SystemFailed, "this build of passthru has only its command line"))
}

impl Commands for Unconnected {
    fn devices(&self) -> &dyn Catalogue {
        &DEVICES
    }

    fn machines(&self) -> &dyn Catalogue {
        &MACHINES
    }

    fn run(&self, _: RunOptions) -> Result<()> {
        unconnected()
    }

    fn bind(&self, _: Bdf, _: bool) -> Result<DriverChange> {
        unconnected()
    }

    fn release(&self, _: Bdf) -> Result<DriverChange> {
        unconnected()
    }

    fn recover(&self) -> Result<Vec<DriverChange>> {
        unconnected()
    }
}
