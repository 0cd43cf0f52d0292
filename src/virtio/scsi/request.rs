//! One command to a unit, and its response (virtio 5.6.6.1).

use super::config::Sizes;
use crate::scsi::{Address, Answer, Command, ScsiBus, Sense};
use crate::virtio::{Chain, Served};

/// Parts of the header in front of the command: LUN, tag, attribute, priority, reference.
const HEADER: usize = 19;
/// Parts of the response in front of the sense data.
const RESPONSE: usize = 12;
/// What is kept of a command: no command that there is is longer.
const CDB: usize = 32;

/// How a command went as far as the adapter knows (virtio 5.6.6.1.1).
mod response {
    pub const OK: u8 = 0;
    pub const OVERRUN: u8 = 1;
    pub const BAD_TARGET: u8 = 3;
    pub const FAILURE: u8 = 9;
}

/// How it went as the unit says (SAM-5 5.3).
const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;

/// A LUN of the driver's: target and unit of the only channel; `None`: it is of another kind.
pub fn address(lun: &[u8; 8]) -> Option<Address> {
    let [kind, target, high, low, ..] = *lun;
    (kind == 1).then(|| Address { target, lun: u16::from_be_bytes([high, low]) & 0x3fff })
}

/// Serves one request.
pub fn serve(bus: &ScsiBus, sizes: Sizes, mut chain: Chain<'_>) -> Served {
    let mut header = [0; HEADER];
    // Bounded by what a driver can make of it.
    let mut cdb = vec![0; sizes.cdb as usize];
    if chain.readable.read(&mut header) != HEADER || chain.readable.read(&mut cdb) != cdb.len() {
        return Served::Malformed("a command is shorter than its header says");
    }
    let head = RESPONSE + sizes.sense as usize;
    if chain.writable.len() < head as u64 {
        return Served::Malformed("a command has no room for its response");
    }
    let into = chain.writable.split_off(head as u64);
    let (room, given) = (into.len(), chain.readable.len());
    let lun: [u8; 8] = std::array::from_fn(|at| header[at]);
    cdb.resize(CDB, 0);
    let command = Command { cdb: std::array::from_fn(|at| cdb[at]), out: chain.readable, into };
    let answer = match address(&lun) {
        // Both ways at once is a feature that is not offered.
        _ if room > 0 && given > 0 => None,
        Some(at) => Some(bus.execute(at, command)),
        None => Some(None),
    };
    let (code, status, transferred, sense) = match answer {
        None => (response::FAILURE, GOOD, 0, None),
        Some(None) => (response::BAD_TARGET, GOOD, 0, None),
        Some(Some(Answer::Later)) => return Served::Later,
        Some(Some(Answer::Overrun)) => (response::OVERRUN, GOOD, 0, None),
        Some(Some(Answer::Good(transferred))) => (response::OK, GOOD, transferred, None),
        Some(Some(Answer::Check(sense))) => (response::OK, CHECK_CONDITION, 0, Some(sense)),
    };
    let left = (room + given).saturating_sub(transferred);
    let mut said = vec![0; head];
    let sense = sense.map(Sense::fixed);
    let sense = sense.as_ref().map_or(&[][..], |sense| &sense[..sense.len().min(sizes.sense as usize)]);
    said[..4].copy_from_slice(&(sense.len() as u32).to_le_bytes());
    said[4..8].copy_from_slice(&u32::try_from(left).unwrap_or(u32::MAX).to_le_bytes());
    (said[10], said[11]) = (status, code);
    said[RESPONSE..RESPONSE + sense.len()].copy_from_slice(sense);
    chain.writable.write(&said);
    // A chain is less than 4 GiB long.
    Served::Done(u32::try_from(head as u64 + room.min(transferred)).unwrap_or(u32::MAX))
}
