//! One request to a disk: what it asks for, and its answer (virtio 5.2.6).

use std::ops::Range;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::Medium;
use super::config::{MAX_RANGE, MAX_RANGES, SECTOR, bit};
use crate::backends::block::{Direction, Transfer};
use crate::devices::disk::Undone;
use crate::virtio::{Buffers, Chain, Served};

/// Length of struct virtio_blk_req's header.
const HEADER: usize = 16;
/// Length of struct virtio_blk_discard_write_zeroes.
const RANGE: usize = 16;
/// The range's memory may be given back.
const FLAG_UNMAP: u32 = 1;
/// Length of the serial number.
pub const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Why a request was not done.
#[derive(Debug)]
enum Failure {
    /// The device does not know it, or has not offered it.
    Unsupported,
    /// The driver asks for what there is not: beyond the end, no whole sectors, a write to what is read-only.
    Refused,
    /// The disk could not do it.
    Undone(Undone),
}

impl From<Undone> for Failure {
    fn from(undone: Undone) -> Failure {
        Failure::Undone(undone)
    }
}

/// A request without header and status.
struct Request<'a> {
    kind: u32,
    sector: u64,
    /// Its data.
    chain: Chain<'a>,
    status: Buffers<'a>,
    /// Bytes that the device may write, the status among them.
    total: u64,
}

impl<'a> Request<'a> {
    fn parse(mut chain: Chain<'a>) -> Result<Request<'a>, &'static str> {
        let total = chain.writable.len();
        let status = chain.writable.split_last(1).ok_or("a request has no status")?;
        let header = chain.readable.read_array::<HEADER>().ok_or("a request has no header")?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let (kind, sector) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(sector));
        Ok(Request { kind, sector, chain, status, total })
    }

    /// Whether it is a read or a write.
    fn is_transfer(&self) -> bool {
        matches!(self.kind, VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT)
    }

    /// It as a transfer of the disk, if it may be done: of a read if it is no write.
    fn transfer(&self, medium: &Medium) -> Result<Transfer<'_>, Failure> {
        let (direction, data) = match self.kind {
            VIRTIO_BLK_T_OUT => (Direction::Write, &self.chain.readable),
            _ => (Direction::Read, &self.chain.writable),
        };
        let offset = medium.place(self.sector, data.len())?.start;
        if direction == Direction::Write {
            medium.changes()?;
        }
        Ok(Transfer { direction, offset, buffers: data.slices() })
    }

    /// Tells the driver what became of it.
    fn end(mut self, done: Result<(), Failure>) -> Served {
        let Some(code) = code(done) else { return Served::Later };
        self.status.write(&[code as u8]);
        // A chain is less than 4 GiB long.
        Served::Done(u32::try_from(self.total).unwrap_or(u32::MAX))
    }
}

/// Serves one request of a driver that has agreed on `features`.
pub fn serve(medium: &Medium, features: u64, chain: Chain<'_>) -> Served {
    match Request::parse(chain) {
        Ok(mut request) => {
            let done = answer(medium, features, &mut request);
            request.end(done)
        }
        Err(what) => Served::Malformed(what),
    }
}

/// Serves several in their order, but those that read or write and follow each other together. Ends with the first that is
/// not done.
pub fn serve_many(medium: &Medium, features: u64, chains: Vec<Chain<'_>>) -> Vec<Served> {
    let mut served = Vec::with_capacity(chains.len());
    let mut together = Vec::new();
    for chain in chains {
        let one = match Request::parse(chain) {
            Ok(request) if request.is_transfer() => {
                together.push(request);
                continue;
            }
            other => other,
        };
        served.extend(transfer(medium, std::mem::take(&mut together)));
        if !served.iter().all(is_done) {
            return served;
        }
        let one = one.map(|mut request| {
            let done = answer(medium, features, &mut request);
            request.end(done)
        });
        served.push(one.unwrap_or_else(Served::Malformed));
        if !served.iter().all(is_done) {
            return served;
        }
    }
    served.extend(transfer(medium, together));
    served
}

fn is_done(served: &Served) -> bool {
    matches!(served, Served::Done(_))
}

/// Does reads and writes together.
fn transfer(medium: &Medium, requests: Vec<Request<'_>>) -> Vec<Served> {
    let asked: Vec<Result<Transfer<'_>, Failure>> = requests.iter().map(|request| request.transfer(medium)).collect();
    let transfers: Vec<Transfer<'_>> = asked.iter().filter_map(|asked| asked.as_ref().ok().copied()).collect();
    let mut ended = medium.disk.transfer(&transfers).into_iter();
    // There is one for each transfer.
    let mut end = || Ok(ended.next().unwrap_or_else(|| Err(Undone::Failed(std::io::ErrorKind::Other.into())))?);
    let end = |asked: Result<Transfer<'_>, Failure>| asked.and_then(|_| end());
    let done: Vec<Result<(), Failure>> = asked.into_iter().map(end).collect();
    requests.into_iter().zip(done).map(|(request, done)| request.end(done)).collect()
}

fn answer(medium: &Medium, features: u64, request: &mut Request<'_>) -> Result<(), Failure> {
    if request.is_transfer() {
        let transfer = request.transfer(medium)?;
        let done = match transfer.direction {
            Direction::Read => medium.disk.read(transfer.offset, transfer.buffers),
            Direction::Write => medium.disk.write(transfer.offset, transfer.buffers),
        };
        return Ok(done?);
    }
    let chain = &mut request.chain;
    match request.kind {
        // A driver that has not agreed on it writes through, and need not be told.
        VIRTIO_BLK_T_FLUSH => Ok(medium.disk.flush()?),
        VIRTIO_BLK_T_GET_ID => {
            chain.writable.write(&medium.serial);
            Ok(())
        }
        VIRTIO_BLK_T_DISCARD if features & bit::DISCARD != 0 => {
            medium.changes()?;
            for (range, flags) in ranges(medium, &mut chain.readable)? {
                match flags {
                    0 => medium.disk.discard(range)?,
                    _ => return Err(Failure::Unsupported),
                }
            }
            Ok(())
        }
        VIRTIO_BLK_T_WRITE_ZEROES if features & bit::WRITE_ZEROES != 0 => {
            medium.changes()?;
            for (range, flags) in ranges(medium, &mut chain.readable)? {
                match flags & !FLAG_UNMAP {
                    0 => medium.disk.write_zeroes(range, flags & FLAG_UNMAP != 0)?,
                    _ => return Err(Failure::Unsupported),
                }
            }
            Ok(())
        }
        _ => Err(Failure::Unsupported),
    }
}

/// The ranges of a request to discard or to zero, with their flags; all are checked before anything is done.
fn ranges(medium: &Medium, from: &mut Buffers<'_>) -> Result<Vec<(Range<u64>, u32)>, Failure> {
    let count = from.len() / RANGE as u64;
    if count == 0 || count > u64::from(MAX_RANGES) || !from.len().is_multiple_of(RANGE as u64) {
        return Err(Failure::Refused);
    }
    let mut ranges = Vec::with_capacity(count as usize);
    while let Some(range) = from.read_array::<RANGE>() {
        let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, flags @ ..] = range;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let count = u32::from_le_bytes([c0, c1, c2, c3]);
        if count > MAX_RANGE {
            return Err(Failure::Refused);
        }
        ranges.push((medium.place(sector, u64::from(count) * SECTOR)?, u32::from_le_bytes(flags)));
    }
    Ok(ranges)
}

impl Medium {
    /// The bytes of so many from a sector on, if they are whole sectors inside the disk.
    fn place(&self, sector: u64, len: u64) -> Result<Range<u64>, Failure> {
        let start = sector.checked_mul(SECTOR).ok_or(Failure::Refused)?;
        let end = start.checked_add(len).ok_or(Failure::Refused)?;
        // The capacity that the driver knows has no part of a sector at its end.
        let capacity = self.disk.info().len / SECTOR * SECTOR;
        if !len.is_multiple_of(SECTOR) || end > capacity { Err(Failure::Refused) } else { Ok(start..end) }
    }

    /// Whether the disk may be changed.
    fn changes(&self) -> Result<(), Failure> {
        if self.disk.info().read_only { Err(Failure::Refused) } else { Ok(()) }
    }
}

/// The status byte; `None`: it is not done yet.
fn code(done: Result<(), Failure>) -> Option<u32> {
    match done {
        Ok(()) => Some(VIRTIO_BLK_S_OK),
        Err(Failure::Unsupported) => Some(VIRTIO_BLK_S_UNSUPP),
        Err(Failure::Refused | Failure::Undone(Undone::Failed(_))) => Some(VIRTIO_BLK_S_IOERR),
        Err(Failure::Undone(Undone::Stopped)) => None,
    }
}
