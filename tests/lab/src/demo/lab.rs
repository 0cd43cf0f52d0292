//! The demo in the lab: both devices of the default machine go to a guest and come back.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{output, shows, step, summary};
use crate::l0::machines;
use crate::l1::{Guest, L1, Programs, Vmm, l2_scripts as l2};
use crate::scenarios::lab::{bind_by_hand, release_by_hand};
use crate::scenarios::steps::{self, DRIVE, NIC};
use crate::server;
use crate::setup::Image;

/// Limit of the guest's life.
const LIMIT: Duration = Duration::from_secs(400);

const GROUPS: &str = "for g in $(ls -v /sys/kernel/iommu_groups); do \
    for d in /sys/kernel/iommu_groups/$g/devices/*; do echo \"group $g: $(lspci -nns ${d##*/})\"; done; done";

/// Runs the demo; `vmm` is QEMU only when the lab proves itself.
pub fn run(image: &Image, programs: &Programs, folder: &Path, vmm: Vmm) -> Result<()> {
    let started = Instant::now();
    println!(
        "The main job of passthru: a guest that owns a NIC and an NVMe drive of its host.\n\
         The host is an emulated PC with an IOMMU; its kernel, KVM and VFIO are the real ones of Linux."
    );
    step(1, "Start the host");
    let mut l1 = L1::boot(image, &machines::DEFAULT, programs, &folder.join("demo"))?;
    output(&l1.ok("uname -sr; ls -1 /dev/kvm /dev/vfio/vfio")?);
    let server = server::start()?;

    step(2, "The host's IOMMU groups");
    output(&l1.ok(GROUPS)?);

    step(3, "The devices, in the hands of the host");
    let drivers = |l1: &mut L1| -> Result<[String; 2]> { Ok([steps::driver(l1, NIC)?, steps::driver(l1, DRIVE)?]) };
    let before = drivers(&mut l1)?;
    output(&l1.ok(&format!("lspci -ks {NIC}; lspci -ks {DRIVE}"))?);
    let sum = steps::host_sum(&mut l1)?;
    let mib = l2::READ_MIB;
    output(&format!("SHA-256 of the drive's first {mib} MiB, read by the host: {sum}"));

    step(4, "Take them from the host");
    for bdf in [NIC, DRIVE] {
        match vmm {
            Vmm::Passthru => {
                shows(&format!("passthru bind {bdf}"));
                output(&l1.ok(&format!("passthru bind {bdf}"))?);
            }
            Vmm::Qemu => bind_by_hand(&mut l1, bdf)?,
        }
    }
    output(&l1.ok(&format!("lspci -ks {NIC}; lspci -ks {DRIVE}"))?);

    step(5, "Boot a guest that owns them (Debian's kernel, 256 MiB)");
    let guest = Guest::new().whole_start().vmm(vmm).fat().passes(NIC).passes(DRIVE);
    let guest =
        guest.script("echo '# lspci'; lspci -nn").script("echo '# the NIC: link, address, ping, 4 MiB over TCP'");
    let guest = guest
        .script(&l2::nic_up("e1000e"))
        .script(&l2::ping(4))
        .script("cat /tmp/ping")
        .script(&l2::fetch(server.port))
        .script(&format!("echo '# the drive: read {mib} MiB, write 8 MiB, read them back'"))
        .script(&l2::nvme_up())
        .script(&l2::nvme_read(l2::READ_MIB))
        .script(&l2::nvme_write())
        .script("echo '# interrupts of both'; grep -E 'CPU0|eth0|nvme' /proc/interrupts");
    let command = l1.prepare(&guest)?;
    shows(command.trim_start_matches("exec "));
    let job = l1.start(&command)?;
    let code = l1.follow(&job, LIMIT, output)?;
    let text = job.text();
    let ended = crate::l1::Ended { code, text }.success()?;
    steps::check_work(&ended, &server.sum, &sum)?;

    step(6, "Give them back to the host");
    for bdf in [NIC, DRIVE] {
        match vmm {
            Vmm::Passthru => {
                shows(&format!("passthru release {bdf}"));
                output(&l1.ok(&format!("passthru release {bdf}"))?);
            }
            Vmm::Qemu => release_by_hand(&mut l1, bdf)?,
        }
    }
    let after = drivers(&mut l1)?;
    ensure!(before == after, "drivers before: {before:?}, after: {after:?}");
    output(&l1.ok(&format!("lspci -ks {NIC}; lspci -ks {DRIVE}"))?);
    steps::check_written(&mut l1, &ended)?;

    summary(&[
        format!("a stock Debian kernel booted in a guest with the host's devices {NIC} and {DRIVE}"),
        "the guest's NIC answered 4 of 4 pings, and 4 MiB over TCP had the right SHA-256".into(),
        format!("the guest read from the NVMe drive what the host reads ({mib} MiB, SHA-256)"),
        "the guest wrote 8 MiB to the drive; it and, afterwards, the host read them back unchanged".into(),
        format!("both devices are back on their drivers: {} and {}", after[0], after[1]),
    ]);
    println!("\nAll of it took {} s.", started.elapsed().as_secs());
    Ok(())
}
