//! The corpora that the targets start from, made by code: each shows the fuzzer one thing that real devices or users do.

use std::sync::Arc;

use passthru::backends::block::io::{read_into, write_from};
use passthru::backends::block::qcow2::Qcow2;
use passthru::backends::block::qcow2::create::{New, create};
use passthru::backends::block::{BlockNode, Child};

use crate::disk::Disk;

/// A fuzz target.
pub struct Target {
    /// The name of its program.
    pub name: &'static str,
    /// Its seeds.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub static TARGETS: &[Target] = &[
    Target { name: "arguments", seeds: arguments },
    Target { name: "capabilities", seeds: capabilities },
    Target { name: "config_space", seeds: config_space },
    Target { name: "e1000e", seeds: e1000e },
    Target { name: "msix_table", seeds: msix_table },
    Target { name: "nvme", seeds: nvme },
    Target { name: "qcow2", seeds: qcow2 },
    Target { name: "qmp", seeds: qmp },
    Target { name: "rom", seeds: rom },
    Target { name: "vhost_user", seeds: vhost_user },
    Target { name: "virtio", seeds: virtio },
];

/// One line of each option, as users write them: the first letter says which.
const LINES: &[&str] = &[
    "dvfio-pci,host=01:00.0,id=nic,bus=rp1,addr=0x1.0,p2p=off",
    "dvfio-pci,sysfsdev=/sys/bus/pci/devices/0000:01:00.0,rombar=0,x-no-mmap=on",
    "dpcie-root-port,id=rp1,slot=3,bus=pcie.0,addr=4",
    "d{\"driver\":\"vfio-pci\",\"host\":\"0000:01:00.0\",\"id\":\"a,b\"}",
    "dvfio-pci,id=a,,b,host=1:2.3",
    "Mq35,cf8=on,config-pages=off",
    "m2G,hugepages=2M,share=on",
    "m256",
    "s4,sockets=1,cores=2,threads=2",
    "chost,+avx2,-svm",
    "-file:/tmp/x",
    "-stdio",
    "kls -l\r\u{1}ha\u{1}cinfo status\r\u{1}\u{1}b\u{1}bm\u{1}t\u{1}zq\u{1}xy",
];

fn arguments() -> Vec<Vec<u8>> {
    LINES.iter().map(|line| line.as_bytes().to_vec()).collect()
}

/// An endpoint with power management, MSI, MSI-X and PCI Express, and two extended capabilities.
fn endpoint() -> Vec<u8> {
    let mut space = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x00, &[0x86, 0x80, 0xd3, 0x10, 0, 0, 0x10, 0, 0, 0, 0, 2]);
    // BAR 0: 64-bit; BAR 2: ports; BAR 3: 32-bit, prefetchable.
    put(0x10, &[4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0]);
    put(0x34, &[0x40]);
    put(0x3d, &[1]);
    put(0x40, &[0x01, 0x50, 0x03, 0, 0, 0, 0, 0]);
    put(0x50, &[0x05, 0x60, 0x86, 0x01]);
    put(0x60, &[0x11, 0x70, 0x04, 0, 0, 0x20, 0, 0, 0, 0x30, 0, 0]);
    put(0x70, &[0x10, 0, 0x02, 0, 0, 0, 0, 0x10]);
    put(0x100, &[0x01, 0, 0x02, 0x14]);
    put(0x140, &[0x15, 0, 0x01, 0x20]);
    put(0x200, &[0x10, 0, 0x01, 0]);
    space
}

/// A ring of what goes, with a packet that is cut into segments, and one of what comes; then a driver's steps.
fn e1000e() -> Vec<Vec<u8>> {
    let dwords = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let mut input = vec![3];
    let mut memory = |at: u16, bytes: &[u8]| {
        input.extend(at.to_le_bytes());
        input.push(bytes.len() as u8);
        input.extend_from_slice(bytes);
    };
    memory(0x1000, &dwords(&[33 << 16 | 24 << 8 | 14, 50 << 8 | 34, 0x27 << 24 | 900, 300 << 16 | 54 << 8]));
    memory(0x1010, &dwords(&[0x8000, 0, 954 | 1 << 20 | 0x2d << 24, 3 << 8]));
    memory(0x2000, &dwords(&[0x4000, 0, 0, 0, 0x5000, 0, 0, 0]));
    // Kind, offset or address, value: the rings' tails, a tag, the causes, masks and vectors, what was written back.
    for (kind, at, value) in
        [(4, 0, 2u32), (4, 1, 4), (0, 0x38, 0x8100), (0, 0xe4, 0x800a_0908), (0, 0xd0, !0), (1, 0xc0, 0)]
    {
        input.push(kind);
        input.extend(u16::to_le_bytes(at));
        input.extend(value.to_le_bytes());
    }
    vec![input]
}

fn capabilities() -> Vec<Vec<u8>> {
    let accesses = [0x04, 0, 2, 0x42, 0, 1, 0x50, 0, 2, 0x00, 1, 2].repeat(2);
    let with = |flags: u8, space: &[u8]| [&[flags], &accesses[..], space].concat();
    let mut looping = endpoint();
    looping[0x71] = 0x40;
    let mut extended_loop = endpoint();
    extended_loop[0x202..0x204].copy_from_slice(&[0x01, 0x10]);
    vec![
        with(0xf, &endpoint()),
        with(0x7, &endpoint()[..256]),
        with(0xf, &looping),
        with(0xb, &extended_loop),
        with(0, &[0xff; 256]),
    ]
}

/// Flags, sizes of the BARs and the ROM as powers of two, which can be mapped, vectors.
fn description(flags: u8, sizes: [u8; 7], mappable: u8, vectors: u16) -> Vec<u8> {
    [&[flags][..], &sizes, &[mappable], &vectors.to_le_bytes()].concat()
}

/// A guest's step: what, where, the value, its length.
fn step(kind: u8, at: u32, value: u32, more: u8) -> Vec<u8> {
    [&[kind][..], &at.to_le_bytes(), &value.to_le_bytes(), &[more]].concat()
}

fn config_space() -> Vec<Vec<u8>> {
    let device = || description(1, [16, 0, 5, 14, 0, 0, 16], 0b1001, 5);
    // A driver's first steps: size BAR 0, place the BARs, decode, MSI-X on, a table entry, a reset by the register.
    let steps = [
        step(0, 0x10, 0xffff_ffff, 2),
        step(2, 0x10, 0, 2),
        step(0, 0x10, 0xc000_0000, 2),
        step(0, 0x14, 0, 2),
        step(0, 0x18, 0x1000, 2),
        step(0, 0x1c, 0xc100_0000, 2),
        step(0, 0x30, 0xc200_0001, 2),
        step(0, 0x04, 0x0007, 1),
        step(0, 0x62, 0x8000, 1),
        step(4, 0xc000_2000, 0xfee0_0000, 2),
        step(5, 0xc000_3000, 0, 2),
        step(0, 0x52, 0x0001, 1),
        step(0, 0x44, 0x0003, 1),
        step(0, 0x44, 0x0000, 1),
        step(0, 0x78, 0x8000, 1),
        step(7, 0, 0, 0),
    ];
    let count = [steps.len() as u8];
    let steps = steps.concat();
    let with = |description: Vec<u8>, space: &[u8]| [&description[..], &count, &steps, space].concat();
    vec![
        with(device(), &endpoint()),
        with(description(0, [12, 8, 4, 0, 20, 0, 0], 0xff, 1), &endpoint()[..256]),
        with(description(0x7f, [30, 0, 30, 0, 30, 0, 20], 0xff, 8), &endpoint()),
    ]
}

fn msix_table() -> Vec<Vec<u8>> {
    // Table and pending bits: in a page of their own, in one page, over the border of a page, at the end of the BAR.
    let places = [(0x2000u32, 0x3000u32), (0x2000, 0x2800), (0x1ff8, 0x0008), (0x3ff0, 0x4000), (3, 4)];
    let accesses = [
        step(0, 0x2000, 0xfee0_0000, 0x02)[..].to_vec(),
        step(0, 0x0c, 0, 0xc2),
        step(0, 0x3000, 0, 0x43),
        step(0, 0, 0, 0x80),
    ]
    .concat();
    places
        .iter()
        .map(|(table, pending)| {
            let spec = [&4u16.to_le_bytes()[..], &table.to_le_bytes(), &pending.to_le_bytes()].concat();
            [description(0, [14, 14, 0, 12, 16, 0, 0], 0xff, 8), spec, accesses.clone()].concat()
        })
        .collect()
}

/// An image of `blocks` times 512 bytes with its data structure at 1Ch (PCI Firmware 5.1.2).
fn image(code: u8, blocks: u8, last: bool) -> Vec<u8> {
    let mut image = vec![0; usize::from(blocks) * 512];
    image[..3].copy_from_slice(&[0x55, 0xaa, blocks]);
    image[0x18..0x1a].copy_from_slice(&[0x1c, 0]);
    image[0x1c..0x20].copy_from_slice(b"PCIR");
    image[0x20..0x24].copy_from_slice(&[0x86, 0x80, 0xd3, 0x10]);
    image[0x26..0x2c].copy_from_slice(&[0x1c, 0, 3, 0, 0, 2]);
    image[0x2c] = blocks;
    image[0x30] = code;
    image[0x31] = if last { 0x80 } else { 0 };
    if code == 3 {
        // EFI signature, subsystem, machine, compression.
        image[0x04..0x0e].copy_from_slice(&[0xf1, 0x0e, 0, 0, 11, 0, 0x64, 0x86, 1, 0]);
    }
    let sum = image.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    let end = image.len() - 1;
    image[end] = 0u8.wrapping_sub(sum);
    image
}

/// The length of the pieces that arrive, less one, then what a client sends.
const REQUESTS: &[&[u8]] = &[
    b"\x0f{\"execute\":\"qmp_capabilities\"}{\"execute\":\"query-status\",\"id\":[1]}\n",
    b"\x02{\"execute\":\"device_add\",\"arguments\":{\"driver\":\"vfio-pci\",\"id\":\"x\"}}\nnonsense\n{}",
    b"\x7f{\"execute\":\"device_del\",\"arguments\":[]} 7 \"x\" {\"exec\":1}\r\n",
];

fn qmp() -> Vec<Vec<u8>> {
    REQUESTS.iter().map(|request| request.to_vec()).collect()
}

fn rom() -> Vec<Vec<u8>> {
    let both = [image(0, 2, false), image(3, 1, true)].concat();
    vec![
        image(0, 1, true),
        both.clone(),
        [b"NVGI".to_vec(), vec![0; 0x1fc], both.clone()].concat(),
        both[..both.len() - 100].to_vec(),
        vec![0xff; 64],
        [image(0, 1, false), vec![0; 512]].concat(),
    ]
}

/// Images as passthru makes them, with and without data.
fn qcow2() -> Vec<Vec<u8>> {
    [(512, 0), (512, 40), (4096, 40), (65536, 2)]
        .into_iter()
        .map(|(cluster_size, writes)| {
            let file: Arc<dyn BlockNode> = Arc::new(Disk::new(&[]));
            let made = create(file.clone(), &New { cluster_size, ..New::of(4 << 20) });
            let image = made.ok().and_then(|()| Qcow2::open(Child::own(file.clone(), "file"), None, false, true).ok());
            // A seed that could not be made is an empty one.
            for at in 0..writes {
                let _ = image.as_ref().map(|image| write_from(image, at * 90_000, &mut [7; 3000]));
            }
            let _ = image.as_ref().map(|image| image.write_zeroes(200_000..260_000, true));
            drop(image);
            let mut bytes = vec![0; file.info().len as usize];
            let _ = read_into(&*file, 0, &mut bytes);
            bytes
        })
        .collect()
}

/// A read by a list of pages, and a driver that reads the registers, starts again and resets.
fn nvme() -> Vec<Vec<u8>> {
    let mut read = vec![1, 0x00, 0x30, 52];
    let mut command = [0; 52];
    (command[0], command[4], command[25], command[33]) = (2, 1, 0x80, 0x90);
    command[48] = 40;
    read.extend(command);
    read.extend([4, 2, 0, 1, 0, 0, 0, 0, 4, 3, 0, 1, 0, 0, 0, 0]);
    let steps = [1, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 1];
    vec![read, [&[0], &steps[..]].concat()]
}

/// Each device with a request in its first rings, and a driver that does a few of the things that drivers do.
fn virtio() -> Vec<Vec<u8>> {
    // A descriptor: address, length, flags, next.
    let descriptor = |addr: u64, len: u32, flags: u16, next: u16| {
        [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
    };
    let part = |at: u16, bytes: &[u8]| [&at.to_le_bytes()[..], &[bytes.len() as u8], bytes].concat();
    let table = [descriptor(0x8000, 16, 1, 1), descriptor(0x9000, 512, 3, 2), descriptor(0xa000, 1, 2, 0)].concat();
    // Two tables, what is available of them, and the header of a read.
    let parts = [
        part(0x1000, &table),
        part(0x2000, &table),
        part(0x1402, &[1, 0, 0, 0]),
        part(0x2402, &[1, 0, 0, 0]),
        part(0x8000, &[0; 16]),
    ];
    let action = |kind: u8, at: u16, value: u32, more: u8| {
        [&[kind][..], &at.to_le_bytes(), &value.to_le_bytes(), &[more]].concat()
    };
    // Kicks, the status, another header, the command register, a reset by the register and one of the function.
    let actions = [
        action(4, 0, 0, 0),
        action(2, 0x14, 0, 0),
        action(3, 0x8000, 1, 2),
        action(3, 0x1402, 2, 1),
        action(4, 1, 0, 0),
        action(5, 4, 2, 2),
        action(5, 4, 6, 2),
        action(1, 0x14, 0, 0),
        action(6, 0, 0, 0),
        action(7, 0, 0, 0),
    ]
    .concat();
    let seed = |device: u8| [&[device][..], &[0xff; 6], &[parts.len() as u8], &parts.concat(), &actions].concat();
    [0, 1, 2, 7, 8].into_iter().map(seed).collect()
}

/// The device, how many of the daemon's decisions follow, all of which are to answer as it should, and a driver's steps.
fn vhost_user() -> Vec<Vec<u8>> {
    let steps = [[0, 0, 0, 0], [1, 0x14, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0], [0, 1, 0, 0]].concat();
    let seed = |device: u8, answers: &[u8]| [&[device, answers.len() as u8], answers, &steps].concat();
    (0..3)
        .flat_map(|device| {
            [seed(device, &[]), seed(device, &[0, 0, 0, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8, 6, 4, 1, 2, 3, 4])]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DESCRIPTION;

    #[test]
    fn every_target_has_seeds() {
        assert!(TARGETS.windows(2).all(|w| w[0].name < w[1].name));
        for target in TARGETS {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty() && seeds.iter().all(|seed| !seed.is_empty()), "{}", target.name);
        }
        assert_eq!(description(0, [0; 7], 0, 0).len(), DESCRIPTION);
        assert_eq!(step(0, 0, 0, 0).len(), crate::guest::STEP);
    }
}
