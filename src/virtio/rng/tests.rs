use std::io::Write;

use super::*;
use crate::virtio::pci::PciOptions;
use crate::virtio::testing::Driver;

fn file(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

fn driver(content: &[u8], max_bytes: Option<u64>, period: Duration) -> Driver {
    let source = Arc::new(entropy::open(file(content).path()).unwrap());
    let rng = Rng::new("rng0".into(), source, Quota::new(max_bytes, period), None);
    let mut driver = Driver::new(rng, &PciOptions::default());
    driver.start(0);
    driver
}

#[test]
fn the_guest_gets_what_the_source_gives() {
    let mut driver = driver(b"random numbers", None, Duration::from_secs(1));
    assert_eq!(driver.request(0, &[(0x20000, 4, true), (0x20010, 3, true)]), 7);
    assert_eq!(driver.bytes(0x20000, 4), b"rand");
    assert_eq!(driver.bytes(0x20010, 3), b"om ");
    assert_eq!(driver.request(0, &[(0x20000, 16, true)]), 7, "a short answer");
    assert_eq!(driver.bytes(0x20000, 7), b"numbers");
    // A buffer that the device only reads is answered and not touched.
    assert_eq!(driver.request(0, &[(0x20000, 7, false)]), 0);
    assert_eq!(driver.bytes(0x20000, 7), b"numbers");
}

#[test]
fn a_huge_request_gets_a_part() {
    let mut driver = driver(&vec![7; 200_000], None, Duration::from_secs(1));
    assert_eq!(driver.request(0, &[(0x20000, 100_000, true)]), MAX_REQUEST as u32);
}

#[test]
fn a_source_that_is_not_there_is_an_error() {
    let error = entropy::open(Path::new("/nonexistent/random")).err().unwrap();
    assert_eq!(error.code(), Code::FileUnusable);
}

#[test]
fn a_quota_lasts_for_its_period() {
    let start = Instant::now();
    let period = Duration::from_secs(10);
    let mut quota = Quota { max: 100, left: 100, period, end: None };
    assert_eq!([quota.take(60, start), quota.take(60, start), quota.take(60, start)], [60, 40, 0]);
    assert_eq!(quota.end, Some(start + period));
    assert_eq!(quota.take(60, start + period - Duration::from_nanos(1)), 0);
    assert_eq!(quota.take(60, start + period), 60);
    assert_eq!((quota.left, quota.end), (40, Some(start + 2 * period)));
    quota.refresh(start + 3 * period);
    assert_eq!((quota.left, quota.end), (100, None));
}

#[test]
fn a_request_over_the_quota_waits_for_the_next_period() {
    let mut driver = driver(&[7; 100], Some(10), Duration::from_millis(1));
    let requests: u32 = (0..5).map(|_| driver.request(0, &[(0x20000, 8, true)])).sum();
    assert!((10..=40).contains(&requests), "{requests}");
}
