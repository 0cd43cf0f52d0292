//! `passthru bind`: takes a device from its host driver and puts it on vfio-pci, so that a guest can own it.

use serde::Serialize;

use super::busy::busy_error;
use super::change::{Change, VFIO_PCI};
use super::journal::{Entry, Journal, Step};
use super::setting::{Request, Setting};
use super::usage::cures;
use super::viable::Verdict;
use super::{Host, PciDevice, Use};
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};

/// How `bind` is to go about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BindOptions {
    /// Take a device even if the host itself uses it.
    pub force: bool,
    /// Also take the members of its group that would keep it from being handed out, and hold them.
    pub group: bool,
    /// Devices that are going to be bound by name: they are not held.
    pub named: Vec<Bdf>,
    /// What else is to be set.
    pub requests: Vec<Request>,
}

impl BindOptions {
    /// Only `force`.
    pub fn forced() -> BindOptions {
        BindOptions { force: true, ..BindOptions::default() }
    }
}

/// What `bind` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// The device as it is now.
    pub device: PciDevice,
    /// Whether its driver was changed; `false`: it was on vfio-pci before.
    pub changed: bool,
    /// Whether `release` will give it back; `false`: someone else had put it on vfio-pci.
    pub ours: bool,
    /// The driver that `release` gives it back to.
    pub former_driver: Option<String>,
    /// The other members of its group: those that block it must be bound too.
    pub companions: Vec<Verdict>,
    /// Members of its group that are held for it.
    pub held: Vec<Held>,
    /// What was set besides.
    pub settings: Vec<String>,
    /// What is no error, and still to be known.
    pub warnings: Vec<String>,
}

/// A member of a group that no guest is to have, on vfio-pci so that another one can.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Held {
    /// The member.
    pub bdf: Bdf,
    /// The driver that it had.
    pub former_driver: Option<String>,
}

/// A device that may be bound.
struct Candidate {
    device: PciDevice,
    companions: Vec<Verdict>,
    settings: Vec<Setting>,
}

/// Binds a device to vfio-pci. Binding twice changes nothing.
///
/// Errors: `DeviceAbsent`; `BindFailed` for a bridge, or when the kernel refused a step, after the former driver has
/// been given back; `Quarantined`; `NoIommu`; `InUse` if the host needs the device, unless `force`; `NoVfio` if the
/// driver cannot be loaded; `JournalUnusable` if what was before cannot be written down, before anything is changed;
/// `Stuck` if the kernel does not answer; those of the settings; `Busy` if something is to be set while a guest has the device.
pub fn bind(host: &Host, bdf: Bdf, options: &BindOptions) -> Result<Bound> {
    // Asked before the lock, which needs root: a refusal should not need it. Asked again under the lock.
    let (_, mates) = examine_all(host, bdf, options)?;
    let journal = Journal::open(host)?;
    host.wait_for_writer(bdf)?;
    // What is reserved, and udev has not come to it yet, is as good as on vfio-pci: `release` must leave it there.
    host.reserve_declared();
    for bdf in std::iter::once(bdf).chain(mates.iter().map(|mate| mate.device.bdf)) {
        host.probe_reserved(bdf)?;
    }
    let (candidate, mates) = examine_all(host, bdf, options)?;
    let mut bound = bind_one(host, &journal, candidate, None)?;
    let mut taken: Vec<Bdf> = bound.changed.then_some(bdf).into_iter().collect();
    for mate in mates {
        let held = mate.device.bdf;
        match bind_one(host, &journal, mate, Some(bdf)) {
            Ok(mate) => {
                taken.push(held);
                bound.held.push(Held { bdf: held, former_driver: mate.former_driver });
            }
            Err(error) => return Err(give_back_all(host, &journal, &taken, error)),
        }
    }
    bound.companions = companions(host, &bound.device)?;
    bound.warnings = warnings(host, &bound.device);
    Ok(bound)
}

/// What `bind` would do with a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// The device as it is now.
    pub device: PciDevice,
    /// The steps in their order; `release` undoes them in the reverse one.
    pub steps: Vec<String>,
}

/// What [`bind`] would do, without doing it.
///
/// Errors: those of [`bind`] that can be found out before.
pub fn steps(host: &Host, bdf: Bdf, options: &BindOptions) -> Result<Planned> {
    let (candidate, mates) = examine_all(host, bdf, options)?;
    let mut steps = Vec::new();
    for (of, held) in std::iter::once((&candidate, "")).chain(mates.iter().map(|mate| (mate, ", held for it"))) {
        let said = |first: bool| {
            let settings = of.settings.iter().filter(move |setting| setting.comes_first() == first);
            settings.filter(|setting| setting.now(host, of.device.bdf).ok().as_ref() != Some(setting))
        };
        let on_vfio = of.device.on_vfio();
        steps.extend(said(true).filter(|_| !on_vfio).map(Setting::to_string));
        steps.extend(said(false).map(Setting::to_string));
        if !on_vfio {
            let former = of.device.driver.as_deref().unwrap_or("no driver");
            steps.push(format!("{}: {former} -> {VFIO_PCI}{held}", of.device.bdf));
        }
    }
    Ok(Planned { device: candidate.device, steps })
}

fn bind_one(host: &Host, journal: &Journal, candidate: Candidate, held_for: Option<Bdf>) -> Result<Bound> {
    let Candidate { device, companions, settings } = candidate;
    let bdf = device.bdf;
    let known = journal.read(bdf)?.filter(|entry| entry.is_for(&device));
    // Whoever was named once stays named.
    let held_for = held_for.filter(|_| known.as_ref().is_none_or(|entry| entry.held_for.is_some()));
    let known = known.filter(|entry| entry.ours || device.on_vfio());
    let done = |device, changed, entry: &Entry| Bound {
        device,
        changed,
        ours: entry.ours,
        former_driver: entry.former_driver.clone().filter(|_| entry.ours),
        companions: companions.clone(),
        held: Vec::new(),
        settings: settings.iter().filter(|it| changed || !it.comes_first()).map(Setting::to_string).collect(),
        warnings: Vec::new(),
    };
    if device.on_vfio() && !needs_another_turn(host, &device, &settings)? {
        let mut entry = known.unwrap_or_else(|| Entry::new(&device));
        (entry.step, entry.held_for) = (Step::Bound, held_for);
        entry.noted = host.noted_of(bdf, entry.ids);
        journal.write(&entry)?;
        let mut change = Change::new(host, journal, entry.clone());
        let before = settings.iter().filter(|setting| !setting.comes_first()).map(|setting| setting.now(host, bdf));
        let before = before.collect::<Result<Vec<Setting>>>()?;
        if let Err(error) = change.change_between(&settings) {
            // What fails here as well is left to `release`: the journal has it.
            before.iter().rev().for_each(|setting| drop(setting.set(host, bdf)));
            return Err(error);
        }
        return Ok(done(device, false, &entry));
    }
    load_vfio_pci(host)?;
    let mut entry = resume(known, &device)?;
    entry.held_for = held_for;
    entry.noted = host.noted_of(bdf, entry.ids);
    let mut change = Change::new(host, journal, entry.clone());
    let unused = || match settings.iter().any(|setting| matches!(setting, Setting::Service(_))) {
        // Its programs were the reason to stop the services. Whatever else uses it has been asked for before.
        true => {
            host.wait_until_closed(&device);
            refuse_in_use(host, &device)
        }
        false => Ok(()),
    };
    let taken = change.take(&settings, unused).and_then(|()| host.refuse_held_memory(&device));
    if let Err(error) = taken {
        if error.code() == Code::Stuck {
            // The kernel may still do what it was asked for: the journal keeps the step, and `recover` undoes it then.
            return Err(error);
        }
        return Err(undo(&mut change, error, entry.former_driver.as_deref()));
    }
    Ok(done(host.device(bdf)?, true, &entry))
}

/// Whether a device that is on vfio-pci must leave it for a moment, because something can only be set without a driver.
fn needs_another_turn(host: &Host, device: &PciDevice, settings: &[Setting]) -> Result<bool> {
    let mut another_turn = false;
    let mut any = false;
    for setting in settings.iter().filter(|setting| !setting.comes_first()) {
        let differs = setting.now(host, device.bdf)? != *setting;
        any |= differs;
        another_turn |= differs && setting.needs_no_driver();
    }
    let holders = host.holders(device);
    if any && !holders.processes.is_empty() {
        return Err(busy_error(device, &holders, None));
    }
    Ok(another_turn)
}

/// The entry to go on with. One that a killed `bind` left knows what was before it; a driver that the device has
/// now is the one to give back.
fn resume(known: Option<Entry>, device: &PciDevice) -> Result<Entry> {
    let mut entry = known.unwrap_or_else(|| Entry::new(device));
    if !entry.ours {
        return Err(Error::new(Code::BindFailed, format!("{} is on vfio-pci, but not by passthru", device.bdf))
            .evidence("what is to be set can only be set while it has no driver")
            .fix("take it off vfio-pci by whatever put it there, then bind it"));
    }
    entry.former_driver = device.driver.clone().filter(|_| !device.on_vfio()).or(entry.former_driver);
    Ok(entry)
}

fn undo(change: &mut Change, error: Error, former: Option<&str>) -> Error {
    match change.give_back() {
        Ok(()) => error.evidence(format!("it is as it was before: {}", former.unwrap_or("no driver"))),
        Err(second) => {
            let error = error.evidence(format!("and giving it back failed: {}", second.cause()));
            second.evidence_lines().iter().fold(error, |error, line| error.evidence(line.clone()))
        }
    }
}

/// Undoes what this `bind` has done to other members of a group, the last first.
fn give_back_all(host: &Host, journal: &Journal, taken: &[Bdf], error: Error) -> Error {
    taken.iter().rev().fold(error, |error, &bdf| match journal.read(bdf) {
        Ok(Some(entry)) => {
            let former = entry.former_driver.clone();
            let error = error.evidence(format!("{bdf}, which was bound before it, is given back"));
            undo(&mut Change::new(host, journal, entry), error, former.as_deref())
        }
        Ok(None) => error,
        Err(second) => error.evidence(format!("and giving {bdf} back failed: {}", second.cause())),
    })
}

/// The device, and with `group` the members of its group that must be held for it.
fn examine_all(host: &Host, bdf: Bdf, options: &BindOptions) -> Result<(Candidate, Vec<Candidate>)> {
    let candidate = examine(host, bdf, options)?;
    let mates = candidate.companions.iter().filter(|mate| options.group && mate.blocks);
    let named = |mate: &&PciDevice| !options.named.contains(&mate.bdf);
    let alone = BindOptions { group: false, requests: Vec::new(), ..options.clone() };
    let mates =
        mates.filter_map(|mate| mate.member.pci.as_ref()).filter(named).map(|mate| examine(host, mate.bdf, &alone));
    let mates = mates.collect::<Result<Vec<Candidate>>>()?;
    Ok((candidate, mates))
}

fn examine(host: &Host, bdf: Bdf, options: &BindOptions) -> Result<Candidate> {
    let device = host.device(bdf)?;
    host.refuse_bridge(&device)?;
    host.refuse_quarantined(&device)?;
    let companions = companions(host, &device)?;
    let settings = host.settings_for(&device, &options.requests)?;
    if !options.force {
        // What has the display open ends with its services: that is seen when they are stopped.
        let ends = settings.iter().any(|setting| matches!(setting, Setting::Service(_)));
        refuse_uses(host, &device, |used| !ends || !matches!(used, Use::Opened { .. }))?;
    }
    Ok(Candidate { device, companions, settings })
}

impl Host {
    /// `Code::BindFailed` for a bridge.
    pub(super) fn refuse_bridge(&self, device: &PciDevice) -> Result<()> {
        if !device.bridge {
            return Ok(());
        }
        Err(Error::new(Code::BindFailed, format!("{} is a bridge and stays with the host", device.bdf))
            .evidence(device.name())
            .fix("name a device behind it: `passthru devices` shows what lies where"))
    }
}

/// `Code::InUse` if the host needs the device.
pub(super) fn refuse_in_use(host: &Host, device: &PciDevice) -> Result<()> {
    refuse_uses(host, device, |_| true)
}

/// `Code::InUse` if the host needs the device for something that `counts`.
fn refuse_uses(host: &Host, device: &PciDevice, counts: impl Fn(&Use) -> bool) -> Result<()> {
    let uses = host.uses(device.bdf);
    if uses.iter().any(|used| used.is_vital() && counts(used)) {
        return Err(in_use_error(device, &uses, &companions(host, device)?));
    }
    Ok(())
}

/// The other members of a device's group.
fn companions(host: &Host, device: &PciDevice) -> Result<Vec<Verdict>> {
    let mut companions = host.verdicts(&host.real_group(device)?);
    companions.retain(|verdict| verdict.member.pci.as_ref().is_none_or(|member| member.bdf != device.bdf));
    Ok(companions)
}

fn warnings(host: &Host, device: &PciDevice) -> Vec<String> {
    let physfn = device.physfn.filter(|physfn| host.interface_is_down(*physfn));
    let down = physfn.map(|physfn| {
        format!("the interface of {physfn} is down, and its virtual functions have no link: `ip link set IFACE up`")
    });
    host.acs_overridden().map(|warning| warning.to_string()).into_iter().chain(down).collect()
}

fn in_use_error(device: &PciDevice, uses: &[Use], companions: &[Verdict]) -> Error {
    let error = Error::new(Code::InUse, format!("the host itself uses {} ({})", device.bdf, device.name()));
    let error = uses.iter().fold(error, |error, used| error.evidence(used.to_string()));
    let others = companions.iter().flat_map(|verdict| verdict.uses.iter().map(|used| (&verdict.member.name, used)));
    others
        .fold(error, |error, (name, used)| error.evidence(format!("{name}, of the same IOMMU group: {used}")))
        .fix(cures(uses))
}

/// `Code::NoVfio` if it cannot be loaded.
pub(super) fn load_vfio_pci(host: &Host) -> Result<()> {
    let folder = host.sys("bus/pci/drivers").join(VFIO_PCI);
    if folder.exists() {
        return Ok(());
    }
    let loaded = host.effects().load_module(VFIO_PCI);
    if folder.exists() {
        return Ok(());
    }
    let answer =
        loaded.map_or_else(|error| explain_io(&error), |()| "the module is loaded, its driver is not there".into());
    Err(Error::new(Code::NoVfio, "the driver vfio-pci cannot be loaded")
        .evidence(format!("modprobe vfio-pci: {answer}"))
        .fix("as root, `modprobe vfio-pci`; the running kernel must have CONFIG_VFIO_PCI and its modules installed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::{Fault, TestTree, bdf};

    const NIC: &str = "0000:01:00.0";

    fn tree() -> TestTree {
        let tree = TestTree::new();
        tree.pci("0000:00:01.0").bridge().driver("pcieport").group(1).add();
        for (address, group) in [(NIC, 2), ("0000:02:00.0", 3)] {
            tree.pci(address).driver("e1000e").group(group).add();
        }
        tree
    }

    fn refusal(tree: &TestTree, force: bool) -> Error {
        let before = tree.snapshot();
        let error = bind(&tree.host(), bdf(NIC), &BindOptions { force, ..BindOptions::default() }).unwrap_err();
        assert_eq!(tree.snapshot(), before, "a refused device is not touched");
        error
    }

    #[test]
    fn only_the_named_twin_moves() {
        let tree = tree();
        let bound = bind(&tree.host(), bdf(NIC), &BindOptions::default()).unwrap();
        assert!(bound.changed && bound.ours);
        assert_eq!(bound.former_driver.as_deref(), Some("e1000e"));
        assert_eq!(bound.device.driver.as_deref(), Some("vfio-pci"));
        assert_eq!(tree.host().driver(bdf("02:00.0")).as_deref(), Some("e1000e"));
        let files: Vec<String> = tree.kernel().writes().into_iter().map(|(file, _)| file).collect();
        assert_eq!(
            files,
            [
                format!("bus/pci/devices/{NIC}/driver_override"),
                format!("bus/pci/devices/{NIC}/driver/unbind"),
                "bus/pci/drivers_probe".to_owned()
            ]
        );
    }

    #[test]
    fn twice_changes_nothing() {
        let tree = tree();
        bind(&tree.host(), bdf(NIC), &BindOptions::default()).unwrap();
        let before = tree.snapshot();
        let again = bind(&tree.host(), bdf(NIC), &BindOptions::default()).unwrap();
        assert!(!again.changed && again.ours);
        assert_eq!(again.former_driver.as_deref(), Some("e1000e"));
        assert_eq!(tree.snapshot(), before);
    }

    #[test]
    fn a_device_that_someone_else_bound_is_not_ours() {
        let tree = TestTree::new();
        tree.pci(NIC).driver("vfio-pci").group(2).add();
        let bound = bind(&tree.host(), bdf(NIC), &BindOptions::default()).unwrap();
        assert!(!bound.changed && !bound.ours);
        assert!(tree.kernel().writes().is_empty());
    }

    #[test]
    fn a_device_in_use_is_refused_unless_forced() {
        let tree = tree();
        tree.net(NIC, "eth0");
        tree.route("eth0", "00000000", "00000000");
        tree.pci("0000:01:00.1").driver("nvme").group(2).add();
        tree.disk("0000:01:00.1", "nvme/nvme0/nvme0n1", 0, 0);
        tree.mount(0, "/", "ext4", "/dev/nvme0n1");
        let error = refusal(&tree, false);
        assert_eq!((error.code(), error.code().entry().class.exit_code()), (Code::InUse, 4));
        assert_eq!(
            error.evidence_lines(),
            ["eth0 has the default route", "0000:01:00.1, of the same IOMMU group: nvme0n1 mounted on /"]
        );
        let bound = bind(&tree.host(), bdf(NIC), &BindOptions::forced()).unwrap();
        assert!(bound.companions[0].blocks);
        assert_eq!(bound.companions[0].uses.len(), 1);
    }

    #[test]
    fn an_interface_is_taken_when_it_has_no_route_or_is_down() {
        let tree = tree();
        tree.net(NIC, "eth0");
        tree.route("eth0", "0000A8C0", "00FFFFFF");
        let error = refusal(&tree, false);
        assert_eq!(error.code(), Code::InUse);
        assert_eq!(error.fix_text(), Some("`ip link set eth0 down`"));
        std::fs::write(tree.sys("class/net/eth0/flags"), "0x1002\n").unwrap();
        assert!(bind(&tree.host(), bdf(NIC), &BindOptions::default()).unwrap().changed);
    }

    #[test]
    fn each_use_of_a_disk_is_refused() {
        type Make = fn(&TestTree);
        const DRIVE: &str = NIC;
        let uses: [(Make, &str, &str); 4] = [
            (|tree| tree.mount(1, "/data", "ext4", "/dev/nvme0n1p1"), "nvme0n1p1 mounted on /data", "`umount /data`"),
            (
                |tree| tree.append("proc/swaps", "/dev/nvme0n1p1 partition\t8\t0\t-2\n"),
                "nvme0n1p1 is swap space",
                "`swapoff /dev/nvme0n1p1`",
            ),
            (
                |tree| tree.mapper("nvme0n1p1", "dm-0", "vg-data", 50),
                "nvme0n1p1 is part of dm-0 (vg-data)",
                "take dm-0 (vg-data) down (`vgchange -an`, `cryptsetup close`, `mdadm --stop`)",
            ),
            (
                |tree| {
                    let array = tree.sys("devices/virtual/block/md127");
                    tree.disk_at(&array, 0, 60);
                    tree.link(tree.sys("class/block/nvme0n1p1/holders/md127"), array);
                },
                "nvme0n1p1 is part of md127",
                "take md127 down (`vgchange -an`, `cryptsetup close`, `mdadm --stop`)",
            ),
        ];
        for (make, seen, fix) in uses {
            let tree = tree();
            tree.disk(DRIVE, "nvme/nvme0/nvme0n1", 1, 0);
            assert!(bind(&tree.host(), bdf(DRIVE), &BindOptions::default()).is_ok(), "a disk that is idle");
            let tree = self::tree();
            tree.disk(DRIVE, "nvme/nvme0/nvme0n1", 1, 0);
            make(&tree);
            let error = refusal(&tree, false);
            assert_eq!((error.code(), error.evidence_lines()), (Code::InUse, &[seen.to_owned()][..]));
            assert_eq!(error.fix_text(), Some(fix));
        }
    }

    #[test]
    fn a_card_whose_virtual_functions_are_in_use_stays() {
        let tree = tree();
        tree.attribute(NIC, "sriov_numvfs", "1\n");
        tree.pci("0000:01:10.0").driver("vfio-pci").group(9).add();
        tree.link(tree.pci_path(NIC).join("virtfn0"), "../0000:01:10.0");
        tree.process(42, "passthru", &[&tree.host().group_node(9)]);
        let error = refusal(&tree, false);
        assert_eq!(error.code(), Code::InUse);
        assert_eq!(error.evidence_lines(), ["its virtual function 0000:01:10.0: passthru (process 42) has it"]);
    }

    #[test]
    fn bridges_and_devices_without_a_group_are_refused() {
        let tree = tree();
        tree.pci("0000:03:00.0").driver("e1000e").add();
        let code = |address| bind(&tree.host(), bdf(address), &BindOptions::forced()).unwrap_err().code();
        assert_eq!(code("00:01.0"), Code::BindFailed);
        assert_eq!(code("03:00.0"), Code::NoIommu);
        assert_eq!(code("04:00.0"), Code::DeviceAbsent);
        tree.file("sys/kernel/iommu_groups/2/name", "vfio-noiommu\n");
        assert_eq!(code("01:00.0"), Code::NoIommu);
    }

    #[test]
    fn the_module_is_loaded_when_it_is_missing() {
        let tree = tree();
        std::fs::remove_dir_all(tree.sys("bus/pci/drivers/vfio-pci")).unwrap();
        let error = refusal(&tree, false);
        assert_eq!(error.code(), Code::NoVfio);
        assert!(error.to_string().contains("Module vfio-pci not found"), "{error}");
        tree.kernel().add_module("vfio-pci");
        assert!(bind(&tree.host(), bdf(NIC), &BindOptions::default()).unwrap().changed);
    }

    #[test]
    fn a_probe_that_binds_nothing_is_noticed_and_undone() {
        let tree = tree();
        tree.kernel().decline("vfio-pci");
        let error = refusal(&tree, false);
        assert_eq!(error.code(), Code::BindFailed);
        assert!(error.to_string().contains("vfio-pci did not take the device: it has no driver"), "{error}");
        assert!(error.to_string().contains("it is as it was before: e1000e"), "{error}");
    }

    #[test]
    fn a_refused_step_names_file_value_and_answer_and_is_undone() {
        let files = ["driver_override", "driver/unbind", "drivers_probe"];
        for (number, file) in files.into_iter().enumerate() {
            let tree = tree();
            tree.kernel().set_fault(Some(Fault::Refuse(number, libc::EBUSY)));
            let error = refusal(&tree, false);
            assert_eq!(error.code(), Code::BindFailed);
            let seen = &error.evidence_lines()[0];
            assert!(seen.starts_with("writing \"") && seen.contains(file) && seen.ends_with("(EBUSY)"), "{error}");
            assert_eq!(tree.host().driver(bdf(NIC)).as_deref(), Some("e1000e"));
        }
    }

    #[test]
    fn a_damaged_journal_stops_before_any_change() {
        let tree = tree();
        tree.file(format!("run/passthru/devices/{NIC}.json"), "{\"version\":1");
        assert_eq!(refusal(&tree, true).code(), Code::JournalUnusable);
    }

    #[test]
    fn an_override_that_could_not_be_given_back_is_left_alone() {
        let tree = tree();
        tree.attribute(NIC, "driver_override", "../x\n");
        let error = refusal(&tree, false);
        assert_eq!(error.code(), Code::JournalUnusable);
        assert!(error.to_string().contains("cannot be a driver's name"), "{error}");
    }

    #[test]
    fn an_entry_of_another_card_at_the_address_is_replaced() {
        let tree = tree();
        bind(&tree.host(), bdf(NIC), &BindOptions::default()).unwrap();
        tree.attribute(NIC, "device", "0x1533\n");
        let bound = bind(&tree.host(), bdf(NIC), &BindOptions::default()).unwrap();
        assert!(!bound.ours, "the new card was found on vfio-pci");
    }
}
