//! What every disk has, whatever its bus: the node that it is on, its write cache, and what becomes of a request that the
//! node could not do (`rerror=`, `werror=`).

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::VolatileSlice;

use crate::backends::block::{BlockInfo, BlockNode, Direction, Transfer};
use crate::backends::table::Claim;
use crate::device::{IoError, Tell, Word};
use crate::error::{Code, Error, Result, explain_io};
use crate::guest_error;
use crate::log::Limiter;
use crate::object::prop_enum;

prop_enum! {
    /// What becomes of a request that the node could not do.
    pub enum ErrorPolicy {
        /// As `enospc` for writes, as `report` for reads.
        Auto = "auto",
        /// The guest is told.
        Report = "report",
        /// The guest is told that it is done.
        Ignore = "ignore",
        /// The guest stands still, and the request is tried again when it goes on.
        Stop = "stop",
        /// As `stop` if the medium is full, as `report` otherwise.
        Enospc = "enospc",
    }
}

/// What is done about a failed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Report,
    Ignore,
    Stop,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Action::Report => "report",
            Action::Ignore => "ignore",
            Action::Stop => "stop",
        }
    }
}

/// What is done about a failed read or write of a disk with this policy.
fn action(policy: ErrorPolicy, write: bool, full: bool) -> Action {
    match policy {
        ErrorPolicy::Report => Action::Report,
        ErrorPolicy::Ignore => Action::Ignore,
        ErrorPolicy::Stop => Action::Stop,
        ErrorPolicy::Enospc if full => Action::Stop,
        ErrorPolicy::Auto if write && full => Action::Stop,
        ErrorPolicy::Auto | ErrorPolicy::Enospc => Action::Report,
    }
}

/// A request that was not done.
#[derive(Debug)]
pub enum Undone {
    /// The guest is to be told.
    Failed(io::Error),
    /// The machine is to stand still, and has been told so. The request is to stay where it is, and to be tried again when
    /// the machine goes on ([`crate::device::Device::resumed`]).
    Stopped,
}

/// What the user says of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskOptions {
    /// After a failed read.
    pub rerror: ErrorPolicy,
    /// After a failed write.
    pub werror: ErrorPolicy,
    /// Whether the write cache is on after a reset.
    pub write_cache: bool,
    /// Its place among what firmware boots from. There is no firmware that would ask; it is kept and shown.
    pub bootindex: Option<u32>,
}

/// The node of a disk: one of the machine's, which no other may use meanwhile, or one of a test's.
pub struct Drive {
    name: Arc<str>,
    node: Arc<dyn BlockNode>,
    claim: Option<Claim<dyn BlockNode>>,
}

impl Drive {
    /// A node that is in no table.
    #[cfg(test)]
    pub fn own(node: Arc<dyn BlockNode>) -> Drive {
        Drive { name: "node0".into(), node, claim: None }
    }
}

impl From<Claim<dyn BlockNode>> for Drive {
    fn from(claim: Claim<dyn BlockNode>) -> Drive {
        Drive { name: claim.name().clone(), node: claim.back().clone(), claim: Some(claim) }
    }
}

/// A disk. Called from several threads at once.
pub struct Disk {
    id: Arc<str>,
    name: Arc<str>,
    node: Arc<dyn BlockNode>,
    options: DiskOptions,
    /// Whether a write is done before it is on the medium.
    write_back: AtomicBool,
    tell: Tell,
    told: Limiter,
    /// Keeps others from the node for as long as the device lives.
    _claim: Option<Claim<dyn BlockNode>>,
}

impl Disk {
    /// The disk of the device called `id`.
    pub fn new(id: Arc<str>, drive: Drive, options: DiskOptions, tell: Tell) -> Disk {
        let Drive { name, node, claim } = drive;
        let disk = Disk {
            id,
            name,
            node,
            options,
            write_back: AtomicBool::new(false),
            tell,
            told: Limiter::new(),
            _claim: claim,
        };
        disk.reset();
        disk
    }

    /// The device's id.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// What the node is.
    pub fn info(&self) -> BlockInfo {
        self.node.info()
    }

    /// As after power-on.
    pub fn reset(&self) {
        self.set_write_back(self.write_cache());
    }

    /// Whether the write cache is on after a reset: there must be one.
    pub fn write_cache(&self) -> bool {
        self.options.write_cache && self.node.info().write_back
    }

    /// Whether a write is done before it is on the medium.
    pub fn write_back(&self) -> bool {
        self.write_back.load(Ordering::Acquire)
    }

    /// Switches the write cache.
    pub fn set_write_back(&self, on: bool) {
        self.write_back.store(on, Ordering::Release);
    }

    /// Fills `into` with what is at `offset`.
    ///
    /// # Errors
    /// See [`Undone`]; here and in all other requests.
    pub fn read(&self, offset: u64, into: &[VolatileSlice]) -> Result<(), Undone> {
        self.settle(false, self.node.read(offset, into))
    }

    /// Writes `from` to `offset`; it is on the medium then where there is no write cache, as all other changes are.
    pub fn write(&self, offset: u64, from: &[VolatileSlice]) -> Result<(), Undone> {
        self.changed(self.node.write(offset, from))
    }

    /// How many transfers are worth making together.
    pub fn depth(&self) -> usize {
        self.node.depth()
    }

    /// Does several reads and writes, in whatever order; what became of each.
    pub fn transfer(&self, transfers: &[Transfer]) -> Vec<Result<(), Undone>> {
        let done = self.node.transfer(transfers);
        let is_written = |(transfer, done): (&Transfer, &io::Result<()>)| is_write(transfer) && done.is_ok();
        // Without a write cache one flush is for all of them.
        let flushed = match transfers.iter().zip(&done).any(is_written) && !self.write_back() {
            true => self.node.flush(),
            false => Ok(()),
        };
        let settle = |(transfer, done): (&Transfer, io::Result<()>)| {
            let write = is_write(transfer);
            let done = done.and_then(|()| if write { again(&flushed) } else { Ok(()) });
            self.settle(write, done)
        };
        transfers.iter().zip(done).map(settle).collect()
    }

    /// All that was written is on the medium.
    pub fn flush(&self) -> Result<(), Undone> {
        match self.node.info().read_only {
            true => Ok(()),
            false => self.settle(true, self.node.flush()),
        }
    }

    /// Nobody needs the bytes of `range` any more.
    pub fn discard(&self, range: Range<u64>) -> Result<(), Undone> {
        self.changed(self.node.discard(range))
    }

    /// Makes `range` read as zeros.
    pub fn write_zeroes(&self, range: Range<u64>, may_unmap: bool) -> Result<(), Undone> {
        self.changed(self.node.write_zeroes(range, may_unmap))
    }

    /// Without a write cache what was changed is on the medium when the driver hears of it.
    fn changed(&self, done: io::Result<()>) -> Result<(), Undone> {
        let settled = done.and_then(|()| if self.write_back() { Ok(()) } else { self.node.flush() });
        self.settle(true, settled)
    }

    /// What becomes of a request.
    fn settle(&self, write: bool, done: io::Result<()>) -> Result<(), Undone> {
        let Err(error) = done else { return Ok(()) };
        let full = error.raw_os_error() == Some(libc::ENOSPC) || error.kind() == io::ErrorKind::StorageFull;
        let policy = if write { self.options.werror } else { self.options.rerror };
        let action = action(policy, write, full);
        let reason = explain_io(&error).to_string();
        guest_error!(self.id, "cannot {}: {reason}", if write { "write" } else { "read" });
        // A guest that repeats a request which fails does not fill the monitors.
        if action == Action::Stop || self.told.admit() {
            let word = IoError { node: self.name.clone(), write, full, action: action.name(), reason };
            (self.tell)(&self.id, Word::IoError(word));
        }
        match action {
            Action::Report => Err(Undone::Failed(error)),
            Action::Ignore => Ok(()),
            Action::Stop => Err(Undone::Stopped),
        }
    }

    /// What there is to say of it now, for people.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let info = self.node.info();
        let cache = match (info.write_back, self.write_back()) {
            (false, _) => "none",
            (true, true) => "write-back",
            (true, false) => "write-through",
        };
        let mut facts = vec![("drive", self.name.to_string()), ("disk", format!("{} bytes", info.len))];
        facts.push(("write-cache", cache.into()));
        facts.extend(self.options.bootindex.map(|index| ("bootindex", index.to_string())));
        facts
    }
}

fn is_write(transfer: &Transfer) -> bool {
    transfer.direction == Direction::Write
}

/// An answer once more.
fn again(done: &io::Result<()>) -> io::Result<()> {
    let again = |error: &io::Error| error.raw_os_error().map_or(error.kind().into(), io::Error::from_raw_os_error);
    done.as_ref().copied().map_err(again)
}

/// Sizes of blocks that a guest may be shown.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=2 << 20;

/// Whether a disk can have blocks of these sizes.
///
/// # Errors
/// [`Code::BadProperty`].
pub fn check_block_sizes(logical: u32, physical: Option<u32>) -> Result<()> {
    let bad = |cause: String| Error::new(Code::BadProperty, cause);
    let sizes = [("logical_block_size", Some(logical)), ("physical_block_size", physical)];
    for (name, size) in sizes.into_iter().filter_map(|(name, size)| Some((name, size?))) {
        if !size.is_power_of_two() || !BLOCK_SIZES.contains(&size) {
            return Err(
                bad(format!("{name}={size} is no size of a block")).fix("write a power of two from 512 to 2097152")
            );
        }
    }
    if physical.is_some_and(|physical| physical < logical) {
        return Err(bad("physical_block_size= is less than logical_block_size=".into())
            .fix("leave physical_block_size= out, or make it as large"));
    }
    Ok(())
}

/// Whether a serial number has at most `most` bytes.
///
/// # Errors
/// [`Code::BadProperty`].
pub fn check_serial(serial: Option<&String>, most: usize) -> Result<()> {
    match serial.filter(|serial| serial.len() > most) {
        Some(serial) => Err(Error::new(Code::BadProperty, format!("serial={serial} is longer than {most} bytes"))
            .fix("write a shorter one")),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use parking_lot::Mutex;

    /// As where the user says nothing.
    pub(crate) const OPTIONS: DiskOptions =
        DiskOptions { rerror: ErrorPolicy::Auto, werror: ErrorPolicy::Auto, write_cache: true, bootindex: None };

    /// What a machine was told: whether of a write, and the action.
    pub(crate) type Heard = Arc<Mutex<Vec<(bool, &'static str)>>>;

    /// A machine that remembers what it was told.
    pub(crate) fn listener() -> (Tell, Heard) {
        let heard = Heard::default();
        let to = heard.clone();
        let tell: Tell = Arc::new(move |_, word| {
            let Word::IoError(error) = word else { panic!("{word:?}") };
            to.lock().push((error.write, error.action));
        });
        (tell, heard)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{OPTIONS, listener};
    use super::*;
    use crate::backends::block::testing::MemoryNode;

    #[test]
    fn every_policy() {
        use ErrorPolicy::{Auto, Enospc, Ignore, Report, Stop};
        for (policy, of_read, of_write, of_full) in [
            (Auto, Action::Report, Action::Report, Action::Stop),
            (Report, Action::Report, Action::Report, Action::Report),
            (Ignore, Action::Ignore, Action::Ignore, Action::Ignore),
            (Stop, Action::Stop, Action::Stop, Action::Stop),
            (Enospc, Action::Report, Action::Report, Action::Stop),
        ] {
            let seen = [action(policy, false, false), action(policy, true, false), action(policy, true, true)];
            assert_eq!(seen, [of_read, of_write, of_full], "{policy:?}");
        }
    }

    #[test]
    fn a_full_disk_stops_the_machine_and_the_request_can_be_tried_again() {
        let node = Arc::new(MemoryNode::new(vec![0; 1024]));
        let (tell, heard) = listener();
        let disk = Disk::new("disk0".into(), Drive::own(node.clone()), OPTIONS, tell);
        node.full_after(0);
        node.bad_from(512);
        let mut bytes = [7; 512];
        let slices = [VolatileSlice::from(&mut bytes[..])];
        assert!(matches!(disk.write(0, &slices), Err(Undone::Stopped)));
        assert!(
            matches!(disk.read(512, &slices), Err(Undone::Failed(error)) if error.raw_os_error() == Some(libc::EIO))
        );
        node.full_after(1);
        assert!(disk.write(0, &slices).is_ok());
        assert_eq!(*heard.lock(), [(true, "stop"), (false, "report")]);
        assert_eq!(node.bytes()[..512], [7; 512]);
    }

    #[test]
    fn of_several_transfers_each_has_its_own_end() {
        let node = Arc::new(MemoryNode::new(vec![1; 1024]));
        let (tell, heard) = listener();
        let disk = Disk::new("disk0".into(), Drive::own(node.clone()), OPTIONS, tell);
        node.full_after(1);
        let mut bytes = [7; 512];
        let buffers = [VolatileSlice::from(&mut bytes[..])];
        let made = |direction, offset| Transfer { direction, offset, buffers: &buffers };
        let done = disk.transfer(&[
            made(Direction::Write, 0),
            made(Direction::Write, 512),
            made(Direction::Read, 512),
            made(Direction::Read, 1024),
        ]);
        assert!(matches!(done[..], [Ok(()), Err(Undone::Stopped), Ok(()), Err(Undone::Failed(_))]), "{done:?}");
        assert_eq!(*heard.lock(), [(true, "stop"), (false, "report")]);
        assert_eq!(bytes, [1; 512]);
    }
}
