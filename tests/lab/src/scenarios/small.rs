//! Small devices, driven by the guest's own drivers, all of them in one guest: legacy virtio, balloon, watchdog, panic
//! device; and consoles and ports of virtio-serial in another.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::steps::NIC;
use crate::l1::live::Live;
use crate::l1::{Guest, L1};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] =
    &[Scenario::new("small-devices", devices).limit(600), Scenario::new("virtio-serial", serial).limit(600)];

/// What the random numbers are made of.
const ENTROPY: &str = "/tmp/entropy-small";
/// The guest's memory, and what the balloon leaves of it.
const MEMORY: u64 = 512 << 20;
const LESS: u64 = 320 << 20;

/// Waits for what `query-status` says.
fn status(guest: &Live, l1: &mut L1, expected: &str) -> Result<()> {
    let mut last = Value::Null;
    for _ in 0..300 {
        last = guest.qmp(l1, "query-status", json!({}))?;
        if last["status"] == expected {
            return Ok(());
        }
        l1.ok("sleep 0.1")?;
    }
    anyhow::bail!("the guest is {last}, not {expected}")
}

/// Resident memory of the guest's process, in KiB.
fn resident(guest: &Live, l1: &mut L1) -> Result<u64> {
    let vm = guest.qmp(l1, "x-query-vm", json!({}))?;
    let said = l1.ok(&format!("awk '/^VmRSS/ {{ print $2 }}' /proc/{}/status", vm["pid"]))?;
    said.trim().parse().with_context(|| format!("VmRSS is {said}"))
}

fn devices(lab: &mut Lab) -> Result<()> {
    lab.l1.ok(&format!("yes passthru | tr -d '\\n' | head -c 8M > {ENTROPY}"))?;
    lab.l1.ok("head -c 8M /dev/urandom > /tmp/legacy.raw; head -c 8M /dev/urandom > /tmp/both.raw")?;
    let sums = lab.l1.ok("cd /tmp; sha256sum legacy.raw both.raw | cut -d ' ' -f 1")?;
    let guest = Guest::new()
        .fat()
        .memory("512M")
        .option("--blockdev file,node-name=d0,filename=/tmp/legacy.raw")
        .device("virtio-blk-pci,drive=d0,addr=4,serial=LEGACY,disable-modern=on")
        .option("--blockdev file,node-name=d1,filename=/tmp/both.raw")
        .device("virtio-blk-pci,drive=d1,addr=5,serial=BOTH,vectors=0")
        .device("virtio-balloon-pci,id=balloon0,addr=6,free-page-reporting=on")
        .device("pvpanic-pci,addr=7")
        .device("i6300esb,id=watchdog0,addr=8")
        .device("pcie-pci-bridge,id=br0,addr=9")
        .device(&format!("virtio-rng-pci,bus=br0,addr=3,filename={ENTROPY}"))
        .option("--chardev file,id=com2,path=/tmp/com2.txt")
        .device("isa-serial,chardev=com2")
        .device("pcie-root-port,id=rp1,addr=a")
        .option("--action panic=pause")
        // It would reboot at once.
        .append("panic=60");
    let mut guest = lab.l1.live(&guest)?;
    let l1 = &mut *lab.l1;
    guest.sh(
        l1,
        "modprobe virtio_pci; modprobe virtio_blk; modprobe virtio_balloon; modprobe pvpanic-pci; modprobe i6300esb heartbeat=2; \
         i=0; until [ -b /dev/vdb ] || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done",
    )?;
    let ids = guest.sh(l1, "cd /sys/bus/pci/devices; for d in 4 5 6 7 8; do cat 0000:00:0$d.0/device; done")?;
    let ids: Vec<&str> = ids.split_whitespace().collect();
    ensure!(ids == ["0x1001", "0x1001", "0x1002", "0x0011", "0x25ab"], "the guest has {ids:?}");
    let disk = |serial: &str| format!("D=/dev/$(grep -l {serial} /sys/block/vd*/serial | cut -d / -f 4)");
    for (serial, sum, version_1) in [("LEGACY", sums.lines().next(), '0'), ("BOTH", sums.lines().nth(1), '1')] {
        let said = guest.sh(
            l1,
            &format!(
                "{}; cut -c 33 /sys/block/${{D#/dev/}}/device/features; sha256sum < $D | cut -d ' ' -f 1; \
                 head -c 1048576 /dev/urandom > /tmp/w; dd if=/tmp/w of=$D bs=64k seek=16 conv=fsync 2>/dev/null; \
                 sha256sum < /tmp/w | cut -d ' ' -f 1",
                disk(serial)
            ),
        )?;
        let [feature, read, wrote] = said.split_whitespace().collect::<Vec<_>>()[..] else {
            anyhow::bail!("{serial}: {said}")
        };
        ensure!(feature.starts_with(version_1), "{serial}: feature 32 is {feature}");
        ensure!(Some(read) == sum, "{serial}: the guest reads other bytes");
        let file = if serial == "LEGACY" { "legacy" } else { "both" };
        let part = format!("dd if=/tmp/{file}.raw bs=1M skip=1 count=1 status=none | sha256sum | cut -d ' ' -f 1");
        ensure!(l1.ok(&part)?.trim() == wrote, "{serial}: the file holds other bytes");
    }
    let com2 =
        guest.sh(l1, "exec 7<>/dev/ttyS1; stty -F /dev/ttyS1 raw; seq 2000 >&7; exec 7>&-; sha256sum < /dev/null; seq 2000 | sha256sum")?;
    let there = l1.ok("i=0; until [ $(wc -l < /tmp/com2.txt) -ge 2000 ] || [ $i -ge 100 ]; do sleep 0.1; i=$((i+1)); done; sha256sum < /tmp/com2.txt")?;
    ensure!(com2.lines().last() == there.lines().last(), "COM2 said other bytes");
    behind_bridge(&mut guest, l1)?;
    pmem(&mut guest, l1)?;
    balloon(&mut guest, l1)?;

    // The guest stops feeding its watchdog, and is paused; then it goes on.
    guest.qmp(l1, "set-action", json!({ "watchdog": "pause" }))?;
    guest.sh(l1, "exec 9>/dev/watchdog; echo . >&9; sleep 1; echo . >&9; sleep 1; echo . >&9")?;
    let bark = guest.event(l1, "WATCHDOG")?;
    ensure!(bark["action"] == "pause", "{bark}");
    status(&guest, l1, "watchdog")?;
    guest.qmp(l1, "cont", json!({}))?;
    guest.sh(l1, "printf V >&9; exec 9>&-")?;

    // What it says when its kernel panics is the last that it says.
    guest.sh(l1, "(sleep 1; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &")?;
    let panicked = guest.event(l1, "GUEST_PANICKED")?;
    ensure!(panicked["action"] == "pause", "{panicked}");
    status(&guest, l1, "guest-panicked")?;
    guest.quit(l1)?.success().map(drop)
}

/// A device on a conventional bus is a transitional one there, and works.
fn behind_bridge(guest: &mut Live, l1: &mut L1) -> Result<()> {
    let said = guest.sh(
        l1,
        "modprobe virtio-rng; cd /sys/bus/pci/devices; D=$(grep -l 0x1005 */device | cut -d / -f 1); echo $D; \
         readlink $D | grep -c 09.0; head -c 4096 /dev/hwrng | tr -d pashtru | wc -c; cat /sys/class/misc/hw_random/rng_current",
    )?;
    let words: Vec<&str> = said.split_whitespace().collect();
    ensure!(words.len() == 4 && words[0].ends_with(":03.0"), "{said}");
    ensure!(words[2] == "0" && words[3].starts_with("virtio_rng"), "{said}");
    Ok(())
}

/// A file as memory, which comes while the guest runs, and goes: what the guest has flushed is in the file.
fn pmem(guest: &mut Live, l1: &mut L1) -> Result<()> {
    l1.ok("head -c 64M /dev/urandom > /tmp/pmem.img")?;
    let memory = json!({ "qom-type": "memory-backend-file", "id": "m0", "mem-path": "/tmp/pmem.img", "size": 64 << 20, "share": true });
    guest.qmp(l1, "object-add", memory)?;
    guest.device_add(l1, json!({ "driver": "virtio-pmem-pci", "id": "pmem0", "memdev": "m0", "bus": "rp1" }))?;
    let sums = guest.sh(
        l1,
        "modprobe virtio_pmem; modprobe nd_pmem; i=0; until [ -b /dev/pmem0 ] || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done; \
         sha256sum < /dev/pmem0; head -c 4194304 /dev/urandom > /tmp/w; dd if=/tmp/w of=/dev/pmem0 bs=64k seek=128 conv=fsync 2>/dev/null; \
         sha256sum < /tmp/w",
    )?;
    let ours = l1.ok("dd if=/tmp/pmem.img bs=1M skip=8 count=4 status=none | sha256sum; sha256sum < /tmp/pmem.img")?;
    let (wrote, now) = (ours.lines().next(), ours.lines().nth(1));
    ensure!(sums.lines().nth(1) == wrote, "the file holds other bytes:\n{sums}\n{ours}");
    let again = guest.sh(l1, "sha256sum < /dev/pmem0")?;
    ensure!(again.lines().next() == now, "the guest reads other bytes:\n{again}\n{ours}");
    guest.device_del(l1, "pmem0")
}

/// Memory that the guest has used and freed goes back to the host, by report and by balloon, and comes again.
fn balloon(guest: &mut Live, l1: &mut L1) -> Result<()> {
    let total = "awk '/^MemTotal/ { print $2 }' /proc/meminfo";
    let before: u64 = guest.sh(l1, total)?.trim().parse()?;
    guest.sh(l1, "mount -t tmpfs -o size=300M none /mnt; head -c 268435456 /dev/urandom > /mnt/f")?;
    let full = resident(guest, l1)?;
    guest.sh(l1, "umount /mnt")?;
    guest.qmp(l1, "balloon", json!({ "value": LESS }))?;
    let mut actual = Value::Null;
    for _ in 0..300 {
        actual = guest.qmp(l1, "query-balloon", json!({}))?["actual"].clone();
        if actual == LESS {
            break;
        }
        l1.ok("sleep 0.1")?;
    }
    ensure!(actual == LESS, "the guest has {actual} bytes");
    ensure!(guest.event_within(l1, "BALLOON_CHANGE", Duration::from_secs(5))?.is_some(), "no change was told");
    let inflated: u64 = guest.sh(l1, total)?.trim().parse()?;
    ensure!(before - inflated == (MEMORY - LESS) >> 10, "the guest has {inflated} KiB of {before}");
    let left = resident(guest, l1)?;
    ensure!(full > left + (128 << 10), "the host has {left} KiB in use, and had {full}");
    let refused = guest.qmp_fails(l1, "device_add", json!({ "driver": "vfio-pci", "host": NIC }))?;
    ensure!(refused.contains("cannot be beside virtio-balloon-pci"), "{refused}");
    guest.qmp(l1, "balloon", json!({ "value": MEMORY }))?;
    guest.sh(
        l1,
        &format!("i=0; until [ $({total}) = {before} ] || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done; [ $({total}) = {before} ]"),
    )?;
    guest.sh(
        l1,
        "mount -t tmpfs -o size=300M none /mnt; head -c 268435456 /dev/urandom > /mnt/f; sha256sum /mnt/f; umount /mnt",
    )?;
    Ok(())
}

/// Bytes that go each way through a port: more than all buffers on the way.
const MANY: u32 = 1 << 20;

/// Consoles and ports, two at the start and one that comes and goes, each with checked bytes both ways.
fn serial(lab: &mut Lab) -> Result<()> {
    let guest = Guest::new()
        .fat()
        .device("pcie-root-port,id=rp1")
        .device("virtio-serial-pci,id=vser0,bus=rp1")
        .option("--chardev socket,id=con,path=/tmp/hvc.sock,server=on,wait=off")
        .device("virtconsole,chardev=con,id=console1")
        .option("--chardev socket,id=a,path=/tmp/a.sock,server=on,wait=off")
        .device("virtserialport,chardev=a,name=lab.first,id=first,bus=vser0.0,nr=3");
    let mut guest = lab.l1.live(&guest)?;
    let l1 = &mut *lab.l1;
    guest.sh(
        l1,
        "modprobe virtio_pci; modprobe virtio_console; sleep 1; [ -e /dev/hvc0 ]; cat /sys/class/virtio-ports/*/name",
    )?;
    port(&mut guest, l1, "lab.first", "/tmp/a.sock")?;
    let opened = guest.event(l1, "VSERPORT_CHANGE")?;
    ensure!(opened["id"] == "first" && opened["open"] == true, "{opened}");

    // A console, to which a person at the other end types.
    guest.sh(l1, "(exec 8<>/dev/hvc0; stty -F /dev/hvc0 raw -echo; head -c 5 <&8 > /tmp/typed; seq 2000 >&8; sleep 60) > /dev/null 2>&1 & sleep 1")?;
    let said = l1
        .ok("(sleep 1; printf hello; i=0; until [ $(wc -l < /tmp/hvc.txt) -ge 2000 ] || [ $i -ge 200 ]; do sleep 0.2; i=$((i+1)); \
         done) | timeout 55 socat - UNIX-CONNECT:/tmp/hvc.sock > /tmp/hvc.txt; \
         tr -d '\\r' < /tmp/hvc.txt | tail -n 1; wc -l < /tmp/hvc.txt")?;
    ensure!(guest.sh(l1, "cat /tmp/typed; echo")?.contains("hello"), "the guest did not get what was typed: {said}");
    ensure!(said.split_whitespace().eq(["2000", "2000"]), "the console ended with {said}");

    // One more that comes while the guest runs, and goes.
    let backend = json!({ "type": "socket", "data": { "addr": { "type": "unix", "data": { "path": "/tmp/b.sock" } }, "server": true, "wait": false } });
    guest.qmp(l1, "chardev-add", json!({ "id": "b", "backend": backend }))?;
    guest
        .device_add(l1, json!({ "driver": "virtserialport", "id": "second", "chardev": "b", "name": "lab.second" }))?;
    guest.sh(l1, "i=0; until grep -q lab.second /sys/class/virtio-ports/*/name || [ $i -ge 100 ]; do sleep 0.1; i=$((i+1)); done")?;
    port(&mut guest, l1, "lab.second", "/tmp/b.sock")?;
    guest.device_del(l1, "second")?;
    guest.sh(l1, "i=0; while grep -q lab.second /sys/class/virtio-ports/*/name && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done; ! grep -q lab.second /sys/class/virtio-ports/*/name")?;
    guest.qmp(l1, "chardev-remove", json!({ "id": "b" }))?;
    guest.power_off(l1)?.success()?;
    Ok(())
}

/// What the guest sends by a port is what comes on the host, and the other way round. Each side begins to read late: who
/// sends has to wait then, and nothing is lost.
fn port(guest: &mut Live, l1: &mut L1, name: &str, socket: &str) -> Result<()> {
    guest.sh(
        l1,
        &format!(
            "P=/dev/$(grep -l {name} /sys/class/virtio-ports/*/name | cut -d / -f 5); rm -f /tmp/done; \
             (head -c {MANY} /dev/urandom > /tmp/out; exec 7<>$P; cat /tmp/out >&7; sleep 1; head -c {MANY} <&7 > /tmp/in; \
             touch /tmp/done; sleep 2) > /dev/null 2>&1 &"
        ),
    )?;
    l1.ok(&format!(
        "rm -f /tmp/from; head -c {MANY} /dev/urandom > /tmp/to; \
         (cat /tmp/to; sleep 8) | timeout 60 socat - UNIX-CONNECT:{socket} | (sleep 1; head -c {MANY} > /tmp/from)"
    ))?;
    let theirs = guest.sh(
        l1,
        "i=0; until [ -e /tmp/done ] || [ $i -ge 300 ]; do sleep 0.1; i=$((i+1)); done; sha256sum < /tmp/out; sha256sum < /tmp/in",
    )?;
    let ours = l1.ok("sha256sum < /tmp/from; sha256sum < /tmp/to")?;
    ensure!(theirs.trim() == ours.trim(), "by {name} the guest has\n{theirs}and the host\n{ours}");
    Ok(())
}
