//! Where a device, or another node, holds on to while what is below it changes.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use vm_memory::VolatileSlice;

use super::io::{range_len, total};
use super::{BlockInfo, BlockNode, Direction, Extent, Transfer};

/// Changed parts are remembered in units of this many bytes.
pub const UNIT: u64 = 64 << 10;

/// A node that passes all requests on, to a node that can be exchanged.
pub struct Switch {
    /// Read-held by every request for as long as it runs; write-held while the node is exchanged, which so waits for all
    /// requests and keeps new ones waiting.
    to: RwLock<Arc<dyn BlockNode>>,
    /// What was changed since somebody asked to be told. Innermost.
    changed: Mutex<Option<Changed>>,
}

/// Units that were changed.
#[derive(Debug, Default)]
pub struct Changed(Vec<u64>);

impl Changed {
    /// Nothing yet, of a node of `len` bytes.
    fn new(len: u64) -> Changed {
        let units = usize::try_from(len.div_ceil(UNIT)).unwrap_or(usize::MAX);
        Changed(vec![0; units.div_ceil(64)])
    }

    fn mark(&mut self, offset: u64, count: u64) {
        if count == 0 {
            return;
        }
        for unit in offset / UNIT..=(offset + count - 1) / UNIT {
            if let Some(word) = self.0.get_mut((unit / 64) as usize) {
                *word |= 1 << (unit % 64);
            }
        }
    }

    /// How many units there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The units as ranges of a node of `len` bytes.
    pub fn ranges(&self, len: u64) -> impl Iterator<Item = Range<u64>> {
        let set = |(at, word): (usize, &u64)| {
            let word = *word;
            (0..64u64).filter(move |bit| word & 1 << bit != 0).map(move |bit| at as u64 * 64 + bit)
        };
        self.0.iter().enumerate().flat_map(set).map(move |unit| unit * UNIT..((unit + 1) * UNIT).min(len))
    }
}

impl Switch {
    /// A switch that leads to `to`.
    pub fn new(to: Arc<dyn BlockNode>) -> Switch {
        Switch { to: RwLock::new(to), changed: Mutex::new(None) }
    }

    /// Where it leads now.
    pub fn target(&self) -> Arc<dyn BlockNode> {
        self.to.read().clone()
    }

    /// Leads to what `exchange` makes of the present node, with no request under way; what was written before is on the
    /// medium. It stays as it was if `exchange` fails.
    pub fn exchange(
        &self,
        exchange: impl FnOnce(&Arc<dyn BlockNode>) -> io::Result<Arc<dyn BlockNode>>,
    ) -> io::Result<()> {
        let mut to = self.to.write();
        to.flush()?;
        *to = exchange(&to)?;
        Ok(())
    }

    /// Begins to remember what is changed, and says where the switch leads; `None` if somebody does already. Who exchanges
    /// the node meanwhile and is not the one who remembers, must not: see [`Switch::is_watched`].
    pub fn watch(&self) -> Option<Arc<dyn BlockNode>> {
        // With no request under way: one that has begun would be missed.
        let to = self.to.write();
        let mut changed = self.changed.lock();
        if changed.is_some() {
            return None;
        }
        *changed = Some(Changed::new(to.info().len));
        Some(to.clone())
    }

    /// Whether somebody remembers what is changed. Inside of [`Switch::exchange`] the answer stays true until its end.
    pub fn is_watched(&self) -> bool {
        self.changed.lock().is_some()
    }

    /// What was changed since the last call; goes on remembering.
    pub fn take_changed(&self) -> Changed {
        let len = self.to.read().info().len;
        self.changed.lock().replace(Changed::new(len)).unwrap_or_default()
    }

    /// The same inside of [`Switch::exchange`], where nothing more can change; the watch goes on, and ends with
    /// [`Switch::end_watch`].
    pub fn last_changed(&self) -> Changed {
        self.changed.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Remembers no more. For the one whom [`Switch::watch`] has let.
    pub fn end_watch(&self) {
        *self.changed.lock() = None;
    }

    /// Called when a change is done, before it is said to be: a copy that is made after the mark has it.
    fn mark(&self, offset: u64, count: u64) {
        if let Some(changed) = self.changed.lock().as_mut() {
            changed.mark(offset, count);
        }
    }
}

impl BlockNode for Switch {
    fn info(&self) -> BlockInfo {
        self.to.read().info()
    }

    fn read(&self, offset: u64, into: &[VolatileSlice]) -> io::Result<()> {
        self.to.read().read(offset, into)
    }

    fn write(&self, offset: u64, from: &[VolatileSlice]) -> io::Result<()> {
        let to = self.to.read();
        let done = to.write(offset, from);
        self.mark(offset, total(from));
        done
    }

    fn depth(&self) -> usize {
        self.to.read().depth()
    }

    fn transfer(&self, transfers: &[Transfer]) -> Vec<io::Result<()>> {
        let to = self.to.read();
        let done = to.transfer(transfers);
        for change in transfers.iter().filter(|transfer| transfer.direction == Direction::Write) {
            self.mark(change.offset, total(change.buffers));
        }
        done
    }

    fn flush(&self) -> io::Result<()> {
        self.to.read().flush()
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        let to = self.to.read();
        let done = to.discard(range.clone());
        self.mark(range.start, range_len(&range));
        done
    }

    fn write_zeroes(&self, range: Range<u64>, may_unmap: bool) -> io::Result<()> {
        let to = self.to.read();
        let done = to.write_zeroes(range.clone(), may_unmap);
        self.mark(range.start, range_len(&range));
        done
    }

    fn children(&self) -> Vec<Arc<str>> {
        self.to.read().children()
    }

    fn resize(&self, len: u64) -> io::Result<()> {
        self.to.read().resize(len)
    }

    fn set_writable(&self, writable: bool) -> io::Result<()> {
        self.to.read().set_writable(writable)
    }

    fn extent(&self, offset: u64, end: u64) -> io::Result<(Extent, u64)> {
        self.to.read().extent(offset, end)
    }

    fn filename(&self) -> Option<PathBuf> {
        self.to.read().filename()
    }

    fn backing(&self) -> Option<Arc<dyn BlockNode>> {
        self.to.read().backing()
    }

    fn switch(&self) -> Option<&Switch> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::io::{read_into, write_from};
    use super::super::testing::MemoryNode;
    use super::*;

    #[test]
    fn requests_go_where_it_leads() {
        let (first, second) = (Arc::new(MemoryNode::new(vec![1; 10])), Arc::new(MemoryNode::new(vec![2; 20])));
        let switch = Switch::new(first.clone());
        write_from(&switch, 0, &mut [9]).unwrap();
        switch.exchange(|_| Ok(second.clone())).unwrap();
        let mut byte = [0];
        read_into(&switch, 15, &mut byte).unwrap();
        assert_eq!((byte, first.bytes()[0], switch.info().len), ([2], 9, 20));
        assert!(switch.exchange(|_| Err(io::ErrorKind::Other.into())).is_err());
        assert_eq!(switch.info().len, 20);
    }

    #[test]
    fn what_changes_is_remembered() {
        let len = 200 * UNIT + 5;
        let switch = Switch::new(Arc::new(MemoryNode::new(vec![0; len as usize])));
        write_from(&switch, 0, &mut [1]).unwrap();
        assert!(switch.watch().is_some());
        assert!(switch.watch().is_none());
        write_from(&switch, UNIT - 1, &mut [1, 2]).unwrap();
        write_from(&switch, 200 * UNIT, &mut [1]).unwrap();
        switch.discard(64 * UNIT..65 * UNIT).unwrap();
        let changed = switch.take_changed();
        assert_eq!(changed.count(), 4);
        let ranges: Vec<_> = changed.ranges(len).collect();
        assert_eq!(ranges, [0..UNIT, UNIT..2 * UNIT, 64 * UNIT..65 * UNIT, 200 * UNIT..len]);
        switch.write_zeroes(0..1, true).unwrap();
        assert_eq!(switch.last_changed().count(), 1);
        switch.end_watch();
        write_from(&switch, 0, &mut [1]).unwrap();
        assert_eq!(switch.last_changed().count(), 0);
    }
}
