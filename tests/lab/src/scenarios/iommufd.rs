//! Devices on iommufd: opened by nodes of their own and attached to one IOAS, on a VFIO that the lab has built.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::errors::refused;
use super::steps::{self, DRIVE, NIC};
use crate::l0::machines;
use crate::l1::{Guest, L1, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("iommufd-main-job", main_job).on(&machines::IOMMUFD),
    Scenario::new("iommufd-descriptors-given", given).on(&machines::IOMMUFD),
    Scenario::new("iommufd-and-type1-in-one-guest", mixed).on(&machines::IOMMUFD),
    Scenario::new("iommufd-p2p-is-warned-of-once", peers).on(&machines::IOMMUFD),
    Scenario::new("iommufd-errors", errors).on(&machines::IOMMUFD),
    Scenario::new("iommufd-absent", absent),
];

const GUEST_UP: Duration = Duration::from_secs(120);

/// The nodes of VFIO and iommufd that processes in L1 have open, sorted, one a line.
pub fn open_nodes(l1: &mut L1) -> Result<String> {
    l1.ok("readlink /proc/[0-9]*/fd/* 2>/dev/null | grep -E '^/dev/(iommu|vfio/)' | sort -u")
}

/// The main job on iommufd, chosen without being asked for.
fn main_job(lab: &mut Lab) -> Result<()> {
    let read = steps::host_sum(lab.l1)?;
    let guest = Guest::new().option("--verbose").passes(NIC).passes(DRIVE);
    let guest = steps::working_guest(guest, lab.server.port).script("echo LAB done=1; sleep 2");
    let ended = steps::with_bound(lab, &[NIC, DRIVE], |lab| {
        let job = lab.l1.start_guest(&guest)?;
        lab.l1.expect(&job, "L2 UP", GUEST_UP)?;
        let nodes = open_nodes(lab.l1)?;
        ensure!(nodes == "/dev/iommu\n/dev/vfio/devices/vfio0\n/dev/vfio/devices/vfio1\n", "open are:\n{nodes}");
        let ended = lab.l1.ended(&job)?.success()?;
        ensure!(open_nodes(lab.l1)?.is_empty(), "nodes are still open");
        Ok(ended)
    })?;
    let ended = ended.expect("passthru: 0000:01:00.0: iommufd (")?.expect("passthru: 0000:02:00.0: iommufd (")?;
    steps::check_work(&ended, &lab.server.sum, &read)?;
    steps::check_written(lab.l1, &ended)
}

/// A helper with the right to opens the nodes; passthru runs as nobody, without any.
fn given(lab: &mut Lab) -> Result<()> {
    let guest = Guest::new()
        .option("--verbose")
        .option("--object iommufd,id=i0,fd=8")
        .device("pcie-root-port,id=port1")
        .device("vfio-pci,fd=9,iommufd=i0,bus=port1")
        .script(&l2::nic_up("e1000e"))
        .script(&l2::ping(4));
    let ended = steps::with_bound(lab, &[NIC], |lab| {
        let command = lab.l1.prepare(&guest)?;
        let command = command.trim_start_matches("exec ");
        let node = format!("/dev/vfio/devices/$(ls /sys/bus/pci/devices/0000:{NIC}/vfio-dev)");
        let job = lab.l1.start(&format!(
            "ulimit -l unlimited; chmod 666 /dev/kvm; \
             exec setpriv --reuid 1000 --regid 1000 --clear-groups --inh-caps=-all --bounding-set=-all \
             {command} 8<>/dev/iommu 9<>{node}"
        ))?;
        let ended = lab.l1.ended(&job);
        lab.l1.ok("chmod 600 /dev/kvm")?;
        ended?.success()
    })?
    .expect("passthru: 0000:01:00.0: iommufd (fd= gives its node)")?;
    ensure!(ended.value("ping")? == "4", "pings were lost");
    Ok(())
}

/// One device by its group, one by its node: two address spaces, both with all of the guest's memory.
fn mixed(lab: &mut Lab) -> Result<()> {
    let read = steps::host_sum(lab.l1)?;
    let guest = Guest::new().passes_with(NIC, ",iommu=type1").passes_with(DRIVE, ",iommu=iommufd");
    let guest = steps::working_guest(guest, lab.server.port);
    let ended = steps::with_bound(lab, &[NIC, DRIVE], |lab| {
        let job = lab.l1.start_guest(&guest)?;
        lab.l1.expect(&job, "L2 UP", GUEST_UP)?;
        let nodes = open_nodes(lab.l1)?;
        let wanted = ["/dev/iommu\n", "/dev/vfio/vfio\n", "/dev/vfio/devices/"];
        ensure!(wanted.iter().all(|node| nodes.contains(node)), "open are:\n{nodes}");
        lab.l1.ended(&job)?.success()
    })?;
    steps::check_work(&ended, &lab.server.sum, &read)?;
    steps::check_written(lab.l1, &ended)
}

/// This kernel has no dma-buf of BARs: one warning for each device whose BARs other devices would reach, and the guest
/// works. By type1 the kernel maps them.
fn peers(lab: &mut Lab) -> Result<()> {
    const WARNING: &str = "other devices cannot reach it by DMA";
    let guest = |iommu: &str| {
        let guest = Guest::new().passes_with(NIC, iommu).passes_with(DRIVE, iommu);
        guest.script(&l2::nic_up("e1000e")).script(&l2::ping(4)).script(&l2::nvme_up()).script("echo LAB end=1")
    };
    steps::with_bound(lab, &[NIC, DRIVE], |lab| {
        let ended = lab.l1.guest(&guest(",iommu=iommufd"))?.success()?.expect("iommu=type1 can")?;
        let warnings = ended.text.lines().filter(|line| line.contains(WARNING)).count();
        ensure!(warnings == 2, "{warnings} warnings for two devices:\n{}", ended.text);
        ensure!(ended.value("ping")? == "4" && ended.value("end")? == "1", "the guest did not work");
        lab.l1.guest(&guest(",iommu=type1"))?.success()?.lacks(WARNING).map(drop)
    })
}

/// What the kernel refuses on this back end, and what is no descriptor of it.
fn errors(lab: &mut Lab) -> Result<()> {
    let run = |device: &str| Guest::new().device(device);
    steps::with_bound(lab, &[NIC], |lab| {
        let own = format!("vfio-pci,host={NIC},iommu=iommufd");
        let job = lab.l1.start_guest(&run(&own).script("sleep 1000"))?;
        lab.l1.expect(&job, "L2 UP", GUEST_UP)?;
        for device in [own.as_str(), &format!("vfio-pci,host={NIC}"), &format!("vfio-pci,host={NIC},iommu=type1")] {
            let command = lab.l1.prepare(&run(device))?;
            refused(lab, &command, "PT008", &["in use", &job.pid.to_string()])?;
        }
        lab.l1.kill_all()?;
        let command = lab.l1.prepare(&run("vfio-pci,fd=9,iommu=iommufd"))?;
        refused(lab, &format!("{command} 9</dev/null"), "PT042", &["descriptor 9", "/null"])?;
        refused(lab, &format!("{command} 9<>/dev/iommu"), "PT042", &["descriptor 9", "iommu"])?;
        let command = lab.l1.prepare(&run(&own).option("--object iommufd,id=i0,fd=9"))?;
        refused(lab, &format!("{command} 9<>/dev/vfio/vfio"), "PT042", &["/dev/iommu"])?;
        let command = lab.l1.prepare(&run(&format!("vfio-pci,host={NIC},iommufd=i1")))?;
        refused(lab, &command, "PT043", &["i1"])?;
        // A user who may open neither.
        let command = lab.l1.prepare(&run(&own))?;
        let command = command.trim_start_matches("exec ");
        let user = "setpriv --reuid 1000 --regid 1000 --clear-groups --inh-caps=-all --bounding-set=-all";
        let forbidden = refused(
            lab,
            &format!("ulimit -l unlimited; chmod 666 /dev/kvm; {user} {command}"),
            "PT007",
            &["/dev/iommu", "permission"],
        );
        let memlock = refused(
            lab,
            &format!("ulimit -l 65536; chmod 666 /dev/iommu /dev/vfio/devices/*; {user} {command}"),
            "PT009",
            &["memlock", "256"],
        );
        lab.l1.ok("chmod 600 /dev/kvm; chmod 660 /dev/iommu")?;
        forbidden.and(memlock).map(drop)
    })
}

/// Debian's VFIO: iommufd cannot be had by asking for it, and is not missed otherwise.
fn absent(lab: &mut Lab) -> Result<()> {
    let on = |iommu: &str| Guest::new().option("--verbose").device(&format!("vfio-pci,host={NIC},iommu={iommu}"));
    steps::with_bound(lab, &[NIC], |lab| {
        let command = lab.l1.prepare(&on("iommufd"))?;
        refused(lab, &command, "PT040", &["/dev/iommu", "modprobe iommufd"])?;
        lab.l1.guest(&on("auto"))?.success()?.expect("type1 (/dev/iommu: No such file or directory")?;
        Ok(())
    })
}
