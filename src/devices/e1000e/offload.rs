//! What a driver leaves to the controller: checksums, and segments of TCP that are longer than the wire takes (82574
//! datasheet, sections 7.2.10 and 7.3). Pure. What the driver says of its headers is believed as far as it lies in the packet.

/// Bytes of an IPv4 header's length and identification, and of an IPv6 header and its payload's length, from its start.
const IPV4_LENGTH: usize = 2;
const IPV4_ID: usize = 4;
const IPV6_LENGTH: usize = 4;
const IPV6_HEADER: usize = 40;
/// Sequence number and flags in a TCP header; the length in one of UDP.
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const UDP_LENGTH: usize = 4;
/// FIN and PSH belong to the last segment.
const LAST_FLAGS: u8 = 0x09;
/// The most segments of a packet: more would be headers above all.
const MAX_SEGMENTS: usize = 4096;

/// Where checksums are: a context descriptor, or what is said of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Context {
    /// Of the network layer's checksum: from, up to and with (0: the end), where to.
    pub ip: (usize, usize, usize),
    /// Of the transport layer's.
    pub transport: (usize, usize, usize),
    /// Bytes of all headers, and of the payload of a segment.
    pub header: usize,
    pub segment: usize,
    /// TCP, not UDP; IPv4, not IPv6.
    pub tcp: bool,
    pub ipv4: bool,
}

impl Context {
    /// Of the four dwords of a context descriptor.
    pub fn parse(dwords: [u32; 4]) -> Context {
        let sum = |dword: u32| ((dword & 0xff) as usize, (dword >> 16) as usize, (dword >> 8 & 0xff) as usize);
        Context {
            ip: sum(dwords[0]),
            transport: sum(dwords[1]),
            header: (dwords[3] >> 8 & 0xff) as usize,
            segment: (dwords[3] >> 16) as usize,
            tcp: dwords[2] & 1 << 24 != 0,
            ipv4: dwords[2] & 1 << 25 != 0,
        }
    }
}

/// Which checksums a packet wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    pub ip: bool,
    pub transport: bool,
}

/// The ones' complement sum of big-endian words (RFC 1071), not folded.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let whole: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    whole + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// Writes the checksum of the bytes from `from` up to and with `end` (0: the end) at `to`. What is there already is part of
/// the sum: the driver has put the pseudo header's there.
pub fn insert(packet: &mut [u8], (from, end, to): (usize, usize, usize)) {
    let end = if end == 0 { packet.len() } else { (end + 1).min(packet.len()) };
    let Some(covered) = packet.get(from..end) else { return };
    // Zero would mean that there is none; both are the same sum.
    let value = match !fold(sum(covered)) {
        0 => 0xffff,
        value => value,
    };
    put(packet, to, value);
}

fn put(packet: &mut [u8], at: usize, value: u16) {
    if let Some(place) = at.checked_add(2).and_then(|end| packet.get_mut(at..end)) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

fn word(packet: &[u8], at: usize) -> u16 {
    at.checked_add(2).and_then(|end| packet.get(at..end)).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// Writes the checksums that a packet wants.
pub fn finish(packet: &mut [u8], context: &Context, sums: Sums) {
    if sums.ip {
        insert(packet, context.ip);
    }
    if sums.transport {
        insert(packet, context.transport);
    }
}

/// Cuts a packet into segments with the headers of each, checksums included, and gives them one by one. `false`: what the
/// driver says of the packet cannot be.
pub fn segments(packet: &[u8], context: &Context, sums: Sums, mut each: impl FnMut(&mut Vec<u8>)) -> bool {
    let Some((header, payload)) = packet.split_at_checked(context.header) else { return false };
    if context.segment == 0 || payload.len().div_ceil(context.segment) > MAX_SEGMENTS {
        return false;
    }
    let (ip, transport) = (context.ip.0, context.transport.0);
    let sequence = transport + TCP_SEQUENCE;
    let first = u32::from(word(header, sequence)) << 16 | u32::from(word(header, sequence + 2));
    let count = payload.len().div_ceil(context.segment);
    let mut segment = Vec::with_capacity(header.len() + context.segment);
    for (index, part) in payload.chunks(context.segment).enumerate() {
        segment.clear();
        segment.extend_from_slice(header);
        segment.extend_from_slice(part);
        let behind = |at: usize| segment.len().saturating_sub(at) as u16;
        let (of_ip, of_ipv6, of_transport) = (behind(ip), behind(ip + IPV6_HEADER), behind(transport));
        if context.ipv4 {
            put(&mut segment, ip + IPV4_LENGTH, of_ip);
            put(&mut segment, ip + IPV4_ID, word(header, ip + IPV4_ID).wrapping_add(index as u16));
        } else {
            put(&mut segment, ip + IPV6_LENGTH, of_ipv6);
        }
        if context.tcp {
            let now = first.wrapping_add((index * context.segment) as u32);
            put(&mut segment, sequence, (now >> 16) as u16);
            put(&mut segment, sequence + 2, now as u16);
            if index + 1 < count
                && let Some(flags) = segment.get_mut(transport + TCP_FLAGS)
            {
                *flags &= !LAST_FLAGS;
            }
        } else {
            put(&mut segment, transport + UDP_LENGTH, of_transport);
        }
        // The driver's sum of the pseudo header is without the length, which differs from segment to segment.
        let pseudo = u64::from(word(header, context.transport.2)) + u64::from(of_transport);
        put(&mut segment, context.transport.2, fold(pseudo));
        finish(&mut segment, context, sums);
        each(&mut segment);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ethernet, IPv4 of 20 bytes, TCP of 20 bytes.
    const TCP4: Context =
        Context { ip: (14, 33, 24), transport: (34, 0, 50), header: 54, segment: 100, tcp: true, ipv4: true };
    const BOTH: Sums = Sums { ip: true, transport: true };

    fn packet(len: usize) -> Vec<u8> {
        let mut packet = vec![0; 54 + len];
        packet[12..14].copy_from_slice(&[8, 0]);
        packet[14] = 0x45;
        packet[18..20].copy_from_slice(&[0xff, 0xff]);
        packet[23] = 6;
        packet[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet[38..42].copy_from_slice(&0xffff_ffc0u32.to_be_bytes());
        packet[46] = 0x50;
        packet[47] = 0x19;
        let pseudo = fold(sum(&packet[26..34]) + 6);
        packet[50..52].copy_from_slice(&pseudo.to_be_bytes());
        packet.iter_mut().skip(54).zip(0u8..=255).for_each(|(byte, value)| *byte = value);
        packet
    }

    /// As a receiver checks it.
    fn is_right(segment: &[u8]) -> bool {
        let length = (segment.len() - 34) as u64;
        fold(sum(&segment[14..34])) == 0xffff
            && fold(sum(&segment[26..34]) + 6 + length + sum(&segment[34..])) == 0xffff
    }

    #[test]
    fn contexts_are_read_from_their_descriptors() {
        let dwords =
            [33 << 16 | 24 << 8 | 14, 50 << 8 | 34, 1 << 29 | 1 << 26 | 1 << 25 | 1 << 24, 100 << 16 | 54 << 8];
        assert_eq!(Context::parse(dwords), TCP4);
        assert_eq!(Context::parse([0; 4]), Context::default());
    }

    #[test]
    fn segments_are_packets_of_their_own() {
        let whole = packet(250);
        let mut all: Vec<Vec<u8>> = Vec::new();
        assert!(segments(&whole, &TCP4, BOTH, |segment| all.push(segment.clone())));
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [154, 154, 104]);
        assert!(all.iter().all(|segment| is_right(segment)));
        let number = |segment: &[u8], at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().unwrap());
        assert_eq!(all.iter().map(|it| number(it, 38)).collect::<Vec<_>>(), [0xffff_ffc0, 0x24, 0x88]);
        assert_eq!(all.iter().map(|it| word(it, 18)).collect::<Vec<_>>(), [0xffff, 0, 1]);
        assert_eq!(all.iter().map(|it| word(it, 16)).collect::<Vec<_>>(), [140, 140, 90]);
        assert_eq!(all.iter().map(|it| it[47]).collect::<Vec<_>>(), [0x10, 0x10, 0x19]);
        assert_eq!(all.iter().flat_map(|it| &it[54..]).collect::<Vec<_>>(), whole[54..].iter().collect::<Vec<_>>());
    }

    #[test]
    fn a_packet_gets_its_checksums() {
        let mut one = packet(11);
        put(&mut one, 16, 51);
        let pseudo = fold(sum(&one[26..34]) + 6 + 31);
        put(&mut one, 50, pseudo);
        finish(&mut one, &TCP4, BOTH);
        assert!(is_right(&one));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let packet = packet(100);
        for context in [Context { segment: 0, ..TCP4 }, Context { header: 155, ..TCP4 }] {
            assert!(!segments(&packet, &context, BOTH, |_| panic!("a segment")));
        }
        let tiny = Context { segment: 1, ..TCP4 };
        assert!(!segments(&vec![0; MAX_SEGMENTS + 55], &tiny, BOTH, |_| panic!("a segment")));
    }

    proptest! {
        /// Whatever a driver says of its headers, the payload of the segments is the packet's.
        #[test]
        fn nonsense_stays_in_the_packet(
            dwords: [u32; 4],
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            ip: bool,
            transport: bool,
        ) {
            let context = Context::parse(dwords);
            let mut total = 0;
            let done = segments(&bytes, &context, Sums { ip, transport }, |segment| {
                total += segment.len() - context.header;
            });
            prop_assert_eq!(total, if done { bytes.len() - context.header } else { 0 });
            finish(&mut bytes.clone(), &context, Sums { ip, transport });
        }
    }
}
