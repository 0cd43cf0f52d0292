//! A transitional device with a driver from before virtio 1.0.

use super::*;
use crate::memory::{Backing, IoHandler};
use crate::object::OnOffAuto;

/// Size of the queues of the device, which the driver cannot choose.
const SIZE: u64 = 16;
/// Where the driver puts queues, in pages.
const PAGE: [u64; 2] = [4, 8];

struct Ports {
    driver: Driver,
    io: Arc<dyn IoHandler>,
}

fn ports(msix: Option<u16>) -> (Ports, Arc<Echo>) {
    let echo = Arc::new(Echo::default());
    let options = PciOptions { vectors: msix, disable_legacy: OnOffAuto::Off, ..PciOptions::default() };
    let driver = Driver::new(echo.clone(), &options);
    let content = driver.function.bar(0).unwrap();
    assert_eq!((content.kind, content.size), (BarKind::Io, 32));
    let Backing::Io { io, .. } = content.pieces[0].backing.clone() else { panic!("it is trapped") };
    (Ports { driver, io }, echo)
}

impl Ports {
    fn write(&self, at: u64, value: u64, len: usize) {
        self.io.write(at, &value.to_le_bytes()[..len]);
    }

    fn read(&self, at: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.io.read(at, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    /// Resets the device, puts its queues into memory and says that the driver is ready.
    fn start(&self, features: u64) {
        self.write(0x12, 0, 1);
        self.write(0x12, 3, 1);
        self.write(4, features, 4);
        for (queue, page) in PAGE.into_iter().enumerate() {
            self.driver.put(page << 12, &[0; 0x2000]);
            self.write(0xe, queue as u64, 2);
            assert_eq!(self.read(0xc, 2), SIZE);
            self.write(8, page, 4);
            assert_eq!(self.read(8, 4), page);
        }
        self.write(0x12, 7, 1);
    }

    /// One request in the first place of a queue's rings: what it reads, and room for the answer.
    fn echoes(&self, queue: usize) {
        let base = PAGE[queue] << 12;
        self.driver.put(0x20000, b"hello");
        self.driver.put(0x20100, &[0; 8]);
        for (at, (addr, len, flags, next)) in
            [(0x20000u64, 5u32, 1u16, 1u16), (0x20100, 8, 2, 0)].into_iter().enumerate()
        {
            let body =
                [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
            self.driver.put(base + 16 * at as u64, &body);
        }
        self.driver.put(base + 16 * SIZE, &[0, 0, 1, 0, 0, 0]);
        self.write(0x10, queue as u64, 2);
        self.driver.until(|driver| driver.read(base + 0x1000 + 2, 2) == 1);
        assert_eq!(self.driver.read(base + 0x1000 + 4, 8), 5 << 32);
        assert_eq!(self.driver.bytes(0x20100, 5), b"hello");
    }
}

#[test]
fn it_has_an_id_and_a_revision_of_its_own() {
    let (ports, _) = ports(None);
    let driver = &ports.driver;
    assert_eq!(driver.config_read(0), 0x1009_1af4);
    assert_eq!(driver.config_read(8) & 0xff, 0);
    assert_eq!(driver.config_read(0x2c), 0x0009_1af4);
    assert_eq!(driver.config_read(0x10) & 1, 1, "ports");
    driver.config_write(4, 7, 2);
    assert_eq!(driver.config_read(4) & 7, 7);
}

#[test]
fn a_legacy_driver_gets_its_requests_back() {
    let (ports, echo) = ports(Some(0));
    assert_eq!(ports.read(0, 4), 1 << 29 | 1 << 28 | 1 << 27 | 0b110);
    ports.start(0b110);
    ports.echoes(0);
    ports.echoes(1);
    ports.driver.until(|_| ports.read(0x13, 1) == 1);
    // Its own configuration space comes behind the registers.
    ports.write(0x14, 0x4433_2211, 4);
    assert_eq!((ports.read(0x14, 4), ports.read(0x18, 4)), (0x4433_2211, 0xffff_ffff));
    // A page 0 ends it.
    ports.write(8, 0, 4);
    assert_eq!((ports.read(0x12, 1), echo.worker.lock().is_none()), (0, true));
}

#[test]
fn a_driver_of_old_kicks_before_it_is_ready() {
    let (ports, _) = ports(None);
    ports.start(0);
    ports.write(0x12, 0, 1);
    ports.write(0x12, 3, 1);
    ports.driver.put(PAGE[0] << 12, &[0; 0x2000]);
    ports.write(8, PAGE[0], 4);
    ports.echoes(0);
}

#[test]
fn with_msix_there_are_vectors_before_the_configuration() {
    let (ports, _) = ports(None);
    ports.driver.enable_msix();
    ports.start(0);
    ports.write(0x14, 0, 2);
    ports.write(0xe, 1, 2);
    ports.write(0x16, 2, 2);
    ports.write(0x18, 0x55, 1);
    assert_eq!([ports.read(0x14, 2), ports.read(0x16, 2), ports.read(0x18, 1)], [0, 2, 0x55]);
    ports.echoes(1);
    ports.driver.until(|driver| driver.fired(2) == 1);
}

#[test]
fn the_modern_interface_can_be_left_out() {
    let options =
        PciOptions { disable_modern: true, disable_legacy: OnOffAuto::Off, vectors: Some(0), ..PciOptions::default() };
    let driver = Driver::new(Arc::new(Echo::default()), &options);
    assert!(driver.function.bar(4).is_none());
    assert!(driver.function.core().with(|config| config.capabilities()).iter().all(|(id, _)| *id != 9));
    assert!(driver.function.page_is_current());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// A driver writes what it likes to either interface and to its rings; the device works after a reset.
    #[test]
    fn a_hostile_driver_harms_nobody_but_itself(
        writes in prop::collection::vec((any::<bool>(), 0u64..0x20, any::<u64>(), 1usize..5), 0..60),
        content in prop::collection::vec(any::<u8>(), 0x1800),
    ) {
        let (ports, _) = ports(None);
        ports.start(0);
        ports.driver.put(PAGE[0] << 12, &content);
        for (legacy, at, value, len) in writes {
            match legacy {
                true => ports.write(at, value, len),
                false => ports.driver.write(COMMON + at, value, len),
            }
            ports.read(at, len);
        }
        ports.write(0x10, 0, 2);
        ports.start(0);
        ports.echoes(0);
    }
}
