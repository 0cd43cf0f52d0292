//! Tables and properties of the planner, and its plan in the registers of a tree.

use super::super::root_port::RootPort;
use super::super::testing::{Bench, Fake};
use super::*;
use crate::memory::Space;
use crate::pci::regs::{COMMAND_IO, COMMAND_MEMORY, HEADER_BRIDGE, HEADER_ENDPOINT};
use proptest::prelude::*;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn apertures() -> Apertures {
    Apertures { io: 0x1000..0x1_0000, low: 0xc000_0000..0xe000_0000, high: 1 << 40..1 << 46 }
}

fn bar(kind: BarKind, prefetchable: bool, size: u64) -> BarSpec {
    BarSpec { size, kind, prefetchable }
}

fn node(name: &str, slot: u8, bars: &[(usize, BarSpec)]) -> Node {
    let mut specs = BarSpecs::default();
    for (index, bar) in bars {
        specs[*index] = Some(*bar);
    }
    let devfn = Devfn::new(slot, 0).unwrap();
    Node {
        name: name.into(),
        devfn,
        layout: HEADER_ENDPOINT,
        bars: specs,
        gsi: None,
        reserve: Reserve::default(),
        behind: None,
    }
}

fn port(slot: u8, behind: Vec<Node>) -> Node {
    let mut port = node(&format!("rp{slot}"), slot, &[]);
    port.layout = HEADER_BRIDGE;
    port.behind = Some(behind);
    port
}

fn address(plan: &Plan, function: usize, bar: usize) -> u64 {
    plan.functions[function].bars[bar].unwrap().0
}

const MEM32: BarKind = BarKind::Mem32;
const MEM64: BarKind = BarKind::Mem64;

#[test]
fn kinds_go_where_their_registers_and_bridges_allow() {
    let gpu = [
        (0, bar(MEM32, false, 16 * MIB)),
        (1, bar(MEM64, true, 64 * GIB)),
        (3, bar(MEM64, true, 32 * MIB)),
        (5, bar(BarKind::Io, false, 128)),
    ];
    let nvme = [(0, bar(MEM64, false, 16 << 10))];
    let tree = [port(1, vec![node("gpu0", 0, &gpu)]), port(2, vec![node("nvme0", 0, &nvme)]), node("nvme1", 3, &nvme)];
    let plan = plan(&tree, &apertures()).unwrap();
    assert_eq!(plan.last_bus, 2);
    assert_eq!(plan.functions.iter().map(|function| function.bus).collect::<Vec<_>>(), [0, 1, 0, 2, 0]);
    assert_eq!([0, 1, 3, 5].map(|bar| address(&plan, 1, bar)), [0xc000_0000, 1 << 40, (1 << 40) + 64 * GIB, 0x1000]);
    assert_eq!(address(&plan, 3, 0), 0xc100_0000, "64-bit, not prefetchable, behind a port: below 4 GiB");
    assert_eq!(address(&plan, 4, 0) >> 40, 1, "on the root bus: anywhere");
    let windows = plan.functions[0].bridge.clone().unwrap().windows;
    let first = 1 << 40;
    let expected = Windows {
        io: 0x1000..0x2000,
        memory: 0xc000_0000..0xc100_0000,
        prefetchable: first..first + 64 * GIB + 32 * MIB,
    };
    assert_eq!(windows, expected);
    let windows = plan.functions[2].bridge.clone().unwrap().windows;
    assert_eq!(windows, Windows { io: 0..0, memory: 0xc100_0000..0xc110_0000, prefetchable: 0..0 });
}

#[test]
fn without_space_above_4_gib_all_go_below() {
    let tree =
        [port(1, vec![node("a", 0, &[(0, bar(MEM64, true, MIB))])]), node("b", 2, &[(0, bar(MEM64, false, MIB))])];
    let plan = plan(&tree, &Apertures { high: 0..0, ..apertures() }).unwrap();
    assert_eq!((address(&plan, 1, 0), address(&plan, 2, 0)), (0xc000_0000, 0xc010_0000));
}

#[test]
fn small_bars_do_not_share_a_page() {
    let bars: Vec<_> = (0..6).map(|index| (index, bar(MEM32, false, 16 << index))).collect();
    let plan = plan(&[node("a", 1, &bars)], &apertures()).unwrap();
    let mut pages: Vec<u64> = (0..6).map(|index| address(&plan, 0, index) / PAGE).collect();
    pages.sort_unstable();
    pages.dedup();
    assert_eq!(pages.len(), 6);
}

#[test]
fn huge_and_many_fit_as_in_a_server() {
    let mut tree: Vec<_> =
        (0..8).map(|n| port(n + 1, vec![node("gpu", 0, &[(0, bar(MEM64, true, 512 * GIB))])])).collect();
    tree.extend((0..16).map(|n| node("nic", n + 10, &[(0, bar(MEM32, false, 16 * MIB))])));
    check(&tree, &apertures(), &plan(&tree, &apertures()).unwrap());
}

#[test]
fn what_does_not_fit_lists_who_holds_what() {
    let tree = [
        port(1, vec![node("fpga0", 0, &[(2, bar(MEM64, false, GIB))])]),
        node("nic0", 2, &[(0, bar(MEM32, false, 128 << 10))]),
    ];
    let error = plan(&tree, &apertures()).unwrap_err();
    assert_eq!(error.code(), Code::OutOfAddressSpace);
    assert_eq!(error.cause(), "the BARs of all devices do not fit into the guest's memory below 4 GiB");
    assert_eq!(
        error.evidence_lines(),
        ["0xc0000000 to 0xe0000000: 512 MiB", "fpga0 BAR2: 1 GiB", "nic0 BAR0: 128 KiB"]
    );
    let tree: Vec<_> = (1..17).map(|n| port(n, vec![node("d", 0, &[(0, bar(BarKind::Io, false, 32))])])).collect();
    let error = plan(&tree, &apertures()).unwrap_err();
    assert_eq!(error.cause(), "the BARs of all devices do not fit into the guest's ports");
    let sum = [node("a", 1, &[(0, bar(MEM64, true, 1 << 51)), (2, bar(MEM64, true, 1 << 51))])];
    assert!(plan(&sum, &apertures()).is_err());
}

#[test]
fn more_buses_than_numbers_are_refused() {
    let nested = |ports: u8| vec![port(1, (0..ports).map(|slot| port(slot % 32, vec![])).collect())];
    assert_eq!(plan(&nested(254), &apertures()).unwrap().last_bus, 255);
    assert_eq!(plan(&nested(255), &apertures()).unwrap_err().code(), Code::OutOfAddressSpace);
}

/// In the registers of real functions: once decoding is on, everything is mapped where the plan says.
#[test]
fn an_applied_plan_maps_everything_when_the_guest_enables_it() {
    let bench = Bench::new();
    let rp = RootPort::new("rp1", 1, &bench.decode, &bench.router).unwrap();
    bench.plug(rp.clone(), "1");
    let mut specs = BarSpecs::default();
    specs[0] = Some(bar(MEM64, true, 64 * GIB));
    specs[2] = Some(bar(BarKind::Io, false, 64));
    specs[3] = Some(bar(MEM32, false, 0x4000));
    specs[ROM_INDEX] = Some(bar(MEM32, false, 0x1_0000));
    let _gpu = rp.bus().attach(Fake::new("gpu0", specs, &bench.memory), None).unwrap();
    let plan = plan(&bench.root.nodes(), &apertures()).unwrap();
    plan.apply(&bench.root);
    assert_eq!(plan.last_bus, 1);
    assert!(bench.mapped(Space::Mmio).is_empty(), "decoding is the guest's to switch on");
    assert_eq!(bench.read32(0, "1", COMMAND) & 0xffff, u32::from(COMMAND_BUS_MASTER));
    assert_eq!(bench.read32(1, "0", COMMAND) & 0xffff, 0);
    assert_eq!(bench.read32(1, "0", 0x3c), 0x0111, "line 17, INTA");
    let all = u32::from(COMMAND_IO | COMMAND_MEMORY);
    bench.write(0, "1", COMMAND, all, 2);
    bench.write(1, "0", COMMAND, all, 2);
    let expected = [("gpu0 BAR3".to_string(), address(&plan, 1, 3)), ("gpu0 BAR0".to_string(), 1 << 40)];
    assert_eq!(bench.mapped(Space::Mmio), expected);
    assert_eq!(bench.mapped(Space::Pio), [("gpu0 BAR2".to_string(), 0x1000)]);
    let rom = bench.read32(1, "0", 0x30);
    bench.write(1, "0", 0x30, rom | 1, 4);
    assert_eq!(bench.mapped(Space::Mmio).len(), 3);
}

/// Every BAR: aligned, inside its aperture and the windows of the bridges above it, overlapping no other.
fn check(tree: &[Node], apertures: &Apertures, plan: &Plan) {
    let mut placed: Vec<(bool, Range<u64>)> = Vec::new();
    let everything = Windows { io: 0..u64::MAX, memory: 0..u64::MAX, prefetchable: 0..u64::MAX };
    check_bus(tree, &everything, apertures, &mut plan.functions.iter(), &mut placed);
    placed.sort_by_key(|(io, range)| (*io, range.start));
    assert!(placed.windows(2).all(|pair| pair[0].0 != pair[1].0 || pair[0].1.end <= pair[1].1.start), "{placed:x?}");
}

fn within(inner: &Range<u64>, outer: &Range<u64>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

fn check_bus<'a>(
    nodes: &[Node],
    above: &Windows,
    apertures: &Apertures,
    functions: &mut impl Iterator<Item = &'a Assigned>,
    placed: &mut Vec<(bool, Range<u64>)>,
) {
    for node in nodes {
        let function = functions.next().unwrap();
        assert_eq!(function.devfn, node.devfn);
        for (spec, assigned) in node.bars.iter().zip(&function.bars) {
            assert_eq!(spec.is_some(), assigned.is_some());
            let (Some(spec), Some((base, _))) = (spec, assigned) else { continue };
            let range = *base..base + spec.size;
            assert_eq!(base % spec.size, 0);
            let io = spec.kind == BarKind::Io;
            if io {
                assert!(within(&range, &apertures.io) && within(&range, &above.io));
            } else {
                assert!(within(&range, &apertures.low) || spec.kind == MEM64 && within(&range, &apertures.high));
                assert!(within(&range, &above.memory) || within(&range, &above.prefetchable));
            }
            placed.push((io, range));
        }
        let Some(behind) = &node.behind else { continue };
        let windows = function.bridge.clone().unwrap().windows;
        for (window, outer, grain) in [
            (&windows.io, &above.io, IO_GRAIN),
            (&windows.memory, &above.memory, MEMORY_GRAIN),
            (&windows.prefetchable, &above.prefetchable, MEMORY_GRAIN),
        ] {
            assert!(window.is_empty() || within(window, outer));
            assert!(window.start % grain == 0 && window.end % grain == 0);
        }
        assert!(windows.memory.end <= 1 << 32);
        check_bus(behind, &windows, apertures, functions, placed);
    }
}

fn any_bar() -> impl Strategy<Value = (usize, BarSpec)> {
    prop_oneof![
        (0usize..6, 2u32..9).prop_map(|(index, log2)| (index, bar(BarKind::Io, false, 1 << log2))),
        (0usize..7, 11u32..25, any::<bool>()).prop_map(|(index, log2, pf)| (index, bar(MEM32, pf, 1 << log2))),
        (0usize..5, 4u32..26).prop_map(|(index, log2)| (index, bar(MEM64, false, 1 << log2))),
        (0usize..5, 4u32..42).prop_map(|(index, log2)| (index, bar(MEM64, true, 1 << log2))),
    ]
}

fn any_tree() -> impl Strategy<Value = Vec<Node>> {
    let leaf = (0u8..32, prop::collection::vec(any_bar(), 0..4)).prop_map(|(slot, bars)| node("d", slot, &bars));
    let any = leaf.prop_recursive(3, 24, 4, |inner| {
        (0u8..32, prop::collection::vec(inner, 0..4)).prop_map(|(slot, behind)| port(slot, behind))
    });
    prop::collection::vec(any, 0..8)
}

proptest! {
    /// A plan is right, or there is none.
    #[test]
    fn plans_hold(tree in any_tree(), high in any::<bool>()) {
        let apertures = if high { apertures() } else { Apertures { high: 0..0, ..apertures() } };
        if let Ok(plan) = plan(&tree, &apertures) {
            check(&tree, &apertures, &plan);
            prop_assert!(plan.writes().iter().all(|write| matches!(write.data.len(), 1 | 2 | 4)));
        } else {
            let sum: u64 = tree.iter().map(total).sum();
            prop_assert!(sum > 32 * MIB, "{sum:#x} bytes must fit");
        }
    }
}

fn total(node: &Node) -> u64 {
    let own: u64 =
        node.bars.iter().flatten().map(|bar| if bar.kind == BarKind::Io { 16 * MIB } else { bar.size }).sum();
    own + node.behind.iter().flatten().map(total).sum::<u64>()
}

#[test]
fn ports_keep_room_for_what_comes_later_if_there_is_enough() {
    let room = |bytes, hard| Room { bytes, hard };
    let port = |slot: u8, hard| Node {
        reserve: Reserve { buses: 2, io: room(4 << 10, hard), low: room(2 << 20, hard), high: room(1 << 30, false) },
        ..port(slot, Vec::new())
    };
    let apertures = Apertures { io: 0x1000..0x2000, low: 0xc000_0000..0xc100_0000, high: 1 << 32..1 << 40 };
    let planned = plan(&[port(1, false), port(2, false)], &apertures).unwrap();
    let windows: Vec<_> = planned.functions.iter().map(|function| function.bridge.clone().unwrap()).collect();
    assert!(
        windows.iter().all(|bridge| bridge.windows.io.is_empty()),
        "ports are too few for both, so neither has any"
    );
    assert!(windows.iter().all(|bridge| bridge.windows.memory.end - bridge.windows.memory.start == 2 << 20));
    assert!(
        windows.iter().all(|bridge| bridge.windows.prefetchable.end - bridge.windows.prefetchable.start == 1 << 30)
    );
    assert_eq!(
        windows.iter().map(|bridge| (bridge.secondary, bridge.subordinate)).collect::<Vec<_>>(),
        [(1, 3), (4, 6)]
    );
    assert_eq!(planned.last_bus, 6);
    assert!(plan(&[port(1, true), port(2, true)], &apertures).is_err(), "what was asked for must be there");
}
