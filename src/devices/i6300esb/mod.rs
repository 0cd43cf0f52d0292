//! `i6300esb`: the watchdog of Intel's 6300ESB, which Linux and others have a driver for. A guest that does not write to it
//! in time is reset, or what else `--action watchdog=` says.
//!
//! The watchdog's lock is held while a deadline and the register that shows it change, so it comes before the core's; its
//! thread only waits.

mod timer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use crate::device::{Cx, Device, Plug, Tell, Word};
use crate::error::{Error, Result};
use crate::memory::{Backing, HostSlice, IoHandler, Piece};
use crate::object::{Create, TypeInfo, props};
use crate::pci::regs::{CLASS, COMMAND, COMMAND_MEMORY, DEVICE, SUBSYSTEM, SUBSYSTEM_VENDOR, VENDOR};
use crate::pci::{BarContent, BarKind, Changes, ConfigSpace, PciCore, PciFunction};
use crate::virtio::{Serve, Source, Worker};
use timer::{BAR_SIZE, CONFIG, CONFIG_MASK, LOCK, Outcome, Timer};

const IDS: (u16, u16) = (0x8086, 0x25ab);
const SUBSYSTEM_IDS: (u16, u16) = (0x1af4, 0x1100);
/// Base system peripheral, other: class 08, subclass 80.
const CLASS_SYSTEM: [u8; 3] = [0, 0x80, 8];

/// The row of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<WatchdogType>();

props! {
    /// Watchdog (Intel 6300ESB): a guest that hangs is reset, or what --action watchdog= says.
    struct WatchdogProps {}
}

struct WatchdogType;

impl Create<Plug, Cx> for WatchdogType {
    const NAME: &'static str = "i6300esb";
    const GROUP: &'static str = "Small devices";
    const BUS: Option<&'static str> = Some("PCI");
    type Props = WatchdogProps;

    fn create(WatchdogProps {}: WatchdogProps, cx: &Cx) -> Result<Plug> {
        Ok(Plug::function(Arc::new(Watchdog::new(cx.id.clone(), cx.tell.clone())?)))
    }
}

/// What registers and thread share.
struct Shared {
    id: Arc<str>,
    core: Arc<PciCore>,
    tell: Tell,
    state: Mutex<State>,
    /// Wakes the thread: the deadline has changed.
    wake: Arc<EventFd>,
}

#[derive(Default)]
struct State {
    timer: Timer,
    deadline: Option<Instant>,
}

impl Shared {
    /// Does something to the registers, and what comes of it.
    fn with(&self, act: impl FnOnce(&mut Timer) -> Outcome) {
        let mut state = self.state.lock();
        let outcome = act(&mut state.timer);
        let lock = state.timer.lock();
        self.core.with(|config| {
            if config.u8(LOCK) != lock {
                config.set_u8(LOCK, lock);
            }
        });
        match outcome {
            Outcome::Nothing => return,
            Outcome::Start(length) => state.deadline = Some(after(length)),
            Outcome::Stop | Outcome::Bark => state.deadline = None,
        }
        drop(state);
        // EAGAIN would mean that the counter is at its maximum: readable all the same.
        let _ = self.wake.write(1);
        if outcome == Outcome::Bark {
            (self.tell)(&self.id, Word::Watchdog);
        }
    }
}

fn after(length: Duration) -> Instant {
    Instant::now() + length
}

/// The thread's side.
struct Clock(Arc<Shared>);

impl Serve for Clock {
    fn ready(&mut self, _source: usize) {}

    fn deadline(&self) -> Option<Instant> {
        self.0.state.lock().deadline
    }

    fn expired(&mut self) {
        // The guest may have moved it since it was looked at.
        let over = |state: &State| state.deadline.is_some_and(|deadline| deadline <= Instant::now());
        if over(&self.0.state.lock()) {
            self.0.with(Timer::expired);
        }
    }
}

/// The BAR.
struct Registers(Arc<Shared>);

impl IoHandler for Registers {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.state.lock().timer.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.with(|timer| timer.write(offset, data));
    }
}

/// The function.
struct Watchdog {
    id: Arc<str>,
    shared: Arc<Shared>,
    /// Until it is unplugged.
    thread: Mutex<Option<Worker>>,
}

impl Watchdog {
    fn new(id: Arc<str>, tell: Tell) -> Result<Watchdog> {
        let mut config = ConfigSpace::new();
        config.set_u16(VENDOR, IDS.0);
        config.set_u16(DEVICE, IDS.1);
        config.set(CLASS, &CLASS_SYSTEM);
        config.set_u16(SUBSYSTEM_VENDOR, SUBSYSTEM_IDS.0);
        config.set_u16(SUBSYSTEM, SUBSYSTEM_IDS.1);
        config.allow(COMMAND, &COMMAND_MEMORY.to_le_bytes());
        config.allow(CONFIG, &CONFIG_MASK.to_le_bytes());
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| Error::system("make an eventfd", &error.into()))?;
        let wake = Arc::new(wake);
        let core = Arc::new(PciCore::new(id.clone(), config, None, None));
        let shared = Arc::new(Shared { id: id.clone(), core, tell, state: Mutex::default(), wake: wake.clone() });
        let thread = Worker::start(&id, vec![Source::Event(wake)], Clock(shared.clone()))?;
        Ok(Watchdog { id, shared, thread: Mutex::new(Some(thread)) })
    }
}

impl Device for Watchdog {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&self) {
        self.shared.core.reset();
        self.shared.with(|timer| {
            timer.reset();
            Outcome::Stop
        });
    }

    /// While the guest stood still, its watchdog did not: it has its whole time again.
    fn resumed(&self) {
        self.shared.with(Timer::restart);
    }

    fn unplug(&self) {
        let thread = self.thread.lock().take();
        drop(thread);
    }
}

impl PciFunction for Watchdog {
    fn core(&self) -> &PciCore {
        &self.shared.core
    }

    fn bar(&self, index: usize) -> Option<BarContent> {
        (index == 0).then(|| BarContent {
            name: format!("{} BAR0", self.id).into(),
            size: BAR_SIZE,
            kind: BarKind::Mem32,
            prefetchable: false,
            pieces: vec![Piece { range: 0..BAR_SIZE, backing: Backing::io(Arc::new(Registers(self.shared.clone()))) }],
        })
    }

    fn config_write(&self, off: u16, data: &[u8]) -> Changes {
        let what = self.core().write(off, data);
        // Accesses stay inside a dword, and these two are in dwords of their own.
        match off {
            CONFIG..0x62 => {
                let value = self.core().with(|config| config.u16(CONFIG));
                self.shared.with(|timer| {
                    timer.set_config(value);
                    Outcome::Nothing
                });
            }
            LOCK => {
                if let Some(value) = data.first() {
                    self.shared.with(|timer| timer.set_lock(*value));
                }
            }
            _ => {}
        }
        what
    }

    fn show_page(&self, page: &HostSlice) -> bool {
        self.core().with(|config| config.mirror(Some(page.clone())));
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::pci::testing::Bench;

    #[test]
    fn a_guest_that_is_silent_is_told_of() {
        let (sender, words) = channel();
        let sender = Mutex::new(sender);
        let tell: Tell = Arc::new(move |id, word| drop(sender.lock().send((id.clone(), word))));
        let watchdog = Arc::new(Watchdog::new("wd0".into(), tell).unwrap());
        let bench = Bench::new();
        bench.plug(watchdog.clone(), "3");
        assert_eq!(bench.read32(0, "3", 0), 0x25ab_8086);
        bench.write(0, "3", 0x10, 0xe000_0000, 4);
        bench.write(0, "3", COMMAND, COMMAND_MEMORY.into(), 2);
        let put = |offset: u64, value: u32| {
            let write = |at: u64, data: &[u8]| bench.memory.write(crate::memory::Space::Mmio, 0xe000_0000 + at, data);
            write(0xc, &[0x80]);
            write(0xc, &[0x86]);
            write(offset, &value.to_le_bytes());
        };
        put(0, 1);
        put(4, 1);
        bench.write(0, "3", CONFIG, 4, 2);
        bench.write(0, "3", LOCK, 2, 1);
        assert_eq!(words.recv().unwrap(), ("wd0".into(), Word::Watchdog));
        assert_eq!(bench.read32(0, "3", LOCK) & 0xff, 0, "off after the bark");
        watchdog.unplug();
    }
}
