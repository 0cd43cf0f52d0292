//! Packets from the network into a ring (82574 datasheet, section 7.1): legacy, extended and packet split descriptors.
//! Checksums are left to the driver (IXSM), packets are not spread over the rings: all go to the first.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::causes::Mode;
use super::filter::{self, TAG, TAG_AT, Verdict};
use super::registers::Registers;
use super::regs::*;

/// What a frame is filled up to.
const SHORTEST: usize = 60;
/// Bytes of the frame check sequence, which is not computed: it reads as zeros.
const FCS: usize = 4;
/// Of the status: done, the packet's end, its checksum was not looked at, its tag is in the descriptor.
const DONE: u32 = 1;
const END: u32 = 1 << 1;
const NO_SUM: u32 = 1 << 2;
const TAGGED: u32 = 1 << 3;
/// Buffers of a packet split descriptor.
const PARTS: usize = 4;

/// What became of a frame.
#[derive(Debug)]
pub enum Given {
    /// It is the driver's, or nobody's.
    Done,
    /// It waits until the driver has given more descriptors.
    NoRoom,
    /// The ring is not in memory.
    NotInMemory(GuestMemoryError),
}

/// How descriptors look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Legacy(usize),
    Extended(usize),
    Split([usize; PARTS]),
}

impl Layout {
    fn of(registers: &Registers) -> Layout {
        let rctl = registers.get(RCTL);
        let size = match (rctl >> 27 & 0xf, rctl >> 16 & 3, rctl & 1 << 25 != 0) {
            (0, 0, _) => 2048,
            (0, shift, false) => 2048 >> shift,
            (0, shift, true) => 32768 >> shift,
            (kib, ..) => kib as usize * 1024,
        };
        if registers.get(RFCTL) & RFCTL_EXTENDED == 0 {
            return Layout::Legacy(size);
        }
        if rctl & 3 << 10 != RCTL_SPLIT {
            return Layout::Extended(size);
        }
        let sizes = registers.get(PSRCTL);
        let kib = |shift: u32| (sizes >> shift & 0x3f) as usize * 1024;
        Layout::Split([(sizes & 0x7f) as usize * 128, kib(8), kib(16), kib(24)])
    }

    /// Descriptors of 16 bytes that each takes, and bytes that it has room for.
    fn room(self) -> (u32, usize) {
        match self {
            Layout::Legacy(size) | Layout::Extended(size) => (1, size),
            Layout::Split(sizes) => (2, sizes.iter().sum()),
        }
    }
}

/// Gives a frame to the driver, if it wants it. `body`: room for it as the driver gets it.
pub fn give(registers: &mut Registers, ram: &GuestMemoryMmap, frame: &[u8], mode: Mode, body: &mut Vec<u8>) -> Given {
    match filter::verdict(registers, frame) {
        Verdict::Take => {}
        Verdict::Drop => return Given::Done,
        Verdict::TooLong => {
            registers.stats.too_long();
            return Given::Done;
        }
    }
    let tag = filter::tag(registers, frame).filter(|_| registers.get(CTRL) & CTRL_VLAN != 0);
    body.clear();
    body.extend_from_slice(frame);
    if tag.is_some() {
        body.drain(TAG_AT..TAG_AT + TAG);
    }
    body.resize(body.len().max(SHORTEST), 0);
    if registers.get(RCTL) & RCTL_STRIP == 0 {
        body.resize(body.len() + FCS, 0);
    }
    let (ring, layout) = (registers.ring(RX_RING), Layout::of(registers));
    let (units, room) = layout.room();
    // A size of nothing would need descriptors without end.
    let count = match room {
        0 => return Given::NoRoom,
        room => body.len().div_ceil(room) as u32,
    };
    if count * units > ring.given() {
        return Given::NoRoom;
    }
    for (index, part) in (0..count).zip(body.chunks(room)) {
        let end = if index + 1 == count { END | NO_SUM | if tag.is_some() { TAGGED } else { 0 } } else { 0 };
        let place = ring.at(index * units);
        let second = ring.at(index * units + 1);
        if let Err(error) = fill(ram, layout, (place, second), part, DONE | end, tag.unwrap_or(0)) {
            return Given::NotInMemory(error);
        }
    }
    registers.set_head(RX_RING, ring.after(count * units));
    registers.stats.received(frame);
    registers.causes.raise(CAUSE_RXT0 | CAUSE_RXQ0, mode);
    Given::Done
}

/// Fills one descriptor's buffers and writes it back, its status last.
fn fill(
    ram: &GuestMemoryMmap,
    layout: Layout,
    (place, second): (u64, u64),
    part: &[u8],
    status: u32,
    tag: u16,
) -> Result<(), GuestMemoryError> {
    let address = |at: u64| ram.read_obj::<u64>(GuestAddress(at)).map(u64::from_le);
    let (len, special) = (part.len() as u32, u32::from(tag) << 16);
    let store = |at: u64, index: u64, value: u32| {
        ram.store(value.to_le(), GuestAddress(at.wrapping_add(4 * index)), Ordering::Release)
    };
    match layout {
        Layout::Legacy(_) => {
            put(ram, address(place)?, part);
            // The address stays; the checksum beside the length was not computed.
            store(place, 2, len)?;
            store(place, 3, status | special)
        }
        Layout::Extended(_) => {
            put(ram, address(place)?, part);
            // No hash, so no type of one.
            store(place, 0, 0)?;
            store(place, 1, 0)?;
            store(place, 3, len | special)?;
            store(place, 2, status)
        }
        Layout::Split(sizes) => {
            let places = [place, place.wrapping_add(8), second, second.wrapping_add(8)];
            let (mut rest, mut lengths) = (part, [0u32; PARTS]);
            for ((at, size), length) in places.into_iter().zip(sizes).zip(&mut lengths) {
                let (now, then) = rest.split_at(size.min(rest.len()));
                if !now.is_empty() {
                    put(ram, address(at)?, now);
                }
                (rest, *length) = (then, now.len() as u32);
            }
            store(place, 0, 0)?;
            store(place, 1, 0)?;
            // No header was split off.
            store(second, 0, lengths[1] << 16)?;
            store(second, 1, lengths[3] << 16 | lengths[2])?;
            store(place, 3, lengths[0] | special)?;
            store(place, 2, status)
        }
    }
}

/// Bytes for a buffer that is not in memory are lost, as they are on a bus where nobody takes them.
fn put(ram: &GuestMemoryMmap, at: u64, bytes: &[u8]) {
    let _ = ram.write_slice(bytes, GuestAddress(at));
}
