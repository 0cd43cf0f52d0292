//! Attachment, dispatch, and the memory map after every kind of write.

use super::super::regs::{COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY, HEADER_TYPE};
use super::super::testing::{Bench, Fake, one_bar};
use super::*;
use crate::memory::Space;

fn fake(bench: &Bench, id: &str) -> Arc<Fake> {
    Fake::new(id, one_bar(0, 0x1000), &bench.memory)
}

fn attach(bench: &Bench, id: &str, addr: Option<&str>) -> Result<Slot> {
    bench.root.bus().attach(fake(bench, id), addr)
}

#[test]
fn automatic_slots_leave_the_chipset_its_own() {
    let bench = Bench::new();
    let slots: Vec<Slot> = (1..0x1f).map(|n| attach(&bench, &format!("d{n}"), None).unwrap()).collect();
    let numbers: Vec<u8> = slots.iter().map(|slot| slot.devfn().slot()).collect();
    assert_eq!(numbers, (1..0x1f).collect::<Vec<_>>());
    let full = attach(&bench, "more", None).err().unwrap();
    assert_eq!(full.code(), Code::BadBus);
    assert_eq!(full.evidence_lines().len(), 30);
    assert!(attach(&bench, "lpc", Some("1f.0")).is_ok(), "by its address it can be taken");
}

#[test]
fn a_taken_address_names_its_holder() {
    let bench = Bench::new();
    let _nic = attach(&bench, "nic0", Some("2")).unwrap();
    let error = attach(&bench, "gpu0", Some("02.0")).err().unwrap();
    assert_eq!((error.code(), error.cause()), (Code::BadBus, "address 02.0 of bus pcie.0 is taken by nic0"));
    assert_eq!(attach(&bench, "gpu0", Some("20")).err().unwrap().code(), Code::BadBus);
    assert_eq!(attach(&bench, "gpu0", None).unwrap().devfn(), Devfn::parse("1").unwrap());
}

#[test]
fn several_functions_show_in_the_header_of_the_first() {
    let bench = Bench::new();
    let _zero = attach(&bench, "a", Some("3.0")).unwrap();
    assert_eq!(bench.read32(0, "3.0", HEADER_TYPE & !3) >> 16, 0);
    let one = attach(&bench, "b", Some("3.1")).unwrap();
    assert_eq!(bench.read32(0, "3.0", HEADER_TYPE & !3) >> 16, 0x80);
    assert_eq!(attach(&bench, "c", None).unwrap().devfn().slot(), 1);
    drop(one);
    assert_eq!(bench.read32(0, "3.0", HEADER_TYPE & !3) >> 16, 0);
}

#[test]
fn a_detached_function_reads_as_ones_and_is_not_mapped() {
    let bench = Bench::new();
    let slot = attach(&bench, "a", Some("1")).unwrap();
    let late = bench.root.bus().find(slot.devfn()).unwrap();
    bench.enable(0, "1", 0, 0xc000_0000, COMMAND_MEMORY);
    assert_eq!(bench.mapped(Space::Mmio), [("a BAR0".into(), 0xc000_0000)]);
    drop(slot);
    assert_eq!(bench.read32(0, "1", 0), u32::MAX);
    assert!(bench.mapped(Space::Mmio).is_empty());
    late.write(0x10, &0xd000_0000u32.to_le_bytes());
    assert!(bench.mapped(Space::Mmio).is_empty(), "a write that was under way maps nothing");
}

#[test]
fn a_function_is_told_after_the_map_follows() {
    let bench = Bench::new();
    let function = fake(&bench, "a");
    let _slot = bench.root.bus().attach(function.clone(), Some("1")).unwrap();
    bench.enable(0, "1", 0, 0xc000_0000, COMMAND_MEMORY);
    bench.write(0, "1", COMMAND, u32::from(COMMAND_BUS_MASTER), 2);
    bench.write(0, "1", COMMAND, u32::from(COMMAND_BUS_MASTER), 2);
    let told = function.told.lock();
    let expected = [(Changes::DECODE, vec!["a BAR0".to_string()]), (Changes::DECODE | Changes::BUS_MASTER, vec![])];
    assert_eq!(*told, expected, "what changes nothing tells nothing");
}

#[test]
fn bars_move_one_by_one_with_decoding_on() {
    let bench = Bench::new();
    let mut specs = one_bar(0, 0x1000);
    specs[1] = one_bar(1, 0x1000)[1];
    let _slot = bench.root.bus().attach(Fake::new("a", specs, &bench.memory), Some("1")).unwrap();
    bench.write(0, "1", 0x14, 0xc000_1000, 4);
    bench.enable(0, "1", 0, 0xc000_0000, COMMAND_MEMORY);
    bench.write(0, "1", 0x10, 0xffff_ffff, 4);
    bench.write(0, "1", 0x10, 0xc000_1000, 4);
    assert_eq!(bench.mapped(Space::Mmio).len(), 1, "one shadows the other");
    bench.write(0, "1", 0x14, 0xc000_0000, 4);
    let both = [("a BAR1".into(), 0xc000_0000), ("a BAR0".into(), 0xc000_1000)];
    assert_eq!(bench.mapped(Space::Mmio), both);
    bench.root.reset();
    assert!(bench.mapped(Space::Mmio).is_empty());
    assert_eq!((bench.read32(0, "1", 0x10), bench.read32(0, "1", 0x04)), (0, 0));
}

#[test]
fn a_refused_bar_leaves_the_others_mapped() {
    use crate::memory::{FlatRange, MemoryListener, Stage};
    struct Refuse;
    impl MemoryListener for Refuse {
        fn remove(&self, _: &FlatRange) {}
        fn add(&self, range: &FlatRange) -> Result<()> {
            if range.start == 0xd000_0000 { Err(Error::new(Code::DmaFailed, "no")) } else { Ok(()) }
        }
    }
    let bench = Bench::new();
    let _listening = bench.memory.listen(Stage::Guest, Arc::new(Refuse)).unwrap();
    let mut specs = one_bar(0, 0x1000);
    specs[1] = one_bar(1, 0x1000)[1];
    let _slot = bench.root.bus().attach(Fake::new("a", specs, &bench.memory), Some("1")).unwrap();
    bench.write(0, "1", 0x14, 0xc000_0000, 4);
    bench.enable(0, "1", 0, 0xd000_0000, COMMAND_MEMORY);
    assert_eq!(bench.mapped(Space::Mmio), [("a BAR1".into(), 0xc000_0000)]);
    bench.write(0, "1", 0x10, 0xe000_0000, 4);
    assert_eq!(bench.mapped(Space::Mmio).len(), 2);
}

#[test]
fn two_processors_leave_a_map_that_agrees_with_the_registers() {
    let bench = Bench::new();
    let _slot = attach(&bench, "a", Some("1")).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..200).for_each(|n| bench.write(0, "1", 0x10, 0xc000_0000 + n * 0x1000, 4)));
        scope.spawn(|| (0..200).for_each(|n| bench.write(0, "1", COMMAND, if n % 2 == 0 { 2 } else { 0 }, 2)));
    });
    let on = bench.read32(0, "1", COMMAND) & u32::from(COMMAND_MEMORY) != 0;
    let expected: Vec<(String, u64)> =
        on.then(|| ("a BAR0".into(), u64::from(bench.read32(0, "1", 0x10)))).into_iter().collect();
    assert_eq!(bench.mapped(Space::Mmio), expected);
}
