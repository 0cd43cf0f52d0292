//! An e1000e behind its registers, and a driver that writes into them and into its rings what it likes.
#![no_main]

use std::sync::Arc;

use fuzz::input::Input;
use fuzz::machine::Machine;
use fuzz::wire::Wire;
use libfuzzer_sys::fuzz_target;
use passthru::backends::Backends;
use passthru::memory::Space;

const REGISTERS: u64 = 0xe000_0000;
const MSIX: u32 = 0xe010_0000;
/// The rings: their registers, and where they are. Tails are at 0x18.
const RINGS: [(u64, u32); 3] = [(0x3800, 0x1000), (0x2800, 0x2000), (0x3900, 0x3000)];
const ENTRIES: u32 = 16;
const MAX_STEPS: usize = 64;

struct Guest {
    machine: Machine,
}

impl Guest {
    fn new() -> Option<Guest> {
        let backends = Backends::default();
        backends.netdevs.add("n0".into(), "wire", Arc::new(Wire::new()?), false).ok()?;
        let machine = Machine::new("e1000e,netdev=n0", backends)?;
        for (off, value) in [(0x10, REGISTERS as u32), (0x1c, MSIX), (0x04, 6)] {
            machine.config(off, value);
        }
        Some(Guest { machine })
    }

    fn register(&self, offset: u64, value: u32) {
        self.machine.memory.write(Space::Mmio, REGISTERS + offset, &value.to_le_bytes());
    }

    /// A driver's way to packets both ways, with extended descriptors.
    fn start(&self) {
        for (at, base) in RINGS {
            self.register(at, base);
            self.register(at + 8, ENTRIES * 16);
        }
        self.register(0x5008, 1 << 15);
        self.register(0x0400, 1 << 1 | 1 << 3);
        self.register(0x0100, 1 << 1 | 1 << 3 | 1 << 4);
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
        let (kind, at, value) = (input.u8(), input.u16(), input.u32());
        match kind % 8 {
            0 => guest.register(u64::from(at & !3), value),
            1 => guest.machine.memory.read(Space::Mmio, REGISTERS + u64::from(at), &mut [0; 4]),
            2 | 3 => guest.machine.memory.write(Space::Mmio, u64::from(at), &value.to_le_bytes()),
            4 | 5 => guest.register(RINGS[usize::from(at % 3)].0 + 0x18, value % (ENTRIES + 1)),
            6 => guest.start(),
            _ if at & 0x8000 == 0 => guest.machine.config(at & 0xff, value),
            _ => guest.machine.reset(),
        }
    }
    guest.machine.end();
});
