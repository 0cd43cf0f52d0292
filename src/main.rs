//! passthru: main -> command line -> exit code.

use std::process::ExitCode;

use passthru::cli::{self, Platform};
use passthru::error::{Code, Error, Result};
use passthru::host::Host;
use passthru::machine::options::RunOptions;
use passthru::object::{Catalogue, Common, Props, Registry};

fn main() -> ExitCode {
    ExitCode::from(cli::main(std::env::args_os(), &WithoutMachine { host: Host::real() }))
}

/// The command line and the host's side, without a machine between them.
struct WithoutMachine {
    host: Host,
}

static DEVICES: Registry<(), ()> =
    Registry { what: "device type", option: "--device", key: "driver", common: Common::TABLE, types: &[] };
static MACHINES: Registry<(), ()> =
    Registry { what: "machine type", option: "-M", key: "type", common: &[], types: &[] };

impl Platform for WithoutMachine {
    fn devices(&self) -> &dyn Catalogue {
        &DEVICES
    }

    fn machines(&self) -> &dyn Catalogue {
        &MACHINES
    }

    fn host(&self) -> &Host {
        &self.host
    }

    fn run(&self, _: RunOptions) -> Result<()> {
        Err(Error::new(Code::SystemFailed, "this build of passthru has no machine to run"))
    }
}
