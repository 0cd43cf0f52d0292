//! Every kind of emulated device comes by the monitor with its back end, is used by the guest's own driver, and goes, beside
//! a NIC of the host.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::daemons;
use super::steps::{self, NIC};
use crate::l1::live::Live;
use crate::l1::{Guest, L1};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[Scenario::new("hotplug-each", each).limit(900)];

/// A device that comes into a port of its own.
struct Kind {
    id: &'static str,
    /// What `device_add` takes besides id and bus.
    device: Value,
    /// What comes before it and goes after it: commands with their arguments. They go by their id or node-name.
    back: Vec<(&'static str, Value)>,
    /// What comes onto its own bus, and goes with it.
    units: Vec<Value>,
    /// Shell text of the guest that waits for it and uses it; `$D` is its folder in sysfs. What that says is `expected`.
    uses: String,
    expected: String,
}

impl Kind {
    fn new(id: &'static str, device: Value) -> Kind {
        Kind { id, device, back: Vec::new(), units: Vec::new(), uses: String::new(), expected: String::new() }
    }

    fn back(mut self, command: &'static str, arguments: Value) -> Kind {
        self.back.push((command, arguments));
        self
    }

    /// A node called `name` on a file of L1's that is called so.
    fn node(self, name: &str, aio: &str) -> Kind {
        let arguments =
            json!({ "driver": "file", "node-name": name, "filename": format!("/tmp/each.{name}"), "aio": aio });
        self.back("blockdev-add", arguments)
    }

    fn unit(mut self, unit: Value) -> Kind {
        self.units.push(unit);
        self
    }

    fn uses(mut self, text: &str, expected: &str) -> Kind {
        (self.uses, self.expected) = (text.to_owned(), expected.to_owned());
        self
    }
}

/// Slot of the first port on the root bus.
const FIRST: usize = 0x10;
/// Waits for a condition and does something then.
const TILL: &str = "till() { i=0; while ! eval \"$1\" > /dev/null 2>&1; do sleep 0.1; i=$((i+1)); [ $i -lt 200 ] || return 1; done; };";
/// What comes back of pings to an address.
const PING: &str = "pings() { till \"ping -c 1 -W 1 $1 > /dev/null\"; ping -c 2 -i 0.2 -W 5 $1 | \
     sed -n 's/.* \\([0-9]*\\) packets received.*/\\1/p'; };";

fn kinds(sum: &str) -> Vec<Kind> {
    let disk = |disk: &str| {
        format!("till '[ -b {disk} ]'; dd if={disk} bs=64k count=128 2>/dev/null | md5sum | cut -d ' ' -f 1")
    };
    let card = |net: &str, ours: &str| {
        format!(
            "till 'ls -d $D/{net}/*'; N=$(ls $D/{net}); ip link set $N up; ip addr add {ours}.2/24 dev $N; pings {ours}.1"
        )
    };
    let tap =
        |id: &str, name: &str| json!({ "type": "tap", "id": id, "ifname": name, "script": "no", "downscript": "no" });
    let file = |name: &str| json!({ "type": "file", "data": { "out": format!("/tmp/{name}") } });
    let memory = |id: &str, path: &str, size: u64| json!({ "qom-type": "memory-backend-file", "id": id, "mem-path": path, "size": size, "share": true });
    let daemon = json!({ "type": "socket", "data": { "server": false, "addr": { "type": "unix", "data": { "path": "/tmp/rng.sock0" } } } });
    vec![
        Kind::new("blk", json!({ "driver": "virtio-blk-pci", "drive": "b0" }))
            .node("b0", "io_uring")
            .uses(&format!("till 'ls -d $D/virtio*/block/*'; B=/dev/$(ls $D/virtio*/block); {}", disk("$B")), sum),
        Kind::new("scsi", json!({ "driver": "virtio-scsi-pci" }))
            .node("b1", "threads")
            .node("b2", "threads")
            .unit(json!({ "driver": "scsi-hd", "id": "hd", "drive": "b1" }))
            .unit(json!({ "driver": "scsi-cd", "id": "cd", "drive": "b2" }))
            .uses(&format!("{}; {}", disk("/dev/sda"), disk("/dev/sr0")), &format!("{sum} {sum}")),
        Kind::new("nvme", json!({ "driver": "nvme", "drive": "b3", "serial": "LAB-EACH" }))
            .node("b3", "threads")
            .uses(&disk("/dev/nvme0n1"), sum),
        Kind::new("net", json!({ "driver": "virtio-net-pci", "netdev": "n0" }))
            .back("netdev_add", tap("n0", "each0"))
            .uses(&card("virtio*/net", "10.9.20"), "2"),
        Kind::new("card", json!({ "driver": "e1000e", "netdev": "n1" }))
            .back("netdev_add", tap("n1", "each1"))
            .uses(&card("net", "10.9.21"), "2"),
        Kind::new("rng", json!({ "driver": "virtio-rng-pci", "rng": "r0" }))
            .back("object-add", json!({ "qom-type": "rng-builtin", "id": "r0" }))
            .uses("till '[ -e $D/virtio*/driver ]'; basename $(readlink $D/virtio*/driver)", "virtio_rng"),
        // Which of the two is which, Linux does not say.
        Kind::new("rng2", json!({ "driver": "vhost-user-rng-pci", "chardev": "c2" }))
            .back("chardev-add", json!({ "id": "c2", "backend": daemon }))
            .uses(
                "cd /sys/class/misc/hw_random; rngs() { grep -o 'virtio_rng[.0-9]*' rng_available; }; \
                 till '[ $(rngs | wc -l) = 2 ]'; for R in $(rngs); do echo $R > rng_current; \
                 dd if=/dev/hwrng bs=16 count=1 iflag=fullblock 2>/dev/null | wc -c; done",
                "16 16",
            ),
        Kind::new("vser", json!({ "driver": "virtio-serial-pci" }))
            .back("chardev-add", json!({ "id": "c0", "backend": file("each.port") }))
            .unit(json!({ "driver": "virtserialport", "id": "port", "chardev": "c0", "name": "lab.each" }))
            .uses(
                "cd /sys/class/virtio-ports; till 'grep -qs lab.each */name'; P=$(grep -ls lab.each */name); \
                 echo by-port > /dev/${P%/name}; echo sent",
                "sent",
            ),
        Kind::new("uart", json!({ "driver": "pci-serial", "chardev": "c1" }))
            .back("chardev-add", json!({ "id": "c1", "backend": file("each.uart") }))
            .uses(
                "uart() { find $D/ -name 'ttyS*' | sed -n '1s/.*\\//\\/dev\\//p'; }; till '[ -c \"$(uart)\" ]'; \
                 T=$(uart); stty -F $T raw; echo by-uart > $T; echo sent",
                "sent",
            ),
        Kind::new("shm", json!({ "driver": "ivshmem-plain", "memdev": "m0" }))
            .back("object-add", memory("m0", "/dev/shm/each", 1 << 20))
            .uses("till '[ -e $D/enable ]'; echo 1 > $D/enable; devmem $(sed -n '3s/ .*//p' $D/resource) 32", "0x5342414C"),
        Kind::new("pmem", json!({ "driver": "virtio-pmem-pci", "memdev": "m1" }))
            .back("object-add", memory("m1", "/tmp/each.pmem", 64 << 20))
            .uses(&disk("/dev/pmem0"), sum),
        Kind::new("panic", json!({ "driver": "pvpanic-pci" })).uses(
            "till '[ -e $D/driver ] && [ -e $D/capability ]'; basename $(readlink $D/driver); [ $(cat $D/capability) -gt 0 ]; echo $?",
            "pvpanic-pci 0",
        ),
        Kind::new("dog", json!({ "driver": "i6300esb" })).uses(
            "till '[ -e /sys/class/watchdog/watchdog0/identity ]'; cat /sys/class/watchdog/watchdog0/identity",
            "i6300ESB timer",
        ),
    ]
}

/// Writes to all the disks at once, and verifies.
const FIO: &str = "blk=$(cd /sys/block; grep -Ls tools vd*/serial | cut -d / -f 1); \
    for disk in $blk sda nvme0n1 pmem0; do echo \"[$disk]\"; echo filename=/dev/$disk; done > /tmp/jobs; \
    (echo '[global]'; printf '%s\\n' size=1M offset=4M bs=4k rw=randwrite direct=1 ioengine=libaio iodepth=8 \
    verify=crc32c verify_fatal=1; cat /tmp/jobs) > /tmp/all.fio; fio --minimal /tmp/all.fio > /tmp/fio 2>&1; \
    echo LAB fio=$?; tail -n 3 /tmp/fio";

/// What is refused at run time, with its code. The first is refused for the device beside it, the others by their bus.
fn refused() -> Vec<(Value, &'static str)> {
    vec![
        (json!({ "driver": "virtio-balloon-pci", "bus": "spare" }), "PT077"),
        (json!({ "driver": "pcie-root-port" }), "PT035"),
        (json!({ "driver": "pcie-pci-bridge", "bus": "spare" }), "PT035"),
        (json!({ "driver": "virtio-rng-pci", "bus": "pcie.0" }), "PT035"),
        (json!({ "driver": "isa-serial", "chardev": "c0" }), "PT035"),
        (json!({ "driver": "nvme-ns", "bus": "nvme", "drive": "b3" }), "PT035"),
    ]
}

/// What must be as it was when everything is out again.
fn state(guest: &Live, l1: &mut L1) -> Result<Vec<Value>> {
    let tree = guest.qmp(l1, "human-monitor-command", json!({ "command-line": "info qtree" }))?;
    let vm = guest.qmp(l1, "x-query-vm", json!({}))?;
    // By what they are: which of them it is that stays, a number does not say.
    let descriptors = l1.ok(&format!("for fd in /proc/{}/fd/*; do readlink $fd; done | sort | uniq -c", vm["pid"]))?;
    let mut state = vec![tree, descriptors.into(), guest.resources(l1)?];
    for command in ["query-block", "query-named-block-nodes", "query-chardev", "query-pci"] {
        state.push(guest.qmp(l1, command, json!({}))?);
    }
    Ok(state)
}

fn each(lab: &mut Lab) -> Result<()> {
    // All begin with the same 8 MiB.
    lab.l1.ok("modprobe tun; cd /tmp; rm -f /dev/shm/each each.*; head -c 8M /dev/urandom > each.b0; \
               for name in b1 b2 b3 pmem; do cp each.b0 each.$name; done; truncate -s 64M each.pmem")?;
    let sum = lab.l1.ok("md5sum < /tmp/each.b0 | cut -d ' ' -f 1")?.trim().to_owned();
    let kinds = kinds(&sum);
    let daemon = daemons::start(lab.l1, daemons::RNG, "/tmp/rng.sock0")?;
    let mut guest = Guest::new()
        .tools()
        .cpus(2)
        .memory("512M")
        .passes(NIC)
        .option("--object memory-backend-memfd,id=mem,size=512M,share=on --numa node,memdev=mem")
        .device("pcie-root-port,id=spare");
    for (index, kind) in kinds.iter().enumerate() {
        guest = guest.device(&format!("pcie-root-port,id=p-{},addr={:x}", kind.id, FIRST + index));
    }
    steps::with_bound(lab, &[NIC], |lab| {
        let l1 = &mut *lab.l1;
        let mut guest = l1.live(&guest)?;
        steps::nic_works_in_guest(&mut guest, l1)?;
        guest.sh(
            l1,
            "modprobe -a virtio_pci virtio_blk virtio_scsi sd_mod sr_mod nvme virtio_net virtio-rng virtio_console virtio_pmem \
             nd_pmem pvpanic-pci i6300esb 2>/dev/null; true",
        )?;
        let before = state(&guest, l1)?;
        for kind in &kinds {
            come(kind, &guest, l1).with_context(|| format!("{} does not come", kind.id))?;
        }
        l1.ok("printf LABS | dd of=/dev/shm/each conv=notrunc status=none; \
               for n in 0 1; do ip addr add 10.9.2$n.1/24 dev each$n; ip link set each$n up; done")?;
        let mut wrong = Vec::new();
        for (index, kind) in kinds.iter().enumerate() {
            let port = format!("0000:00:{:02x}.0", FIRST + index);
            let find = format!(
                "till 'ls -d /sys/bus/pci/devices/{port}/0000:*:00.0'; D=$(ls -d /sys/bus/pci/devices/{port}/0000:*:00.0)"
            );
            let said = guest.sh(l1, &format!("{TILL} {PING} {find}; ({}) 2>&1; true", kind.uses))?;
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            if said != kind.expected {
                wrong.push(format!("{} says `{said}`, not `{}`", kind.id, kind.expected));
            }
        }
        ensure!(wrong.is_empty(), "the guest uses its devices, and {}", wrong.join("; "));
        for (file, text) in [("each.port", "by-port"), ("each.uart", "by-uart")] {
            steps::eventually(l1, &format!("[ \"$(cat /tmp/{file})\" = {text} ]"))?;
        }
        guest.sh(l1, FIO)?;
        ensure!(guest.value("fio")? == "0", "fio ended with {}", guest.value("fio")?);
        for (arguments, code) in refused() {
            let refused = guest.qmp_fails(l1, "device_add", arguments.clone())?;
            ensure!(refused.contains(code), "{arguments} is refused with {refused}");
        }
        go(&kinds, &guest, l1)?;
        // The disk of tools stays, and is used after all.
        guest.sh(l1, "dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct")?;
        let after = state(&guest, l1)?;
        for (before, after) in before.iter().zip(&after) {
            ensure!(before == after, "something stayed behind; before: {before}, after: {after}");
        }
        l1.ok("! ip link show each0 && ! ip link show each1")?;
        let left =
            guest.sh(l1, "ls /dev/vdb /dev/sd* /dev/sr* /dev/nvme* /dev/pmem* /dev/watchdog* 2>/dev/null; true")?;
        ensure!(left.trim().is_empty(), "something is left in the guest: {left}");
        steps::nic_works_in_guest(&mut guest, l1)?;
        guest.power_off(l1)?.success()?.lacks("soft lockup")?.lacks("BUG:").map(drop)
    })?;
    daemons::kill(lab.l1, &daemon)?;
    lab.l1.ok("rm /dev/shm/each /tmp/each.*").map(drop)
}

/// A device with what belongs to it.
fn come(kind: &Kind, guest: &Live, l1: &mut L1) -> Result<()> {
    for (command, arguments) in &kind.back {
        guest.qmp(l1, command, arguments.clone())?;
    }
    let mut device = kind.device.clone();
    device["id"] = kind.id.into();
    device["bus"] = format!("p-{}", kind.id).into();
    guest.device_add(l1, device)?;
    for unit in &kind.units {
        let mut unit = unit.clone();
        unit["bus"] = format!("{}.0", kind.id).into();
        guest.device_add(l1, unit)?;
    }
    Ok(())
}

/// All of them: Linux waits 5 s after each button, of all at the same time.
fn go(kinds: &[Kind], guest: &Live, l1: &mut L1) -> Result<()> {
    let mut expected = BTreeSet::new();
    for kind in kinds {
        guest.qmp(l1, "device_del", json!({ "id": kind.id }))?;
        let units = kind.units.iter().map(|unit| unit["id"].as_str().unwrap_or_default());
        expected.extend(units.chain([kind.id]).map(str::to_owned));
    }
    let mut gone = BTreeSet::new();
    while gone.len() < expected.len() {
        let device = guest.event(l1, "DEVICE_DELETED").with_context(|| format!("out are {gone:?} of {expected:?}"))?;
        gone.insert(device["device"].as_str().unwrap_or_default().to_owned());
    }
    ensure!(gone == expected, "out are {gone:?}, not {expected:?}");
    for (command, arguments) in kinds.iter().rev().flat_map(|kind| kind.back.iter().rev()) {
        let (undo, key) = match *command {
            "blockdev-add" => ("blockdev-del", "node-name"),
            "chardev-add" => ("chardev-remove", "id"),
            "netdev_add" => ("netdev_del", "id"),
            _ => ("object-del", "id"),
        };
        guest.qmp(l1, undo, json!({ key: arguments[key] }))?;
    }
    Ok(())
}
