//! `passthru place-interrupts`: what passthru-interrupts@.service runs as root beside a guest that has no right to move the
//! interrupts of its devices; no command for people.
//!
//! An interrupt is there from the moment at which the guest's driver switches it on, under a number that nobody knows before:
//! no node could be given to the guest's user beforehand. So this process looks, and moves those of the VM's devices to the CPUs
//! that the guest has left to itself. It ends with the guest; what it moved goes back where it was.

use std::os::fd::AsFd;

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::json;

use super::ctl::QUERY;
use super::ctl::client::{Client, LIMIT};
use super::vm_file;
use crate::error::{Code, Error, Result, explain_io};
use crate::host::threads::cpus_of;
use crate::host::{Host, Lease};
use crate::monitor::folder::SOCKET;

/// How often it looks, milliseconds. A driver that is loaded anew has its interrupts elsewhere for as long.
const PERIOD: u16 = 2000;

/// Move the interrupts of a guest's devices beside it until it ends; used by passthru-interrupts@.service
#[derive(Debug, Args)]
#[command(hide = true)]
pub(super) struct PlaceInterruptsArgs {
    /// The VM
    #[arg(value_name = "NAME")]
    vm: String,
}

pub(super) fn execute(args: &PlaceInterruptsArgs, host: &Host) -> Result<()> {
    let vm = vm_file::vm_name(&args.vm)?;
    let Some(note) = host.prepared(&vm)? else {
        return Err(Error::new(Code::VmFile, format!("nothing is prepared for {vm}"))
            .fix(format!("as root, `passthru bind --vm {vm}`, before its guest is started")));
    };
    let socket = host.run("vm").join(vm.to_string()).join(SOCKET);
    let guest = match Client::connect(&args.vm, &socket)? {
        Some(mut guest) => guest.run(QUERY, &json!({}), Some(LIMIT))?,
        None => return Ok(()),
    };
    let Some(pid) = guest["pid"].as_u64() else { return Ok(()) };
    let ended = ending().map_err(|error| {
        Error::new(Code::InterruptsStay, "signals cannot be waited for").evidence(explain_io(&error))
    })?;
    let everywhere = host.topology().online();
    let mut lease = Lease::new(host);
    // Its main thread stays on the CPUs that are for all that is no virtual CPU; without a placement, on all.
    while let Some(cpus) = cpus_of(host, pid).filter(|cpus| *cpus != everywhere) {
        note.devices.iter().for_each(|&device| lease.place_interrupts(device, &cpus));
        let mut wait = [PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wait, PollTimeout::from(PERIOD)) != Ok(0) {
            break;
        }
    }
    Ok(())
}

/// Readable when this process is asked to end: what it changed must go back first.
fn ending() -> std::io::Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?)
}
