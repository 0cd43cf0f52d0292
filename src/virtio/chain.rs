//! A request of the driver: a chain of buffers in guest memory, those that the device reads first (virtio 2.7.5).

use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

use crate::memory::Buffers;

/// The most descriptors of a chain; a ring is not larger (virtio 2.7.5.2: no chain is longer than its queue).
pub const MAX_DESCRIPTORS: usize = 1024;

/// Why a queue cannot be served any more: what the driver did, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

impl Broken {
    pub(super) fn new(what: impl Into<String>) -> Broken {
        Broken(what.into())
    }
}

impl From<virtio_queue::Error> for Broken {
    fn from(error: virtio_queue::Error) -> Broken {
        Broken(error.to_string())
    }
}

/// The buffers of one request.
pub struct Chain<'a> {
    /// What the device reads.
    pub readable: Buffers<'a>,
    /// What the device writes.
    pub writable: Buffers<'a>,
}

impl<'a> Chain<'a> {
    /// Follows a chain through the descriptor table.
    ///
    /// # Errors
    /// What is wrong with it: the crate's iterator just ends where a chain leads nowhere or in circles, so a chain is
    /// whole only if its last descriptor says that it is the last.
    pub(super) fn parse(
        chain: DescriptorChain<&'a GuestMemoryMmap>,
        ram: &'a GuestMemoryMmap,
    ) -> Result<Chain<'a>, Broken> {
        let (mut readable, mut writable) = (Buffers::default(), Buffers::default());
        let mut ends = false;
        for (count, descriptor) in chain.enumerate() {
            if count == MAX_DESCRIPTORS {
                return Err(Broken::new(format!("a chain of more than {MAX_DESCRIPTORS} buffers")));
            }
            ends = !descriptor.has_next();
            let buffers = match descriptor.is_write_only() {
                true => &mut writable,
                false if !writable.is_empty() => {
                    return Err(Broken::new("a buffer to read follows one to write"));
                }
                false => &mut readable,
            };
            buffers.push(ram, descriptor.addr().0, descriptor.len()).map_err(Broken::new)?;
        }
        match ends {
            true => Ok(Chain { readable, writable }),
            false => Err(Broken::new("a chain that leads nowhere")),
        }
    }
}
