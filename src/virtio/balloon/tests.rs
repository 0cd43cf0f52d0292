use super::*;
use crate::memory::{Backing, Space};
use crate::virtio::pci::PciOptions;
use crate::virtio::testing::{CONFIG, Driver};

const INFLATE: u16 = 0;
const STATS: u16 = 2;
const REPORT: u16 = 3;
/// Where the tests put requests, and the pages that they are about.
const AT: u64 = 0x20000;
const PAGES: u64 = 0x40000;

struct Bench {
    driver: Driver,
    balloon: Arc<Balloon>,
    words: Arc<Mutex<Vec<Word>>>,
}

fn bench(features: u64) -> Bench {
    let words: Arc<Mutex<Vec<Word>>> = Arc::default();
    let told = words.clone();
    let tell: Tell = Arc::new(move |_, word| told.lock().push(word));
    let options = Options { deflate_on_oom: true, reporting: true, interval: 0 };
    // The machine's memory is made with the driver, and the balloon has to know it before.
    let memory = Memory::new();
    let balloon = Balloon::new("balloon0".into(), options, memory.clone(), tell);
    let mut driver = Driver::new(balloon.clone(), &PciOptions::default());
    let ram = driver.bench.memory.view(Space::Mmio);
    let Some(Backing::Ram(slice)) = ram.find(0).map(|range| range.backing.clone()) else { panic!("no RAM") };
    let region = crate::memory::Region::whole("ram", slice.len(), 0, Backing::Ram(slice));
    memory.update(|layout| layout.add(Space::Mmio, 0, region)).unwrap();
    driver.start(features);
    Bench { driver, balloon, words }
}

#[test]
fn pages_in_the_balloon_are_gone_and_others_stay() {
    let Bench { mut driver, .. } = bench(bit::STATS);
    for page in 0..4 {
        driver.put(PAGES + page * pages::PAGE, b"full");
    }
    let first = (PAGES / pages::PAGE) as u32;
    // The last is no RAM.
    let request: Vec<u8> = [first + 2, first + 1, u32::MAX].into_iter().flat_map(u32::to_le_bytes).collect();
    driver.put(AT, &request);
    driver.request(INFLATE, &[(AT, request.len() as u32, false)]);
    let content = |page: u64| driver.bytes(PAGES + page * pages::PAGE, 4);
    assert_eq!([content(0), content(1), content(2), content(3)], [b"full", &[0; 4], &[0; 4], b"full"]);
}

#[test]
fn reported_pages_go_unless_the_guest_fills_them_with_something() {
    for (poison, gone) in [(0, true), (0xaaaa_aaaa, false)] {
        let Bench { mut driver, .. } = bench(bit::STATS | bit::REPORTING | bit::POISON);
        driver.write(CONFIG + 12, poison, 4);
        driver.put(PAGES, b"free");
        driver.request(REPORT, &[(PAGES, 2 * pages::PAGE as u32, true)]);
        assert_eq!(driver.bytes(PAGES, 4) == [0; 4], gone, "{poison:#x}");
    }
}

#[test]
fn the_target_is_told_and_a_change_once() {
    let Bench { driver, balloon, words } = bench(bit::STATS);
    balloon.set_target(77);
    assert_eq!(driver.read(CONFIG, 4), 77);
    for actual in [10, 10, 20] {
        driver.write(CONFIG + 4, actual, 4);
    }
    assert_eq!(*words.lock(), [Word::BalloonChanged], "nobody has looked yet");
    assert_eq!(balloon.actual(), 20);
    driver.write(CONFIG + 4, 30, 4);
    assert_eq!(words.lock().len(), 2);
}

#[test]
fn statistics_are_kept_until_the_next() {
    let Bench { mut driver, balloon, .. } = bench(bit::STATS);
    driver.put(AT, &[5, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    driver.submit(STATS, &[(AT, 10, false)]);
    driver.kick(STATS);
    driver.until(|_| balloon.facts().contains(&("stat-total-memory", "9".to_owned())));
    assert_eq!(driver.used_index(STATS), 0, "the driver waits to be asked again");
}
