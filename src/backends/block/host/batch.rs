//! Several transfers of a file at once.

use std::io;

use super::super::io::total;
use super::super::{Direction, Transfer};
use super::{HostFile, MAX_BUFFERS};

impl HostFile {
    /// Does what it can of the transfers together. The others are done one by one, and so are those that went wrong, or not
    /// all the way, once more: doing one twice is doing it once, and the second time says what is wrong with it.
    pub(super) fn transfer_together(&self, transfers: &[Transfer]) -> Vec<io::Result<()>> {
        let mut is_done = vec![false; transfers.len()];
        if let Some(rings) = &self.rings {
            let (places, fit): (Vec<usize>, Vec<&Transfer>) =
                transfers.iter().enumerate().filter(|(_, transfer)| self.fits_ring(transfer)).unzip();
            // Held until all have ended, as for any request. Those that are done alone below take it for themselves.
            let whole = rings.run(&self.file.read(), &fit);
            for (place, whole) in places.into_iter().zip(whole) {
                is_done[place] = whole;
            }
        }
        let left = transfers.iter().zip(is_done);
        left.map(|(transfer, is_done)| if is_done { Ok(()) } else { transfer.alone(self) }).collect()
    }

    /// Whether the kernel takes a transfer as it is.
    fn fits_ring(&self, transfer: &Transfer) -> bool {
        let count = total(transfer.buffers);
        let range = match transfer.direction {
            Direction::Read => self.check(transfer.offset, count),
            Direction::Write => self.check_write(transfer.offset, count),
        };
        let is_aligned = |range| !self.options.direct || self.is_aligned(range, transfer.buffers);
        count > 0 && transfer.buffers.len() <= MAX_BUFFERS && range.as_ref().is_ok_and(is_aligned)
    }
}
