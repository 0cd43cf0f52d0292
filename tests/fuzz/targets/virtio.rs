//! A virtio device behind its registers, and a driver that writes into them and into its rings what it likes.
#![no_main]

use std::sync::Arc;

use fuzz::disk::Disk;
use fuzz::driver::{COMMON, Guest, PORTS, QUEUES};
use fuzz::input::Input;
use fuzz::wire::Wire;
use libfuzzer_sys::fuzz_target;
use passthru::backends::Backends;
use passthru::backends::block::null::{Null, Props};
use passthru::backends::chardev;
use passthru::memory::host::PageSize;
use passthru::memory::{HostMem, Space};
use passthru::object::Size;

/// Every virtio device, on back ends that hold little or nothing, some with the legacy interface, too; the last serves
/// several requests at a time.
const LINES: [&str; 9] = [
    "virtio-blk-pci,drive=d0,num-queues=2,queue-size=8,serial=x",
    "virtio-net-pci,netdev=n0,rx_queue_size=64",
    "virtio-rng-pci,filename=/dev/zero,disable-legacy=off",
    "virtio-scsi-pci,virtqueue_size=8",
    "virtio-balloon-pci,free-page-reporting=on,disable-legacy=off",
    "virtio-serial-pci,max_ports=2",
    "virtio-mem-pci,memdev=m0,requested-size=8M",
    "virtio-pmem-pci,memdev=m1",
    "virtio-blk-pci,drive=d1,queue-size=8,write-cache=off",
];
const MAX_STEPS: usize = 64;

fn backends() -> Option<Arc<Backends>> {
    let backends = Backends::default();
    let null = Null::new(Props { size: Size(1 << 20), read_zeroes: true, read_only: false });
    backends.nodes.add("d0".into(), "null-co", Arc::new(null), false).ok()?;
    backends.nodes.add("d1".into(), "memory", Arc::new(Disk::new(&[0x5a; 64 << 10])), false).ok()?;
    let nowhere = Arc::new(chardev::null::Null);
    backends.chardevs.add("c0".into(), "null", nowhere, false).ok()?;
    let blocks = Arc::new(HostMem::anonymous(16 << 20, PageSize::Small).ok()?);
    let kept = Arc::new(HostMem::memfd("kept", 1 << 20, PageSize::Small).ok()?);
    backends.memories.add("m1".into(), "memory-backend-file", kept, false).ok()?;
    backends.memories.add("m0".into(), "memory-backend-ram", blocks, false).ok()?;
    backends.netdevs.add("n0".into(), "wire", Arc::new(Wire::new()?), false).ok()?;
    Some(Arc::new(backends))
}

// The device, the features that are wanted, what is in memory, then a driver's steps.
fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let line = LINES[usize::from(input.u8()) % LINES.len()];
    let guest = backends().and_then(|backends| Guest::new(line, backends));
    let Some(guest) = guest else { panic!("{line} cannot be made") };
    let wanted = u64::from(input.u32()) << 16 | u64::from(input.u16());
    for _ in 0..input.u8() % 16 {
        let (at, len) = (u64::from(input.u16()), usize::from(input.u8() % 64));
        guest.memory.write(Space::Mmio, at, input.take(len));
    }
    // Workers look at every queue when they start, and end with the reset at the end.
    guest.start(wanted);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let (kind, at, value, more) = (input.u8(), input.u16(), input.u32(), input.u8());
        let len = [1, 2, 4, 8][usize::from(more & 3)];
        let value = u64::from(value) << (more >> 4);
        match kind % 9 {
            0 | 1 => guest.write(COMMON + u64::from(at & 0x3fff), value, len),
            2 => guest.memory.read(Space::Mmio, COMMON + u64::from(at & 0x3fff), &mut value.to_le_bytes()[..len]),
            3 => guest.write(u64::from(at), value, len),
            4 => guest.write(COMMON + 0x3000 + 4 * (u64::from(at) % QUEUES), 0, 2),
            5 => guest.config(at & 0xff, value as u32, 4),
            6 => guest.start(wanted ^ value),
            7 => guest.memory.write(
                Space::Pio,
                u64::from(PORTS) + u64::from(at & 0x3f),
                &value.to_le_bytes()[..len.min(4)],
            ),
            _ => guest.device().reset(),
        }
    }
    guest.end();
});
