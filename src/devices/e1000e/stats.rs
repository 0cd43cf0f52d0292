//! Statistics: registers that count, and that reading clears (82574 datasheet, section 10.2.7). Drivers count packets and
//! bytes of their interface by them.

use super::regs::STATISTICS;

/// Packets without an error each way, those to everybody and to groups, bytes, and all of them.
const RX_PACKETS: u32 = 0x4074;
const RX_BROADCAST: u32 = 0x4078;
const RX_MULTICAST: u32 = 0x407c;
const TX_PACKETS: u32 = 0x4080;
const RX_BYTES: u32 = 0x4088;
const TX_BYTES: u32 = 0x4090;
const RX_ALL_BYTES: u32 = 0x40c0;
const TX_ALL_BYTES: u32 = 0x40c8;
const RX_ALL: u32 = 0x40d0;
const TX_ALL: u32 = 0x40d4;
const TX_MULTICAST: u32 = 0x40f0;
const TX_BROADCAST: u32 = 0x40f4;
/// Segmentations of TCP.
const TX_SEGMENTED: u32 = 0x40f8;
/// Packets that were too long.
const RX_TOO_LONG: u32 = 0x40ac;
/// Bytes of the frame check sequence, which count.
const FCS: u64 = 4;
const COUNT: usize = ((STATISTICS.end - STATISTICS.start) / 4) as usize;

/// The counters.
pub struct Stats([u32; COUNT]);

impl Default for Stats {
    fn default() -> Stats {
        Stats([0; COUNT])
    }
}

impl Stats {
    fn at(&mut self, register: u32) -> &mut u32 {
        // The registers of this file are in it; another's would count in the first, which drivers take for CRC errors.
        &mut self.0[(register.wrapping_sub(STATISTICS.start) / 4) as usize % COUNT]
    }

    fn count(&mut self, register: u32) {
        let counter = self.at(register);
        *counter = counter.saturating_add(1);
    }

    /// 64 bits in two registers.
    fn add(&mut self, register: u32, more: u64) {
        let sum = (u64::from(*self.at(register + 4)) << 32 | u64::from(*self.at(register))).saturating_add(more);
        (*self.at(register), *self.at(register + 4)) = (sum as u32, (sum >> 32) as u32);
    }

    /// A frame was received.
    pub fn received(&mut self, frame: &[u8]) {
        self.frame(frame, [RX_PACKETS, RX_ALL, RX_BROADCAST, RX_MULTICAST], [RX_BYTES, RX_ALL_BYTES]);
    }

    /// A frame was sent.
    pub fn sent(&mut self, frame: &[u8]) {
        self.frame(frame, [TX_PACKETS, TX_ALL, TX_BROADCAST, TX_MULTICAST], [TX_BYTES, TX_ALL_BYTES]);
    }

    fn frame(&mut self, frame: &[u8], packets: [u32; 4], bytes: [u32; 2]) {
        let [good, all, broadcast, multicast] = packets;
        self.count(good);
        self.count(all);
        match frame {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, ..] => self.count(broadcast),
            [first, ..] if first & 1 != 0 => self.count(multicast),
            _ => {}
        }
        bytes.into_iter().for_each(|register| self.add(register, frame.len() as u64 + FCS));
    }

    /// A long packet was cut into segments.
    pub fn segmented(&mut self) {
        self.count(TX_SEGMENTED);
    }

    /// A frame was longer than the driver takes.
    pub fn too_long(&mut self) {
        self.count(RX_TOO_LONG);
        self.count(RX_ALL);
    }

    /// A counter, which is 0 afterwards.
    pub fn take(&mut self, register: u32) -> u32 {
        match STATISTICS.contains(&register) {
            true => std::mem::take(self.at(register)),
            false => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_until_they_are_read() {
        let mut stats = Stats::default();
        stats.received(&[0xff; 60]);
        stats.received(&[0; 1000]);
        stats.sent(&[1; 60]);
        let mut take = |register| stats.take(register);
        assert_eq!([take(RX_PACKETS), take(RX_BROADCAST), take(RX_MULTICAST), take(RX_BYTES)], [2, 1, 0, 1068]);
        assert_eq!([take(TX_PACKETS), take(TX_MULTICAST), take(TX_BYTES)], [1, 1, 64]);
        assert_eq!([take(RX_PACKETS), take(TX_BYTES), take(0x4128), take(0)], [0; 4]);
        stats.add(RX_BYTES, u64::from(u32::MAX));
        stats.add(RX_BYTES, 2);
        assert_eq!([stats.take(RX_BYTES), stats.take(RX_BYTES + 4)], [1, 1]);
    }
}
