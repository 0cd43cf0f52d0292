//! Images under a guest's disk, and memory that it shares with its host.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::l1::{Guest, L1};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("disk-images", images).limit(600),
    Scenario::new("disk-types", types).limit(900),
    Scenario::new("disk-errors", errors).limit(600),
    Scenario::new("shared-memory", shared_memory),
];

/// The guest's disk is an overlay that passthru has made, of an image that qemu-img has. A snapshot and its commit while the
/// guest runs lose nothing, and qemu-img finds the image whole afterwards. Nodes come and go.
fn images(lab: &mut Lab) -> Result<()> {
    lab.l1.ok(
        "cd /tmp && head -c 16M /dev/urandom > base.raw && qemu-img convert -f raw -O qcow2 base.raw base.qcow2 \
         && passthru img create -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 && qemu-img check top.qcow2",
    )?;
    let base = lab.l1.ok("sha256sum < /tmp/base.raw | cut -d ' ' -f 1")?.trim().to_owned();
    let guest = Guest::new()
        .fat()
        .device("pcie-root-port,id=rp1")
        .device("pcie-root-port,id=rp2")
        .option("--blockdev qcow2,node-name=d0,file.driver=file,file.filename=/tmp/top.qcow2")
        .device("virtio-blk-pci,id=disk0,drive=d0,bus=rp1");
    let wait = |disk: &str| format!("i=0; until [ -b /dev/{disk} ] || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done");
    let read = |disk: &str, key: &str| {
        format!("echo LAB {key}=$(dd if=/dev/{disk} bs=64k iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1)")
    };
    let write = |at: u32, mib: u32| {
        format!(
            "dd if=/dev/urandom of=/dev/vda bs=64k seek={} count={} oflag=direct conv=fsync 2>/dev/null",
            at * 16,
            mib * 16
        )
    };
    let mut guest = lab.l1.live(&guest)?;
    guest
        .sh(lab.l1, &format!("modprobe virtio_pci; modprobe virtio_blk; {}; {}", wait("vda"), read("vda", "first")))?;
    ensure!(guest.value("first")? == base, "the guest reads other bytes than the base has");
    guest.sh(lab.l1, &write(2, 4))?;
    guest.qmp(lab.l1, "blockdev-snapshot-sync", json!({ "node-name": "d0", "snapshot-file": "/tmp/snap.qcow2" }))?;
    let top = lab.l1.ok("sha256sum < /tmp/top.qcow2")?;
    guest.sh(lab.l1, &write(4, 4))?;
    ensure!(lab.l1.ok("sha256sum < /tmp/top.qcow2")? == top, "the snapshot was written to");
    guest.qmp(lab.l1, "block-commit", json!({ "device": "d0", "job-id": "job0" }))?;
    guest.sh(lab.l1, &write(7, 2))?;
    let done = guest.event(lab.l1, "BLOCK_JOB_COMPLETED")?;
    ensure!(done["data"]["error"].is_null(), "the commit failed: {done}");
    guest.sh(lab.l1, &write(10, 1))?;
    guest.sh(lab.l1, &read("vda", "all"))?;

    let raw = json!({ "driver": "raw", "node-name": "d1", "read-only": true,
        "file": { "driver": "file", "filename": "/tmp/base.raw", "read-only": true } });
    guest.qmp(lab.l1, "blockdev-add", raw)?;
    guest.device_add(lab.l1, json!({ "driver": "virtio-blk-pci", "id": "disk1", "bus": "rp2", "drive": "d1" }))?;
    guest.sh(lab.l1, &format!("{}; {}; echo LAB ro=$(cat /sys/block/vdb/ro)", wait("vdb"), read("vdb", "second")))?;
    ensure!(guest.value("second")? == base, "the second disk has other bytes");
    ensure!(guest.value("ro")? == "1", "the second disk can be written");
    let refused = guest.qmp_fails(lab.l1, "blockdev-del", json!({ "node-name": "d1" }))?;
    ensure!(refused.contains("disk1"), "a node in use was refused with: {refused}");
    guest.device_del(lab.l1, "disk1")?;
    guest.qmp(lab.l1, "blockdev-del", json!({ "node-name": "d1" }))?;

    let all = guest.value("all")?;
    guest.power_off(lab.l1)?.success()?.lacks("I/O error")?;
    let after = lab.l1.ok(
        "cd /tmp && qemu-img check -q top.qcow2 && qemu-img check -q base.qcow2 && passthru img check top.qcow2 > /dev/null \
         && qemu-img convert -f qcow2 -O raw top.qcow2 theirs.raw && passthru img convert -f qcow2 -O raw top.qcow2 ours.raw \
         && qemu-img compare -f raw -F raw theirs.raw ours.raw > /dev/null && sha256sum < ours.raw | cut -d ' ' -f 1",
    )?;
    ensure!(after.trim() == all, "the image holds other bytes than the guest has read");
    Ok(())
}

/// Images of the scenario's disks, as L1 has them: raw under a limit, qcow2 below an overlay in memory, a disk of L1's, a
/// disk on a file system that is too small for it, a CD.
const PREPARE: &str = "cd /tmp && for name in raw loop iso; do head -c 16M /dev/urandom > $name.img; done \
    && qemu-img convert -f raw -O qcow2 raw.img q.qcow2 && cp q.qcow2 cor.qcow2 \
    && passthru img create -f qcow2 -b cor.qcow2 -F qcow2 top.qcow2 \
    && modprobe loop && losetup /dev/loop7 loop.img \
    && mkdir -p small && mount -t tmpfs -o size=6M tmpfs small && truncate -s 16M small/disk.img";
/// The guest's disks, by what they are. Linux looks for the namespaces of a drive side by side: nvme0n1 is either of the two.
const NAMES: &str = "cd /sys/block; slow=$(grep -ls LAB-SLOW vd*/serial | cut -d / -f 1); \
    cor=$(grep -ls LAB-COR vd*/serial | cut -d / -f 1); nvme=$(grep -lsx 1 nvme*/nsid | cut -d / -f 1);";
/// Length of the disks that are compared, MiB.
const MIB: u32 = 16;
/// Requests of the disk under a limit, and how many of them it may do in a second.
const LIMITED: u32 = 60;
const LIMIT: u32 = 20;

/// Prints a checksum of each MiB of a disk.
fn sums(disk: &str, how: &str) -> String {
    format!(
        "for i in $(seq 0 {}); do dd if={disk} bs=1M skip=$i count=1 {how} 2>/dev/null | md5sum | cut -c 1-12; done \
         | tr '\\n' ','",
        MIB - 1
    )
}

/// Every type of disk on every kind of node in one guest, some on a thread that they share: fio writes and verifies, images
/// are whole afterwards, a rate is kept, SCSI disks come and go without a port.
fn types(lab: &mut Lab) -> Result<()> {
    lab.l1.ok(PREPARE)?;
    let sum = |l1: &mut L1, file: &str| -> Result<String> {
        Ok(l1.ok(&format!("sha256sum < /tmp/{file} | cut -d ' ' -f 1"))?.trim().to_owned())
    };
    let file = "file.driver=file,file.filename=/tmp";
    let guest = Guest::new()
        .fat()
        .tools()
        .cpus(2)
        .device("pcie-root-port,id=rp1")
        .option(&format!("--object throttle-group,id=tg,x-iops-total={LIMIT}"))
        .option("--object iothread,id=io0")
        .option("--blockdev file,node-name=raw,filename=/tmp/raw.img")
        .option("--blockdev throttle,node-name=slow,throttle-group=tg,file=raw")
        .option(&format!("--blockdev qcow2,node-name=q,discard=unmap,{file}/q.qcow2,file.discard=unmap"))
        .option(&format!("--blockdev qcow2,node-name=top,{file}/top.qcow2"))
        .option("--blockdev copy-on-read,node-name=cor,file=top")
        .option("--blockdev host_device,node-name=loop,filename=/dev/loop7")
        .option("--blockdev file,node-name=full,filename=/tmp/small/disk.img")
        .option("--blockdev file,node-name=iso,filename=/tmp/iso.img,read-only=on")
        .device("virtio-blk-pci,id=slow0,drive=slow,serial=LAB-SLOW")
        .device("virtio-blk-pci,id=cor0,drive=cor,serial=LAB-COR,num-queues=2,iothread=io0")
        .device("virtio-scsi-pci,id=scsi0,num_queues=2,iothread=io0")
        .device("scsi-hd,id=hd0,drive=q,serial=LAB-HD,bootindex=1")
        .device("scsi-cd,id=cd0,drive=iso,scsi-id=5")
        .device("nvme,id=nvme0,bus=rp1,drive=loop,serial=LAB-NVME,max_ioqpairs=2")
        .device("nvme-ns,id=ns2,bus=nvme0,drive=full");
    let find = "modprobe -a virtio_pci virtio_blk virtio_scsi sd_mod sr_mod nvme; cd /sys/block; i=0; \
         until [ -b /dev/sda ] && [ -b /dev/sr0 ] && [ -b /dev/nvme0n1 ] && [ -b /dev/nvme0n2 ] \
         && grep -qs LAB-SLOW vd*/serial && grep -qs LAB-COR vd*/serial || [ $i -ge 300 ]; \
         do sleep 0.1; i=$((i+1)); done;";
    let found = "echo LAB queues=$(ls $nvme/mq | wc -l),$(ls sda/mq | wc -l),$(ls $cor/mq | wc -l); \
         echo LAB cd=$(sha256sum < /dev/sr0 | cut -d ' ' -f 1); echo LAB discard=$(cat sda/queue/discard_max_bytes)";
    let verify = "for disk in sda $nvme $cor; do echo \"[$disk]\"; echo filename=/dev/$disk; done > /tmp/jobs; \
         (echo '[global]'; printf '%s\\n' size=1M offset=4M bs=4k rw=randwrite direct=1 ioengine=libaio iodepth=8 \
         verify=crc32c verify_fatal=1; cat /tmp/jobs) > /tmp/all.fio; fio --minimal /tmp/all.fio > /tmp/fio 2>&1; \
         echo LAB fio=$?; tail -n 3 /tmp/fio; blkdiscard -o 12M -l 1M /dev/sda; echo LAB discarded=$?";
    let rate = format!(
        "from=$(cut -d . -f 1 /proc/uptime); dd if=/dev/$slow of=/dev/null bs=4k count={LIMITED} iflag=direct 2>/dev/null; \
         to=$(cut -d . -f 1 /proc/uptime); echo LAB seconds=$((to - from))"
    );
    let read = format!(
        "echo LAB q.img=$({}); echo LAB loop.img=$({}); echo LAB top.img=$({})",
        sums("/dev/sda", "iflag=direct"),
        sums("/dev/$nvme", "iflag=direct"),
        sums("/dev/$cor", "iflag=direct")
    );
    let mut guest = lab.l1.live(&guest)?;
    guest.sh(lab.l1, &format!("{find} {NAMES} {found}"))?;
    ensure!(guest.value("queues")? == "2,2,2", "the guest uses {} queues", guest.value("queues")?);
    ensure!(guest.value("cd")? == sum(lab.l1, "iso.img")?, "the CD has other bytes");
    ensure!(guest.value("discard")? != "0", "sda offers no discard");
    guest.sh(lab.l1, &format!("{NAMES} {verify}"))?;
    ensure!(guest.value("fio")? == "0", "fio ended with {}", guest.value("fio")?);
    ensure!(guest.value("discarded")? == "0", "blkdiscard ended with {}", guest.value("discarded")?);
    guest.sh(lab.l1, &format!("{NAMES} {rate}"))?;
    // As the user's limit has it, whatever the machine's speed: the first second's may come at once.
    let seconds: u32 = guest.value("seconds")?.parse()?;
    ensure!(seconds + 2 >= LIMITED / LIMIT, "{LIMITED} requests took {seconds} s");
    guest.sh(lab.l1, &format!("{NAMES} {read}"))?;
    let tree = guest.qmp(lab.l1, "human-monitor-command", json!({ "command-line": "info qtree" }))?;
    for words in ["bus: scsi0.0", "dev: scsi-cd, id \"cd0\"", "addr = 0:5:0", "bus: nvme0", "bootindex = 1"] {
        ensure!(tree.as_str().is_some_and(|tree| tree.contains(words)), "no {words} in {tree}");
    }

    // A SCSI disk comes and goes.
    let add = json!({ "driver": "file", "node-name": "hot", "filename": "/tmp/hot.img", "read-only": true });
    lab.l1.ok("cp /tmp/iso.img /tmp/hot.img")?;
    guest.qmp(lab.l1, "blockdev-add", add)?;
    guest.device_add(lab.l1, json!({ "driver": "scsi-hd", "id": "hd1", "bus": "scsi0.0", "drive": "hot" }))?;
    let hot = "i=0; until [ -b /dev/sdb ] || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done; \
               echo LAB hot=$(sha256sum < /dev/sdb | cut -d ' ' -f 1)";
    guest.sh(lab.l1, hot)?;
    ensure!(guest.value("hot")? == sum(lab.l1, "iso.img")?, "the disk that came has other bytes");
    guest.device_del(lab.l1, "hd1")?;
    guest.sh(
        lab.l1,
        "i=0; while [ -b /dev/sdb ] && [ $i -lt 200 ]; do sleep 0.1; i=$((i+1)); done; \
                      echo LAB gone=$([ -b /dev/sdb ]; echo $?)",
    )?;
    ensure!(guest.value("gone")? == "1", "the guest still has the disk");
    guest.qmp(lab.l1, "blockdev-del", json!({ "node-name": "hot" }))?;

    let files = ["q.img", "loop.img", "top.img"];
    let read = files.iter().map(|file| guest.value(file)).collect::<Result<Vec<_>>>()?;
    guest.power_off(lab.l1)?.success()?.lacks("soft lockup")?;
    lab.l1.ok("cd /tmp && qemu-img check -q q.qcow2 && qemu-img check -q top.qcow2 && qemu-img check -q cor.qcow2 \
               && for name in q top; do qemu-img convert -f qcow2 -O raw $name.qcow2 $name.img; done")?;
    for (file, read) in files.iter().zip(read) {
        let held = lab.l1.ok(&sums(&format!("/tmp/{file}"), ""))?;
        let pairs = read.split(',').zip(held.trim().split(','));
        let differ: Vec<usize> =
            pairs.enumerate().filter(|(_, (read, held))| read != held).map(|(mib, _)| mib).collect();
        ensure!(differ.is_empty(), "{file} holds other bytes than the guest has read in MiB {differ:?} of {MIB}");
    }
    lab.l1.ok("losetup -d /dev/loop7 && umount /tmp/small").map(drop)
}

/// A drive with two namespaces, of which one is larger than its file system has room for, and a CD.
const PREPARE_ERRORS: &str = "cd /tmp && for name in drive cd; do head -c 16M /dev/urandom > $name.img; done \
    && mkdir -p tight && mount -t tmpfs -o size=6M tmpfs tight && truncate -s 16M tight/disk.img";

/// A full file system stops the guest until there is room, and nothing is lost. A drive goes with its namespaces, and comes
/// again. What is no longer there of a file cannot be read, and guest and user are told.
fn errors(lab: &mut Lab) -> Result<()> {
    lab.l1.ok(PREPARE_ERRORS)?;
    let guest = Guest::new()
        .fat()
        .cpus(2)
        .device("pcie-root-port,id=rp1")
        .option("--blockdev file,node-name=drive,filename=/tmp/drive.img")
        .option("--blockdev file,node-name=full,filename=/tmp/tight/disk.img")
        .option("--blockdev file,node-name=cd,filename=/tmp/cd.img,read-only=on")
        .device("virtio-scsi-pci,id=scsi0")
        .device("scsi-cd,id=cd0,drive=cd")
        .device("nvme,id=nvme0,bus=rp1,drive=drive,serial=LAB-FIRST")
        .device("nvme-ns,id=ns2,bus=nvme0,drive=full");
    let mut guest = lab.l1.live(&guest)?;
    guest.sh(
        lab.l1,
        "modprobe -a virtio_pci virtio_scsi sr_mod nvme; cd /sys/block; i=0; \
         until [ -b /dev/sr0 ] && [ -b /dev/nvme0n1 ] && [ -b /dev/nvme0n2 ] || [ $i -ge 300 ]; do sleep 0.1; i=$((i+1)); done; \
         drive=$(grep -lsx 1 nvme*/nsid | cut -d / -f 1); grep -lsx 2 nvme*/nsid | cut -d / -f 1 > /tmp/full; \
         echo LAB first=$(dd if=/dev/$drive bs=256k iflag=direct 2>/dev/null | md5sum | cut -d ' ' -f 1); \
         head -c 12582912 /dev/urandom > /tmp/data; echo LAB wrote=$(md5sum < /tmp/data | cut -d ' ' -f 1)",
    )?;

    let write = "dd if=/tmp/data of=/dev/$(cat /tmp/full) bs=1M oflag=direct 2>/dev/null; echo LAB full=$?";
    let writing = guest.begin(lab.l1, write)?;
    let event = guest.event(lab.l1, "BLOCK_IO_ERROR")?;
    ensure!(event["action"] == "stop" && event["nospace"] == true && event["qdev"] == "ns2", "the event is {event}");
    let status = guest.qmp(lab.l1, "query-status", json!({}))?;
    ensure!(status["status"] == "io-error", "the guest is {status}");
    lab.l1.ok("mount -o remount,size=32M /tmp/tight")?;
    guest.qmp(lab.l1, "cont", json!({}))?;
    guest.end(lab.l1, writing)?;
    ensure!(guest.value("full")? == "0", "the write to the full disk ended with {}", guest.value("full")?);
    let held = lab.l1.ok("head -c 12M /tmp/tight/disk.img | md5sum | cut -d ' ' -f 1")?;
    ensure!(held.trim() == guest.value("wrote")?, "the disk that was full holds other bytes");

    guest.qmp(lab.l1, "device_del", json!({ "id": "nvme0" }))?;
    let gone = [guest.event(lab.l1, "DEVICE_DELETED")?, guest.event(lab.l1, "DEVICE_DELETED")?];
    ensure!(gone[0]["device"] == "ns2" && gone[1]["device"] == "nvme0", "out are {gone:?}");
    let add = json!({ "driver": "nvme", "id": "nvme1", "bus": "rp1", "drive": "drive", "serial": "LAB-AGAIN" });
    guest.device_add(lab.l1, add)?;
    guest.sh(
        lab.l1,
        "i=0; until grep -qs LAB-AGAIN /sys/class/nvme/*/serial && [ -b /dev/nvme*n1 ] || [ $i -ge 200 ]; \
         do sleep 0.1; i=$((i+1)); done; \
         echo LAB again=$(dd if=$(echo /dev/nvme*n1) bs=256k iflag=direct 2>/dev/null | md5sum | cut -d ' ' -f 1)",
    )?;
    ensure!(guest.value("again")? == guest.value("first")?, "the drive has other bytes after it was out");

    lab.l1.ok("truncate -s 1M /tmp/cd.img")?;
    guest.sh(
        lab.l1,
        "dd if=/dev/sr0 of=/dev/null bs=2k skip=4096 count=1 iflag=direct 2>/dev/null; echo LAB short=$?",
    )?;
    ensure!(guest.value("short")? != "0", "the guest reads what is not there");
    let mut event = guest.event(lab.l1, "BLOCK_IO_ERROR")?;
    // Behind those of the full disk, of which several requests were under way.
    while event["action"] == "stop" {
        event = guest.event(lab.l1, "BLOCK_IO_ERROR")?;
    }
    ensure!(event["qdev"] == "cd0" && event["operation"] == "read", "the event is {event}");
    guest.power_off(lab.l1)?.success()?;
    lab.l1.ok("umount /tmp/tight").map(drop)
}

/// What a program of the host writes into a file, the guest reads in a BAR, and the other way round.
fn shared_memory(lab: &mut Lab) -> Result<()> {
    lab.l1.ok("rm -f /dev/shm/lab")?;
    let guest = Guest::new()
        .fat()
        .option("--object memory-backend-file,id=shm,mem-path=/dev/shm/lab,size=1M,share=on")
        .device("ivshmem-plain,id=ivshmem,memdev=shm");
    let mut guest = lab.l1.live(&guest)?;
    lab.l1.ok("printf LABS | dd of=/dev/shm/lab bs=1 seek=4096 conv=notrunc status=none")?;
    let look = "for D in /sys/bus/pci/devices/*; do if [ $(cat $D/device) = 0x1110 ]; then break; fi; done; \
                echo 1 > $D/enable; AT=$(sed -n 3p $D/resource | cut -d ' ' -f 1); \
                echo LAB size=$(($(sed -n 3p $D/resource | cut -d ' ' -f 2) - AT + 1)); \
                echo LAB word=$(devmem $((AT + 4096)) 32); devmem $((AT + 8192)) 32 0x44434241";
    guest.sh(lab.l1, look)?;
    ensure!(guest.value("size")? == "1048576", "BAR 2 has {} bytes", guest.value("size")?);
    ensure!(guest.value("word")? == "0x5342414C", "the guest reads {}", guest.value("word")?);
    let word = lab.l1.ok("dd if=/dev/shm/lab bs=1 skip=8192 count=4 status=none")?;
    ensure!(word == "ABCD", "the host reads {word:?}");
    guest.power_off(lab.l1)?.success()?;
    lab.l1.ok("rm /dev/shm/lab").map(drop)
}
