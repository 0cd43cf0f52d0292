//! One and the same command line under QEMU and under passthru: what the guest finds agrees, address by address.

mod table;

use anyhow::{Context, Result, ensure};

use self::table::{Line, TABLE};
use super::steps;
use crate::l1::guest::LEFT_OUT;
use crate::l1::{Ended, Guest, L1};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("same-line-a", |lab| same(lab, 0)).limit(1800),
    Scenario::new("same-line-b", |lab| same(lab, 1)).limit(1800),
];

/// What all lines begin with, after the program's name.
const COMMON: &str = "-M q35 -accel kvm -cpu host -m 256M -nodefaults -display none -serial stdio -no-reboot \
                      -kernel /images/vmlinux";

/// The guest's drivers of all that the lines name.
const DRIVERS: &str =
    "virtio_pci virtio_blk virtio_net virtio-rng virtio_scsi virtio_console nvme e1000e sd_mod sr_mod";

/// The guest's own view. QEMU's chipset functions 00:1f.x are left out: passthru has none.
const VIEW: &str = "echo LAB pci=$(lspci -nn | grep -v '^00:1f' | tr '\\n' ';'); \
                    echo LAB disks=$(lsblk -n | tr '\\n' ';' | tr -s ' '); \
                    echo LAB nodes=$(cd /sys/devices/system/node; for n in node*; do echo $n cpus $(cat $n/cpulist) \
                    away $(cat $n/distance) has $(cd $n; echo memory*)\\;; done | tr '\\n' ' ' | tr -s ' '); \
                    echo LAB links=$(/usr/bin/ip -br link | tr '\\n' ';' | tr -s ' ')";

fn same(lab: &mut Lab, half: usize) -> Result<()> {
    lab.l1.ok("mkdir -p /tmp/lines && cd /tmp/lines && truncate -s 8M a.raw && truncate -s 4M b.raw \
         && qemu-img create -q -f qcow2 c.qcow2 32M")?;
    lab.l1.ok("modprobe tun; ip tuntap add line0 mode tap vnet_hdr")?;
    let mine = TABLE.iter().skip(half).step_by(2);
    let result = mine.map(|line| {
        let result = compare(lab, line);
        lab.part(line.name, "same", result)
    });
    let result: Result<()> = result.collect();
    lab.l1.ok("ip link del line0; rm -r /tmp/lines")?;
    result
}

/// Runs the line under both and compares.
fn compare(lab: &mut Lab, line: &Line) -> Result<()> {
    let Line { disks, nics, .. } = line;
    let there = format!(
        "i=0; until [ $(lsblk -n -d | wc -l) -ge {disks} ] && [ $(/usr/bin/ip -br link | grep -vc ^lo) -ge {nics} ]; \
         do i=$((i+1)); [ $i -le 100 ] || break; sleep 0.1; done"
    );
    let guest = Guest::new().fat().script(&format!("modprobe -a {DRIVERS} 2>/dev/null; {there}; {VIEW}"));
    let initrd = lab.l1.initrd(&guest)?;
    let seen = steps::with_bound(lab, line.passes, |lab| {
        let append = format!("console=ttyS0 panic=-1 rdinit=/init quiet {LEFT_OUT}");
        let words = format!("{COMMON} -append '{append}' -initrd {initrd} {}", line.words);
        let qemu = run(lab.l1, "qemu-system-x86_64", &words).context("under QEMU")?;
        let passthru = run(lab.l1, "passthru run", &words).context("under passthru")?;
        Ok([qemu, passthru])
    });
    lab.l1.ok(&format!("rm {initrd}"))?;
    let [qemu, passthru] = seen?;
    for what in ["pci", "disks", "nodes", "links"] {
        let (theirs, ours) = (qemu.value(what).unwrap_or_default(), passthru.value(what).unwrap_or_default());
        ensure!(theirs == ours, "{what} under QEMU:\n  {theirs}\nunder passthru:\n  {ours}");
    }
    let count = |what: &str| qemu.value(what).map(|text| text.matches(';').count());
    ensure!(count("pci")? >= 1, "the guest has not found the host bridge");
    ensure!(count("nodes")? == line.nodes, "the guest has not found {} memory nodes", line.nodes);
    ensure!(count("disks").unwrap_or_default() == *disks, "the guest has not found {disks} disks");
    ensure!(count("links")? == nics + 1, "the guest has not found {nics} NICs");
    Ok(())
}

fn run(l1: &mut L1, program: &str, words: &str) -> Result<Ended> {
    let job = l1.start(&format!("exec {program} {words}"))?;
    l1.ended(&job)?.success()
}
