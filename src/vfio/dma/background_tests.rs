//! RAM that is mapped by the thread, against an IOMMU that answers when the test says so.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use parking_lot::Mutex;

use super::super::seams::{DmaLimits, DmaMapper};
use super::super::testing::MapRecorder;
use super::tests::{bar, host, ram};
use super::*;
use crate::error::Code;
use crate::memory::{Listening, Memory, Space, Stage};

const GIB: u64 = 1 << 30;

/// Says which address it is asked to map, and waits for the answer: an errno, or 0.
struct Slow {
    recorder: MapRecorder,
    entered: Mutex<Sender<u64>>,
    answer: Mutex<Receiver<i32>>,
}

impl DmaMapper for Slow {
    fn map(&self, iova: u64, host: HostSlice, writable: bool) -> io::Result<()> {
        let _ = self.entered.lock().send(iova);
        match self.answer.lock().recv().unwrap_or(libc::ECANCELED) {
            0 => self.recorder.map(iova, host, writable),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        self.recorder.unmap(iova, len)
    }

    fn limits(&self) -> Result<DmaLimits> {
        self.recorder.limits()
    }
}

struct Setup {
    memory: Arc<Memory>,
    slow: Arc<Slow>,
    entered: Receiver<u64>,
    answer: Sender<i32>,
    told: Receiver<()>,
    dma: Arc<DmaSpace>,
    listening: Option<Listening>,
}

impl Setup {
    fn with(recorder: MapRecorder) -> Setup {
        let (entered_in, entered) = channel();
        let (answer, answer_out) = channel();
        let (sink, told) = channel();
        let slow = Slow { recorder, entered: Mutex::new(entered_in), answer: Mutex::new(answer_out) };
        let (memory, slow, sink) = (Memory::new(), Arc::new(slow), Mutex::new(sink));
        let tell = move || sink.lock().send(()).unwrap_or_default();
        let pinning = Pinning { threads: 0, gently: true, background: Some(Arc::new(tell)) };
        let dma = Arc::new(DmaSpace::with(slow.clone(), pinning));
        let listening = Some(memory.listen(Stage::Dma, dma.clone()).unwrap());
        Setup { memory, slow, entered, answer, told, dma, listening }
    }

    /// With 3 GiB of RAM from 0, of which the first piece is being mapped.
    fn pinning() -> Setup {
        let s = Setup::with(MapRecorder::default());
        s.memory.update(|layout| layout.add(Space::Mmio, 0, ram(3 * GIB))).unwrap();
        assert_eq!(s.entered.recv().unwrap(), 0);
        assert_eq!(s.slow.recorder.take(), ["limits"]);
        s
    }

    fn let_all_pass(&self, requests: usize) {
        for _ in 0..requests {
            self.answer.send(0).unwrap();
        }
        while self.dma.shared.state.lock().working {
            std::thread::yield_now();
        }
    }
}

#[test]
fn ram_is_mapped_piece_by_piece_and_opens_the_gate() {
    let s = Setup::pinning();
    assert!(!s.dma.gate().is_open());
    let gate = s.dma.gate().clone();
    let waiter = std::thread::spawn(move || gate.wait());
    s.let_all_pass(3);
    assert!(waiter.join().unwrap() && s.dma.gate().is_open());
    s.told.recv().unwrap();
    let pieces = ["map 0x0+0x40000000 rw", "map 0x40000000+0x40000000 rw", "map 0x80000000+0x40000000 rw"];
    assert_eq!(s.slow.recorder.take(), pieces);
    drop(s.listening);
    let pieces = ["unmap 0x80000000+0x40000000", "unmap 0x40000000+0x40000000", "unmap 0x0+0x40000000"];
    assert_eq!(s.slow.recorder.take(), pieces, "by the same pieces");
}

#[test]
fn bars_queue_behind_all_ram_and_nobody_waits_for_them() {
    let s = Setup::pinning();
    s.dma.set_devices(2);
    let (first, second) = (host(0x4000), host(0x8000));
    let place = |at, mem: &Arc<HostMem>| {
        let region = bar(mem);
        s.memory.update(|layout| layout.add(Space::Mmio, at, region)).unwrap()
    };
    place(0xc000_0000, &first);
    let moved = place(0xc010_0000, &second);
    s.memory.update(|layout| layout.add(Space::Mmio, 4 * GIB, ram(0x1000))).unwrap();
    // The guest moves it while it is queued: only the last place is mapped.
    s.memory.update(|layout| layout.remove(moved)).unwrap();
    place(0xc020_0000, &second);
    assert!(s.slow.recorder.take().is_empty());
    s.let_all_pass(6);
    let calls = s.slow.recorder.take();
    assert_eq!(
        calls[1..],
        [
            "map 0x40000000+0x40000000 rw",
            "map 0x80000000+0x40000000 rw",
            "map 0x100000000+0x1000 rw",
            "map 0xc0000000+0x4000 rw",
            "map 0xc0200000+0x8000 rw"
        ]
    );
    s.dma.set_devices(1);
    assert_eq!(s.slow.recorder.take(), ["unmap 0xc0000000+0x4000", "unmap 0xc0200000+0x8000"]);
}

#[test]
fn a_bar_that_nobody_may_reach_any_more_leaves_the_queue() {
    let s = Setup::pinning();
    s.dma.set_devices(2);
    s.memory.update(|layout| layout.add(Space::Mmio, 0xc000_0000, bar(&host(0x4000)))).unwrap();
    s.dma.set_devices(1);
    s.let_all_pass(3);
    assert_eq!(s.dma.mappings(), 3);
    assert_eq!(s.slow.recorder.take().len(), 3);
}

#[test]
fn what_is_removed_is_cancelled_or_waited_for() {
    let mut s = Setup::pinning();
    let (dma, answer) = (s.dma.clone(), s.answer.clone());
    let listening = s.listening.take();
    let remover = std::thread::spawn(move || drop(listening));
    // It waits for the piece that the kernel is at.
    while !dma.shared.abandoned.load(Ordering::Relaxed) {
        std::thread::yield_now();
    }
    answer.send(0).unwrap();
    remover.join().unwrap();
    s.told.recv().unwrap();
    assert_eq!(s.slow.recorder.take(), ["map 0x0+0x40000000 rw", "unmap 0x0+0x40000000"]);
    assert_eq!(s.dma.mappings(), 0);
    assert!(s.dma.gate().is_open(), "nothing is missing any more");
}

#[test]
fn the_end_of_the_space_joins_the_thread() {
    let mut s = Setup::pinning();
    // Not told that the ranges are gone: the layout went first.
    drop(std::mem::replace(&mut s.memory, Memory::new()));
    s.listening = None;
    for _ in 0..3 {
        s.answer.send(0).unwrap();
    }
    let shared = Arc::downgrade(&s.dma.shared);
    drop(s.dma);
    assert_eq!(shared.strong_count(), 0);
}

#[test]
fn a_refusal_ends_the_guest_with_the_code_of_a_start_without_the_thread() {
    for (errno, code) in [(libc::ENOSPC, Code::DmaLimit), (libc::EFAULT, Code::DmaFailed)] {
        let s = Setup::pinning();
        s.answer.send(0).unwrap();
        assert_eq!(s.entered.recv().unwrap(), GIB);
        s.answer.send(errno).unwrap();
        s.told.recv().unwrap();
        let error = s.dma.gate().outcome().unwrap().unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains("0x40000000-0x7fffffff"), "{error}");
        assert!(!s.dma.gate().wait(), "closed, and nobody waits for ever");
        assert_eq!(s.slow.recorder.take().len(), 1, "the rest is not asked for");
        drop(s.listening);
        assert_eq!(s.slow.recorder.take(), ["unmap 0x0+0x40000000"]);
    }
}

#[test]
fn what_can_be_known_before_is_said_before() {
    let s = Setup::with(MapRecorder { available: Some(2), ..MapRecorder::default() });
    for (at, len, code) in [(0xfe00_0000, 2 * GIB, Code::ReservedIova), (4 * GIB, 3 * GIB, Code::DmaLimit)] {
        let error = s.memory.update(|layout| layout.add(Space::Mmio, at, ram(len))).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    assert!(s.dma.gate().is_open() && s.entered.try_recv().is_err(), "the kernel was not asked");
    s.memory.update(|layout| layout.add(Space::Mmio, 4 * GIB, ram(2 * GIB))).unwrap();
    s.let_all_pass(2);
    assert_eq!(s.dma.mappings(), 2);
}

#[test]
fn a_group_that_joins_meanwhile_does_not_count_queued_ram_twice() {
    let s = Setup::with(MapRecorder { available: Some(4), ..MapRecorder::default() });
    s.memory.update(|layout| layout.add(Space::Mmio, 0, ram(2 * GIB))).unwrap();
    s.dma.group_joined();
    // Of four that are left, two are promised.
    let refused = s.memory.update(|layout| layout.add(Space::Mmio, 4 * GIB, ram(3 * GIB)));
    assert_eq!(refused.unwrap_err().code(), Code::DmaLimit);
    s.memory.update(|layout| layout.add(Space::Mmio, 4 * GIB, ram(2 * GIB))).unwrap();
    s.let_all_pass(4);
}
