//! virtio-rng: the host's random numbers for the guest (virtio 5.4).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::pci::{self, virtio_props};
use super::{Activation, Serve, Served, Source, VirtQueue, VirtioDevice, VirtioInfo, Worker};
use crate::backends::entropy::{self, EntropyRef};
use crate::backends::table::Claim;
use crate::device::{Cx, Plug};
use crate::error::{Code, Error, Result, explain_io};
use crate::guest_error;
use crate::memory::Buffers;
use crate::object::{Create, Int, TypeInfo};

/// The type of device.
const TYPE_RNG: u16 = 4;
/// No class fits: PCI class 00, subclass ff, as QEMU has it.
const CLASS_OTHER: [u8; 3] = [0, 0xff, 0];
/// Requests that can wait.
const QUEUE_SIZE: u16 = 8;
/// Bytes taken from the source at a time, and the most that one request gets: a driver may ask for gigabytes, and the
/// specification lets the device give less.
const MAX_REQUEST: usize = 64 << 10;

/// The row of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<RngType>();

virtio_props! {
    /// Random numbers of the host for the guest.
    struct RngProps {
        /// Device or file that they are read from
        filename: Option<PathBuf>,
        /// The object that they are read from; by default the host's /dev/urandom is
        rng: Option<EntropyRef>,
        /// Bytes that the guest gets in each period at most; by default as many as it asks for
        #[name = "max-bytes"]
        max_bytes: Option<Int<1, { i64::MAX as u64 }>>,
        /// Milliseconds of a period
        period: Int<1, { u32::MAX as u64 }> = "65536",
    }
}

struct RngType;

impl Create<Plug, Cx> for RngType {
    const NAME: &'static str = "virtio-rng-pci";
    const GROUP: &'static str = "Small devices";
    const BUS: Option<&'static str> = Some("PCI");
    type Props = RngProps;

    fn check(props: &RngProps) -> Result<()> {
        if props.rng.is_some() && props.filename.is_some() {
            return Err(Error::new(Code::BadProperty, "rng= and filename= contradict each other"));
        }
        props.pci().check()
    }

    fn create(props: RngProps, cx: &Cx) -> Result<Plug> {
        let period = Duration::from_millis(props.period.get());
        let quota = Quota::new(props.max_bytes.map(Int::get), period);
        let rng = match &props.rng {
            Some(rng) => {
                let claim = cx.backends.entropies.claim(rng.as_str(), &cx.id)?;
                Rng::new(cx.id.clone(), claim.back().clone(), quota, Some(claim))
            }
            None => {
                let source = entropy::open(props.filename.as_deref().unwrap_or(Path::new(entropy::KERNEL)))?;
                Rng::new(cx.id.clone(), Arc::new(source), quota, None)
            }
        };
        pci::plug(rng, &props.pci(), cx)
    }
}

/// The device.
pub struct Rng {
    id: Arc<str>,
    source: Arc<File>,
    quota: Option<Quota>,
    worker: Mutex<Option<Worker>>,
    /// After the worker, which reads from it.
    _claim: Option<Claim<File>>,
}

impl Rng {
    fn new(id: Arc<str>, source: Arc<File>, quota: Option<Quota>, claim: Option<Claim<File>>) -> Arc<Rng> {
        Arc::new(Rng { id, source, quota, worker: Mutex::new(None), _claim: claim })
    }
}

impl VirtioDevice for Rng {
    fn info(&self) -> VirtioInfo {
        VirtioInfo {
            device_type: TYPE_RNG,
            class: CLASS_OTHER,
            features: 0,
            config_len: 0,
            queues: 1,
            queue_size: QUEUE_SIZE,
        }
    }

    fn activate(&self, run: Activation) -> Result<()> {
        let Some(queue) = run.queue(0) else { return Ok(()) };
        let source = Source::Event(queue.kick().clone());
        let entropy =
            Entropy { id: self.id.clone(), source: self.source.clone(), queue, quota: self.quota, buffer: Vec::new() };
        *self.worker.lock() = Some(Worker::start(&self.id, vec![source], entropy)?);
        Ok(())
    }

    fn deactivate(&self) {
        let worker = self.worker.lock().take();
        drop(worker);
    }
}

/// How much the guest may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Quota {
    max: u64,
    left: u64,
    period: Duration,
    /// The end of the period, once something was given in it.
    end: Option<Instant>,
}

impl Quota {
    fn new(max: Option<u64>, period: Duration) -> Option<Quota> {
        max.map(|max| Quota { max, left: max, period, end: None })
    }

    /// A period that is over is followed by one that begins when something is given.
    fn refresh(&mut self, now: Instant) {
        if self.end.is_some_and(|end| end <= now) {
            (self.left, self.end) = (self.max, None);
        }
    }

    /// How much of `wanted` may be given now.
    fn take(&mut self, wanted: usize, now: Instant) -> usize {
        self.refresh(now);
        let granted = usize::try_from(self.left).unwrap_or(usize::MAX).min(wanted);
        self.left -= granted as u64;
        if granted > 0 && self.end.is_none() {
            self.end = now.checked_add(self.period);
        }
        granted
    }
}

/// What the worker does.
struct Entropy {
    id: Arc<str>,
    source: Arc<File>,
    queue: Arc<VirtQueue>,
    quota: Option<Quota>,
    buffer: Vec<u8>,
}

impl Entropy {
    fn serve(&mut self) {
        let Entropy { id, source, queue, quota, buffer } = self;
        queue.drain(|chain| answer(id, source, quota.as_mut(), buffer, chain.writable));
    }
}

/// Fills a request's buffers as far as the quota goes.
fn answer(id: &str, mut source: &File, quota: Option<&mut Quota>, buffer: &mut Vec<u8>, mut to: Buffers<'_>) -> Served {
    let wanted = usize::try_from(to.len()).unwrap_or(usize::MAX).min(MAX_REQUEST);
    let granted = quota.map_or(wanted, |quota| quota.take(wanted, Instant::now()));
    if granted == 0 && wanted > 0 {
        return Served::Later;
    }
    buffer.resize(granted, 0);
    // A short read is a short answer, which drivers understand; none at all is an error of the host's.
    let read = source.read(buffer).unwrap_or_else(|error| {
        guest_error!(id, "no random numbers: {}", explain_io(&error));
        0
    });
    Served::Done(to.write(&buffer[..read]) as u32)
}

impl Serve for Entropy {
    fn ready(&mut self, _: usize) {
        self.serve();
    }

    fn deadline(&self) -> Option<Instant> {
        self.quota.filter(|quota| quota.left == 0).and_then(|quota| quota.end)
    }

    fn expired(&mut self) {
        // Also if no request waits: a deadline that stays in the past would keep the thread busy.
        self.quota.iter_mut().for_each(|quota| quota.refresh(Instant::now()));
        self.serve();
    }
}

#[cfg(test)]
mod tests;
