//! passthru: main -> command line -> exit code.

use std::process::ExitCode;

use passthru::boot_trace;
use passthru::cli::{self, ThisHost};
use passthru::host::Host;

fn main() -> ExitCode {
    boot_trace::begin();
    ExitCode::from(cli::main(std::env::args_os(), &ThisHost { host: Host::real() }))
}
