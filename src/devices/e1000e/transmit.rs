//! Packets from a ring to the network (82574 datasheet, section 7.2): legacy, context and data descriptors.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::causes::Mode;
use super::filter::TAG_AT;
use super::offload::{self, Context, Sums};
use super::registers::Registers;
use super::regs::*;

/// Descriptors that are served before anything else is looked at.
const BATCH: u32 = 64;
/// The longest packet before it is cut: all that IP can say, and the headers around it.
const MAX_PACKET: usize = (1 << 16) + 256;
/// What a packet is filled up to.
const SHORTEST: usize = 60;
/// Short packets are filled up (TCTL.PSP).
const TCTL_PAD: u32 = 1 << 3;

/// Of a descriptor's third dword: the end of a packet, a checksum (legacy), or a segmentation (data), a report, the new
/// kinds, a VLAN tag.
const END: u32 = 1 << 24;
const LEGACY_SUM: u32 = 1 << 26;
const SEGMENT: u32 = 1 << 26;
const REPORT: u32 = 1 << 27;
const EXTENDED: u32 = 1 << 29;
const TAGGED: u32 = 1 << 30;
const KIND: u32 = 0xf << 20;
const KIND_CONTEXT: u32 = 0;
const KIND_DATA: u32 = 1 << 20;
/// Of a data descriptor's last dword: checksums.
const IP_SUM: u32 = 1 << 8;
const TRANSPORT_SUM: u32 = 1 << 9;
/// Of the last dword when it is written back: it is done.
const DONE: u32 = 1;

/// What a ring is in the midst of.
#[derive(Default)]
pub struct Sender {
    context: Context,
    packet: Vec<u8>,
    /// Of the packet's first descriptor.
    first: Option<First>,
    /// The packet has a part that is not in memory, or too much of it.
    broken: bool,
}

#[derive(Clone, Copy)]
struct First {
    sums: Sums,
    segment: bool,
}

/// Why a ring stands still.
#[derive(Debug)]
pub struct NotInMemory(pub GuestMemoryError);

impl Sender {
    /// Serves the ring whose registers begin at `ring`; says whether there is more. `send`: takes each frame.
    ///
    /// # Errors
    /// The ring is not in memory: nothing else is done with it.
    pub fn serve(
        &mut self,
        registers: &mut Registers,
        ram: &GuestMemoryMmap,
        (at, queue): (u32, u32),
        mode: Mode,
        send: &mut dyn FnMut(&[u8]),
    ) -> Result<bool, NotInMemory> {
        let ring = registers.ring(at);
        if registers.get(TCTL) & TCTL_ENABLE == 0 {
            return Ok(false);
        }
        let count = ring.given().min(BATCH);
        let mut reported = false;
        for index in 0..count {
            let place = GuestAddress(ring.at(index));
            let mut bytes = [0; 16];
            ram.read_slice(&mut bytes, place).map_err(NotInMemory)?;
            let dword = |index: usize| u32::from_le_bytes(std::array::from_fn(|byte| bytes[4 * index + byte]));
            let dwords = [dword(0), dword(1), dword(2), dword(3)];
            self.take(registers, ram, dwords, send);
            if dwords[2] & REPORT != 0 {
                // After the packet was read: the driver frees it then.
                let status = GuestAddress(place.0.wrapping_add(12));
                ram.store((dwords[3] | DONE).to_le(), status, Ordering::Release).map_err(NotInMemory)?;
                reported = true;
            }
        }
        registers.set_head(at, ring.after(count));
        if reported {
            registers.causes.raise(CAUSE_TXDW | CAUSE_TXQ0 << queue, mode);
        }
        Ok(count < ring.given())
    }

    fn take(
        &mut self,
        registers: &mut Registers,
        ram: &GuestMemoryMmap,
        dwords: [u32; 4],
        send: &mut dyn FnMut(&[u8]),
    ) {
        let extended = dwords[2] & EXTENDED != 0;
        if extended && dwords[2] & KIND == KIND_CONTEXT {
            self.context = Context::parse(dwords);
            return;
        }
        if extended && dwords[2] & KIND != KIND_DATA {
            return;
        }
        let len = dwords[2] & if extended { 0x000f_ffff } else { 0xffff };
        self.first.get_or_insert(First {
            sums: Sums {
                ip: extended && dwords[3] & IP_SUM != 0,
                transport: extended && dwords[3] & TRANSPORT_SUM != 0,
            },
            segment: extended && dwords[2] & SEGMENT != 0,
        });
        self.append(ram, u64::from(dwords[1]) << 32 | u64::from(dwords[0]), len as usize);
        if dwords[2] & END != 0 {
            if !self.broken {
                self.send(registers, dwords, extended, send);
            }
            self.packet.clear();
            self.first = None;
            self.broken = false;
        }
    }

    fn append(&mut self, ram: &GuestMemoryMmap, at: u64, len: usize) {
        let start = self.packet.len();
        if self.broken || start + len > MAX_PACKET {
            self.broken = true;
            return;
        }
        self.packet.resize(start + len, 0);
        self.broken = ram.read_slice(&mut self.packet[start..], GuestAddress(at)).is_err();
    }

    /// The packet is whole. `dwords`: its last descriptor.
    fn send(&mut self, registers: &mut Registers, dwords: [u32; 4], extended: bool, send: &mut dyn FnMut(&[u8])) {
        let Some(first) = self.first else { return };
        let tag = (registers.get(CTRL) & CTRL_VLAN != 0 && dwords[2] & TAGGED != 0).then(|| {
            let (kind, tag) = (registers.get(VET) as u16, (dwords[3] >> 16) as u16);
            u32::from(kind) << 16 | u32::from(tag)
        });
        let pad = registers.get(TCTL) & TCTL_PAD != 0;
        let mut emit = |frame: &mut Vec<u8>| {
            if let Some(tag) = tag.filter(|_| frame.len() >= TAG_AT) {
                frame.splice(TAG_AT..TAG_AT, tag.to_be_bytes());
            }
            if pad && frame.len() < SHORTEST {
                frame.resize(SHORTEST, 0);
            }
            registers.stats.sent(frame);
            send(frame);
        };
        if first.segment {
            if offload::segments(&self.packet, &self.context, first.sums, emit) {
                registers.stats.segmented();
            }
            return;
        }
        if !extended && dwords[2] & LEGACY_SUM != 0 {
            let (from, to) = ((dwords[3] >> 8 & 0xff) as usize, (dwords[2] >> 16 & 0xff) as usize);
            offload::insert(&mut self.packet, (from, 0, to));
        }
        offload::finish(&mut self.packet, &self.context, first.sums);
        emit(&mut self.packet);
    }
}
