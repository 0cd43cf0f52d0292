//! `passthru bind`: devices from their host drivers to vfio-pci.

use std::cell::RefCell;

use clap::{ArgAction, Args, Command, ValueEnum};
use nix::unistd::User;
use serde::Serialize;

use super::vm_file::Vm;
use super::{Platform, output, vm_file};
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result};
use crate::host;
use crate::host::bind::{self, BindOptions, Bound, Planned};
use crate::host::limits::size_text;
use crate::host::names::DeviceRef;
use crate::host::reset::Method;
use crate::host::setting::{MAX_VLAN, Mac, Request, VfAttribute};
use crate::host::vm::{self, Wish};
use crate::object::{PropValue, Size};
use crate::placement::NodePages;

/// Take devices from their host drivers, so that guests can own them
///
/// The former drivers are remembered: `passthru release` gives the devices back to them. A device that the host itself
/// uses (a mounted file system, swap space, the way to the network, a program that has its node open) is refused.
#[derive(Debug, Args)]
pub(super) struct BindArgs {
    /// Addresses of the devices, as `passthru devices` prints them: 01:00.0 or 0000:01:00.0; 01:00 means all functions of a
    /// device; or names of /etc/passthru/devices.d
    #[arg(value_name = "DEVICE", required_unless_present = "vm")]
    devices: Vec<DeviceRef>,
    /// Take all devices of a VM instead, and hold what else is in their groups: NAME stands for /etc/passthru/NAME.toml
    #[arg(long, value_name = "NAME", conflicts_with_all = ["devices", "group"])]
    vm: Option<String>,
    /// Let this user open the nodes that the VM needs, and no others, until `passthru release --vm NAME`
    #[arg(long, value_name = "USER")]
    grant: Option<String>,
    /// Take a device even if the host itself uses it
    #[arg(long)]
    force: bool,
    /// Which members of the IOMMU group to take: the named ones, or (auto) all that would keep the group from a guest;
    /// those that are not named are held on vfio-pci
    #[arg(long, value_name = "WHICH", default_value = "named")]
    group: Group,
    /// single-gpu: take the only graphics card of this machine, with its group. Stops the display manager and every service
    /// that has the card open, and takes the consoles off it; `passthru release` brings all of it back
    #[arg(long, value_name = "PROFILE")]
    profile: Option<Profile>,
    /// Print the steps, and do none
    #[arg(long, conflicts_with = "vm")]
    dry_run: bool,
    /// Ethernet address of a virtual function
    #[arg(long, value_name = "MAC", help_heading = SETTINGS)]
    vf_mac: Option<Mac>,
    /// VLAN that a virtual function is in without knowing, 1 to 4094; 0: none
    #[arg(long, value_name = "ID", help_heading = SETTINGS, value_parser = clap::value_parser!(u16).range(0..=MAX_VLAN))]
    vlan: Option<u16>,
    /// Whether a virtual function may change its address and hear everything
    #[arg(long, value_name = "on|off", help_heading = SETTINGS, value_parser = on_off, action = ArgAction::Set)]
    trust: Option<bool>,
    /// Whether frames with another sender than a virtual function's own address are dropped
    #[arg(long, value_name = "on|off", help_heading = SETTINGS, value_parser = on_off, action = ArgAction::Set)]
    spoofchk: Option<bool>,
    /// Size of a resizable BAR, such as 1:16G; may be given for several BARs
    #[arg(long, value_name = "BAR:SIZE", help_heading = SETTINGS, value_parser = bar_size)]
    bar_size: Vec<(u8, u64)>,
    /// Method by which the kernel is to reset the device, alone, such as flr, pm or bus
    #[arg(long, value_name = "METHOD", help_heading = SETTINGS, value_parser = reset_method)]
    reset_method: Option<Method>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const SETTINGS: &str = "Settings of one device, put back by `passthru release`";
/// Number of BARs.
const BARS: u8 = 6;

/// What `--group` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    Named,
    Auto,
}

/// What `--profile` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Profile {
    /// The only graphics card of the machine.
    SingleGpu,
}

fn on_off(text: &str) -> Result<bool, String> {
    bool::parse(text).map_err(|invalid| invalid.to_string())
}

fn bar_size(text: &str) -> Result<(u8, u64), String> {
    let parse = || {
        let (bar, size) = text.split_once(':')?;
        let bar: u8 = bar.parse().ok().filter(|bar| *bar < BARS)?;
        Some((bar, Size::parse(size).ok()?.0))
    };
    parse().ok_or_else(|| "expected a BAR from 0 to 5 and its size, such as 1:16G".to_owned())
}

fn reset_method(text: &str) -> Result<Method, String> {
    Method::parse(text)
        .ok_or_else(|| format!("expected one of {}", Method::ALL.map(|method| method.to_string()).join(", ")))
}

impl BindArgs {
    fn requests(&self) -> Vec<Request> {
        let vf = [
            self.vf_mac.map(VfAttribute::Mac),
            self.vlan.map(|id| VfAttribute::Vlan { id, priority: 0 }),
            self.trust.map(VfAttribute::Trust),
            self.spoofchk.map(VfAttribute::SpoofCheck),
        ];
        let sizes = self.bar_size.iter().map(|&(bar, bytes)| Request::BarSize { bar, bytes });
        let reset = self.reset_method.map(Request::ResetMethod);
        vf.into_iter().flatten().map(Request::Vf).chain(sizes).chain(reset).collect()
    }
}

pub(super) fn execute(args: &BindArgs, syntax: &Command, platform: &dyn Platform) -> Result<()> {
    let host = platform.host();
    if let Some(vm) = &args.vm {
        return prepare(args, &Vm::read(vm, syntax, platform)?, platform);
    }
    if args.grant.is_some() {
        // Clap forgets that one option needs another where the latter excludes what is given.
        return Err(Error::new(Code::Usage, "--grant is for the nodes of a VM").fix("name it with `--vm NAME`"));
    }
    let devices = output::functions(&args.devices, host, |addr| host.functions(addr))?;
    let requests = args.requests();
    if !requests.is_empty() && devices.len() > 1 {
        return Err(Error::new(Code::Usage, "settings are for one device, and several are named")
            .fix("`passthru bind` once for each device that is to have settings of its own"));
    }
    let group = args.group == Group::Auto || args.profile.is_some();
    let options = BindOptions { force: args.force, group, named: devices.clone(), requests };
    let displays = |bdf: &Bdf| host.device(*bdf).is_ok_and(|device| device.is_display());
    let any_display = devices.iter().any(displays);
    let options_for = |bdf: &Bdf| {
        let mut options = options.clone();
        // Where no display is named, the first device is refused for it.
        if args.profile.is_some() && (displays(bdf) || !any_display) {
            options.requests.push(Request::StopDisplay);
        }
        options
    };
    if args.dry_run {
        return output::each(&devices, args.json, |bdf| bind::steps(host, *bdf, &options_for(bdf)), planned_text);
    }
    let taken = RefCell::new(Vec::new());
    let bind = |bdf: &Bdf| match host::bind(host, *bdf, &options_for(bdf)) {
        Ok(bound) => {
            taken.borrow_mut().extend(bound.changed.then_some(*bdf));
            Ok(bound)
        }
        // A screen that stays dark is worse than a card without its guest.
        Err(error) if args.profile.is_some() => {
            Err(taken.take().iter().rev().fold(error, |error, bdf| match host::release(host, *bdf) {
                Ok(_) => error.evidence(format!("{bdf}, which was bound before it, is given back")),
                Err(second) => error.evidence(format!("and giving {bdf} back failed: {}", second.cause())),
            }))
        }
        Err(error) => Err(error),
    };
    output::each(&devices, args.json, bind, text)
}

/// The steps that `bind` would do.
fn planned_text(planned: &Planned) -> String {
    let heading = format!("{} {}\n", planned.device.bdf, planned.device.name());
    match planned.steps.len() {
        0 => format!("{heading}  nothing is to be done\n"),
        _ => planned.steps.iter().fold(heading, |text, step| text + &format!("  {step}\n")),
    }
}

/// `bind --vm`: all devices of a VM, its huge pages, and the nodes for its user.
fn prepare(args: &BindArgs, vm: &Vm, platform: &dyn Platform) -> Result<()> {
    let host = platform.host();
    if !args.requests().is_empty() {
        return Err(Error::new(Code::Usage, "settings are for one device, and a VM is named")
            .fix("`passthru bind DEVICE` with its settings first, then `passthru bind --vm NAME`"));
    }
    let user = args.grant.as_deref().map(user).transpose()?;
    let pages = match vm.options.memory.grow_pool {
        true => platform.place(&vm.options, host)?.pages,
        false => Vec::new(),
    };
    let wish = Wish {
        vm: vm.name.clone(),
        devices: vm.devices.clone(),
        files: vm.options.files(),
        user,
        force: args.force,
        single_gpu: vm.options.single_gpu || args.profile.is_some(),
        pages,
    };
    // Who grants is a service, or does as it does.
    if args.grant.is_some() {
        for error in vm_file::too_narrow(&vm.name.to_string(), vm.options.netdev_types(), &wish.files, host) {
            crate::log::warn(format_args!("{error}"));
        }
    }
    let (bound, prepared) = vm::prepare(host, &wish)?;
    if args.json {
        return output::print_json(&Prepared { bound: &bound, prepared: &prepared });
    }
    let nodes = prepared.nodes.iter().map(|node| {
        let user = args.grant.as_deref().unwrap_or_default();
        format!("{}: {user} may open it\n", node.path.display())
    });
    let pages = wish.pages.iter().filter(|pages| pages.missing() > 0).map(|pages| {
        let NodePages { node, page, .. } = pages;
        format!("node {node}: {} more huge pages of {}\n", pages.missing(), size_text(*page))
    });
    output::print(&bound.iter().map(text).chain(pages).chain(nodes).collect::<String>())
}

/// What `bind --vm --json` prints.
#[derive(Serialize)]
struct Prepared<'a> {
    bound: &'a [Bound],
    prepared: &'a vm::Prepared,
}

/// A user's number.
fn user(name: &str) -> Result<u32> {
    let user = User::from_name(name).ok().flatten();
    user.map(|user| user.uid.as_raw()).ok_or_else(|| {
        Error::new(Code::Usage, format!("there is no user {name}")).fix("`getent passwd` lists the users")
    })
}

/// What `bind` did: a line about the device, what was set, and one about each member of its group that is held or must be
/// bound, too.
fn text(bound: &Bound) -> String {
    let device = &bound.device;
    let former = bound.former_driver.as_deref().unwrap_or("no driver");
    let mut text = match (bound.changed, bound.ours) {
        (true, _) => format!("{} {}: {former} -> {}\n", device.bdf, device.name(), device.driver_text()),
        (false, true) => format!("{} {}: already on {}\n", device.bdf, device.name(), device.driver_text()),
        (false, false) => format!(
            "{} {}: already on {}, but not by passthru, which will not release it\n",
            device.bdf,
            device.name(),
            device.driver_text()
        ),
    };
    for setting in &bound.settings {
        text += &format!("  {setting}\n");
    }
    for held in &bound.held {
        let former = held.former_driver.as_deref().unwrap_or("no driver");
        text += &format!("  {} is in the same IOMMU group and is held: {former} -> vfio-pci\n", held.bdf);
    }
    for companion in bound.companions.iter().filter(|companion| companion.blocks) {
        let driver = companion.member.driver.as_deref().unwrap_or("no driver");
        text += &format!("  {} is in the same IOMMU group, on {driver}: bind it, too\n", companion.member.name);
    }
    for warning in &bound.warnings {
        text += &format!("  warning: {}\n", warning.replace('\n', "\n  "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::{TestTree, bdf};

    #[test]
    fn the_device_and_what_blocks_its_group_are_told() {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").driver("e1000e").group(1).add();
        tree.pci("0000:01:00.1").driver("igb").group(1).add();
        let bind = |address| text(&host::bind(&tree.host(), bdf(address), &BindOptions::default()).unwrap());
        let name = tree.host().device(bdf("01:00.0")).unwrap().name();
        assert_eq!(
            bind("01:00.0"),
            format!(
                "0000:01:00.0 {name}: e1000e -> vfio-pci\n  \
                 0000:01:00.1 is in the same IOMMU group, on igb: bind it, too\n"
            )
        );
        assert_eq!(bind("01:00.1"), format!("0000:01:00.1 {name}: igb -> vfio-pci\n"));
        assert_eq!(bind("01:00.0"), format!("0000:01:00.0 {name}: already on vfio-pci\n"));
    }

    #[test]
    fn a_device_that_someone_else_bound_is_told() {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").driver("vfio-pci").group(1).add();
        let bound = host::bind(&tree.host(), bdf("01:00.0"), &BindOptions::default()).unwrap();
        assert!(text(&bound).ends_with(": already on vfio-pci, but not by passthru, which will not release it\n"));
    }
}
