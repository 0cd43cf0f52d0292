//! Devices that daemons serve (vhost-user), with real daemons, which go and come while they are used.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use super::steps::{self, NIC};
use crate::l1::{Guest, Job, L1};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[Scenario::new("vhost-user", vhost_user).limit(900)];

/// As QEMU's page on vhost-user-rng has it; the program adds a number to the name of its socket.
pub(super) const RNG: &str =
    "cd /tmp && rm -f rng.sock0 && exec vhost-device-rng --socket-path=rng.sock -c 1 -m 512 -p 1000";
pub(super) const BLK: &str = "rm -f /tmp/blk.sock; exec qemu-storage-daemon \
    --blockdev driver=file,node-name=d0,filename=/tmp/vhost.raw \
    --export vhost-user-blk,id=e0,node-name=d0,writable=on,num-queues=2,addr.type=unix,addr.path=/tmp/blk.sock";

const FS: &str = "rm -f /tmp/fs.sock; exec /usr/libexec/virtiofsd --socket-path=/tmp/fs.sock --shared-dir=/tmp/shared \
    --sandbox=none --log-level=error";

/// Starts a daemon, and waits for its socket.
pub(super) fn start(l1: &mut L1, command: &str, socket: &str) -> Result<Job> {
    let job = l1.start(command)?;
    steps::eventually(l1, &format!("test -S {socket}")).with_context(|| format!("{command}: {}", job.text()))?;
    Ok(job)
}

pub(super) fn kill(l1: &mut L1, job: &Job) -> Result<()> {
    l1.kill(job, Signal::SIGKILL)?;
    l1.wait(job, Duration::from_secs(30))?;
    Ok(())
}

/// The guest's name for the daemon's disk: the lab's own disk of tools is the other.
const DISK: &str = "disk=$(cd /sys/block; grep -Ls tools vd*/serial | cut -d / -f 1)";

/// A disk of qemu-storage-daemon's, a folder of virtiofsd's and the random numbers of vhost-device-rng, beside a NIC of the
/// host and on the memory of an object: kicks cost no exit, and all daemons are killed and started again while the guest
/// uses them. Disk and random numbers lose nothing; the folder is mounted anew, because its daemon's open files are gone
/// with it. Also after the guest's reboot, and after the devices were out.
fn vhost_user(lab: &mut Lab) -> Result<()> {
    lab.l1.ok(
        "head -c 16M /dev/urandom > /tmp/vhost.raw; mkdir /tmp/shared; head -c 4M /dev/urandom > /tmp/shared/given",
    )?;
    let sum = |l1: &mut L1, file: &str| -> Result<String> {
        Ok(l1.ok(&format!("sha256sum < /tmp/{file} | cut -d ' ' -f 1"))?.trim().to_owned())
    };
    let first = sum(lab.l1, "vhost.raw")?;
    let given = sum(lab.l1, "shared/given")?;
    let blk = start(lab.l1, BLK, "/tmp/blk.sock")?;
    let rng = start(lab.l1, RNG, "/tmp/rng.sock0")?;
    let fs = start(lab.l1, FS, "/tmp/fs.sock")?;
    let guest = Guest::new()
        .tools()
        .cpus(2)
        .reboots()
        .passes(NIC)
        .option("--object memory-backend-memfd,id=mem,size=256M,share=on --numa node,memdev=mem")
        .option("--chardev socket,id=c0,path=/tmp/blk.sock,reconnect-ms=100")
        .option("--chardev socket,id=c1,path=/tmp/rng.sock0,reconnect-ms=100")
        .option("--chardev socket,id=c2,path=/tmp/fs.sock,reconnect-ms=100")
        .device("pcie-root-port,id=rp2")
        .device("pcie-root-port,id=rp3")
        .device("vhost-user-blk-pci,id=disk0,chardev=c0,bus=rp2,num-queues=2")
        .device("vhost-user-fs-pci,id=fs0,chardev=c2,bus=rp3,tag=lab")
        .device("vhost-user-rng-pci,id=rng0,chardev=c1");
    let read = format!(
        "modprobe -a virtio_pci virtio_blk; i=0; \
         until [ -b /dev/vda ] && [ -b /dev/vdb ] || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done; \
         {DISK}; echo LAB queues=$(ls /sys/block/$disk/mq | wc -l); \
         echo LAB read=$(dd if=/dev/$disk bs=64k iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1)"
    );
    // What the guest writes into the folder is what it reads out of it, byte by byte.
    let mount = "mkdir -p /tmp/fs; i=0; until mount -t virtiofs lab /tmp/fs 2>/tmp/mount || [ $i -ge 50 ]; \
                 do sleep 0.2; i=$((i+1)); done; cat /tmp/mount; \
                 echo LAB given=$(sha256sum < /tmp/fs/given | cut -d ' ' -f 1); \
                 rm -f /tmp/fs/made; cp /tmp/fs/given /tmp/fs/made; cat /tmp/fs/given >> /tmp/fs/made; sync; ls /tmp/fs";
    let random = "modprobe virtio-rng; cat /sys/class/misc/hw_random/rng_current; \
                  echo LAB random=$(dd if=/dev/hwrng bs=64 count=4 iflag=fullblock 2>/dev/null | wc -c)";
    // One request of the disk at a time: this daemon keeps no record of several (docs/daemons.md). More random numbers than
    // their daemon gives in a second.
    let begin = format!(
        "{DISK}; fio --version > /dev/null; rm -f /tmp/wrote /tmp/got; \
         (fio --name=verify --filename=/dev/$disk --offset=4M --size=8M --bs=4k --rw=randwrite --direct=1 --ioengine=psync \
         --verify=crc32c --verify_fatal=1 --minimal > /tmp/fio 2>&1; echo $? > /tmp/wrote) & \
         (dd if=/dev/hwrng bs=64 count=12 iflag=fullblock 2>/dev/null | wc -c > /tmp/got) & \
         (while cat /tmp/fs/given > /dev/null; do :; done 2>/tmp/broken; echo > /tmp/broke) & \
         i=0; while set -- $(cat /sys/block/$disk/stat); [ $5 -lt 200 ] && [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done; \
         echo LAB writes=$5"
    );
    let end = "i=0; until [ -s /tmp/wrote ] && [ -s /tmp/got ] && [ -f /tmp/broke ] || [ $i -ge 600 ]; \
               do sleep 0.1; i=$((i+1)); done; cat /tmp/broken; umount /tmp/fs; \
               echo LAB fio=$(cat /tmp/wrote); tail -n 3 /tmp/fio; echo LAB got=$(cat /tmp/got)";
    let made = |l1: &mut L1| l1.ok("cat /tmp/shared/given /tmp/shared/given | cmp - /tmp/shared/made").map(drop);
    let ended = steps::with_bound(lab, &[NIC], |lab| {
        let mut guest = lab.l1.live(&guest)?;
        guest.sh(lab.l1, &read)?;
        ensure!(guest.value("queues")? == "2", "the guest uses {} queues", guest.value("queues")?);
        ensure!(guest.value("read")? == first, "the guest reads other bytes");
        let said = guest.sh(lab.l1, random)?;
        ensure!(said.contains("virtio_rng") && guest.value("random")? == "256", "random numbers: {said}");
        let said = guest.sh(lab.l1, mount)?;
        ensure!(guest.value("given")? == given, "the guest reads another file: {said}");
        made(lab.l1)?;
        let before = guest.mmio_writes(lab.l1)?;
        guest.sh(lab.l1, &begin)?;
        for daemon in [&blk, &rng, &fs] {
            kill(lab.l1, daemon)?;
        }
        guest.sh(lab.l1, "[ ! -e /tmp/wrote ] && [ ! -e /tmp/broke ]").context("the guest was done before")?;
        // Their sockets may be gone at once: passthru is waiting for them.
        let daemons = [lab.l1.start(BLK)?, lab.l1.start(RNG)?, lab.l1.start(FS)?];
        guest.sh(lab.l1, end)?;
        ensure!(guest.value("fio")? == "0", "fio ended with {}", guest.value("fio")?);
        ensure!(guest.value("got")? == "768", "the daemons gave {} random bytes", guest.value("got")?);
        let exits = guest.mmio_writes(lab.l1)? - before;
        ensure!(exits < 128, "4096 requests cost {exits} exits");
        let said = guest.sh(lab.l1, mount)?;
        ensure!(guest.value("given")? == given, "the guest reads another file of the next daemon: {said}");
        made(lab.l1)?;
        let now = sum(lab.l1, "vhost.raw")?;
        guest.shell().reboot(lab.l1)?;
        guest.sh(lab.l1, &read)?;
        ensure!(guest.value("read")? == now, "the guest reads other bytes after its reboot");
        guest.device_del(lab.l1, "disk0")?;
        let add = json!({ "driver": "vhost-user-blk-pci", "id": "disk1", "bus": "rp2", "chardev": "c0" });
        guest.device_add(lab.l1, add)?;
        guest.sh(lab.l1, &read)?;
        ensure!(guest.value("read")? == now, "the guest reads other bytes after it was out");
        steps::nic_works_in_guest(&mut guest, lab.l1)?;
        let said = guest.sh(lab.l1, &format!("{mount}; umount /tmp/fs"))?;
        ensure!(guest.value("given")? == given, "the guest reads another file after its reboot: {said}");
        guest.device_del(lab.l1, "fs0")?;
        let ended = guest.power_off(lab.l1)?.success()?;
        // virtiofsd ends with its connection.
        for daemon in &daemons[..2] {
            kill(lab.l1, daemon)?;
        }
        lab.l1.wait(&daemons[2], Duration::from_secs(30))?;
        Ok(ended)
    })?;
    for socket in ["blk.sock", "rng.sock0", "fs.sock"] {
        ensure!(
            ended.text.contains(&format!("the daemon at unix:/tmp/{socket} is there again")),
            "no other daemon at {socket} was seen"
        );
    }
    ended.lacks("soft lockup")?.lacks("I/O error")?;
    Ok(())
}
