//! io_uring: many reads and writes of a file by one system call, which returns when all have ended.
//!
//! Memory is handed to the kernel by address here, which is why this is one of the few files with `unsafe`. What makes it
//! sound is that no request outlives the call it was made in: [`Rings::run`] borrows file and buffers, and returns only when
//! the kernel has ended everything that it took. So nothing has to be drained before memory is removed, a device unplugged
//! or the machine ended: whoever stops the thread that made the call waits for that anyway.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::types::Fd;
use io_uring::{IoUring, opcode};
use parking_lot::Mutex;

use super::super::io::total;
use super::super::{Direction, Transfer};
use crate::error::{Code, Error, Result, explain_io};

/// Most requests of one system call: a thread has so many under way.
pub const DEPTH: usize = 64;

/// The rings of a file: each caller has one for itself.
pub struct Rings {
    /// Those that nobody uses now. Held for a moment, with nothing inside.
    idle: Mutex<Vec<Ring>>,
}

impl Rings {
    /// Makes the first.
    ///
    /// # Errors
    /// [`Code::NoIoUring`].
    pub fn new() -> Result<Rings> {
        let first = Ring::new().map_err(|error| {
            Error::new(Code::NoIoUring, "the kernel gives us no io_uring")
                .evidence(format!("io_uring_setup: {}", explain_io(&error)))
                .fix("write aio=threads, or leave aio= out")
        })?;
        Ok(Rings { idle: Mutex::new(vec![first]) })
    }

    /// Does the transfers in whatever order, and says of each whether all its bytes were moved. Where that is not so, some
    /// may have been.
    pub fn run(&self, file: &File, transfers: &[&Transfer]) -> Vec<bool> {
        let idle = self.idle.lock().pop();
        // Where no further descriptor is to be had nothing is moved here.
        let mut ring = idle.or_else(|| Ring::new().ok());
        let mut whole = Vec::with_capacity(transfers.len());
        for part in transfers.chunks(DEPTH) {
            ring = match ring {
                Some(ring) => ring.run(file, part, &mut whole),
                None => {
                    whole.extend(part.iter().map(|_| false));
                    None
                }
            }
        }
        self.idle.lock().extend(ring);
        whole
    }
}

/// A ring that has no request under way, nor one that waits to be taken.
struct Ring(IoUring);

impl Ring {
    fn new() -> io::Result<Ring> {
        IoUring::builder().dontfork().build(DEPTH as u32).map(Ring)
    }

    /// Does at most [`DEPTH`] transfers, and adds to `whole` which were done. Gives the ring back if it is as it was.
    fn run(mut self, file: &File, transfers: &[&Transfer], whole: &mut Vec<bool>) -> Option<Ring> {
        // Both live to the end of this function.
        let guards: Vec<_> =
            transfers.iter().flat_map(|transfer| transfer.buffers).map(|slice| slice.ptr_guard_mut()).collect();
        let iovecs: Vec<libc::iovec> =
            guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }).collect();
        let mut moved = vec![None; transfers.len()];
        let (mut queue, mut rest, mut pushed) = (self.0.submission(), &iovecs[..], 0);
        for (index, transfer) in transfers.iter().enumerate() {
            let (own, others) = rest.split_at(transfer.buffers.len());
            rest = others;
            let (fd, count) = (Fd(file.as_raw_fd()), own.len() as u32);
            let entry = match transfer.direction {
                Direction::Read => opcode::Readv::new(fd, own.as_ptr(), count).offset(transfer.offset).build(),
                Direction::Write => opcode::Writev::new(fd, own.as_ptr(), count).offset(transfer.offset).build(),
            };
            // SAFETY: the file is borrowed, the iovecs are this function's own, and what they point to is memory that the
            // volatile slices borrow, in which others may read and write at any time. All three outlive this call. It neither
            // returns nor panics before `settle` has seen the end of every entry that the kernel has taken, and a ring with an
            // entry that it has not taken is closed, not used again.
            if unsafe { queue.push(&entry.user_data(index as u64)) }.is_err() {
                break;
            }
            pushed += 1;
        }
        drop(queue);
        let is_clean = self.settle(pushed, &mut moved);
        let all = |transfer: &Transfer, moved: Option<i32>| {
            moved.is_some_and(|moved| total(transfer.buffers) == moved as u64)
        };
        whole.extend(transfers.iter().zip(moved).map(|(transfer, moved)| all(transfer, moved)));
        is_clean.then_some(self)
    }

    /// Returns when the kernel has ended all of `left` entries, or takes no more and has ended those that it took: then it says
    /// no. `moved` has their results.
    fn settle(&mut self, mut left: usize, moved: &mut [Option<i32>]) -> bool {
        while left > 0 {
            match self.0.submit_and_wait(left) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if self.0.submission().len() == left => return false,
                // Those that it has taken end all the same, and are seen below.
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
            for ended in self.0.completion() {
                if let Some(moved) = usize::try_from(ended.user_data()).ok().and_then(|index| moved.get_mut(index)) {
                    *moved = Some(ended.result());
                }
                left = left.saturating_sub(1);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::VolatileSlice;

    use super::*;

    /// What was moved, by a ring that is used for more than fits into it.
    #[test]
    fn everything_is_moved_and_what_ends_short_is_told() {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..200 * 512).map(|at| (at / 512) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        let Ok(rings) = Rings::new() else { return };
        let mut memory = vec![0xee; 201 * 512];
        let slices: Vec<[VolatileSlice; 2]> = memory
            .chunks_mut(512)
            .map(|block| {
                let (front, back) = block.split_at_mut(100);
                [VolatileSlice::from(front), VolatileSlice::from(back)]
            })
            .collect();
        // Backwards, and one behind the end.
        let transfers: Vec<Transfer> = slices
            .iter()
            .enumerate()
            .map(|(index, buffers)| Transfer {
                direction: Direction::Read,
                offset: (200 - index as u64) * 512,
                buffers,
            })
            .collect();
        let whole = rings.run(&file, &transfers.iter().collect::<Vec<_>>());
        assert_eq!(whole.iter().position(|whole| !whole), Some(0));
        assert_eq!(whole.iter().filter(|whole| **whole).count(), 200);
        assert!(memory[512..].chunks(512).enumerate().all(|(index, block)| block == [199 - index as u8; 512]));
        assert_eq!(rings.idle.lock().len(), 1);
    }

    /// What cannot be done by the descriptor is told, and the ring is used again.
    #[test]
    fn a_refused_request_leaves_the_ring_as_it_was() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let readable = File::open(file.path()).unwrap();
        let Ok(rings) = Rings::new() else { return };
        let mut memory = [7; 512];
        let buffers = [VolatileSlice::from(&mut memory[..])];
        let write = Transfer { direction: Direction::Write, offset: 0, buffers: &buffers };
        assert_eq!(rings.run(&readable, &[&write, &write]), [false, false]);
        assert_eq!(rings.run(file.as_file(), &[&write]), [true]);
        assert_eq!(std::fs::read(file.path()).unwrap(), [7; 512]);
        assert_eq!(rings.idle.lock().len(), 1);
    }
}
