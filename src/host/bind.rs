//! `passthru bind`: takes a device from its host driver and puts it on vfio-pci, so that a guest can own it.

use serde::Serialize;

use super::change::{Change, VFIO_PCI};
use super::journal::{Entry, Journal, Step};
use super::viable::Verdict;
use super::{Host, PciDevice, Use};
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};

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
}

/// A device that may be bound.
struct Candidate {
    device: PciDevice,
    companions: Vec<Verdict>,
}

/// Binds a device to vfio-pci. Binding twice changes nothing.
///
/// Errors: `DeviceAbsent`; `BindFailed` for a bridge, or when the kernel refused a step, after the former driver has
/// been given back; `Quarantined`; `NoIommu`; `InUse` if the host needs the device, unless `force`; `NoVfio` if the driver cannot be
/// loaded; `JournalUnusable` if what was before cannot be written down, before anything is changed.
pub fn bind(host: &Host, bdf: Bdf, force: bool) -> Result<Bound> {
    // Asked before the lock, which needs root: a refusal should not need it. Asked again under the lock.
    examine(host, bdf, force)?;
    let journal = Journal::open(host)?;
    let Candidate { device, companions } = examine(host, bdf, force)?;
    let known = journal.read(bdf)?.filter(|entry| entry.ours && entry.is_for(&device));
    if device.on_vfio() {
        let mut entry = known.unwrap_or_else(|| Entry::new(&device));
        entry.step = Step::Bound;
        journal.write(&entry)?;
        let former_driver = entry.former_driver.filter(|_| entry.ours);
        return Ok(Bound { device, changed: false, ours: entry.ours, former_driver, companions });
    }
    load_vfio_pci(host)?;
    let entry = resume(known, &device);
    let former_driver = entry.former_driver.clone();
    let mut change = Change::new(host, &journal, entry);
    if let Err(error) = change.take() {
        return Err(undo(&mut change, error, former_driver.as_deref()));
    }
    Ok(Bound { device: host.device(bdf)?, changed: true, ours: true, former_driver, companions })
}

/// The entry to go on with. One that a killed `bind` left knows what was before it; a driver that the device has
/// now is the one to give back.
fn resume(known: Option<Entry>, device: &PciDevice) -> Entry {
    let mut entry = known.unwrap_or_else(|| Entry::new(device));
    entry.former_driver = device.driver.clone().or(entry.former_driver);
    entry
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

fn examine(host: &Host, bdf: Bdf, force: bool) -> Result<Candidate> {
    let device = host.device(bdf)?;
    if device.bridge {
        return Err(Error::new(Code::BindFailed, format!("{bdf} is a bridge and stays with the host"))
            .evidence(device.name())
            .fix("name a device behind it: `lspci -tv` shows what lies where"));
    }
    host.refuse_quarantined(&device)?;
    let group = host.real_group(&device)?;
    let mut companions = host.verdicts(&group);
    companions.retain(|verdict| verdict.member.pci.as_ref().is_none_or(|member| member.bdf != bdf));
    let uses = host.uses(bdf);
    if !force && uses.iter().any(Use::is_vital) {
        return Err(in_use_error(&device, &uses, &companions));
    }
    Ok(Candidate { device, companions })
}

fn in_use_error(device: &PciDevice, uses: &[Use], companions: &[Verdict]) -> Error {
    let error = Error::new(Code::InUse, format!("the host itself uses {} ({})", device.bdf, device.name()));
    let error = uses.iter().fold(error, |error, used| error.evidence(used.to_string()));
    let others = companions.iter().flat_map(|verdict| verdict.uses.iter().map(|used| (&verdict.member.name, used)));
    others
        .fold(error, |error, (name, used)| error.evidence(format!("{name}, of the same IOMMU group: {used}")))
        .fix("stop that use first (unmount, swapoff, move the route to another interface)")
}

fn load_vfio_pci(host: &Host) -> Result<()> {
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
        let error = bind(&tree.host(), bdf(NIC), force).unwrap_err();
        assert_eq!(tree.snapshot(), before, "a refused device is not touched");
        error
    }

    #[test]
    fn only_the_named_twin_moves() {
        let tree = tree();
        let bound = bind(&tree.host(), bdf(NIC), false).unwrap();
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
        bind(&tree.host(), bdf(NIC), false).unwrap();
        let before = tree.snapshot();
        let again = bind(&tree.host(), bdf(NIC), false).unwrap();
        assert!(!again.changed && again.ours);
        assert_eq!(again.former_driver.as_deref(), Some("e1000e"));
        assert_eq!(tree.snapshot(), before);
    }

    #[test]
    fn a_device_that_someone_else_bound_is_not_ours() {
        let tree = TestTree::new();
        tree.pci(NIC).driver("vfio-pci").group(2).add();
        let bound = bind(&tree.host(), bdf(NIC), false).unwrap();
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
        let bound = bind(&tree.host(), bdf(NIC), true).unwrap();
        assert!(bound.companions[0].blocks);
        assert_eq!(bound.companions[0].uses.len(), 1);
    }

    #[test]
    fn an_interface_with_an_address_only_is_not_refused() {
        let tree = tree();
        tree.net(NIC, "eth0");
        tree.route("eth0", "0000A8C0", "00FFFFFF");
        assert!(bind(&tree.host(), bdf(NIC), false).unwrap().changed);
    }

    #[test]
    fn bridges_and_devices_without_a_group_are_refused() {
        let tree = tree();
        tree.pci("0000:03:00.0").driver("e1000e").add();
        let code = |address| bind(&tree.host(), bdf(address), true).unwrap_err().code();
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
        assert!(bind(&tree.host(), bdf(NIC), false).unwrap().changed);
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
        bind(&tree.host(), bdf(NIC), false).unwrap();
        tree.attribute(NIC, "device", "0x1533\n");
        let bound = bind(&tree.host(), bdf(NIC), false).unwrap();
        assert!(!bound.ours, "the new card was found on vfio-pci");
    }
}
