//! An NVMe controller behind its registers, and a driver that writes into them, its queues and its lists what it likes.
#![no_main]

use std::sync::Arc;

use fuzz::disk::Disk;
use fuzz::input::Input;
use fuzz::machine::Machine;
use libfuzzer_sys::fuzz_target;
use passthru::backends::Backends;
use passthru::memory::Space;

const REGISTERS: u64 = 0xe000_0000;
const MSIX: u32 = 0xe010_0000;
/// Queues: of submissions and completions, the admin's and another pair.
const QUEUES: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];
const ENTRIES: u32 = 8;
const MAX_STEPS: usize = 64;

struct Guest {
    machine: Machine,
}

impl Guest {
    fn new() -> Option<Guest> {
        let backends = Backends::default();
        backends.nodes.add("d0".into(), "memory", Arc::new(Disk::new(&[0x5a; 64 << 10])), false).ok()?;
        let machine = Machine::new("nvme,drive=d0,serial=x,max_ioqpairs=2", backends)?;
        for (off, value) in [(0x10, REGISTERS as u32), (0x14, 0), (0x20, MSIX), (0x04, 6)] {
            machine.config(off, value);
        }
        Some(Guest { machine })
    }

    fn register(&self, offset: u64, value: u64, len: usize) {
        self.machine.memory.write(Space::Mmio, REGISTERS + offset, &value.to_le_bytes()[..len]);
    }

    fn dword(&self, at: u64, value: u32) {
        self.machine.memory.write(Space::Mmio, at, &value.to_le_bytes());
    }

    /// A driver's way to a pair of queues besides the admin's.
    fn start(&self) {
        self.register(0x14, 0, 4);
        self.register(0x24, u64::from((ENTRIES - 1) << 16 | (ENTRIES - 1)), 4);
        self.register(0x28, QUEUES[0], 8);
        self.register(0x30, QUEUES[1], 8);
        self.register(0x14, 0x0046_0001, 4);
        for (index, opcode, base, dword11) in [(0, 5, QUEUES[3], 3), (1, 1, QUEUES[2], 1 << 16 | 1)] {
            let at = QUEUES[0] + 64 * index;
            self.dword(at, opcode);
            self.dword(at + 24, base as u32);
            self.dword(at + 40, (ENTRIES - 1) << 16 | 1);
            self.dword(at + 44, dword11);
        }
        self.register(0x1000, 2, 4);
    }
}

// What is in memory, then a driver's steps.
fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let Some(guest) = Guest::new() else { panic!("it cannot be made") };
    guest.start();
    for _ in 0..input.u8() % 32 {
        let (at, len) = (u64::from(input.u16()), usize::from(input.u8() % 64));
        guest.machine.memory.write(Space::Mmio, at, input.take(len));
    }
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let (kind, at, value, more) = (input.u8(), input.u16(), input.u32(), input.u8());
        match kind % 8 {
            0 => guest.register(u64::from(at & 0x1fff), value.into(), [4, 8][usize::from(more & 1)]),
            1 => guest.machine.memory.read(Space::Mmio, REGISTERS + u64::from(at & 0x1fff), &mut [0; 4]),
            2 | 3 => guest.dword(u64::from(at), value),
            4 | 5 => guest.register(0x1000 + 4 * u64::from(at % 6), u64::from(value % (ENTRIES + 1)), 4),
            6 => guest.start(),
            _ if more & 1 == 0 => guest.machine.config(at & 0xff, value),
            _ => guest.machine.reset(),
        }
    }
    guest.machine.end();
});
