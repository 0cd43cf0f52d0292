//! Whether a guest and its devices fit the host's addresses and memory nodes: what of it can be found out from sysfs, as
//! findings of `passthru check`.

use std::ops::Range;

use super::options::RunOptions;
use super::placement::place;
use super::places::Place;
use crate::boot::layout::{HIGH_RAM_START, LOW_RAM_MAX};
use crate::error::{Code, Error, Result};
use crate::host::findings::{Finding, Subject};
use crate::host::limits::phys_bits::check_phys_bits;
use crate::host::limits::size_text;
use crate::host::pci::{ROM_INDEX, ResourceKind};
use crate::host::topology::Topology;
use crate::host::{Host, PciDevice};
use crate::placement::Choice;
use crate::vfio::front_end;

/// All findings about the guest's place.
pub fn findings(options: &RunOptions, places: &[Place], host: &Host) -> Vec<Finding> {
    let passed: Vec<(&Place, PciDevice)> = places
        .iter()
        .filter(|place| place.of_type.name() == front_end::NAME)
        .filter_map(|place| Some((place, host.device(front_end::address_of(&place.args)?).ok()?)))
        .collect();
    let ram = options.memory.size.0;
    let mut findings: Vec<Finding> =
        check_addresses(ram, passed.iter().map(|(_, device)| device), host).into_iter().collect();
    if options.placement != Choice::Off {
        findings.push(match place(options, host) {
            Ok(plan) => {
                let cpus: Vec<String> = plan.vcpus.iter().map(u32::to_string).collect();
                let what = format!("the guest's CPUs have a place: {}", cpus.join(", "));
                plan.notes
                    .iter()
                    .fold(Finding::pass(Subject::Host, Code::NoPlace, what), |it, note| it.evidence(note.clone()))
            }
            Err(error) => Finding::fail(Subject::Host, &error),
        });
    }
    let topology = host.topology();
    for (place, device) in &passed {
        let subject = Subject::Device(device.bdf);
        let reserved = check_reserved(ram, device, host);
        findings.push(Finding::of(subject, Code::ReservedIova, "its IOMMU can map the guest's memory", reserved));
        findings.extend(check_node(options, device, &topology));
        findings.extend(check_rom(place, device));
    }
    findings
}

/// Where RAM ends.
fn ram_end(ram: u64) -> u64 {
    if ram <= LOW_RAM_MAX { ram } else { HIGH_RAM_START.saturating_add(ram - LOW_RAM_MAX) }
}

/// Whether memory and the BARs above it end below the CPU's highest address.
fn check_addresses<'a>(ram: u64, devices: impl Iterator<Item = &'a PciDevice>, host: &Host) -> Option<Finding> {
    let bits = host.phys_bits()?;
    let bars: Vec<u64> = devices
        .flat_map(|device| &device.resources)
        .filter(|bar| bar.kind == ResourceKind::Mem64)
        .map(|bar| bar.size)
        .collect();
    let largest = bars.iter().copied().max().unwrap_or(0).max(1);
    // Sorted by size they lie side by side, behind the first address that suits the largest.
    let start = ram_end(ram).max(HIGH_RAM_START).checked_next_multiple_of(largest).unwrap_or(u64::MAX);
    let end = bars.iter().fold(start, |end, size| end.saturating_add(*size));
    let well = format!("{bits} physical address bits suffice for the guest's memory and its devices' BARs");
    Some(Finding::of(Subject::Host, Code::PhysBits, well, check_phys_bits(end, bits)))
}

/// Whether the IOMMU reserves addresses at which the guest's memory lies, or ends below it.
fn check_reserved(ram: u64, device: &PciDevice, host: &Host) -> Result<()> {
    let memory = [0..ram.min(LOW_RAM_MAX), HIGH_RAM_START..ram_end(ram).max(HIGH_RAM_START)];
    let reserved = host.reserved_addresses(device);
    let beyond = host.iommu_width(device.bdf).and_then(|bits| 1u64.checked_shl(bits)).map(|end| end..u64::MAX);
    let hit = |range: &Range<u64>| memory.iter().any(|part| part.start < range.end && range.start < part.end);
    match reserved.iter().chain(&beyond).find(|range| hit(range)) {
        None => Ok(()),
        Some(range) => {
            let what = format!("the IOMMU cannot map guest memory at {:#x} to {:#x}", range.start, range.end - 1);
            Err(Error::new(Code::ReservedIova, what)
                .evidence("reserved_regions of its group in /sys/kernel/iommu_groups, or the IOMMU's address width")
                .fix("give the guest less memory, so that it ends below the range"))
        }
    }
}

/// Whether the node of the device has the guest's memory; nothing to say where there is one node only.
fn check_node(options: &RunOptions, device: &PciDevice, topology: &Topology) -> Option<Finding> {
    let subject = Subject::Device(device.bdf);
    let node = topology.node(device.numa_node?).filter(|_| topology.nodes.len() > 1)?;
    let (ram, page) = (options.memory.size.0, options.memory.hugepages.page_size());
    let pool = node.pools.iter().find(|pool| pool.page == page).map(|pool| pool.free.saturating_mul(page));
    let (free, of) = match pool {
        Some(pool) if !options.memory.grow_pool => (pool, "in huge pages "),
        Some(pool) => (pool.saturating_add(node.free), "in huge pages and else "),
        None => (node.free, ""),
    };
    let seen = format!("{} free {of}on memory node {}, for {}", size_text(free), node.id, size_text(ram));
    if free >= ram {
        let what = format!("its memory node {} has room for the guest", node.id);
        return Some(Finding::pass(subject, Code::FarMemory, what).evidence(seen));
    }
    let error = Error::new(Code::FarMemory, format!("its memory node {} has too little room for the guest", node.id));
    Some(Finding::warn(subject, &error.evidence(seen).fix("free memory there, or give the guest less")))
}

/// Whether a file's ROM is the device's.
fn check_rom(place: &Place, device: &PciDevice) -> Option<Finding> {
    let subject = Subject::Device(device.bdf);
    let Some((path, images)) = front_end::rom_file(&place.args) else {
        // Reading it would switch it on, and on some devices the BARs off, under the driver that has the device.
        let has = device.resources.iter().any(|resource| resource.index == ROM_INDEX);
        let has = has && front_end::shows_own_rom(&place.args);
        let what = format!("its own ROM is not read here: `passthru rom inspect {}` does", device.bdf);
        return has.then(|| Finding::pass(subject, Code::RomUnusable, what));
    };
    let path = path.display();
    if images.is_for(device.vendor, device.device) == Some(false) {
        let error = Error::new(Code::RomUnusable, format!("{path} is the ROM of another device"))
            .evidence(format!("this one is [{:04x}:{:04x}]: firmware will not run it", device.vendor, device.device))
            .fix("`passthru rom inspect FILE` shows whose it is");
        return Some(Finding::warn(subject, &error));
    }
    if !images.defects.is_empty() {
        let error =
            Error::new(Code::RomUnusable, format!("{path} has defects, and is shown to the guest all the same"));
        let error = images.defects.iter().fold(error, |error, defect| error.evidence(defect.to_string()));
        return Some(Finding::warn(subject, &error));
    }
    Some(Finding::pass(subject, Code::RomUnusable, format!("{path} is a ROM for it")))
}

#[cfg(test)]
mod tests {
    use super::super::{options, places};
    use super::*;
    use crate::host::findings::Level;
    use crate::host::testtree::{TestTree, cpus};
    use crate::object::Args;

    const NIC: &str = "0000:81:00.0";

    /// Two memory nodes with 20 GiB free each; a card with a BAR of this size on the second.
    fn tree(bar: u64) -> TestTree {
        let tree = cpus::two_xeons();
        tree.file("proc/cpuinfo", "processor\t: 0\naddress sizes\t: 39 bits physical, 48 bits virtual\n");
        tree.pci(NIC).driver("vfio-pci").group(2).add();
        tree.attribute(NIC, "numa_node", "1\n");
        tree.attribute(NIC, "resource", &crate::host::testtree::kernel::resource_line(bar));
        tree
    }

    fn examined(tree: &TestTree, memory: &str, placement: Choice) -> Vec<(Code, Level)> {
        let parsed = |option, key, text: &str| Args::parse(option, Some(key), text).unwrap();
        let device = parsed("--device", "driver", &format!("vfio-pci,host={NIC}"));
        let options = RunOptions {
            kernel: "vmlinuz".into(),
            initrd: None,
            append: String::new(),
            memory: options::memory::parse(parsed("-m", "size", memory)).unwrap(),
            numa: Default::default(),
            smp: options::smp::parse(parsed("--smp", "cpus", "4,threads=2")).unwrap(),
            placement,
            cpu: options::cpu::parse(parsed("--cpu", "model", "")).unwrap(),
            machine: parsed("-M", "type", "q35"),
            devices: vec![device.clone()],
            back_ends: Default::default(),
            serial: crate::backends::chardev::shorthand::Target::None,
            qmp: Vec::new(),
            monitors: Default::default(),
            paused: false,
            uuid: None,
            actions: options::action::parse(parsed("--action", "panic", "")).unwrap(),
            shutdown_timeout: None,
            boot_trace: None,
            pid_file: None,
            single_gpu: false,
            verbose: false,
            name: None,
        };
        let places = places::plan(&[device], &tree.host()).unwrap().1;
        findings(&options, &places, &tree.host()).into_iter().map(|finding| (finding.code, finding.level)).collect()
    }

    #[test]
    fn what_fits_passes() {
        use Level::{Fail, Pass, Warn};
        let small = tree(16 << 20);
        let all = [(Code::PhysBits, Pass), (Code::NoPlace, Pass), (Code::ReservedIova, Pass), (Code::FarMemory, Pass)];
        assert_eq!(examined(&small, "4G", Choice::Auto), all);
        assert_eq!(examined(&small, "30G", Choice::Off)[2], (Code::FarMemory, Warn));
        assert_eq!(examined(&small, "4G,hugepages=2M", Choice::Off)[2], (Code::FarMemory, Warn), "the pool is empty");
        assert_eq!(examined(&small, "4G,hugepages=2M,grow-pool=on", Choice::Off)[2], (Code::FarMemory, Pass));
        assert_eq!(examined(&small, "4G", Choice::List([500].into_iter().collect()))[1], (Code::NoPlace, Fail));
        assert_eq!(examined(&tree(1 << 39), "4G", Choice::Off)[0], (Code::PhysBits, Fail));
        small.file("sys/kernel/iommu_groups/2/reserved_regions", "0x00000000bf000000 0x00000000bf0fffff direct\n");
        assert_eq!(examined(&small, "4G", Choice::Off)[1], (Code::ReservedIova, Fail));
        assert_eq!(examined(&small, "2G", Choice::Off)[1], (Code::ReservedIova, Pass));
    }
}
