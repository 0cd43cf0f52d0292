//! [`Memory`]: the published map, its transactions and its listeners.

use std::ops::Range;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::flat::{self, FlatRange, FlatView};
use super::{Backing, Layout, MemoryListener, Space, Stage};
use crate::error::Result;

/// The guest's two address spaces as vCPUs see them.
pub struct Memory {
    mmio: ArcSwap<FlatView>,
    pio: ArcSwap<FlatView>,
    state: Mutex<State>,
}

/// Protected by `Memory::state`, which the rest of the code calls the layout lock.
#[derive(Default)]
struct State {
    layout: Layout,
    next_listener: u64,
    /// In ascending order of the stages.
    listeners: Vec<(u64, Stage, Arc<dyn MemoryListener>)>,
}

/// A listener's registration. Dropping it tells the listener that every range is gone, then forgets it.
pub struct Listening {
    memory: Weak<Memory>,
    id: u64,
}

impl Memory {
    /// Two empty spaces.
    pub fn new() -> Arc<Memory> {
        Arc::new(Memory {
            mmio: ArcSwap::from_pointee(FlatView::default()),
            pio: ArcSwap::from_pointee(FlatView::default()),
            state: Mutex::new(State::default()),
        })
    }

    /// Changes the layout in one transaction: one difference, one notification.
    ///
    /// Vanished ranges are taken from the listeners first, then the new view is published, then new ranges are added.
    ///
    /// # Errors
    /// The first listener's refusal of a new range; the layout, the view and the listeners are then as before.
    pub fn update<R>(&self, edit: impl FnOnce(&mut Layout) -> R) -> Result<R> {
        self.edit(&mut self.state.lock(), edit)
    }

    /// [`Memory::update`] of what is in use as soon as this returns: no listener puts off what it does about a new range, and
    /// so each can refuse it.
    ///
    /// # Errors
    /// As [`Memory::update`].
    pub fn update_at_once<R>(&self, edit: impl FnOnce(&mut Layout) -> R) -> Result<R> {
        let mut state = self.state.lock();
        state.listeners.iter().for_each(|(_, _, listener)| listener.at_once(true));
        let result = self.edit(&mut state, edit);
        state.listeners.iter().for_each(|(_, _, listener)| listener.at_once(false));
        result
    }

    fn edit<R>(&self, state: &mut State, edit: impl FnOnce(&mut Layout) -> R) -> Result<R> {
        let before = state.layout.clone();
        let result = edit(&mut state.layout);
        match self.apply(state) {
            Ok(()) => Ok(result),
            Err(error) => {
                state.layout = before;
                if let Err(again) = self.apply(state) {
                    // What was mapped a moment ago is refused now: the guest loses that range, the host is unharmed.
                    crate::log::warn(format_args!("a change of the memory map could not be undone: {again}"));
                }
                Err(error)
            }
        }
    }

    /// Brings the published views and the listeners to what `state.layout` says. After an error both know exactly the
    /// ranges that the old and the new view have in common.
    fn apply(&self, state: &mut State) -> Result<()> {
        let pio = state.layout.flatten(Space::Pio);
        if pio != self.pio.load().ranges() {
            self.pio.store(Arc::new(FlatView::new(pio)));
        }
        let old = self.mmio.load_full();
        let new = state.layout.flatten(Space::Mmio);
        if new == old.ranges() {
            return Ok(());
        }
        for range in flat::difference(old.ranges(), &new) {
            state.withdraw(range, state.listeners.len());
        }
        let view = Arc::new(FlatView::new(new));
        self.mmio.store(view.clone());
        let added = flat::difference(view.ranges(), old.ranges());
        for (index, range) in added.iter().enumerate() {
            if let Err(error) = state.announce(range) {
                for range in &added[..index] {
                    state.withdraw(range, state.listeners.len());
                }
                let kept = view.ranges().iter().filter(|range| !added.contains(range)).cloned().collect();
                self.mmio.store(Arc::new(FlatView::new(kept)));
                return Err(error);
            }
        }
        for (_, _, listener) in &state.listeners {
            listener.commit(&view);
        }
        Ok(())
    }

    /// Registers a listener and announces to it every range that there is. On an error it is told that those which it
    /// took are gone, and is not registered.
    pub fn listen(self: &Arc<Self>, stage: Stage, listener: Arc<dyn MemoryListener>) -> Result<Listening> {
        let mut state = self.state.lock();
        let view = self.mmio.load_full();
        for (index, range) in view.ranges().iter().enumerate() {
            if let Err(error) = listener.add(range) {
                view.ranges()[..index].iter().rev().for_each(|range| listener.remove(range));
                return Err(error);
            }
        }
        listener.commit(&view);
        let id = state.next_listener;
        state.next_listener += 1;
        let at = state.listeners.partition_point(|(_, other, _)| *other <= stage);
        state.listeners.insert(at, (id, stage, listener));
        Ok(Listening { memory: Arc::downgrade(self), id })
    }

    /// The current view of a space.
    pub fn view(&self, space: Space) -> Arc<FlatView> {
        self.published(space).load_full()
    }

    fn published(&self, space: Space) -> &ArcSwap<FlatView> {
        match space {
            Space::Mmio => &self.mmio,
            Space::Pio => &self.pio,
        }
    }

    /// A vCPU's read that KVM could not answer. What no region covers reads as ones.
    pub fn read(&self, space: Space, addr: u64, data: &mut [u8]) {
        let view = self.published(space).load();
        split(&view, addr, data.len(), |range, part, offset| {
            let Some(data) = data.get_mut(part) else { return };
            match range.map(|range| &range.backing) {
                None => data.fill(0xff),
                Some(Backing::Io { io, offset: first }) => io.read(first + offset, data),
                Some(backing) => {
                    if let Some(mem) = backing.host() {
                        mem.read(offset, data);
                    }
                }
            }
        });
    }

    /// A vCPU's write that KVM could not answer. What no region covers, and ROM, ignore it.
    pub fn write(&self, space: Space, addr: u64, data: &[u8]) {
        let view = self.published(space).load();
        split(&view, addr, data.len(), |range, part, offset| {
            let Some(data) = data.get(part) else { return };
            match range.map(|range| &range.backing) {
                None | Some(Backing::Rom(_)) => {}
                Some(Backing::Io { io, offset: first } | Backing::RomDevice { io, offset: first, .. }) => {
                    io.write(first + offset, data);
                }
                Some(Backing::Ram(mem) | Backing::Device(mem) | Backing::Shared(mem)) => mem.write(offset, data),
            }
        });
    }
}

impl State {
    fn announce(&self, range: &FlatRange) -> Result<()> {
        for (told, (_, _, listener)) in self.listeners.iter().enumerate() {
            if let Err(error) = listener.add(range) {
                self.withdraw(range, told);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Tells the first `told` listeners, last one first, that the range is gone.
    fn withdraw(&self, range: &FlatRange, told: usize) {
        for (_, _, listener) in self.listeners.iter().take(told).rev() {
            listener.remove(range);
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let Some(memory) = self.memory.upgrade() else { return };
        let mut state = memory.state.lock();
        let Some(index) = state.listeners.iter().position(|(id, _, _)| *id == self.id) else { return };
        let (_, _, listener) = state.listeners.remove(index);
        for range in memory.mmio.load().ranges().iter().rev() {
            listener.remove(range);
        }
    }
}

/// Cuts an access at the borders of ranges: `each` gets the range (or none), the bytes of the access, and the offset in
/// the range. Nearly every access is one piece.
fn split(view: &FlatView, addr: u64, len: usize, mut each: impl FnMut(Option<&FlatRange>, Range<usize>, u64)) {
    let mut done = 0;
    while done < len {
        let Some(at) = addr.checked_add(done as u64) else { return each(None, done..len, 0) };
        let range = view.find(at);
        let border = match range {
            Some(range) => Some(range.end()),
            None => view.next_start(at),
        };
        let room = border.map_or(len - done, |border| usize::try_from(border - at).unwrap_or(usize::MAX));
        let part = done..len.min(done.saturating_add(room));
        done = part.end;
        each(range, part, range.map_or(0, |range| at - range.start));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{IoHandler, Region};
    use super::*;
    use crate::error::{Code, Error};

    /// Remembers what it was told; refuses ranges of one name.
    #[derive(Default)]
    struct Recorder {
        told: Mutex<Vec<String>>,
        known: Mutex<Vec<(u64, u64)>>,
        refuses: Option<&'static str>,
    }

    impl Recorder {
        fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.told.lock())
        }
    }

    impl MemoryListener for Recorder {
        fn remove(&self, range: &FlatRange) {
            self.told.lock().push(format!("-{}", range.name));
            let mut known = self.known.lock();
            let index = known.iter().position(|&known| known == (range.start, range.len)).expect("was announced");
            known.remove(index);
        }

        fn add(&self, range: &FlatRange) -> Result<()> {
            if self.refuses == Some(&*range.name) {
                return Err(Error::new(Code::DmaFailed, "refused"));
            }
            self.told.lock().push(format!("+{}", range.name));
            self.known.lock().push((range.start, range.len));
            Ok(())
        }
    }

    struct Echo;
    impl IoHandler for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, _: u64, _: &[u8]) {}
    }

    fn io(name: &str, len: u64) -> Region {
        Region::whole(name, len, 0, Backing::io(Arc::new(Echo)))
    }

    #[test]
    fn a_transaction_tells_only_the_difference() {
        let memory = Memory::new();
        let recorder = Arc::new(Recorder::default());
        let _listening = memory.listen(Stage::Guest, recorder.clone()).unwrap();
        let a = memory.update(|layout| layout.add(Space::Mmio, 0, io("a", 16))).unwrap();
        assert_eq!(recorder.take(), ["+a"]);
        memory
            .update(|layout| {
                layout.remove(a);
                layout.add(Space::Mmio, 32, io("b", 16));
            })
            .unwrap();
        assert_eq!(recorder.take(), ["-a", "+b"]);
        memory.update(|layout| layout.add(Space::Pio, 32, io("port", 16))).unwrap();
        assert!(recorder.take().is_empty(), "ports are no memory");
    }

    #[test]
    fn a_refusal_undoes_the_whole_transaction() {
        let memory = Memory::new();
        let first = Arc::new(Recorder::default());
        let second = Arc::new(Recorder { refuses: Some("bad"), ..Recorder::default() });
        let _first = memory.listen(Stage::Guest, first.clone()).unwrap();
        let _second = memory.listen(Stage::Dma, second.clone()).unwrap();
        let old = memory.update(|layout| layout.add(Space::Mmio, 0, io("old", 16))).unwrap();
        let refused = memory.update(|layout| {
            layout.remove(old);
            layout.add(Space::Mmio, 64, io("good", 16));
            layout.add(Space::Mmio, 128, io("bad", 16));
        });
        assert_eq!(refused.unwrap_err().code(), Code::DmaFailed);
        assert_eq!(*first.known.lock(), [(0, 16)]);
        assert_eq!(*second.known.lock(), [(0, 16)]);
        let view = memory.view(Space::Mmio);
        assert_eq!(view.ranges().iter().map(|range| &*range.name).collect::<Vec<_>>(), ["old"]);
    }

    #[test]
    fn listeners_are_told_in_the_order_of_their_stages() {
        #[derive(Clone)]
        struct Tagged(&'static str, Arc<Mutex<Vec<String>>>);
        impl MemoryListener for Tagged {
            fn remove(&self, _: &FlatRange) {
                self.1.lock().push(format!("-{}", self.0));
            }
            fn add(&self, _: &FlatRange) -> Result<()> {
                self.1.lock().push(format!("+{}", self.0));
                Ok(())
            }
        }
        let log = Arc::new(Mutex::new(Vec::new()));
        let memory = Memory::new();
        let _dma = memory.listen(Stage::Dma, Arc::new(Tagged("dma", log.clone()))).unwrap();
        let _kvm = memory.listen(Stage::Guest, Arc::new(Tagged("kvm", log.clone()))).unwrap();
        let id = memory.update(|layout| layout.add(Space::Mmio, 0, io("a", 16))).unwrap();
        memory.update(|layout| layout.remove(id)).unwrap();
        assert_eq!(*log.lock(), ["+kvm", "+dma", "-dma", "-kvm"]);
    }

    #[test]
    fn listening_replays_the_map_and_its_end_replays_the_removals() {
        let memory = Memory::new();
        memory.update(|layout| layout.add(Space::Mmio, 0, io("a", 16))).unwrap();
        let recorder = Arc::new(Recorder::default());
        let listening = memory.listen(Stage::Dma, recorder.clone()).unwrap();
        assert_eq!(recorder.take(), ["+a"]);
        drop(listening);
        assert_eq!(recorder.take(), ["-a"]);
        memory.update(|layout| layout.add(Space::Mmio, 32, io("b", 16))).unwrap();
        assert!(recorder.take().is_empty());
    }

    #[test]
    fn accesses_are_cut_at_borders_and_holes_read_as_ones() {
        let memory = Memory::new();
        memory.update(|layout| layout.add(Space::Mmio, 2, io("a", 4))).unwrap();
        let mut data = [9; 8];
        memory.read(Space::Mmio, 0, &mut data);
        assert_eq!(data, [0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff]);
        memory.read(Space::Mmio, u64::MAX - 3, &mut data);
        assert_eq!(data, [0xff; 8]);
        memory.write(Space::Mmio, u64::MAX - 3, &data);
    }
}
