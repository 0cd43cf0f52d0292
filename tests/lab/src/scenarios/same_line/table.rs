//! The command lines: what QEMU users write, for what both have.

use super::super::steps::{DRIVE, NIC};

/// A command line, beside the words that all have.
pub struct Line {
    pub name: &'static str,
    pub words: &'static str,
    /// Disks and NICs that the guest must find.
    pub disks: usize,
    pub nics: usize,
    /// Memory nodes of the guest.
    pub nodes: usize,
    /// Functions of the host that it passes through.
    pub passes: &'static [&'static str],
}

const fn line(name: &'static str, words: &'static str) -> Line {
    Line { name, words, disks: 0, nics: 0, nodes: 1, passes: &[] }
}

impl Line {
    const fn disks(self, disks: usize) -> Line {
        Line { disks, ..self }
    }

    const fn nics(self, nics: usize) -> Line {
        Line { nics, ..self }
    }

    const fn nodes(self, nodes: usize) -> Line {
        Line { nodes, ..self }
    }

    const fn passes(self, passes: &'static [&'static str]) -> Line {
        Line { passes, ..self }
    }
}

/// All of them. The files under /tmp/lines are the scenario's.
pub static TABLE: &[Line] = &[
    line("words-without-effect", "-k en-us -boot menu=off,strict=on -rtc base=utc,driftfix=slew -global ICH9-LPC.disable_s3=1 -device virtio-rng"),
    line("rng-on-port", "-device pcie-root-port,id=rp0,chassis=1 -device virtio-rng-pci,bus=rp0"),
    line("rng-object", "-object rng-random,id=r0,filename=/dev/urandom -device virtio-rng-pci,rng=r0,addr=7"),
    line(
        "ports",
        "-device pcie-root-port,id=a,chassis=1,addr=2.0,multifunction=on -device pcie-root-port,id=b,chassis=2,addr=2.1 \
         -device virtio-rng-pci,bus=b",
    ),
    line("blk", "-blockdev file,node-name=f0,filename=/tmp/lines/a.raw -device virtio-blk-pci,drive=f0").disks(1),
    line(
        "blk-on-port",
        "-blockdev driver=file,node-name=f0,filename=/tmp/lines/a.raw -blockdev driver=raw,node-name=d0,file=f0 \
         -device pcie-root-port,id=rp0,chassis=1,addr=4 -device virtio-blk-pci,drive=d0,bus=rp0,serial=LINE7,id=disk0",
    )
    .disks(1),
    line(
        "blk-qcow2",
        "-blockdev qcow2,node-name=q0,file.driver=file,file.filename=/tmp/lines/c.qcow2 \
         -device virtio-blk-pci,drive=q0,num-queues=1,addr=0x5",
    )
    .disks(1),
    line(
        "blk-json",
        "-blockdev '{\"driver\":\"raw\",\"node-name\":\"d0\",\"read-only\":true,\
         \"file\":{\"driver\":\"file\",\"filename\":\"/tmp/lines/a.raw\"}}' -device virtio-blk-pci,drive=d0",
    )
    .disks(1),
    line(
        "blk-part",
        "-blockdev raw,node-name=d0,offset=1048576,size=2097152,file.driver=file,file.filename=/tmp/lines/a.raw \
         -device virtio-blk-pci,drive=d0,logical_block_size=4096,physical_block_size=4096",
    )
    .disks(1),
    line(
        "blk-two",
        "-blockdev file,node-name=f0,filename=/tmp/lines/a.raw -blockdev file,node-name=f1,filename=/tmp/lines/b.raw \
         -device virtio-blk-pci,drive=f1,addr=9,bootindex=1 -device virtio-blk-pci,drive=f0,addr=8",
    )
    .disks(2),
    line(
        "blk-throttled",
        "-object throttle-group,id=tg0,x-iops-total=1000 -blockdev file,node-name=f0,filename=/tmp/lines/a.raw \
         -blockdev throttle,node-name=t0,throttle-group=tg0,file=f0 -device virtio-blk-pci,drive=t0",
    )
    .disks(1),
    line("drive-virtio", "-drive file=/tmp/lines/a.raw,format=raw,if=virtio,cache=none").disks(1),
    line(
        "drive-none",
        "-drive file=/tmp/lines/c.qcow2,format=qcow2,if=none,id=d0,werror=report -boot order=c \
         -device pcie-root-port,id=rp0,chassis=1 -device virtio-blk-pci,drive=d0,bus=rp0,serial=DRIVE",
    )
    .disks(1),
    line("blk-null", "-blockdev null-co,node-name=n0,size=16777216 -device virtio-blk-pci,drive=n0").disks(1),
    line(
        "net",
        "-netdev tap,id=n0,ifname=line0,script=no,downscript=no -device virtio-net-pci,netdev=n0,mac=52:54:00:00:00:0e",
    )
    .nics(1),
    line(
        "net-on-port",
        "-netdev tap,id=n0,ifname=line0,script=no,downscript=no -device pcie-root-port,id=rp0,chassis=3,slot=3 \
         -device virtio-net-pci,netdev=n0,bus=rp0,mac=52:54:00:00:00:0f,host_mtu=1400",
    )
    .nics(1),
    line("net-default-mac", "-netdev tap,id=n0,ifname=line0,script=no,downscript=no -device virtio-net-pci,netdev=n0")
        .nics(1),
    line("pci-serial", "-chardev null,id=c0 -device pci-serial,chardev=c0"),
    line(
        "pci-serial-socket",
        "-chardev socket,id=c0,path=/tmp/lines/serial,server=on,wait=off -device pcie-root-port,id=rp0,chassis=1 \
         -device pci-serial,chardev=c0,bus=rp0",
    ),
    line(
        "ivshmem",
        "-object memory-backend-file,id=m0,size=4M,share=on,mem-path=/tmp/lines/shm -device ivshmem-plain,memdev=m0",
    ),
    line(
        "numa",
        "-smp 4,sockets=2,cores=2,threads=1 -object memory-backend-ram,id=m0,size=128M \
         -object memory-backend-ram,id=m1,size=128M,host-nodes=0,policy=bind,prealloc=on,prealloc-threads=2 \
         -numa node,nodeid=0,cpus=0-1,memdev=m0 \
         -numa node,nodeid=1,cpus=2-3,memdev=m1 -numa dist,src=0,dst=1,val=21 -device virtio-rng-pci",
    )
    .nodes(2),
    line("vfio-nic", "-device vfio-pci,host=01:00.0,rombar=0").passes(&[NIC]).nics(1),
    line(
        "vfio-nic-on-port",
        "-device pcie-root-port,id=rp0,chassis=1 -device vfio-pci,host=0000:01:00.0,bus=rp0,id=nic0,rombar=0",
    )
    .passes(&[NIC])
    .nics(1),
    line("vfio-drive", "-device pcie-root-port,id=rp0,chassis=1 -device vfio-pci,host=02:00.0,bus=rp0,rombar=0")
        .passes(&[DRIVE])
        .disks(1),
    line(
        "vfio-and-virtio",
        "-device pcie-root-port,id=rp0,chassis=1,addr=6 -device vfio-pci,host=01:00.0,bus=rp0,rombar=0 \
         -blockdev file,node-name=f0,filename=/tmp/lines/a.raw -device virtio-blk-pci,drive=f0 -device virtio-rng-pci",
    )
    .passes(&[NIC])
    .disks(1)
    .nics(1),
    line(
        "router",
        "-name router -smp 2 -netdev tap,id=lan,ifname=line0,script=no,downscript=no \
         -device pcie-root-port,id=rp0,chassis=1 -device pcie-root-port,id=rp1,chassis=2 \
         -device vfio-pci,host=01:00.0,bus=rp0,rombar=0 -device virtio-net-pci,netdev=lan,bus=rp1,mac=52:54:00:00:00:18 \
         -qmp unix:/tmp/lines/qmp,server=on,wait=off -pidfile /tmp/lines/pid",
    )
    .passes(&[NIC])
    .nics(2),
    line(
        "appliance",
        "-smp cpus=2,sockets=1,cores=2,threads=1 -rtc base=utc -no-user-config \
         -blockdev file,node-name=f0,filename=/tmp/lines/a.raw,cache.direct=off \
         -device virtio-blk-pci,drive=f0,serial=root,write-cache=on -object rng-random,id=r0,filename=/dev/urandom \
         -device virtio-rng-pci,rng=r0 -netdev tap,id=n0,ifname=line0,script=no,downscript=no \
         -device virtio-net-pci,netdev=n0,mac=52:54:00:00:00:19 -monitor none -parallel none",
    )
    .disks(1)
    .nics(1),
];
