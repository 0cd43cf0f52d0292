//! `passthru release`: devices back to the drivers that they had before `passthru bind`.

use clap::{Args, Command};

use super::{Platform, output, recover, vm_file};
use crate::error::Result;
use crate::host::names::DeviceRef;
use crate::host::release::{Outcome, Released};
use crate::host::{self, vm};

/// Give devices back to the drivers that they had before
#[derive(Debug, Args)]
pub(super) struct ReleaseArgs {
    /// Addresses of the devices, as `passthru devices` prints them: 01:00.0 or 0000:01:00.0; 01:00 means all functions of a
    /// device; or names of /etc/passthru/devices.d
    #[arg(value_name = "DEVICE", required_unless_present = "vm")]
    devices: Vec<DeviceRef>,
    /// Give back all devices of a VM instead, and take its user's access to their nodes back: undoes `passthru bind --vm
    /// NAME`
    #[arg(long, value_name = "NAME", conflicts_with = "devices")]
    vm: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &ReleaseArgs, syntax: &Command, platform: &dyn Platform) -> Result<()> {
    let host = platform.host();
    if let Some(vm) = &args.vm {
        return take_back(args, vm, syntax, platform);
    }
    let devices = output::functions(&args.devices, host, |addr| host::release::noted_functions(host, addr))?;
    output::each(&devices, args.json, |&device| host::release(host, device), text)
}

/// `release --vm`: what was noted of the VM, or, if nothing was, what its file says.
fn take_back(args: &ReleaseArgs, name: &str, syntax: &Command, platform: &dyn Platform) -> Result<()> {
    let host = platform.host();
    let vm = vm_file::vm_name(name)?;
    // The file may have changed or gone since.
    let devices = match host.prepared(&vm)? {
        Some(_) => Vec::new(),
        None => vm_file::Vm::read(name, syntax, platform)?.devices,
    };
    let done = vm::take_back(host, &vm, &devices)?;
    if args.json {
        return output::print_json(&done);
    }
    let nodes = done.nodes.iter().map(|node| format!("{}: taken back\n", node.display()));
    let pages = done.pages.iter().map(recover::returned);
    output::print(&nodes.chain(done.released.iter().map(text)).chain(pages).collect::<String>())
}

/// What became of a device, in one line.
pub(super) fn text(released: &Released) -> String {
    let driver = released.driver.as_deref().unwrap_or("no driver");
    let what = match released.outcome {
        Outcome::GivenBack => format!("given back to {driver}"),
        Outcome::NotOurs => format!("not bound by passthru, left on {driver}"),
        Outcome::Gone => "no longer there, forgotten".to_owned(),
    };
    let held: String = released.held.iter().map(|held| format!("  {}", text(held))).collect();
    format!("{}: {what}\n{held}", released.bdf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::bind::BindOptions;
    use crate::host::testtree::{TestTree, bdf};

    #[test]
    fn each_outcome_is_told() {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").driver("e1000e").group(1).add();
        tree.pci("0000:02:00.0").driver("igb").group(2).add();
        host::bind(&tree.host(), bdf("01:00.0"), &BindOptions::default()).unwrap();
        let release = |address| text(&host::release(&tree.host(), bdf(address)).unwrap());
        assert_eq!(release("01:00.0"), "0000:01:00.0: given back to e1000e\n");
        assert_eq!(release("02:00.0"), "0000:02:00.0: not bound by passthru, left on igb\n");
        let gone = Released::of(bdf("03:00.0"), Outcome::Gone);
        assert_eq!(text(&gone), "0000:03:00.0: no longer there, forgotten\n");
    }
}
