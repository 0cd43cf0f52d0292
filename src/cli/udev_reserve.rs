//! `passthru udev-reserve`: what udev asks when a PCI function appears (udev/70-passthru.rules); no command for people.

use clap::Args;

use super::output;
use crate::bdf::Bdf;
use crate::error::Result;
use crate::host::Host;
use crate::host::reserve::Announced;

/// Keep the devices of /etc/passthru/devices.d for vfio-pci; used by udev
#[derive(Debug, Args)]
#[command(hide = true)]
pub(super) struct UdevReserveArgs {
    /// The function that has appeared
    #[arg(value_name = "BDF", required_unless_present = "end")]
    device: Option<Bdf>,
    /// Let vfio-pci have it, if it is reserved
    #[arg(long)]
    probe: bool,
    /// Give all reserved devices to the drivers of the host: the package goes
    #[arg(long)]
    end: bool,
}

/// Prints properties for udev. What is wrong with devices.d is told on standard error, which udev writes to its journal, and
/// is no failure: the device's other rules go on.
pub(super) fn execute(args: &UdevReserveArgs, host: &Host) -> Result<()> {
    let Some(device) = args.device else {
        let ended = host.end_reservations()?;
        return output::print(&ended.iter().map(|bdf| format!("{bdf}: no longer reserved\n")).collect::<String>());
    };
    if args.probe {
        return host.probe_reserved(device);
    }
    let (announced, errors) = host.announce(device);
    errors.iter().for_each(output::report);
    output::print(&text(&announced))
}

fn text(announced: &Announced) -> String {
    let name = announced.names.first().map(|name| format!("PASSTHRU_NAME={name}\n"));
    let reserved = announced.reserved.then(|| "PASSTHRU_RESERVED=1\n".to_owned());
    let start = announced.start.as_ref().map(|vm| format!("PASSTHRU_START={vm}\n"));
    [name, reserved, start].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_lines() {
        assert_eq!(text(&Announced::default()), "");
        let name = |text: &str| text.to_owned().try_into().unwrap();
        let announced =
            Announced { names: vec![name("lan"), name("nic")], reserved: true, start: Some(name("router")) };
        assert_eq!(text(&announced), "PASSTHRU_NAME=lan\nPASSTHRU_RESERVED=1\nPASSTHRU_START=router\n");
    }
}
