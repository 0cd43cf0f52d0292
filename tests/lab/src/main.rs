//! passthru's laboratory: a PC with an IOMMU, in software.
//!
//! L0 is this machine, where QEMU emulates that PC in pure software. L1 is a stock Debian
//! kernel on it, with a real `/dev/kvm` and `/dev/vfio`. L2 is the guest that passthru runs
//! in L1, with L1's devices passed through to it.

mod agent;
mod bench;
mod build;
mod cli;
mod cpio;
mod demo;
mod edu;
mod fuzz;
mod l0;
mod l1;
mod package;
mod pattern;
mod qmp;
mod report;
mod runner;
mod scenario;
mod scenarios;
mod server;
mod setup;
mod shell;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
