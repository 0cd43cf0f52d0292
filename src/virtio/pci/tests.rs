mod legacy;

use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::virtio::testing::{COMMON, CONFIG, Driver, ISR, NOTIFY, RAM, rings};
use crate::virtio::{Activation, Serve, Served, Source, VirtQueue, VirtioInfo, Worker};

/// Copies what it reads to what it may write, in each of its two queues; its configuration space is four bytes.
#[derive(Default)]
struct Echo {
    config: Mutex<[u8; 4]>,
    worker: Mutex<Option<Worker>>,
    /// How often it began and stopped to run.
    activations: AtomicU32,
    interrupts: Mutex<Option<Arc<crate::virtio::Interrupts>>>,
}

struct Copy(Vec<Arc<VirtQueue>>);

impl Serve for Copy {
    fn ready(&mut self, source: usize) {
        self.0[source].drain(|mut chain| {
            let mut data = vec![0; chain.readable.len().min(0x1000) as usize];
            let len = chain.readable.read(&mut data);
            Served::Done(chain.writable.write(&data[..len]) as u32)
        });
    }
}

impl VirtioDevice for Echo {
    fn info(&self) -> VirtioInfo {
        VirtioInfo { device_type: 9, class: [0, 0xff, 0], features: 0b110, config_len: 4, queues: 2, queue_size: 16 }
    }
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        crate::virtio::read_bytes(&*self.config.lock(), offset, data);
    }
    fn write_config(&self, offset: usize, data: &[u8]) {
        self.config.lock()[offset..offset + data.len()].copy_from_slice(data);
    }
    fn activate(&self, run: Activation) -> Result<()> {
        self.activations.fetch_add(1, Ordering::Relaxed);
        *self.interrupts.lock() = Some(run.interrupts.clone());
        let queues: Vec<_> = run.queues.into_iter().flatten().collect();
        let sources = queues.iter().map(|queue| Source::Event(queue.kick().clone())).collect();
        *self.worker.lock() = Some(Worker::start("echo", sources, Copy(queues))?);
        Ok(())
    }
    fn deactivate(&self) {
        *self.worker.lock() = None;
    }
    fn reset(&self) {
        *self.config.lock() = [0; 4];
    }
}

fn driver() -> (Driver, Arc<Echo>) {
    let echo = Arc::new(Echo::default());
    (Driver::new(echo.clone(), &PciOptions::default()), echo)
}

fn echoes(driver: &mut Driver, queue: u16) {
    driver.put(0x20000, b"hello");
    driver.put(0x20100, &[0; 8]);
    assert_eq!(driver.request(queue, &[(0x20000, 5, false), (0x20100, 2, true), (0x20102, 6, true)]), 5);
    assert_eq!(driver.bytes(0x20100, 6), b"hello\0");
}

#[test]
fn the_header_and_the_capabilities_are_a_modern_devices() {
    let (driver, _) = driver();
    assert_eq!(driver.config_read(0), 0x1049_1af4);
    assert_eq!(driver.config_read(8), 0x00ff_0001);
    let found = driver.function.core().with(|config| config.capabilities());
    let ids: Vec<u8> = found.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [0x11, 9, 9, 9, 9, 9, 1, 0x10]);
    let kinds: Vec<u8> =
        found[1..6].iter().map(|(_, at)| driver.function.core().with(|config| config.u8(at + 3))).collect();
    assert_eq!(kinds, [1, 3, 4, 2, 5]);
    assert_eq!(driver.offered(), 1 << 32 | 1 << 29 | 1 << 28 | 0b110);
    assert_eq!((driver.read(COMMON + 0x12, 2), driver.read(CONFIG, 8)), (2, 0xffff_ffff_0000_0000));
}

#[test]
fn on_the_root_bus_and_without_vectors_there_is_less() {
    let bench = crate::pci::testing::Bench::new();
    let wiring =
        Wiring { id: "d".into(), on_root_bus: true, memory: bench.memory.clone(), router: bench.router.clone() };
    let options = PciOptions { vectors: Some(0), ..PciOptions::default() };
    let function = VirtioPci::new(Arc::new(Echo::default()), &options, wiring).unwrap();
    assert!(function.core().with(|config| config.capabilities()).iter().all(|(id, _)| *id == 9));
    assert!(function.bar(1).is_none() && function.bar(4).is_some());
}

#[test]
fn a_driver_gets_its_requests_back_with_an_interrupt_by_its_vector() {
    let (mut driver, _) = driver();
    driver.enable_msix();
    driver.negotiate(0);
    driver.enable(0, 1);
    driver.enable(1, 2);
    driver.driver_ok();
    echoes(&mut driver, 0);
    echoes(&mut driver, 0);
    echoes(&mut driver, 1);
    driver.until(|driver| driver.fired(2) == 1);
    assert_eq!(driver.fired(1), 2);
    assert_eq!((driver.fired(0), driver.read(ISR, 1)), (0, 0));
    // The driver's flag against interrupts.
    driver.write(rings(0)[1], 1, 2);
    echoes(&mut driver, 0);
    echoes(&mut driver, 1);
    driver.until(|driver| driver.fired(2) == 1);
    assert_eq!(driver.fired(1), 0);
}

#[test]
fn without_msix_the_pin_is_high_until_the_isr_is_read() {
    let (mut driver, echo) = driver();
    driver.start(0);
    driver.chip.take();
    echoes(&mut driver, 0);
    driver.until(|driver| driver.config_read(4) & 1 << 19 != 0);
    let gsi = driver.function.core().gsi().unwrap();
    assert_eq!(driver.chip.take(), [format!("level {gsi} true")]);
    // The command register's disable bit, there and back.
    driver.config_write(4, 0x406, 2);
    driver.config_write(4, 6, 2);
    assert_eq!(driver.chip.take(), [format!("level {gsi} false"), format!("level {gsi} true")]);
    assert_eq!([driver.read(ISR, 1), driver.read(ISR, 1)], [1, 0]);
    assert_eq!(driver.chip.take(), [format!("level {gsi} false")]);
    assert_eq!(driver.config_read(4) & 1 << 19, 0);
    let before = driver.read(COMMON + 0x15, 1);
    echo.interrupts.lock().as_ref().unwrap().config_changed();
    assert_eq!((driver.read(ISR, 1), driver.read(COMMON + 0x15, 1)), (2, before + 1));
}

#[test]
fn nothing_is_touched_without_bus_mastering_and_work_goes_on_with_it() {
    let (mut driver, echo) = driver();
    driver.start(0);
    echoes(&mut driver, 0);
    driver.config_write(4, 2, 2);
    driver.submit(0, &[(0x20000, 5, false), (0x20100, 8, true)]);
    driver.kick(0);
    assert!(echo.worker.lock().is_none());
    assert_eq!(driver.used_index(0), 1);
    driver.config_write(4, 6, 2);
    assert_eq!(driver.used(0).1, 5);
    // So with power state D3hot.
    let power = driver.capability(1);
    driver.config_write(power + 4, 3, 2);
    assert!(echo.worker.lock().is_none());
    driver.config_write(power + 4, 0, 2);
    echoes(&mut driver, 0);
    assert_eq!(echo.activations.load(Ordering::Relaxed), 3);
}

#[test]
fn a_reset_by_any_way_stops_the_device_and_forgets_the_driver() {
    type Way = fn(&Driver);
    let ways: [(Way, bool); 3] = [
        (|driver| driver.write(COMMON + 0x14, 0, 1), true),
        (|driver| driver.config_write(driver.capability(0x10) + 8, 0x8000, 2), false),
        (|driver| driver.function.reset(), false),
    ];
    let (mut driver, echo) = driver();
    for (reset, keeps_function) in ways {
        driver.start(0);
        driver.write(CONFIG, 0x0403_0201, 4);
        echoes(&mut driver, 1);
        reset(&driver);
        assert!(echo.worker.lock().is_none());
        assert_eq!(*echo.config.lock(), [0; 4]);
        if !keeps_function {
            assert_eq!(driver.function.core().command(), 0);
            driver.set_up_function();
        }
        assert_eq!(driver.status(), 0);
        driver.start(0);
        echoes(&mut driver, 1);
    }
}

#[test]
fn a_broken_ring_asks_for_a_reset_and_works_after_it() {
    let (mut driver, _) = driver();
    driver.enable_msix();
    driver.negotiate(0);
    driver.write(COMMON + 0x10, 0, 2);
    driver.enable(0, 1);
    driver.driver_ok();
    driver.submit(0, &[(RAM, 5, false)]);
    driver.kick(0);
    driver.until(|driver| driver.status() == 0x4f);
    driver.until(|driver| driver.fired(0) == 1);
    driver.kick(0);
    assert_eq!(driver.used_index(0), 0);
    driver.start(0);
    echoes(&mut driver, 0);
}

#[test]
fn a_queue_that_is_not_in_memory_is_told_at_once() {
    let (mut driver, echo) = driver();
    driver.negotiate(0);
    driver.enable(1, 0xffff);
    driver.write(COMMON + 0x16, 0, 2);
    driver.write(COMMON + 0x20, RAM, 8);
    driver.write(COMMON + 0x1c, 1, 2);
    driver.driver_ok();
    assert_eq!((driver.status(), echo.activations.load(Ordering::Relaxed)), (0x4f, 0));
}

#[test]
fn firmware_reaches_the_registers_through_configuration_space() {
    let (driver, _) = driver();
    let access = (0..)
        .map(|at| 0x40 + 4 * at)
        .find(|at| driver.config_read(*at) >> 24 == 5 && driver.config_read(*at) & 0xff == 9);
    let access = access.unwrap();
    assert!(driver.function.page_is_current());
    driver.config_write(access + 4, 4, 1);
    driver.config_write(access + 8, 0x14, 4);
    driver.config_write(access + 12, 1, 4);
    driver.config_write(access + 16, 3, 1);
    assert_eq!(driver.status(), 3);
    assert_eq!(driver.config_read(access + 16), 3);
    assert!(!driver.function.page_is_current(), "what the data say is not in the page");
    // No access: another BAR, a length that is none, an offset that is not a multiple of it, one between the blocks.
    for (bar, offset, length) in [(1, 0x14, 1), (4, 0x14, 3), (4, 0x15, 2), (4, 0x14, 0), (4, 0x800, 4)] {
        driver.config_write(access + 4, bar, 1);
        driver.config_write(access + 8, offset, 4);
        driver.config_write(access + 12, length, 4);
        driver.config_write(access + 16, 0, 4);
        assert_eq!(driver.status(), 3, "{bar} {offset:#x} {length}");
    }
}

#[test]
fn an_unplugged_device_does_nothing() {
    let (mut driver, echo) = driver();
    driver.start(0);
    driver.function.unplug();
    assert!(echo.worker.lock().is_none());
    driver.function.unplug();
    driver.config_write(4, 2, 2);
    driver.config_write(4, 6, 2);
    assert!(echo.worker.lock().is_none());
}

#[test]
fn nothing_of_an_unplugged_device_is_left() {
    let (mut driver, echo) = driver();
    driver.start(0);
    echoes(&mut driver, 0);
    let Driver { bench, function, .. } = driver;
    bench.slots.lock().clear();
    function.unplug();
    drop(function);
    assert_eq!(Arc::strong_count(&echo), 1, "its back end would never be free again");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// A driver writes what it likes to the registers of a device that runs, and to its rings; the device works after a
    /// reset.
    #[test]
    fn a_hostile_driver_harms_nobody_but_itself(
        writes in prop::collection::vec((prop_oneof![0u64..0x40, 0x1000u64..0x1004, 0x2000u64..0x2008, 0x3000u64..0x300c], any::<u64>(), 1usize..9), 0..40),
        rings_content in prop::collection::vec(any::<u8>(), 0x900),
    ) {
        let (mut driver, _) = driver();
        driver.start(0);
        driver.put(rings(0)[0], &rings_content);
        driver.kick(0);
        for (offset, value, len) in writes {
            driver.write(COMMON + offset, value, len);
        }
        driver.write(NOTIFY, 0, 2);
        driver.start(0);
        echoes(&mut driver, 0);
    }
}
