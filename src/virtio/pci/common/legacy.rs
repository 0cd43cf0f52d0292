//! The registers from before virtio 1.0 (virtio 4.1.4.10, "legacy interface"): a file of ports, with another view of the
//! state that the modern registers have.
//!
//! There are 32 feature bits and no agreement on them, a queue has the size that the device says, and its three parts lie
//! behind each other in one area, whose page number the driver writes.

use super::{Action, Common, QueueRegisters, Status};
use crate::virtio::pci::fields::Field;
use crate::virtio::queue::Rings;

/// Bytes before the device's own configuration space while MSI-X is on, and while it is off.
const LEN_MSIX: u64 = 24;
const LEN: u64 = 20;
/// Registers that are there without MSI-X, too.
const ALWAYS: usize = 8;
/// Alignment of a queue's area and of the used ring in it; the unit of the queue's address.
const ALIGN: u64 = 4096;
/// The features that this interface has room for.
const FEATURES: u64 = 0xffff_ffff;
/// The device makes nothing of how a request is cut into buffers (VIRTIO_F_ANY_LAYOUT). Nobody asks whether the driver knows.
pub const ANY_LAYOUT: u64 = 1 << 27;

/// The registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    Offered,
    Agreed,
    QueueAddress,
    QueueNotify,
    Status,
    Isr,
    /// One that the modern interface has, too.
    Shared(super::Register),
}

const TABLE: [Field<Register>; 10] = [
    Field::new(0x00, 4, Register::Offered),
    Field::new(0x04, 4, Register::Agreed),
    Field::new(0x08, 4, Register::QueueAddress),
    Field::new(0x0c, 2, Register::Shared(super::Register::QueueSize)),
    Field::new(0x0e, 2, Register::Shared(super::Register::QueueSelect)),
    Field::new(0x10, 2, Register::QueueNotify),
    Field::new(0x12, 1, Register::Status),
    Field::new(0x13, 1, Register::Isr),
    Field::new(0x14, 2, Register::Shared(super::Register::ConfigVector)),
    Field::new(0x16, 2, Register::Shared(super::Register::QueueVector)),
];

/// The registers as they are while MSI-X is on or off.
pub fn table(msix: bool) -> &'static [Field<Register>] {
    if msix { &TABLE } else { &TABLE[..ALWAYS] }
}

/// Where the device's own configuration space begins.
pub fn config_start(msix: bool) -> u64 {
    if msix { LEN_MSIX } else { LEN }
}

/// Size of the BAR for a device with so many bytes of configuration space.
pub fn bar_size(config_len: u32) -> u64 {
    (LEN_MSIX + u64::from(config_len)).next_power_of_two()
}

/// Where the parts of a queue are, of which the driver says the page (virtio 2.7.2, legacy). An address that does not
/// exist is refused when the queue is used.
fn rings(page: u32, size: u16) -> Rings {
    let descriptors = u64::from(page) * ALIGN;
    let available = descriptors + 16 * u64::from(size);
    // Flags, index and event beside the entries.
    let used = (available + 2 * (3 + u64::from(size))).next_multiple_of(ALIGN);
    Rings { size, descriptors, available, used }
}

impl Common {
    /// The value of a register of this interface. Those that are kept elsewhere, interrupt status and doorbell, are 0.
    pub fn legacy_get(&self, register: Register) -> u64 {
        match register {
            Register::Offered => self.offered & FEATURES | ANY_LAYOUT,
            Register::Agreed => self.agreed & FEATURES,
            Register::QueueAddress => {
                self.selected().filter(|queue| queue.enabled).map_or(0, |queue| queue.rings.descriptors / ALIGN)
            }
            Register::Status => self.status.bits().into(),
            Register::Shared(register) => self.get(register, super::Live::default()),
            Register::QueueNotify | Register::Isr => 0,
        }
    }

    /// Writes a register of this interface, and says what is to be done.
    pub fn legacy_set(&mut self, register: Register, value: u64) -> Option<Action> {
        match register {
            // What was not offered is not agreed on: there is no other way to refuse it.
            Register::Agreed if !self.runs() => self.agreed = value & self.offered & FEATURES,
            Register::QueueAddress => return self.place(value as u32),
            Register::Status => return self.legacy_status(Status::from_bits_retain(value as u8)),
            // The size is the device's.
            Register::Shared(super::Register::QueueSize) => {}
            Register::Shared(register) => return self.set(register, value),
            Register::Agreed | Register::Offered | Register::QueueNotify | Register::Isr => {}
        }
        None
    }

    /// Drivers of old use a queue before they say that they are ready: the first kick says it, too.
    pub fn legacy_kick(&mut self, index: u16) -> Option<Action> {
        let enabled = self.queues.get(usize::from(index)).is_some_and(|queue| queue.enabled);
        let early = enabled && !self.started && !self.status.contains(Status::DRIVER_OK);
        self.started |= early;
        early.then_some(Action::Status)
    }

    /// Puts the selected queue at a page; page 0 takes it away, and with it a device that runs is reset, as in QEMU.
    fn place(&mut self, page: u32) -> Option<Action> {
        if page == 0 && self.runs() {
            self.reset();
            return Some(Action::Reset);
        }
        let size = self.max_size;
        if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) {
            let enabled = page != 0;
            let rings = if enabled { rings(page, size) } else { Rings { size, ..Rings::default() } };
            *queue = QueueRegisters { rings, enabled, ..*queue };
        }
        None
    }

    fn legacy_status(&mut self, written: Status) -> Option<Action> {
        if written.is_empty() {
            self.reset();
            return Some(Action::Reset);
        }
        let before = self.runs();
        self.status |= written & (Status::ACKNOWLEDGE | Status::DRIVER | Status::DRIVER_OK | Status::FAILED);
        (before != self.runs()).then_some(Action::Status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::feature;
    use proptest::prelude::*;

    fn common() -> Common {
        Common::new(feature::VERSION_1 | feature::EVENT_IDX | 0b101, 2, 256, 3)
    }

    #[test]
    fn a_queue_is_one_area_with_the_used_ring_on_a_page_of_its_own() {
        let expected = Rings { size: 256, descriptors: 0x5000, available: 0x6000, used: 0x7000 };
        assert_eq!(rings(5, 256), expected);
        assert_eq!(rings(1, 8), Rings { size: 8, descriptors: 0x1000, available: 0x1080, used: 0x2000 });
        assert_eq!(rings(u32::MAX, 1024).descriptors, 0x0fff_ffff_f000);
    }

    #[test]
    fn features_are_those_of_the_lower_half_and_nobody_agrees() {
        let mut common = common();
        assert_eq!(common.legacy_get(Register::Offered), feature::EVENT_IDX | ANY_LAYOUT | 0b101);
        common.legacy_set(Register::Agreed, 0b111);
        assert_eq!(common.agreed(), 0b101);
        assert_eq!(common.legacy_set(Register::Status, 3), None);
        assert_eq!(common.legacy_set(Register::Status, 7), Some(Action::Status));
        assert!(common.runs());
        common.legacy_set(Register::Agreed, 0);
        assert_eq!(common.agreed(), 0b101, "it is late");
        assert_eq!(common.legacy_set(Register::Status, 0), Some(Action::Reset));
        assert_eq!((common.agreed(), common.runs()), (0, false));
    }

    #[test]
    fn a_queue_is_there_from_its_address_on() {
        let mut common = common();
        common.legacy_set(Register::Shared(super::super::Register::QueueSelect), 1);
        common.legacy_set(Register::Shared(super::super::Register::QueueSize), 8);
        assert_eq!(common.legacy_get(Register::Shared(super::super::Register::QueueSize)), 256);
        assert_eq!(common.legacy_set(Register::QueueAddress, 5), None);
        assert_eq!(common.legacy_get(Register::QueueAddress), 5);
        assert!(common.queues()[1].enabled && !common.queues()[0].enabled);
        assert_eq!(common.legacy_kick(0), None, "that queue is not there");
        assert_eq!(common.legacy_kick(1), Some(Action::Status));
        assert!(common.runs());
        assert_eq!(common.legacy_set(Register::QueueAddress, 0), Some(Action::Reset));
        assert!(!common.runs() && !common.queues()[1].enabled);
    }

    #[test]
    fn vectors_are_there_with_msix_only() {
        assert_eq!((table(true).len(), table(false).len()), (10, 8));
        assert_eq!((config_start(true), config_start(false)), (24, 20));
        // As QEMU has them: block, network, entropy.
        assert_eq!([60, 12, 0].map(bar_size), [128, 64, 32]);
    }

    proptest! {
        #[test]
        fn no_page_and_no_size_overflow(page: u32, log2 in 0u32..=10) {
            let rings = rings(page, 1 << log2);
            prop_assert!(rings.descriptors < rings.available && rings.available < rings.used);
        }
    }
}
