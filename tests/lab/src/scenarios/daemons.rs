//! Devices that daemons serve (vhost-user), with real daemons, which go and come while they are used.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use super::steps::{self, NIC};
use crate::l1::{Guest, Job, L1};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] =
    &[Scenario::new("vhost-user", vhost_user).limit(900), Scenario::new("virtio-net-passt", passt).limit(600).long()];

/// As QEMU's page on vhost-user-rng has it; the program adds a number to the name of its socket.
const RNG: &str = "cd /tmp && rm -f rng.sock0 && exec vhost-device-rng --socket-path=rng.sock -c 1 -m 512 -p 1000";
const BLK: &str = "rm -f /tmp/blk.sock; exec qemu-storage-daemon \
    --blockdev driver=file,node-name=d0,filename=/tmp/vhost.raw \
    --export vhost-user-blk,id=e0,node-name=d0,writable=on,num-queues=2,addr.type=unix,addr.path=/tmp/blk.sock";

/// Starts a daemon, and waits for its socket.
fn start(l1: &mut L1, command: &str, socket: &str) -> Result<Job> {
    let job = l1.start(command)?;
    steps::eventually(l1, &format!("test -S {socket}")).with_context(|| format!("{command}: {}", job.text()))?;
    Ok(job)
}

fn kill(l1: &mut L1, job: &Job) -> Result<()> {
    l1.kill(job, Signal::SIGKILL)?;
    l1.wait(job, Duration::from_secs(30))?;
    Ok(())
}

/// A disk of qemu-storage-daemon's and the random numbers of vhost-device-rng, beside a NIC of the host and on the memory of
/// an object: kicks cost no exit, both daemons are killed and started again while the guest uses them, and nothing is
/// lost. Also after the guest's reboot, and after the device was out.
fn vhost_user(lab: &mut Lab) -> Result<()> {
    lab.l1.ok("head -c 16M /dev/urandom > /tmp/vhost.raw")?;
    let sum = lab.l1.ok("sha256sum < /tmp/vhost.raw | cut -d ' ' -f 1")?;
    let blk = start(lab.l1, BLK, "/tmp/blk.sock")?;
    let rng = start(lab.l1, RNG, "/tmp/rng.sock0")?;
    let guest = Guest::new()
        .fat()
        .cpus(2)
        .reboots()
        .passes(NIC)
        .option("--object memory-backend-memfd,id=mem,size=256M,share=on --numa node,memdev=mem")
        .option("--chardev socket,id=c0,path=/tmp/blk.sock,reconnect-ms=100")
        .option("--chardev socket,id=c1,path=/tmp/rng.sock0,reconnect-ms=100")
        .device("pcie-root-port,id=rp2")
        .device("vhost-user-blk-pci,id=disk0,chardev=c0,bus=rp2,num-queues=2")
        .device("vhost-user-rng-pci,id=rng0,chardev=c1");
    let read = "modprobe virtio_pci; modprobe virtio_blk; i=0; \
                until [ -b /dev/vda ] || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done; \
                echo LAB queues=$(ls /sys/block/vda/mq | wc -l); \
                echo LAB read=$(dd if=/dev/vda bs=64k iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1)";
    let random = "modprobe virtio-rng; cat /sys/class/misc/hw_random/rng_current; \
                  echo LAB random=$(dd if=/dev/hwrng bs=64 count=4 iflag=fullblock 2>/dev/null | wc -c)";
    let begin = "head -c 4194304 /dev/urandom > /tmp/w; rm -f /tmp/wrote; \
                 (dd if=/tmp/w of=/dev/vda bs=4k seek=1024 oflag=direct conv=fsync 2>/tmp/dd; echo $? > /tmp/wrote) &";
    let end = "i=0; until [ -f /tmp/wrote ] || [ $i -ge 600 ]; do sleep 0.1; i=$((i+1)); done; \
               echo LAB dd=$(cat /tmp/wrote); echo LAB wrote=$(sha256sum < /tmp/w | cut -d ' ' -f 1)";
    let ended = steps::with_bound(lab, &[NIC], |lab| {
        let mut guest = lab.l1.live(&guest)?;
        guest.sh(lab.l1, read)?;
        ensure!(guest.value("queues")? == "2", "the guest uses {} queues", guest.value("queues")?);
        ensure!(guest.value("read")? == sum.trim(), "the guest reads other bytes");
        let said = guest.sh(lab.l1, random)?;
        ensure!(said.contains("virtio_rng") && guest.value("random")? == "256", "random numbers: {said}");
        let before = guest.mmio_writes(lab.l1)?;
        guest.sh(lab.l1, begin)?;
        kill(lab.l1, &blk)?;
        kill(lab.l1, &rng)?;
        // Their sockets may be gone at once: passthru is waiting for them.
        let blk = lab.l1.start(BLK)?;
        let rng = lab.l1.start(RNG)?;
        guest.sh(lab.l1, end)?;
        ensure!(guest.value("dd")? == "0", "writing ended with {}", guest.value("dd")?);
        let part = "dd if=/tmp/vhost.raw bs=1M skip=4 count=4 status=none | sha256sum | cut -d ' ' -f 1";
        ensure!(lab.l1.ok(part)?.trim() == guest.value("wrote")?, "the file holds other bytes");
        guest.sh(lab.l1, random)?;
        ensure!(guest.value("random")? == "256", "the next daemon gives {} bytes", guest.value("random")?);
        let exits = guest.mmio_writes(lab.l1)? - before;
        ensure!(exits < 64, "1024 writes cost {exits} exits");
        let sum = lab.l1.ok("sha256sum < /tmp/vhost.raw | cut -d ' ' -f 1")?;
        guest.shell().reboot(lab.l1)?;
        guest.sh(lab.l1, read)?;
        ensure!(guest.value("read")? == sum.trim(), "the guest reads other bytes after its reboot");
        guest.device_del(lab.l1, "disk0")?;
        let add = json!({ "driver": "vhost-user-blk-pci", "id": "disk1", "bus": "rp2", "chardev": "c0" });
        guest.device_add(lab.l1, add)?;
        guest.sh(lab.l1, read)?;
        ensure!(guest.value("read")? == sum.trim(), "the guest reads other bytes after it was out");
        steps::nic_works_in_guest(&mut guest, lab.l1)?;
        let ended = guest.power_off(lab.l1)?.success()?;
        kill(lab.l1, &blk)?;
        kill(lab.l1, &rng)?;
        Ok(ended)
    })?;
    ended.expect("the daemon at unix:/tmp/blk.sock is there again")?.lacks("soft lockup")?.lacks("I/O error")?;
    Ok(())
}

/// What gives the file to guests that ask, on L1's loopback. With HTTP, because passt ends a connection whose guest's side
/// has closed its half before all that was sent has arrived.
const FILE_SERVER: &str = "exec python3 -m http.server 80 --bind 127.0.0.1 --directory /tmp";
const PASST_USER: &str = "rm -f /tmp/user.sock; exec passt --vhost-user --foreground --socket /tmp/user.sock";
const PASST: &str = "rm -f /tmp/stream.sock; exec passt --foreground --socket /tmp/stream.sock";
/// The guest's address on a host without a route, and that of the host's loopback, as passt has them.
const PASST_GUEST: &str = "169.254.2.1";
const PASST_HOST: &str = "169.254.2.2";

/// One guest has the host's network by passt in three ways: started by passthru, at a socket with the packets in a stream,
/// and as a vhost-user daemon, which is killed and started again. A file comes whole by each.
fn passt(lab: &mut Lab) -> Result<()> {
    lab.l1.ok("head -c 8388608 /dev/urandom > /tmp/passt.file; ip link set lo up")?;
    let sum = lab.l1.ok("sha256sum < /tmp/passt.file | cut -d ' ' -f 1")?;
    let server = lab.l1.start(FILE_SERVER)?;
    let stream = start(lab.l1, PASST, "/tmp/stream.sock")?;
    let user = start(lab.l1, PASST_USER, "/tmp/user.sock")?;
    let guest = Guest::new()
        .fat()
        .option("--chardev socket,id=c0,path=/tmp/user.sock,reconnect-ms=100 --netdev vhost-user,id=n5,chardev=c0")
        .option("--netdev user,id=n3")
        .option("--netdev stream,id=n4,addr.type=unix,addr.path=/tmp/stream.sock")
        .device("virtio-net-pci,netdev=n3,mac=52:54:00:09:00:03")
        .device("virtio-net-pci,netdev=n4,mac=52:54:00:09:00:04")
        .device("virtio-net-pci,netdev=n5,mac=52:54:00:09:00:05");
    let fetch = |nic: &str| {
        format!(
            "modprobe -a virtio_pci virtio_net 2>/dev/null; cd /sys/class/net; \
             i=0; until grep -q 52:54:00:09:00:0{nic} */address || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done; \
             IF=$(grep -l 52:54:00:09:00:0{nic} */address | cut -d / -f 1); ip link set $IF up; \
             ip addr add {PASST_GUEST}/16 dev $IF; sleep 1; \
             echo LAB nic{nic}=$(wget -q -O - http://{PASST_HOST}/passt.file | sha256sum | cut -d ' ' -f 1); \
             ip addr flush dev $IF; ip link set $IF down"
        )
    };
    let mut guest = lab.l1.live(&guest)?;
    for nic in ["3", "4", "5"] {
        guest.sh(lab.l1, &fetch(nic))?;
        let got = guest.value(&format!("nic{nic}"))?;
        ensure!(got == sum.trim(), "another file comes by the back end n{nic}: {got}");
    }
    kill(lab.l1, &user)?;
    let user = start(lab.l1, PASST_USER, "/tmp/user.sock")?;
    guest.sh(lab.l1, &fetch("5"))?;
    ensure!(guest.value("nic5")? == sum.trim(), "another file comes by the next passt");
    let ended = guest.power_off(lab.l1)?.success()?;
    kill(lab.l1, &server)?;
    kill(lab.l1, &stream)?;
    kill(lab.l1, &user)?;
    ended.expect("the daemon at unix:/tmp/user.sock is there again")?.lacks("soft lockup")?;
    Ok(())
}
