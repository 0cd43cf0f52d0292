//! What the guest says of its memory (virtio 5.5.6.3).

/// Bytes of one value: a tag and a number.
const ENTRY: usize = 10;
/// The values that are known, by their tags.
const NAMES: [&str; 10] = [
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
];
/// The most bytes of an answer that are looked at.
pub const MAX_LEN: usize = ENTRY * 64;

/// The last answer.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Stats([Option<u64>; NAMES.len()]);

impl Stats {
    /// Reads an answer; tags that are unknown are left out.
    pub fn parse(bytes: &[u8]) -> Stats {
        let mut stats = Stats::default();
        for entry in bytes.chunks_exact(ENTRY) {
            let (tag, value) = entry.split_at(2);
            let tag = usize::from(u16::from_le_bytes([tag[0], tag[1]]));
            if let (Some(place), Ok(value)) = (stats.0.get_mut(tag), value.try_into()) {
                *place = Some(u64::from_le_bytes(value));
            }
        }
        stats
    }

    /// Name and value of each, as QEMU calls them.
    pub fn described(&self) -> Vec<(&'static str, String)> {
        NAMES.into_iter().zip(self.0).filter_map(|(name, value)| Some((name, value?.to_string()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_tags() {
        let bytes = [4, 0, 1, 2, 0, 0, 0, 0, 0, 0, 99, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        let expected = [("stat-swap-in", "7".to_owned()), ("stat-free-memory", "513".to_owned())];
        assert_eq!(Stats::parse(&bytes).described(), expected);
    }
}
