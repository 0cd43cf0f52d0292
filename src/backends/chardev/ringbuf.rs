//! `ringbuf`: keeps the last bytes of the guest's in memory, for the monitor's `ringbuf-read`.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{Chardev, FrontEnd, Peer};
use crate::backends::BackendCx;
use crate::error::{Code, Error, Result};
use crate::object::{Create, Size, TypeInfo, props};

/// The largest ring: it is taken from the host's memory at once.
const MAX_SIZE: u64 = 64 << 20;

/// The row of the table of character back ends.
pub static TYPE: TypeInfo<Arc<dyn Chardev>, BackendCx> = TypeInfo::of::<RingType>();

props! {
    /// A ring in memory that the monitor reads (ringbuf-read).
    struct RingProps {
        /// Bytes that it keeps, a power of two up to 64M
        size: Size = "64K",
    }
}

struct RingType;

impl Create<Arc<dyn Chardev>, BackendCx> for RingType {
    const NAME: &'static str = "ringbuf";
    const GROUP: &'static str = "Character back ends";
    type Props = RingProps;

    fn check(props: &RingProps) -> Result<()> {
        match props.size.0 {
            1..=MAX_SIZE if props.size.0.is_power_of_two() => Ok(()),
            size => Err(Error::new(Code::BadProperty, format!("a ring cannot have size={size}"))
                .fix("give it a power of two, 64M at most")),
        }
    }

    fn create(props: RingProps, _: &BackendCx) -> Result<Arc<dyn Chardev>> {
        let size = usize::try_from(props.size.0).unwrap_or(usize::MAX);
        Ok(Arc::new(Ring { size, bytes: Mutex::new(VecDeque::new()) }))
    }
}

/// The ring.
pub struct Ring {
    size: usize,
    /// At most `size`.
    bytes: Mutex<VecDeque<u8>>,
}

impl Ring {
    /// Takes the oldest bytes out, at most `max`.
    pub fn read(&self, max: usize) -> Vec<u8> {
        let mut bytes = self.bytes.lock();
        let count = max.min(bytes.len());
        bytes.drain(..count).collect()
    }
}

impl Chardev for Ring {
    fn write(&self, data: &[u8]) {
        let data = data.get(data.len().saturating_sub(self.size)..).unwrap_or_default();
        let mut bytes = self.bytes.lock();
        let surplus = (bytes.len() + data.len()).saturating_sub(self.size);
        bytes.drain(..surplus);
        bytes.extend(data);
    }

    fn attach(&self, _front_end: Weak<dyn FrontEnd>) {}

    fn peer(&self) -> Peer {
        Peer::always("ringbuf")
    }

    fn ring(&self) -> Option<&Ring> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(size: usize) -> Ring {
        Ring { size, bytes: Mutex::default() }
    }

    #[test]
    fn the_last_bytes_are_kept() {
        let ring = ring(4);
        ring.write(b"abcdefg");
        ring.write(b"h");
        assert_eq!(ring.read(3), b"efg");
        ring.write(b"ij");
        assert_eq!((ring.read(10), ring.read(1)), (b"hij".to_vec(), Vec::new()));
    }

    proptest! {
        #[test]
        fn it_is_the_end_of_what_was_written(writes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..20), size in 1usize..40) {
            let ring = ring(size);
            writes.iter().for_each(|bytes| ring.write(bytes));
            let all = writes.concat();
            prop_assert_eq!(ring.read(usize::MAX), &all[all.len().saturating_sub(size)..]);
        }
    }
}
