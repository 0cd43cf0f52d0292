//! Interrupts of every kind: the pin and its exits, changes between the kinds, a shared line.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::steps::{self, DRIVE, NIC};
use crate::l1::{Guest, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("intx-no-exits", no_exits),
    Scenario::new("interrupt-kinds-change", kinds),
    Scenario::new("intx-shared-line", shared_line),
];

/// How often the NIC's interrupt has come, and by what, in the guest.
const COUNT: &str = "irqs() { awk '/eth0/ { n += $2 } END { print n + 0 }' /proc/interrupts; }";

/// The NIC comes up with a kind of interrupts (0: INTx, 2: MSI-X; the emulated card's own MSI test fails on the host
/// as well), pings, reports `pings<key>` and `kind<key>`, and goes.
fn round(mode: u32, key: &str) -> String {
    format!(
        "modprobe e1000e IntMode={mode}\n{}\nbefore=$(irqs)\nping -c 50 -i 0.02 -W 5 10.0.2.2 > /tmp/ping\n\
         echo LAB pings{key}=$(sed -n 's/.* \\([0-9]*\\) packets received.*/\\1/p' /tmp/ping)\n\
         echo LAB irqs{key}=$(($(irqs) - before))\n\
         echo LAB kind{key}=$(awk '/eth0/ {{ print $3; exit }}' /proc/interrupts)\n\
         ip link set eth0 down\nrmmod e1000e",
        l2::nic_up("e1000e")
    )
}

/// One guest, one device, one driver: the kind of interrupt changes with each load of the module.
fn kinds(lab: &mut Lab) -> Result<()> {
    let rounds = [(0, "a", "IO-APIC"), (2, "b", "PCI-MSIX"), (0, "c", "IO-APIC"), (2, "d", "PCI-MSIX")];
    let mut guest = Guest::new().passes(NIC).script(COUNT);
    for (mode, key, _) in rounds {
        guest = guest.script(&round(mode, key));
    }
    let ended = steps::with_bound(lab, &[NIC], |lab| lab.l1.guest(&guest)?.success())?;
    for (mode, key, kind) in rounds {
        let value = |what: &str| ended.value(&format!("{what}{key}"));
        ensure!(value("pings")? == "50", "pings were lost with IntMode={mode}");
        ensure!(value("kind")?.starts_with(kind), "IntMode={mode} used {}", value("kind")?);
        let irqs: u32 = value("irqs")?.parse()?;
        ensure!(irqs >= 40, "50 pings came with {irqs} interrupts");
    }
    Ok(())
}

/// Histograms of the host's tracing, switched on and read by the shell of L1.
const TRACE: &str = "t=/sys/kernel/tracing; [ -d $t/events ] || mount -t tracefs tracefs $t; e=$t/events/kvm";
/// Ports that KVM answers itself (interrupt controllers, timer), and those of the serial port that the guest reports on.
const OTHER_PORTS: &str = "port!=0x20 && port!=0x21 && port!=0xa0 && port!=0xa1 && port!=0x61 && (port<0x40 || port>0x43) && (port<0x3f8 || port>0x3ff)";

/// 300 interrupts by the pin cost no exit to user space: trigger and end of interrupt stay in the kernel.
fn no_exits(lab: &mut Lab) -> Result<()> {
    let guest = Guest::new()
        .passes(NIC)
        .script(COUNT)
        .script("modprobe e1000e IntMode=0")
        .script(&l2::nic_up("e1000e"))
        .script("sleep 1; echo LAB at=ready; sleep 4; before=$(irqs)")
        .script("ping -c 300 -i 0.01 -W 5 10.0.2.2 > /tmp/ping")
        .script("n=$(($(irqs) - before)); sleep 1; echo LAB irqs=$n; sleep 3");
    let (ended, exits) = steps::with_bound(lab, &[NIC], |lab| {
        let job = lab.l1.start_guest(&guest)?;
        lab.l1.expect(&job, "LAB at=ready", Duration::from_secs(120))?;
        lab.l1.ok(&format!(
            "{TRACE}; echo 'hist:keys=reason if reason==6' > $e/kvm_userspace_exit/trigger; \
             echo 'hist:keys=port if {OTHER_PORTS}' > $e/kvm_pio/trigger"
        ))?;
        lab.l1.expect(&job, "LAB irqs=", Duration::from_secs(120))?;
        let hits = lab.l1.ok(&format!(
            "{TRACE}; for n in kvm_userspace_exit kvm_pio; do sed -n 's/^ *Hits: //p' $e/$n/hist; done; \
             echo '!hist:keys=reason if reason==6' > $e/kvm_userspace_exit/trigger; \
             echo '!hist:keys=port if {OTHER_PORTS}' > $e/kvm_pio/trigger"
        ))?;
        let exits = hits.split_whitespace().map(str::parse::<u32>).sum::<Result<u32, _>>().context("no counts")?;
        Ok((lab.l1.ended(&job)?.success()?, exits))
    })?;
    let irqs: u32 = ended.value("irqs")?.parse()?;
    ensure!(irqs >= 280, "300 pings came with {irqs} interrupts");
    // The driver's watchdog and the kernel's clock read a few registers meanwhile, however many interrupts come.
    ensure!(exits * 5 < irqs, "{irqs} interrupts by the pin came with {exits} exits to user space");
    Ok(())
}

/// NIC and drive on one input of the guest's IOAPIC, both by their pins, both busy at once.
fn shared_line(lab: &mut Lab) -> Result<()> {
    let sum = steps::host_sum(lab.l1)?;
    // Slots 1 and 9 of the root bus share an input.
    let guest = Guest::new()
        .append("pci=nomsi")
        .device(&format!("vfio-pci,host={NIC},addr=1"))
        .device(&format!("vfio-pci,host={DRIVE},addr=9"))
        .script(&l2::nic_up("e1000e"))
        .script(&l2::nvme_up())
        .script("ping -c 100 -i 0.02 -W 5 10.0.2.2 > /tmp/ping &")
        .script(&l2::nvme_read(l2::READ_MIB))
        .script("wait; echo LAB ping=$(sed -n 's/.* \\([0-9]*\\) packets received.*/\\1/p' /tmp/ping)")
        .script("echo LAB line=$(grep -c 'IO-APIC.*nvme.*eth0\\|IO-APIC.*eth0.*nvme' /proc/interrupts)")
        .script("grep -e eth0 -e nvme /proc/interrupts");
    let ended = steps::with_bound(lab, &[NIC, DRIVE], |lab| lab.l1.guest(&guest)?.success())?;
    ensure!(ended.value("line")? == "1", "NIC and drive are not on one line:\n{}", crate::report::tail(&ended.text, 6));
    ensure!(ended.value("ping")? == "100", "pings were lost");
    ensure!(ended.value("nvme_read")? == sum, "the guest reads other data from the drive than the host");
    Ok(())
}
