//! `passthru udev-claim`: what udev asks when a USB device or an interface of one appears (udev/70-passthru.rules); no command
//! for people.

use clap::Args;

use super::output;
use crate::error::Result;
use crate::host::Host;
use crate::host::claim::Claimed;

/// Keep the USB devices of /etc/passthru/devices.d for guests; used by udev
#[derive(Debug, Args)]
#[command(hide = true)]
pub(super) struct UdevClaimArgs {
    /// The device that has appeared, or with --detach the interface
    #[arg(value_name = "NAME")]
    name: String,
    /// Take the host's driver off the interface, if its device is claimed
    #[arg(long)]
    detach: bool,
}

/// Prints properties for udev. What is wrong with devices.d is told on standard error, which udev writes to its journal, and
/// is no failure: the device's other rules go on.
pub(super) fn execute(args: &UdevClaimArgs, host: &Host) -> Result<()> {
    if args.detach {
        return host.detach_claimed(&args.name);
    }
    let (claimed, errors) = host.claimed(&args.name);
    errors.iter().for_each(output::report);
    output::print(&text(&claimed))
}

fn text(claimed: &Claimed) -> String {
    let name = claimed.names.first().map(|name| format!("PASSTHRU_NAME={name}\n"));
    let kept = claimed.claimed.then(|| "PASSTHRU_CLAIMED=1\n".to_owned());
    let start = claimed.start.as_ref().map(|vm| format!("PASSTHRU_START={vm}\n"));
    [name, kept, start].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_lines() {
        assert_eq!(text(&Claimed::default()), "");
        let name = |text: &str| text.to_owned().try_into().unwrap();
        let claimed = Claimed { names: vec![name("pad")], claimed: true, start: Some(name("games")) };
        assert_eq!(text(&claimed), "PASSTHRU_NAME=pad\nPASSTHRU_CLAIMED=1\nPASSTHRU_START=games\n");
    }
}
