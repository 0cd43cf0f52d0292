//! The guest addresses that are kept for memory which comes while the guest runs (`-m maxmem=`), and who has which of them.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

/// A range of addresses that is given out in parts.
#[derive(Debug)]
pub struct Room {
    range: Range<u64>,
    /// Innermost: nothing else is locked or called with it.
    taken: Mutex<Vec<Range<u64>>>,
}

/// A part of a [`Room`], until it is dropped.
#[derive(Debug)]
pub struct Part {
    room: Arc<Room>,
    range: Range<u64>,
}

impl Room {
    /// All of `range`, which may be empty.
    pub fn new(range: Range<u64>) -> Arc<Room> {
        Arc::new(Room { range, taken: Mutex::default() })
    }

    /// All of it.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// The first `len` free bytes at a multiple of `align`, or those at `wanted`; `None`: they are not free.
    pub fn take(self: &Arc<Self>, len: u64, align: u64, wanted: Option<u64>) -> Option<Part> {
        let mut taken = self.taken.lock();
        let starts = std::iter::once(self.range.start).chain(taken.iter().map(|part| part.end));
        let aligned = |start: u64| start.checked_next_multiple_of(align);
        let free = |start: &u64| {
            let Some(end) = start.checked_add(len) else { return false };
            self.range.start <= *start
                && end <= self.range.end
                && taken.iter().all(|part| end <= part.start || part.end <= *start)
        };
        let start = match wanted {
            Some(start) => Some(start).filter(|start| start.is_multiple_of(align)).filter(free),
            None => starts.filter_map(aligned).filter(free).min(),
        }?;
        let range = start..start + len;
        taken.push(range.clone());
        drop(taken);
        Some(Part { room: self.clone(), range })
    }
}

impl Part {
    /// The addresses.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.room.taken.lock().retain(|part| *part != self.range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_overlap_and_come_back() {
        let room = Room::new(100..1000);
        let first = room.take(200, 64, None).unwrap();
        assert_eq!(first.range(), 128..328);
        let second = room.take(100, 64, Some(384)).unwrap();
        assert_eq!(second.range(), 384..484);
        assert_eq!(room.take(100, 1, None).unwrap().range(), 484..584);
        for (len, align, wanted) in [(10, 64, Some(320)), (10, 64, Some(385)), (600, 1, None), (10, 1, Some(50))] {
            assert!(room.take(len, align, wanted).is_none(), "{len} {wanted:?}");
        }
        assert!(room.take(u64::MAX, 1, Some(500)).is_none());
        drop(first);
        assert_eq!(room.take(28, 1, None).unwrap().range(), 100..128);
        drop(second);
        assert_eq!(room.take(900, 1, None).unwrap().range(), 100..1000);
    }
}
