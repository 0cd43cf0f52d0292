//! The common configuration: features, the status byte and the queues' registers (virtio 4.1.4.3), as a state machine
//! that says what is to be done and does nothing itself.

pub mod legacy;

use bitflags::bitflags;

use super::fields::{self, Field};
use crate::virtio::feature;
use crate::virtio::interrupt::NO_VECTOR;
use crate::virtio::queue::Rings;

bitflags! {
    /// The device status field (virtio 2.1).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Status: u8 {
        /// The guest has seen the device.
        const ACKNOWLEDGE = 1;
        /// It has a driver for it.
        const DRIVER = 2;
        /// The driver drives it.
        const DRIVER_OK = 4;
        /// The features are agreed on.
        const FEATURES_OK = 8;
        /// The device has had an error that only a reset mends. Not stored here.
        const NEEDS_RESET = 64;
        /// The guest has given it up.
        const FAILED = 128;
    }
}

/// The registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    NumQueues,
    DeviceStatus,
    ConfigGeneration,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOff,
    QueueDesc,
    QueueDriver,
    QueueDevice,
}

/// Offsets and lengths of struct virtio_pci_common_cfg.
const TABLE: &[Field<Register>] = &[
    Field::new(0x00, 4, Register::DeviceFeatureSelect),
    Field::new(0x04, 4, Register::DeviceFeature),
    Field::new(0x08, 4, Register::DriverFeatureSelect),
    Field::new(0x0c, 4, Register::DriverFeature),
    Field::new(0x10, 2, Register::ConfigVector),
    Field::new(0x12, 2, Register::NumQueues),
    Field::new(0x14, 1, Register::DeviceStatus),
    Field::new(0x15, 1, Register::ConfigGeneration),
    Field::new(0x16, 2, Register::QueueSelect),
    Field::new(0x18, 2, Register::QueueSize),
    Field::new(0x1a, 2, Register::QueueVector),
    Field::new(0x1c, 2, Register::QueueEnable),
    Field::new(0x1e, 2, Register::QueueNotifyOff),
    Field::new(0x20, 8, Register::QueueDesc),
    Field::new(0x28, 8, Register::QueueDriver),
    Field::new(0x30, 8, Register::QueueDevice),
];

/// What a write asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The vector of configuration changes.
    ConfigVector(u16),
    /// The vector of a queue.
    QueueVector(u16, u16),
    /// The driver is ready, or has given up: what [`Common::runs`] says has changed.
    Status,
    /// Everything is as after power-on, in here already.
    Reset,
}

/// What the registers show that is kept elsewhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct Live {
    /// The device cannot go on.
    pub needs_reset: bool,
    /// The version of its configuration space.
    pub generation: u8,
}

/// One queue's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueRegisters {
    /// Where it is.
    pub rings: Rings,
    /// Whether the driver uses it.
    pub enabled: bool,
    vector: u16,
}

/// The registers of one device.
#[derive(Debug, Clone)]
pub struct Common {
    offered: u64,
    max_size: u16,
    vectors: u16,
    device_select: u32,
    driver_select: u32,
    agreed: u64,
    config_vector: u16,
    status: Status,
    /// A legacy driver uses the device without having said that it is ready.
    started: bool,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

impl Common {
    /// A device that offers these features, and has so many queues of at most `max_size` descriptors, and so many MSI-X
    /// vectors.
    pub fn new(offered: u64, queues: u16, max_size: u16, vectors: u16) -> Common {
        let rings = Rings { size: max_size, ..Rings::default() };
        let queue = QueueRegisters { rings, enabled: false, vector: NO_VECTOR };
        Common {
            offered,
            max_size,
            vectors,
            device_select: 0,
            driver_select: 0,
            agreed: 0,
            config_vector: NO_VECTOR,
            status: Status::empty(),
            started: false,
            queue_select: 0,
            queues: vec![queue; usize::from(queues)],
        }
    }

    /// As after power-on.
    pub fn reset(&mut self) {
        *self = Common::new(self.offered, self.queues.len() as u16, self.max_size, self.vectors);
    }

    /// Whether driver and device are done with their negotiation and the driver has not given up.
    pub fn runs(&self) -> bool {
        (self.started || self.status.contains(Status::DRIVER_OK)) && !self.status.contains(Status::FAILED)
    }

    /// The status byte, without the device's bit.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The features that the driver has chosen; final when the status has FEATURES_OK.
    pub fn agreed(&self) -> u64 {
        self.agreed
    }

    /// The queues' registers.
    pub fn queues(&self) -> &[QueueRegisters] {
        &self.queues
    }

    /// The largest size of a queue.
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Reads bytes of the block.
    pub fn read(&self, offset: u64, data: &mut [u8], live: Live) {
        fields::read(TABLE, offset, data, |register| self.get(register, live));
    }

    /// Writes bytes of the block, and says what is to be done, in this order.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Vec<Action> {
        let mut actions = Vec::new();
        let get = |common: &Common, register| common.get(register, Live::default());
        fields::write(TABLE, offset, data, self, get, |common, register, value| {
            actions.extend(common.set(register, value));
        });
        actions
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    fn get(&self, register: Register, live: Live) -> u64 {
        let half = |features: u64, select: u32| match select {
            0 => features & 0xffff_ffff,
            1 => features >> 32,
            _ => 0,
        };
        // A queue that is not there has the size 0 (virtio 4.1.4.3).
        let queue = |of: fn(&QueueRegisters) -> u64| self.selected().map_or(0, of);
        match register {
            Register::DeviceFeatureSelect => self.device_select.into(),
            Register::DeviceFeature => half(self.offered, self.device_select),
            Register::DriverFeatureSelect => self.driver_select.into(),
            Register::DriverFeature => half(self.agreed, self.driver_select),
            Register::ConfigVector => self.config_vector.into(),
            Register::NumQueues => self.queues.len() as u64,
            Register::DeviceStatus => {
                let own = if live.needs_reset { Status::NEEDS_RESET } else { Status::empty() };
                (self.status | own).bits().into()
            }
            Register::ConfigGeneration => live.generation.into(),
            Register::QueueSelect => self.queue_select.into(),
            Register::QueueSize => queue(|queue| queue.rings.size.into()),
            Register::QueueVector => self.selected().map_or(NO_VECTOR, |queue| queue.vector).into(),
            Register::QueueEnable => queue(|queue| queue.enabled.into()),
            Register::QueueNotifyOff => self.selected().map_or(0, |_| self.queue_select.into()),
            Register::QueueDesc => queue(|queue| queue.rings.descriptors),
            Register::QueueDriver => queue(|queue| queue.rings.available),
            Register::QueueDevice => queue(|queue| queue.rings.used),
        }
    }

    fn set(&mut self, register: Register, value: u64) -> Option<Action> {
        match register {
            Register::DeviceFeatureSelect => self.device_select = value as u32,
            Register::DriverFeatureSelect => self.driver_select = value as u32,
            Register::DriverFeature => self.choose(value),
            Register::QueueSelect => self.queue_select = value as u16,
            Register::ConfigVector => {
                self.config_vector = self.vector(value);
                return Some(Action::ConfigVector(self.config_vector));
            }
            Register::QueueVector => {
                let (index, vector) = (self.queue_select, self.vector(value));
                self.queues.get_mut(usize::from(index))?.vector = vector;
                return Some(Action::QueueVector(index, vector));
            }
            Register::DeviceStatus => return self.set_status(Status::from_bits_retain(value as u8)),
            Register::QueueSize => {
                let size = value as u16;
                if size.is_power_of_two() && size <= self.max_size {
                    self.configure(|queue| queue.rings.size = size);
                }
            }
            // Only a reset disables a queue.
            Register::QueueEnable if value == 1 => self.configure(|queue| queue.enabled = true),
            Register::QueueDesc => self.configure(|queue| queue.rings.descriptors = value),
            Register::QueueDriver => self.configure(|queue| queue.rings.available = value),
            Register::QueueDevice => self.configure(|queue| queue.rings.used = value),
            Register::QueueEnable
            | Register::DeviceFeature
            | Register::NumQueues
            | Register::ConfigGeneration
            | Register::QueueNotifyOff => {}
        }
        None
    }

    /// A vector that the device does not have reads back as none (virtio 4.1.5.1.2).
    fn vector(&self, value: u64) -> u16 {
        let vector = value as u16;
        if vector < self.vectors { vector } else { NO_VECTOR }
    }

    /// The driver's features stay as they are once they are agreed on.
    fn choose(&mut self, half: u64) {
        if self.status.contains(Status::FEATURES_OK) {
            return;
        }
        match self.driver_select {
            0 => self.agreed = self.agreed & !0xffff_ffff | half,
            1 => self.agreed = self.agreed & 0xffff_ffff | half << 32,
            _ => {}
        }
    }

    /// Changes the selected queue, unless it is enabled: from then on it stays where it is.
    fn configure(&mut self, change: impl FnOnce(&mut QueueRegisters)) {
        if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select))
            && !queue.enabled
        {
            change(queue);
        }
    }

    /// Bits are only ever added, but for the reset by 0. What the driver may not have does not read back.
    fn set_status(&mut self, written: Status) -> Option<Action> {
        if written.is_empty() {
            self.reset();
            return Some(Action::Reset);
        }
        let before = self.status;
        let mut after = before | written & (Status::all() - Status::NEEDS_RESET);
        let acceptable = self.agreed & !self.offered == 0 && self.agreed & feature::VERSION_1 != 0;
        if !before.contains(Status::FEATURES_OK) && !acceptable {
            after.remove(Status::FEATURES_OK);
        }
        if !after.contains(Status::FEATURES_OK) {
            after.remove(Status::DRIVER_OK);
        }
        self.status = after;
        let deciding = Status::DRIVER_OK | Status::FAILED;
        (before & deciding != after & deciding).then_some(Action::Status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OFFERED: u64 = feature::VERSION_1 | feature::EVENT_IDX | 0b101;

    fn common() -> Common {
        Common::new(OFFERED, 2, 256, 3)
    }

    fn put(common: &mut Common, offset: u64, value: u64, len: usize) -> Vec<Action> {
        common.write(offset, &value.to_le_bytes()[..len])
    }

    fn get(common: &Common, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        common.read(offset, &mut data[..len], Live::default());
        u64::from_le_bytes(data)
    }

    fn agree(common: &mut Common, features: u64) -> bool {
        put(common, 0x14, 3, 1);
        for half in 0..2 {
            put(common, 0x08, half, 4);
            put(common, 0x0c, features >> (32 * half) & 0xffff_ffff, 4);
        }
        put(common, 0x14, 0xb, 1);
        get(common, 0x14, 1) == 0xb
    }

    #[test]
    fn features_are_shown_by_halves() {
        let mut common = common();
        assert_eq!(get(&common, 4, 4), OFFERED & 0xffff_ffff);
        put(&mut common, 0, 1, 4);
        assert_eq!(get(&common, 4, 4), 1);
        put(&mut common, 0, 2, 4);
        assert_eq!(get(&common, 4, 4), 0);
    }

    #[test]
    fn only_what_is_offered_and_of_version_1_is_agreed_on() {
        assert!(agree(&mut common(), OFFERED));
        assert!(agree(&mut common(), feature::VERSION_1));
        assert!(!agree(&mut common(), 0b101), "a legacy driver");
        assert!(!agree(&mut common(), feature::VERSION_1 | 0b10), "not offered");
    }

    #[test]
    fn a_driver_that_skips_the_negotiation_gets_nowhere() {
        let mut common = common();
        assert_eq!(put(&mut common, 0x14, 7, 1), []);
        assert_eq!((get(&common, 0x14, 1), common.runs()), (3, false));
        assert!(agree(&mut common, feature::VERSION_1));
        put(&mut common, 0x0c, 0, 4);
        assert_eq!(common.agreed(), feature::VERSION_1, "it is final");
        assert_eq!(put(&mut common, 0x14, 0xf, 1), [Action::Status]);
        assert!(common.runs());
        assert_eq!(put(&mut common, 0x14, 0xf, 1), []);
        assert_eq!(put(&mut common, 0x14, 0x8f, 1), [Action::Status]);
        assert!(!common.runs());
        assert_eq!(put(&mut common, 0x14, 0, 1), [Action::Reset]);
        assert_eq!(get(&common, 0x14, 1), 0);
    }

    #[test]
    fn queues_are_configured_until_they_are_enabled() {
        let mut common = common();
        put(&mut common, 0x16, 1, 2);
        assert_eq!((get(&common, 0x18, 2), get(&common, 0x1e, 2)), (256, 1));
        for size in [0, 3, 512] {
            put(&mut common, 0x18, size, 2);
            assert_eq!(get(&common, 0x18, 2), 256);
        }
        put(&mut common, 0x18, 64, 2);
        put(&mut common, 0x20, 0x1000, 4);
        put(&mut common, 0x24, 1, 4);
        put(&mut common, 0x1c, 1, 2);
        put(&mut common, 0x20, 0x2000, 8);
        put(&mut common, 0x1c, 0, 2);
        let queue = common.queues()[1];
        assert_eq!((queue.rings.size, queue.rings.descriptors, queue.enabled), (64, 0x1_0000_1000, true));
        put(&mut common, 0x16, 2, 2);
        assert_eq!((get(&common, 0x18, 2), get(&common, 0x1a, 2)), (0, 0xffff), "there are two");
    }

    #[test]
    fn a_vector_that_is_not_there_reads_back_as_none() {
        let mut common = common();
        assert_eq!(put(&mut common, 0x10, 2, 2), [Action::ConfigVector(2)]);
        assert_eq!(put(&mut common, 0x10, 3, 2), [Action::ConfigVector(NO_VECTOR)]);
        put(&mut common, 0x16, 1, 2);
        assert_eq!(put(&mut common, 0x1a, 1, 2), [Action::QueueVector(1, 1)]);
        assert_eq!((get(&common, 0x10, 2), get(&common, 0x1a, 2)), (0xffff, 1));
    }

    #[test]
    fn an_error_of_the_device_is_shown_beside_the_drivers_bits() {
        let mut data = [0];
        common().read(0x14, &mut data, Live { needs_reset: true, generation: 7 });
        assert_eq!(data, [64]);
        common().read(0x15, &mut data, Live { needs_reset: true, generation: 7 });
        assert_eq!(data, [7]);
    }

    proptest! {
        /// Whatever a guest writes, a device runs only with features that it has offered, and with queues of a valid size.
        #[test]
        fn a_device_never_runs_with_what_it_did_not_offer(
            writes in prop::collection::vec((0u64..0x40, prop_oneof![any::<u64>(), 0u64..16, Just(1 << 32)], 1usize..9), 0..100),
        ) {
            let mut common = common();
            for (offset, value, len) in writes {
                put(&mut common, offset, value, len);
                if common.runs() {
                    prop_assert!(common.agreed() & !OFFERED == 0 && common.agreed() & feature::VERSION_1 != 0);
                }
                for queue in common.queues() {
                    prop_assert!(queue.rings.size.is_power_of_two() && queue.rings.size <= 256);
                }
            }
        }
    }
}
