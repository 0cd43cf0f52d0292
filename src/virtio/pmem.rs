//! virtio-pmem: a file of the host as memory that keeps its content (virtio 5.19).
//!
//! The memory is a BAR of the function, named by a shared memory capability (virtio 4.1.4.7), so that it comes and goes as
//! any function does. A driver that does not know of the capability reads from the configuration space where it is: that is
//! where the BAR is now. A flush is an fsync(2) of the file on the device's thread.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::pci::{self, virtio_props};
use super::{Activation, Chain, Serve, Served, Source, VirtQueue, VirtioDevice, VirtioInfo, Worker, read_bytes};
use crate::backends::memory::MemoryRef;
use crate::backends::table::Claim;
use crate::device::{Cx, Plug};
use crate::error::{Code, Error, Result, explain_io};
use crate::guest_error;
use crate::memory::{HostMem, HostSlice};
use crate::object::{Create, TypeInfo};

/// The type of device.
const TYPE_PMEM: u16 = 27;
/// No class fits: PCI class 00, subclass ff, as QEMU has it.
const CLASS_OTHER: [u8; 3] = [0, 0xff, 0];
/// Descriptors of the queue, as in QEMU.
const QUEUE_SIZE: u16 = 128;
/// The memory is a shared memory region (VIRTIO_PMEM_F_SHMEM_REGION).
const SHMEM_REGION: u64 = 1 << 0;
/// The configuration space: where the memory is, and its length.
const CONFIG_LEN: usize = 16;
/// The one request that there is (VIRTIO_PMEM_REQ_TYPE_FLUSH), and the answer to one that failed.
const FLUSH: u32 = 0;
const FAILED: i32 = -(nix::errno::Errno::EIO as i32);

/// The row of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<PmemType>();

virtio_props! {
    /// Memory that keeps its content: a file of the host.
    struct PmemProps {
        /// Its memory: an object memory-backend-file with share=on
        memdev: MemoryRef,
    }
}

struct PmemType;

impl Create<Plug, Cx> for PmemType {
    const NAME: &'static str = "virtio-pmem-pci";
    const GROUP: &'static str = "Disks";
    const BUS: Option<&'static str> = Some("PCI");
    type Props = PmemProps;

    fn check(props: &PmemProps) -> Result<()> {
        props.pci().check()
    }

    fn create(props: PmemProps, cx: &Cx) -> Result<Plug> {
        let memory = cx.backends.memories.claim(props.memdev.as_str(), &cx.id)?;
        if memory.file().is_none() {
            return Err(Error::new(
                Code::BadProperty,
                format!("what is written to `{}` is kept nowhere", memory.name()),
            )
            .fix(format!("write --object memory-backend-file,id={},share=on,mem-path=FILE,size=SIZE", memory.name())));
        }
        pci::plug(Pmem::new(cx.id.clone(), memory), &props.pci(), cx)
    }
}

/// The device.
struct Pmem {
    worker: Mutex<Option<Worker>>,
    shared: Arc<Shared>,
    /// Where the guest has the memory.
    at: AtomicU64,
}

struct Shared {
    id: Arc<str>,
    memory: Claim<HostMem>,
}

impl Pmem {
    fn new(id: Arc<str>, memory: Claim<HostMem>) -> Arc<Pmem> {
        let shared = Arc::new(Shared { id, memory });
        Arc::new(Pmem { worker: Mutex::default(), shared, at: AtomicU64::new(0) })
    }
}

impl VirtioDevice for Pmem {
    fn info(&self) -> VirtioInfo {
        VirtioInfo {
            device_type: TYPE_PMEM,
            class: CLASS_OTHER,
            features: SHMEM_REGION,
            config_len: CONFIG_LEN as u32,
            queues: 1,
            queue_size: QUEUE_SIZE,
        }
    }

    fn shared_memory(&self) -> Option<HostSlice> {
        Some(self.shared.memory.back().slice())
    }

    fn shared_memory_is_at(&self, address: u64) {
        self.at.store(address, Ordering::Relaxed);
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let words = [self.at.load(Ordering::Relaxed), self.shared.memory.len()];
        read_bytes(words.map(u64::to_le_bytes).as_flattened(), offset, data);
    }

    fn activate(&self, run: Activation) -> Result<()> {
        let Some(queue) = run.queue(0) else { return Ok(()) };
        let sources = vec![Source::Event(queue.kick().clone())];
        let server = Server { shared: self.shared.clone(), queue };
        *self.worker.lock() = Some(Worker::start(&self.shared.id, sources, server)?);
        Ok(())
    }

    fn deactivate(&self) {
        let worker = self.worker.lock().take();
        drop(worker);
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        vec![("memory", format!("{}, {} bytes", self.shared.memory.name(), self.shared.memory.len()))]
    }
}

/// What the worker does.
struct Server {
    shared: Arc<Shared>,
    queue: Arc<VirtQueue>,
}

impl Shared {
    /// Everything that was written before is on the medium when this returns.
    fn flush(&self) -> bool {
        let sync = |(file, _): (BorrowedFd<'_>, u64)| nix::unistd::fsync(file);
        match self.memory.file().map_or(Ok(()), sync) {
            Ok(()) => true,
            Err(error) => {
                guest_error!(&self.id, "a flush failed: {}", explain_io(&error.into()));
                false
            }
        }
    }

    fn serve(&self, mut chain: Chain<'_>) -> Served {
        let Some(request) = chain.readable.read_array() else { return Served::Malformed("a request is too short") };
        let done = u32::from_le_bytes(request) == FLUSH && self.flush();
        let answer: i32 = if done { 0 } else { FAILED };
        Served::Done(chain.writable.write(&answer.to_le_bytes()) as u32)
    }
}

impl Serve for Server {
    fn ready(&mut self, _: usize) {
        self.queue.drain(|chain| self.shared.serve(chain));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::table::Table;
    use crate::memory::host::PageSize;
    use crate::object::Kind;
    use crate::virtio::pci::PciOptions;
    use crate::virtio::testing::{CONFIG, Driver};

    const AT: u64 = 0x20000;
    const BAR: u64 = 0xc000_0000;

    #[test]
    fn the_memory_is_where_the_bar_is_and_can_be_flushed() {
        let table: Arc<Table<HostMem>> = Table::new(Kind::Object);
        let memory = Arc::new(HostMem::memfd("m0", 3 << 20, PageSize::Small).unwrap());
        table.add("m0".into(), "memory-backend-memfd", memory.clone(), false).unwrap();
        let device = Pmem::new("pmem0".into(), table.claim("m0", "pmem0").unwrap());
        let mut driver = Driver::new(device, &PciOptions::default());
        assert_eq!(driver.config_read(0), 0x105b_1af4);
        for (off, value) in [(0x18, BAR as u32), (0x1c, 0)] {
            driver.config_write(off, value, 4);
        }
        assert_eq!([driver.read(CONFIG, 8), driver.read(CONFIG + 8, 8)], [BAR, 3 << 20]);
        driver.put(BAR + 0x1000, b"kept");
        let mut bytes = [0; 4];
        memory.slice().read(0x1000, &mut bytes);
        assert_eq!(&bytes, b"kept");
        driver.start(SHMEM_REGION);
        for (request, answer) in [(FLUSH, 0), (7, FAILED)] {
            driver.put(AT, &request.to_le_bytes());
            assert_eq!(driver.request(0, &[(AT, 4, false), (AT + 8, 4, true)]), 4);
            assert_eq!(driver.bytes(AT + 8, 4), answer.to_le_bytes());
        }
        // The memory itself may be a buffer of any device's.
        driver.put(BAR, &FLUSH.to_le_bytes());
        assert_eq!(driver.request(0, &[(BAR, 4, false), (BAR + 8, 4, true)]), 4);
        driver.submit(0, &[(AT, 3, false)]);
        driver.kick(0);
        driver.until(|driver| driver.status() & 0x40 != 0);
    }
}
