//! `passthru complete`: what shells offer where a device, a type, a VM or a guest is to be named; no command for people.

use clap::{Args, ValueEnum};

use super::{Platform, output, vm_file};
use crate::error::Result;
use crate::monitor::folder::Folders;

/// Print the words that can stand somewhere; used by the completions of shells
#[derive(Debug, Args)]
#[command(hide = true)]
pub(super) struct CompleteArgs {
    /// What is to be named
    #[arg(required = true)]
    what: Vec<What>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// Devices of the host that a guest could have, by address and by name
    Devices,
    /// Types of --device
    Types,
    /// VM files of /etc/passthru
    Vms,
    /// Guests that run
    Guests,
}

pub(super) fn execute(args: &CompleteArgs, platform: &dyn Platform) -> Result<()> {
    let words = args.what.iter().flat_map(|what| words(*what, platform));
    output::print(&words.map(|word| word + "\n").collect::<String>())
}

fn words(what: What, platform: &dyn Platform) -> Vec<String> {
    let host = platform.host();
    match what {
        What::Devices => {
            let devices = host.devices().into_iter().filter(|device| !device.bridge);
            let addresses = devices.map(|device| device.bdf.short().to_string());
            addresses.chain(host.names().iter().map(ToString::to_string)).collect()
        }
        What::Types => platform.devices().names().into_iter().map(str::to_owned).collect(),
        What::Vms => vm_file::names(host).into_iter().collect(),
        What::Guests => Folders::of_process(host).all().into_iter().map(|(name, _)| name).collect(),
    }
}
