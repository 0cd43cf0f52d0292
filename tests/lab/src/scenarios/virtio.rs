//! Virtio devices, driven by the guest's own drivers, beside a NIC of the host.

use anyhow::{Result, ensure};
use serde_json::json;

use super::steps::{self, NIC};
use crate::l1::Guest;
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("virtio-rng", rng).limit(600),
    Scenario::new("virtio-blk", blk).limit(900),
    Scenario::new("virtio-net", net).limit(600),
];

/// What the random numbers are made of, so that the guest's can be checked.
const ENTROPY: &str = "/tmp/entropy";

/// The guest gets what the host's file holds, by interrupts and doorbells that cost no exit; also after its reboot
/// and after the device was out.
fn rng(lab: &mut Lab) -> Result<()> {
    lab.l1.ok(&format!("yes passthru | tr -d '\\n' | head -c 8M > {ENTROPY}"))?;
    let guest = Guest::new()
        .fat()
        .reboots()
        .passes(NIC)
        .device("pcie-root-port,id=rp2")
        .device(&format!("virtio-rng-pci,id=rng0,bus=rp2,filename={ENTROPY}"));
    // One that is put in is there some time after `device_add` has been answered.
    let up = "modprobe virtio_pci; modprobe virtio-rng; cd /sys/class/misc/hw_random; i=0; \
              until grep -q virtio_rng rng_current || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done; cat rng_current";
    // Only letters of the word, and as much as was asked for.
    let check = "dd if=/dev/hwrng of=/tmp/r bs=32 count=512 iflag=fullblock 2>/dev/null; \
                 echo LAB len=$(wc -c < /tmp/r) other=$(tr -d pashtru < /tmp/r | wc -c)";
    let ended = steps::with_bound(lab, &[NIC], |lab| {
        let mut guest = lab.l1.live(&guest)?;
        for round in 0..3 {
            let current = guest.sh(lab.l1, up)?;
            ensure!(current.contains("virtio_rng"), "round {round}: the guest's source is {current}");
            let before = guest.mmio_writes(lab.l1)?;
            guest.sh(lab.l1, check)?;
            let after = guest.mmio_writes(lab.l1)?;
            ensure!(guest.value("len")? == "16384 other=0", "round {round}: {}", guest.value("len")?);
            ensure!(after - before < 32, "round {round}: 512 requests cost {} exits", after - before);
            match round {
                0 => guest.shell().reboot(lab.l1)?,
                1 => {
                    guest.device_del(lab.l1, "rng0")?;
                    let add = json!({ "driver": "virtio-rng-pci", "id": "rng0", "bus": "rp2", "filename": ENTROPY });
                    guest.device_add(lab.l1, add)?;
                }
                _ => {}
            }
        }
        steps::nic_works_in_guest(&mut guest, lab.l1)?;
        guest.power_off(lab.l1)?.success()
    })?;
    ended.lacks("soft lockup")?.lacks("device error")?;
    Ok(())
}

/// The name that the guest has for the disk under test.
const DISK: &str = "disk=$(cd /sys/block; grep -ls LAB-0001 vd*/serial | cut -d / -f 1)";

/// A disk reads as the host's file, which holds afterwards what the guest has written; without an exit for each request.
fn blk(lab: &mut Lab) -> Result<()> {
    lab.l1.ok("head -c 32M /dev/urandom > /tmp/disk.raw")?;
    let sum = lab.l1.ok("sha256sum < /tmp/disk.raw | cut -d ' ' -f 1")?;
    let guest = Guest::new()
        .tools()
        .cpus(2)
        .reboots()
        .passes(NIC)
        .device("pcie-root-port,id=rp2")
        .option("--blockdev file,node-name=d0,filename=/tmp/disk.raw")
        .device("virtio-blk-pci,id=disk0,drive=d0,bus=rp2,serial=LAB-0001,num-queues=2");
    let read = "modprobe virtio_pci; modprobe virtio_blk; cd /sys/block; i=0; \
                until grep -qs LAB-0001 vd*/serial || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done; \
                DISK; echo LAB serial=$(cat $disk/serial); echo LAB queues=$(ls $disk/mq | wc -l); \
                echo LAB read=$(dd if=/dev/$disk bs=64k iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1)"
        .replace("DISK", DISK);
    let write = "DISK; head -c 8388608 /dev/urandom > /tmp/w; \
                 dd if=/tmp/w of=/dev/$disk bs=4k seek=2048 oflag=direct conv=fsync 2>/dev/null; \
                 echo LAB wrote=$(sha256sum < /tmp/w | cut -d ' ' -f 1)"
        .replace("DISK", DISK);
    let verify =
        "DISK; fio --name=verify --filename=/dev/$disk --offset=16M --size=8M --bs=4k --rw=randwrite --direct=1 \
                  --ioengine=psync --verify=crc32c --verify_fatal=1 --minimal > /tmp/fio; echo LAB fio=$?"
            .replace("DISK", DISK);
    let ended = steps::with_bound(lab, &[NIC], |lab| {
        let mut guest = lab.l1.live(&guest)?;
        guest.sh(lab.l1, &read)?;
        ensure!(guest.value("serial")? == "LAB-0001", "the serial number is {}", guest.value("serial")?);
        ensure!(guest.value("queues")? == "2", "the guest uses {} queues", guest.value("queues")?);
        ensure!(guest.value("read")? == sum.trim(), "the guest reads other bytes");
        let before = guest.mmio_writes(lab.l1)?;
        guest.sh(lab.l1, &write)?;
        let exits = guest.mmio_writes(lab.l1)? - before;
        ensure!(exits < 64, "2048 writes cost {exits} exits");
        let part = "dd if=/tmp/disk.raw bs=1M skip=8 count=8 status=none | sha256sum | cut -d ' ' -f 1";
        ensure!(lab.l1.ok(part)?.trim() == guest.value("wrote")?, "the file holds other bytes");
        guest.sh(lab.l1, &verify)?;
        ensure!(guest.value("fio")? == "0", "fio ended with {}", guest.value("fio")?);
        let sum = lab.l1.ok("sha256sum < /tmp/disk.raw | cut -d ' ' -f 1")?;
        guest.shell().reboot(lab.l1)?;
        guest.sh(lab.l1, &read)?;
        ensure!(guest.value("read")? == sum.trim(), "the guest reads other bytes after its reboot");
        guest.device_del(lab.l1, "disk0")?;
        let add =
            json!({ "driver": "virtio-blk-pci", "id": "disk1", "bus": "rp2", "drive": "d0", "serial": "LAB-0001" });
        guest.device_add(lab.l1, add)?;
        guest.sh(lab.l1, &read)?;
        ensure!(guest.value("read")? == sum.trim(), "the guest reads other bytes after it was out");
        steps::nic_works_in_guest(&mut guest, lab.l1)?;
        guest.power_off(lab.l1)?.success()
    })?;
    ended.lacks("soft lockup")?.lacks("I/O error")?;
    Ok(())
}

/// The guest's address and L1's on the tap between them.
const GUEST_IP: &str = "10.9.0.2";
const L1_IP: &str = "10.9.0.1";
/// Bytes that are sent each way, in the units of head(1).
const STREAM: &str = "32M";

/// Packets go both ways over a tap with every offload, several queues and merged buffers; a kick costs no exit. Also after
/// the guest's reboot, after the device was out and came again with the kernel's threads (vhost-net), and beside a NIC of the
/// host.
fn net(lab: &mut Lab) -> Result<()> {
    lab.l1.ok("modprobe tun; ip tuntap add lab0 mode tap multi_queue vnet_hdr")?;
    lab.l1.ok(&format!("ip addr add {L1_IP}/24 dev lab0"))?;
    lab.l1.ok(&format!("head -c {STREAM} /dev/urandom > /tmp/stream"))?;
    let sum = lab.l1.ok("sha256sum < /tmp/stream | cut -d ' ' -f 1")?.trim().to_owned();
    let device = "virtio-net-pci,id=net0,bus=rp2,netdev=n0,mq=on,mac=52:54:00:09:00:02";
    let guest = Guest::new()
        .fat()
        .cpus(2)
        .reboots()
        .passes(NIC)
        .device("pcie-root-port,id=rp2")
        .option("--netdev tap,id=n0,ifname=lab0,queues=2,script=no,downscript=no")
        .device(device);
    // Not the passed-through NIC's name: that comes when its driver does.
    let up = format!(
        "modprobe virtio_pci; modprobe virtio_net; cd /sys/class/net; \
         i=0; until grep -q 52:54:00:09:00:02 */address || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done; \
         IF=$(grep -l 52:54:00:09:00:02 */address | cut -d / -f 1); ip link set $IF name lan0; ip link set lan0 up; \
         ip addr add {GUEST_IP}/24 dev lan0; ping -c 3 -i 0.2 -W 5 {L1_IP} > /dev/null; ethtool -l lan0; ethtool -k lan0"
    );
    let from_l1 = "nc -l -p 9 < /dev/null | sha256sum | cut -d ' ' -f 1 > /tmp/sum";
    let ended = steps::with_bound(lab, &[NIC], |lab| {
        let mut guest = lab.l1.live(&guest)?;
        for round in 0..3 {
            let said = guest.sh(lab.l1, &up)?;
            ensure!(said.contains("tcp-segmentation-offload: on"), "round {round}: {said}");
            ensure!(said.contains("tx-checksumming: on") && said.contains("generic-receive-offload: on"), "{said}");
            ensure!(said.contains("Combined:\t2"), "round {round}: the guest has not two pairs: {said}");
            let before = guest.mmio_writes(lab.l1)?;
            guest.sh(lab.l1, &format!("({from_l1}) & sleep 1"))?;
            lab.l1.ok(&format!("timeout 60 socat -u FILE:/tmp/stream TCP:{GUEST_IP}:9"))?;
            guest.sh(lab.l1, "sleep 1; echo LAB to=$(cat /tmp/sum)")?;
            ensure!(guest.value("to")? == sum, "round {round}: the guest received something else");
            lab.l1.ok("(timeout 90 socat -u FILE:/tmp/stream TCP-LISTEN:9,reuseaddr > /dev/null 2>&1) & sleep 1")?;
            guest.sh(lab.l1, &format!("echo LAB back=$(nc {L1_IP} 9 < /dev/null | sha256sum | cut -d ' ' -f 1)"))?;
            ensure!(guest.value("back")? == sum, "round {round}: the guest fetched something else");
            let exits = guest.mmio_writes(lab.l1)? - before;
            ensure!(exits < 200, "round {round}: 64 MiB cost {exits} exits by trapped writes");
            match round {
                0 => guest.shell().reboot(lab.l1)?,
                1 => {
                    guest.device_del(lab.l1, "net0")?;
                    // From here on the kernel moves the packets.
                    lab.l1.ok("modprobe vhost_net")?;
                    guest.qmp(lab.l1, "netdev_del", json!({ "id": "n0" }))?;
                    let tap = json!({ "type": "tap", "id": "n0", "ifname": "lab0", "queues": 2, "vhost": true });
                    guest.qmp(lab.l1, "netdev_add", tap)?;
                    let add = json!({ "driver": "virtio-net-pci", "id": "net0", "bus": "rp2", "netdev": "n0", "mq": true,
                        "mac": "52:54:00:09:00:02" });
                    guest.device_add(lab.l1, add)?;
                }
                _ => {}
            }
        }
        let threads = lab.l1.ok("cat /proc/[0-9]*/comm /proc/[0-9]*/task/*/comm 2>/dev/null | grep -c '^vhost-'")?;
        ensure!(threads.trim() != "0", "no thread of the kernel moves the packets");
        steps::nic_works_in_guest(&mut guest, lab.l1)?;
        guest.power_off(lab.l1)?.success()
    })?;
    ended.lacks("soft lockup")?.lacks("device error")?;
    // A tap that was there before is there after.
    lab.l1.ok("ip link show lab0 && ip link del lab0")?;
    Ok(())
}
