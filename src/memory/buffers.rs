//! Buffers of a request in guest memory, as one row of bytes.

use smallvec::SmallVec;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// Most parts that need no memory of their own: a small request, or a packet.
const INLINE: usize = 4;

/// Parts of guest memory, one after the other. Reading and writing consumes them from the front.
#[derive(Default)]
pub struct Buffers<'a> {
    slices: SmallVec<[VolatileSlice<'a>; INLINE]>,
    /// So many of `slices` are consumed.
    used: usize,
}

impl<'a> Buffers<'a> {
    /// Adds `len` bytes at a guest's address.
    ///
    /// # Errors
    /// What is wrong with it, for people: it is empty, or not all of it is in memory.
    pub fn push(&mut self, ram: &'a GuestMemoryMmap, addr: u64, len: u32) -> Result<(), String> {
        if len == 0 {
            return Err("an empty buffer".into());
        }
        // A buffer may lie across the border of two regions of RAM.
        for slice in ram.get_slices(GuestAddress(addr), len as usize) {
            let slice = slice.map_err(|_| format!("a buffer at {addr:#x}, {len:#x} bytes, that is not in memory"))?;
            self.slices.push(slice);
        }
        Ok(())
    }

    /// The parts.
    pub fn slices(&self) -> &[VolatileSlice<'a>] {
        &self.slices[self.used..]
    }

    /// Whether there is nothing left.
    pub fn is_empty(&self) -> bool {
        self.slices().is_empty()
    }

    /// Bytes in all. Whoever adds buffers bounds their number, and each is less than 4 GiB.
    pub fn len(&self) -> u64 {
        self.slices().iter().map(|slice| slice.len() as u64).sum()
    }

    /// Cuts off all behind the first `at` bytes, and gives it. Where there are fewer, that is nothing.
    pub fn split_off(&mut self, at: u64) -> Buffers<'a> {
        let mut rest = at;
        for index in self.used..self.slices.len() {
            let slice = self.slices[index];
            let len = slice.len() as u64;
            if rest < len {
                let mut behind: SmallVec<_> = self.slices.drain(index..).collect();
                // `rest` is less than the slice's length, so this splits.
                if let (true, Ok((before, after))) = (rest > 0, slice.split_at(rest as usize)) {
                    self.slices.push(before);
                    behind[0] = after;
                }
                return Buffers { slices: behind, used: 0 };
            }
            rest -= len;
        }
        Buffers::default()
    }

    /// Cuts off the last `count` bytes, and gives them; `None`, with nothing changed, if there are fewer.
    pub fn split_last(&mut self, count: u64) -> Option<Buffers<'a>> {
        let at = self.len().checked_sub(count)?;
        Some(self.split_off(at))
    }

    /// The next part of the row, `most` bytes at most; `None`: there is nothing left.
    fn next(&mut self, most: usize) -> Option<VolatileSlice<'a>> {
        let slice = *self.slices.get(self.used)?;
        if let Some((part, rest)) = slice.split_at(most).ok().filter(|(_, rest)| !rest.is_empty()) {
            self.slices[self.used] = rest;
            return Some(part);
        }
        self.used += 1;
        Some(slice)
    }

    /// Copies as many bytes as there are to the front of `data`, and says how many.
    pub fn read(&mut self, data: &mut [u8]) -> usize {
        let mut done = 0;
        while done < data.len()
            && let Some(slice) = self.next(data.len() - done)
        {
            done += slice.copy_to(&mut data[done..]);
        }
        done
    }

    /// Copies as many bytes of `data` as there is room for, and says how many.
    pub fn write(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        while done < data.len()
            && let Some(slice) = self.next(data.len() - done)
        {
            slice.copy_from(&data[done..done + slice.len()]);
            done += slice.len();
        }
        done
    }

    /// Reads exactly an array; `None` if there is less.
    pub fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut data = [0; N];
        (self.read(&mut data) == N).then_some(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::Bytes;

    /// Two regions side by side and one apart.
    fn ram() -> GuestMemoryMmap {
        let ranges = [(0, 0x1000), (0x1000, 0x1000), (0x8000, 0x1000)];
        let ranges = ranges.map(|(start, len)| (GuestAddress(start), len));
        GuestMemoryMmap::from_ranges(&ranges).unwrap()
    }

    fn buffers<'a>(ram: &'a GuestMemoryMmap, parts: &[(u64, u32)]) -> Result<Buffers<'a>, String> {
        let mut buffers = Buffers::default();
        parts.iter().try_for_each(|(at, len)| buffers.push(ram, *at, *len))?;
        Ok(buffers)
    }

    #[test]
    fn a_buffer_may_cross_from_region_to_region_and_not_leave_memory() {
        let ram = ram();
        assert_eq!(buffers(&ram, &[(0xffc, 8)]).unwrap().slices().len(), 2);
        for (at, len) in [(0x1ffc, 8), (0x7fff, 2), (0x2000, 1), (u64::MAX, 2), (0, u32::MAX), (0, 0)] {
            assert!(buffers(&ram, &[(at, len)]).is_err(), "{at:#x} {len:#x}");
        }
    }

    proptest! {
        #[test]
        fn splitting_keeps_every_byte(lens in prop::collection::vec(1u32..20, 0..6), at in 0u64..100) {
            let ram = ram();
            ram.write_slice(&(0..=255).collect::<Vec<u8>>(), GuestAddress(0xff0)).unwrap();
            let mut next = 0xff0;
            let parts: Vec<_> = lens.iter().map(|len| { next += u64::from(*len); (next - u64::from(*len), *len) }).collect();
            let mut front = buffers(&ram, &parts).unwrap();
            let total = front.len();
            let mut back = front.split_off(at);
            prop_assert_eq!((front.len(), back.len()), (at.min(total), total - at.min(total)));
            let mut data = vec![0; 200];
            let read = front.read(&mut data);
            let read = read + back.read(&mut data[read..]);
            prop_assert_eq!(read as u64, total);
            prop_assert!(data[..read].iter().enumerate().all(|(index, byte)| usize::from(*byte) == index));
            prop_assert!(front.is_empty() && back.is_empty());
        }

        #[test]
        fn what_is_written_from_the_back_is_read(lens in prop::collection::vec(1u32..20, 1..6), count in 0u64..30) {
            let ram = ram();
            let parts: Vec<_> = lens.iter().map(|len| (0x8000, *len)).collect();
            let mut all = buffers(&ram, &parts).unwrap();
            let total = all.len();
            match all.split_last(count) {
                Some(mut last) => {
                    prop_assert_eq!((all.len(), last.len()), (total - count, count));
                    prop_assert_eq!(last.write(&[7; 40]) as u64, count);
                }
                None => prop_assert!(count > total && all.len() == total),
            }
        }
    }
}
