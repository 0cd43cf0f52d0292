//! passthru's main job: a guest owns a NIC and an NVMe drive of its host.

use anyhow::{Result, ensure};

use super::steps::{self, DRIVE, NIC};
use crate::l0::machines;
use crate::l1::{Guest, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("main-job-1-vcpu", |lab| main_job(lab, Guest::new().whole_start())),
    Scenario::new("main-job-4-vcpus", |lab| main_job(lab, Guest::new().whole_start().cpus(4))),
    Scenario::new("main-job-elf-kernel", |lab| main_job(lab, Guest::new())),
    Scenario::new("main-job-thp-off", |lab| main_job(lab, Guest::new().memory("size=256M,hugepages=off"))).long(),
    Scenario::new("main-job-exclusive-msix-bar", |lab| main_job(lab, Guest::new())).on(&machines::NVME_EXCLUSIVE),
    Scenario::new("guest-without-devices", no_devices),
    Scenario::new("guest-sees-clean-hardware", clean_hardware),
    Scenario::new("memory-above-4g", high_memory).on(&machines::LARGE).long(),
];

fn main_job(lab: &mut Lab, guest: Guest) -> Result<()> {
    let read = steps::host_sum(lab.l1)?;
    let guest = steps::working_guest(guest.passes(NIC).passes(DRIVE), lab.server.port);
    let ended = steps::with_bound(lab, &[NIC, DRIVE], |lab| lab.l1.guest(&guest)?.success()?.expect("L2 UP"))?;
    steps::check_work(&ended, &lab.server.sum, &read)?;
    steps::check_written(lab.l1, &ended)
}

fn no_devices(lab: &mut Lab) -> Result<()> {
    let guest = Guest::new()
        .cpus(2)
        .script("echo LAB cpus=$(grep -c ^processor /proc/cpuinfo)")
        .script("echo LAB clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)");
    let ended = lab.l1.guest(&guest)?.success()?.expect("L2 UP")?;
    ensure!(ended.value("cpus")? == "2");
    let clock = ended.value("clock")?;
    ensure!(clock == "kvm-clock" || clock == "tsc", "the guest's clock source is {clock}");
    Ok(())
}

/// Linux must find nothing to complain about, and see the devices' extended capabilities.
fn clean_hardware(lab: &mut Lab) -> Result<()> {
    let guest = Guest::new()
        .whole_start()
        .fat()
        .cpus(3)
        .passes(NIC)
        .passes(DRIVE)
        .script("dmesg")
        .script("lspci -vvv")
        .script(&l2::nic_up("e1000e"))
        .script("grep eth0 /proc/interrupts")
        .script("echo LAB end=1");
    let ended = steps::with_bound(lab, &[NIC, DRIVE], |lab| lab.l1.guest(&guest)?.success())?
        .lacks("not reserved in ACPI motherboard resources")?
        .lacks("[Firmware Bug]")?
        .lacks("ACPI Error")?
        .lacks("ACPI BIOS Error")?
        .lacks("can't claim BAR")?
        .lacks("no compatible bridge window")?
        .expect("82574L")?
        .expect("Capabilities: [100")?;
    ensure!(ended.value("end")? == "1");
    Ok(())
}

/// RAM on both sides of the hole below 4 GiB.
fn high_memory(lab: &mut Lab) -> Result<()> {
    let guest =
        Guest::new().memory("5G").script("echo LAB mem=$(sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)");
    let ended = lab.l1.guest(&guest)?.success()?;
    let kib: u64 = ended.value("mem")?.parse()?;
    ensure!(kib > 4 << 20, "the guest sees {kib} KiB of 5 GiB");
    Ok(())
}
