//! `pvpanic-pci`: by one register a guest says that it has crashed (QEMU's "PVPANIC device" specification).

use std::sync::Arc;

use crate::device::{Cx, Device, GuestEvent, Plug, Tell, Word};
use crate::error::Result;
use crate::memory::{Backing, HostSlice, IoHandler, Piece};
use crate::object::{Create, Int, TypeInfo, props};
use crate::pci::regs::{CLASS, COMMAND, COMMAND_MEMORY, DEVICE, REVISION, SUBSYSTEM, SUBSYSTEM_VENDOR, VENDOR};
use crate::pci::{BarContent, BarKind, ConfigSpace, PciCore, PciFunction};

const IDS: (u16, u16) = (0x1b36, 0x0011);
const SUBSYSTEM_IDS: (u16, u16) = (0x1af4, 0x1100);
const REVISION_1: u8 = 1;
/// Base system peripheral, other: class 08, subclass 80.
const CLASS_SYSTEM: [u8; 3] = [0, 0x80, 8];
/// The least size of a BAR of memory; the register is its first byte.
const BAR_SIZE: u64 = 16;

/// The bits of the register, and what each means.
const EVENTS: [(u8, GuestEvent); 3] =
    [(1 << 0, GuestEvent::Panicked), (1 << 1, GuestEvent::CrashLoaded), (1 << 2, GuestEvent::Shutdown)];

/// The row of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<PvpanicType>();

props! {
    /// Tells the host that the guest has crashed.
    struct PvpanicProps {
        /// Which events the guest is offered: 1 it has panicked, 2 it runs its crash kernel, 4 it shuts down; their sum
        events: Int<0, 7> = "7",
    }
}

struct PvpanicType;

impl Create<Plug, Cx> for PvpanicType {
    const NAME: &'static str = "pvpanic-pci";
    const GROUP: &'static str = "Small devices";
    const BUS: Option<&'static str> = Some("PCI");
    type Props = PvpanicProps;

    fn create(props: PvpanicProps, cx: &Cx) -> Result<Plug> {
        let register = Register { id: cx.id.clone(), offered: props.events.get() as u8, tell: cx.tell.clone() };
        Ok(Plug::function(Arc::new(Pvpanic::new(cx.id.clone(), register))))
    }
}

/// The register: reads say which events are offered.
struct Register {
    id: Arc<str>,
    offered: u8,
    tell: Tell,
}

impl IoHandler for Register {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(first)) = (offset, data.first_mut()) {
            *first = self.offered;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let written = data.first().filter(|_| offset == 0).map_or(0, |byte| byte & self.offered);
        // One at a time: a guest that has panicked does nothing more.
        if let Some((_, event)) = EVENTS.into_iter().find(|(bit, _)| written & bit != 0) {
            (self.tell)(&self.id, Word::Guest(event));
        }
    }
}

/// The function.
struct Pvpanic {
    id: Arc<str>,
    core: PciCore,
    register: Arc<Register>,
}

impl Pvpanic {
    fn new(id: Arc<str>, register: Register) -> Pvpanic {
        let mut config = ConfigSpace::new();
        config.set_u16(VENDOR, IDS.0);
        config.set_u16(DEVICE, IDS.1);
        config.set_u8(REVISION, REVISION_1);
        config.set(CLASS, &CLASS_SYSTEM);
        config.set_u16(SUBSYSTEM_VENDOR, SUBSYSTEM_IDS.0);
        config.set_u16(SUBSYSTEM, SUBSYSTEM_IDS.1);
        config.allow(COMMAND, &COMMAND_MEMORY.to_le_bytes());
        Pvpanic { core: PciCore::new(id.clone(), config, None, None), id, register: Arc::new(register) }
    }
}

impl Device for Pvpanic {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&self) {
        self.core.reset();
    }
}

impl PciFunction for Pvpanic {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn bar(&self, index: usize) -> Option<BarContent> {
        (index == 0).then(|| BarContent {
            name: format!("{} BAR0", self.id).into(),
            size: BAR_SIZE,
            kind: BarKind::Mem32,
            prefetchable: false,
            pieces: vec![Piece { range: 0..BAR_SIZE, backing: Backing::io(self.register.clone()) }],
        })
    }

    fn show_page(&self, page: &HostSlice) -> bool {
        self.core.with(|config| config.mirror(Some(page.clone())));
        true
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn only_what_is_offered_is_told() {
        let told: Arc<Mutex<Vec<Word>>> = Arc::default();
        let words = told.clone();
        let tell: Tell = Arc::new(move |_, word| words.lock().push(word));
        let register = Register { id: "p0".into(), offered: 5, tell };
        let mut data = [0xff; 2];
        register.read(0, &mut data);
        assert_eq!(data, [5, 0]);
        for (offset, value) in [(0, 2), (0, 0), (1, 1), (0, 1), (0, 4), (0, 8)] {
            register.write(offset, &[value]);
        }
        register.write(0, &[]);
        assert_eq!(*told.lock(), [Word::Guest(GuestEvent::Panicked), Word::Guest(GuestEvent::Shutdown)]);
    }
}
