//! The expansion ROM: read from the device once, when the guest first looks at it, and kept (PCI 6.3).

use std::sync::{Arc, OnceLock, Weak};

use super::seams::{HostPci, RegionIndex};
use crate::guest_error;
use crate::memory::IoHandler;

/// Bytes that are read in one request; a ROM is slow, and a request cannot be interrupted.
const CHUNK: u64 = 64 << 10;

/// The ROM's BAR. Reads never reach the hardware twice: some devices can decode their ROM or their registers, not both.
pub struct Rom {
    host: Weak<dyn HostPci>,
    size: u64,
    image: OnceLock<Vec<u8>>,
}

impl Rom {
    /// A ROM that nobody has looked at; `size` is that of its region.
    pub fn new(host: &Arc<dyn HostPci>, size: u64) -> Rom {
        Rom { host: Arc::downgrade(host), size, image: OnceLock::new() }
    }

    fn load(&self) -> Vec<u8> {
        let mut image = vec![0xff; self.size as usize];
        let Some(host) = self.host.upgrade() else { return image };
        for (chunk, at) in image.chunks_mut(CHUNK as usize).zip((0..).step_by(CHUNK as usize)) {
            // Memory decoding is on, or the guest could not have come here: VFIO refuses to read a ROM without it.
            if let Err(error) = host.read(RegionIndex::Rom, at, chunk) {
                guest_error!(host.name(), "its expansion ROM cannot be read: {error}");
                chunk.fill(0xff);
                break;
            }
        }
        image
    }
}

impl IoHandler for Rom {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let image = self.image.get_or_init(|| self.load());
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = start.checked_add(index).and_then(|at| image.get(at)).copied().unwrap_or(0xff);
        }
    }

    fn write(&self, _: u64, _: &[u8]) {}
}
