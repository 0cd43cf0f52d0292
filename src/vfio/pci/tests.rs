//! A fake device on a real bus: what the guest's accesses make of the hardware, the memory map and the interrupts.

use std::sync::Arc;

use proptest::prelude::*;

use super::super::dma::Gate;
use super::super::irq::{self, Mode};
use super::super::rom::RomSource;
use super::super::seams::{IrqKind, RegionIndex, RegionInfo};
use super::super::testing::{Failure, FakePci, sample};
use super::{VfioPci, VfioPciOptions};
use crate::device::Device;
use crate::error::{Code, Result};
use crate::irq::testing::Recorder;
use crate::irq::{Router, Target};
use crate::memory::host::PageSize;
use crate::memory::{FlatRange, HostMem, HostSlice, Memory, MemoryListener, Space, Stage};
use crate::pci::{Changes, Decode, Devfn, PciFunction, PciRoot, Slot};

mod faults;

const BAR0: u64 = 0xe000_0000;
const BAR3: u64 = 0xe001_0000;
/// MSI-X control of the sample.
const MSIX_CONTROL: u16 = 0xb2;
const MSIX_ON: u16 = 0x8000;

/// Writes the changes of the memory map between the requests to the device.
struct Map(Arc<FakePci>);

impl MemoryListener for Map {
    fn remove(&self, range: &FlatRange) {
        self.0.record(format!("- {}", range.name));
    }
    fn add(&self, range: &FlatRange) -> Result<()> {
        self.0.record(format!("+ {} {:#x}", range.name, range.start));
        Ok(())
    }
}

struct Setup {
    host: Arc<FakePci>,
    device: Arc<VfioPci>,
    memory: Arc<Memory>,
    root: Arc<PciRoot>,
    chip: Arc<Recorder>,
    slot: Slot,
    _map: crate::memory::Listening,
}

impl Setup {
    fn of(host: FakePci) -> Setup {
        let (host, chip) = (Arc::new(host), Arc::new(Recorder::default()));
        let router = Router::new();
        router.set_chip(chip.clone()).unwrap();
        let memory = Memory::new();
        let map = memory.listen(Stage::Guest, Arc::new(Map(host.clone()))).unwrap();
        let root = PciRoot::new("pcie.0", &Decode::new(memory.clone()));
        let options = VfioPciOptions { id: "nic".into(), ..VfioPciOptions::default() };
        let device = VfioPci::new(host.clone(), &router, options).unwrap();
        let slot = root.bus().attach(device.clone(), Some("3")).unwrap();
        device.reset();
        host.take();
        chip.take();
        Setup { host, device, memory, root, chip, slot, _map: map }
    }

    fn new() -> Setup {
        Setup::of(FakePci::new(sample(), &[(0, 0x4000), (3, 0x4000)]))
    }

    fn write(&self, off: u16, value: u32, len: usize) {
        self.root.write(0, self.devfn(), off, &value.to_le_bytes()[..len]);
    }

    fn read(&self, off: u16) -> u32 {
        let mut data = [0; 4];
        self.root.read(0, self.devfn(), off, &mut data);
        u32::from_le_bytes(data)
    }

    fn devfn(&self) -> Devfn {
        Devfn::new(3, 0).unwrap()
    }

    /// As a guest's firmware and driver do: addresses, then decoding and bus mastering.
    fn start(&self) {
        self.write(0x10, BAR0 as u32, 4);
        self.write(0x1c, BAR3 as u32, 4);
        self.write(0x04, 0x406, 2);
        self.host.take();
    }

    fn table(&self, vector: u64, data: u32, masked: bool) {
        let at = BAR3 + vector * 16;
        self.memory.write(Space::Mmio, at, &0xfee0_0000u64.to_le_bytes());
        self.memory.write(Space::Mmio, at + 8, &data.to_le_bytes());
        self.memory.write(Space::Mmio, at + 12, &u32::from(masked).to_le_bytes());
    }

    fn pending(&self) -> u8 {
        let mut data = [0];
        self.memory.read(Space::Mmio, BAR3 + 0x2000, &mut data);
        data[0]
    }
}

#[test]
fn all_eventfds_are_armed_once_when_the_guest_switches_msix_on() {
    let s = Setup::new();
    s.start();
    s.write(MSIX_CONTROL, MSIX_ON.into(), 2);
    assert_eq!(s.host.take(), ["arm Msix 0 5"]);
    let fds = s.host.armed.lock()[&IrqKind::Msix].clone();
    assert!(fds.iter().all(|fd| *fd >= 0), "{fds:?}");
    for vector in 0..5 {
        s.table(vector, 0x40 + vector as u32, false);
    }
    assert!(s.host.take().is_empty(), "unmasking is KVM's matter");
    assert_eq!(s.chip.attached.lock().len(), 5);
    s.write(MSIX_CONTROL, 0, 2);
    assert_eq!(s.host.take(), ["disarm Msix"]);
    assert!(s.chip.attached.lock().is_empty());
}

#[test]
fn the_enable_bit_never_reaches_the_hardware() {
    let s = Setup::new();
    s.start();
    let before = s.host.config.lock().clone();
    s.write(MSIX_CONTROL, MSIX_ON.into(), 2);
    s.write(MSIX_CONTROL, 0, 2);
    s.write(0x52, 1, 2);
    assert_eq!(s.host.take(), ["arm Msix 0 5", "disarm Msix", "arm Msi 0 1"]);
    assert_eq!(*s.host.config.lock(), before);
}

#[test]
fn a_masked_vector_is_pending_and_is_delivered_when_unmasked() {
    let s = Setup::new();
    s.start();
    s.write(MSIX_CONTROL, MSIX_ON.into(), 2);
    s.table(2, 0x42, true);
    assert_eq!(s.pending(), 0);
    s.device.core().msix().unwrap().eventfds()[2].write(1).unwrap();
    assert_eq!(s.pending(), 1 << 2);
    s.chip.take();
    s.table(2, 0x42, false);
    assert_eq!(s.chip.take(), ["routes 1", "attach 24 edge"], "the irqfd finds the eventfd readable");
}

#[test]
fn decoding_goes_on_in_the_hardware_before_the_map_and_off_after_it() {
    let s = Setup::new();
    s.write(0x10, BAR0 as u32, 4);
    assert!(s.host.take().is_empty(), "addresses are the guest's");
    s.write(0x04, 0x402, 2);
    assert_eq!(s.host.take(), ["write Config 0x4 [02, 04]", "+ nic BAR0 0xe0000000"]);
    s.write(0x04, 0x406, 2);
    assert_eq!(s.host.take(), ["write Config 0x4 [06, 04]"]);
    s.write(0x04, 0x400, 2);
    // Bus mastering ends at once, decoding when nothing is mapped.
    assert_eq!(s.host.take(), ["write Config 0x4 [02, 04]", "- nic BAR0", "write Config 0x4 [00, 04]"]);
}

#[test]
fn what_the_host_lets_it_report_stays() {
    let mut config = sample();
    config[0x05] |= 1;
    config[0x78] |= 0x0f;
    let s = Setup::of(FakePci::new(config, &[(0, 0x4000), (3, 0x4000)]));
    s.write(0x04, 0x406, 2);
    s.write(0x78, 0x2010, 2);
    assert_eq!(s.host.take(), ["write Config 0x4 [06, 05]", "write Config 0x78 [1f, 20]"]);
    assert_eq!((s.read(0x04) & 0x100, s.read(0x78) & 0x0f), (0, 0), "the guest's own");
    s.write(0x108, u32::MAX, 4);
    assert!(s.host.take().is_empty());
}

#[test]
fn power_is_back_before_the_map_and_gone_after_it() {
    let s = Setup::new();
    s.write(0x10, BAR0 as u32, 4);
    s.write(0x04, 0x402, 2);
    s.host.take();
    s.write(0x44, 0x0003, 2);
    assert_eq!(
        s.host.take(),
        ["write Config 0x44 [00]", "write Config 0x45 [00]", "- nic BAR0", "write Config 0x44 [03]"]
    );
    s.write(0x44, 0x0100, 2);
    assert_eq!(s.host.take(), ["write Config 0x44 [00]", "write Config 0x45 [01]", "+ nic BAR0 0xe0000000"]);
    assert_eq!(s.read(0x44) & 3, 0);
}

#[test]
fn bars_move_with_decoding_on() {
    let s = Setup::new();
    s.start();
    s.write(0x10, 0xd000_0000, 4);
    assert_eq!(s.host.take(), ["- nic BAR0", "+ nic BAR0 0xd0000000"]);
    // Sizing with decoding on: it is elsewhere for a moment and comes back.
    s.write(0x10, u32::MAX, 4);
    assert_eq!(s.read(0x10), 0xffff_c000);
    s.write(0x10, 0xd000_0000, 4);
    let calls = s.host.take();
    assert_eq!((calls.first(), calls.last()), (Some(&"- nic BAR0".into()), Some(&"+ nic BAR0 0xd0000000".into())));
    assert!(calls.iter().all(|call| !call.starts_with("write")), "{calls:?}");
    let view = s.memory.view(Space::Mmio);
    assert_eq!(view.find(0xd000_0000).map(|range| &*range.name), Some("nic BAR0"));
    assert_eq!(view.find(BAR3).map(|range| &*range.name), Some("nic BAR3"));
}

#[test]
fn registers_beside_the_table_are_single_accesses_of_the_device() {
    let mut config = sample();
    config[0xb4..0xbc].copy_from_slice(&[0x00, 0x20, 0, 0, 0x80, 0x20, 0, 0]);
    let s = Setup::of(FakePci::new(config, &[(0, 0x4000)]));
    s.write(0x10, BAR0 as u32, 4);
    s.write(0x04, 0x402, 2);
    s.host.take();
    for (len, expected) in [
        (1, "write Bar(0) 0x2100 [01]"),
        (2, "write Bar(0) 0x2100 [01, 02]"),
        (4, "write Bar(0) 0x2100 [01, 02, 03, 04]"),
        (8, "write Bar(0) 0x2100 [01, 02, 03, 04, 05, 06, 07, 08]"),
    ] {
        s.memory.write(Space::Mmio, BAR0 + 0x2100, &[1, 2, 3, 4, 5, 6, 7, 8][..len]);
        assert_eq!(s.host.take(), [expected]);
    }
    let mut data = [0; 4];
    s.memory.read(Space::Mmio, BAR0 + 0x2100, &mut data);
    assert_eq!(data, [1, 2, 3, 4]);
    // The table's last four bytes and four bytes of registers.
    s.memory.write(Space::Mmio, BAR0 + 0x204c, &[0, 0, 0, 0, 5, 6, 7, 8]);
    assert_eq!(s.host.take(), ["write Bar(0) 0x2050 [05, 06, 07, 08]"]);
    s.memory.write(Space::Mmio, BAR0 + 0x2080, &[0xff; 8]);
    assert!(s.host.take().is_empty(), "pending bits are read-only");
}

#[test]
fn interrupts_change_their_kind_at_run_time() {
    let s = Setup::new();
    assert_eq!(s.device.core().gsi(), Some(s.slot.bus().gsi(s.devfn(), 0)));
    s.write(0x04, 2, 2);
    let calls = s.host.take();
    assert_eq!(calls[calls.len() - 2..], ["arm Intx 0 1", "unmask by eventfd Intx"]);
    let gsi = s.device.core().gsi().unwrap();
    assert_eq!(s.chip.take(), [format!("attach {gsi} resample")]);
    s.write(0x52, 1, 2);
    assert_eq!(s.host.take(), ["disarm Intx", "arm Msi 0 1"]);
    assert!(s.chip.take().contains(&format!("detach {gsi}")));
    s.write(MSIX_CONTROL, MSIX_ON.into(), 2);
    assert_eq!(s.host.take(), ["disarm Msi", "arm Msix 0 5"]);
    s.write(MSIX_CONTROL, 0, 2);
    s.write(0x52, 0, 2);
    assert_eq!(s.host.take(), ["disarm Msix", "arm Msi 0 1", "disarm Msi", "arm Intx 0 1", "unmask by eventfd Intx"]);
    s.write(0x04, 0, 2);
    assert_eq!(s.host.take(), ["write Config 0x4 [00, 00]", "disarm Intx"]);
}

#[test]
fn the_disable_bit_masks_an_armed_pin_and_keeps_it_armed() {
    let s = Setup::new();
    s.write(0x04, 0x402, 2);
    assert_eq!(s.host.take(), ["write Config 0x4 [02, 04]"], "a pin that is disabled is not armed");
    s.write(0x04, 0x002, 2);
    assert_eq!(s.host.take(), ["write Config 0x4 [02, 00]", "arm Intx 0 1", "unmask by eventfd Intx"]);
    s.chip.take();
    // As uio_pci_generic does at each interrupt.
    for _ in 0..100 {
        s.write(0x04, 0x402, 2);
        s.write(0x04, 0x002, 2);
    }
    let calls = s.host.take();
    assert!(calls.iter().all(|call| call.starts_with("write Config 0x4")), "{calls:?}");
    assert_eq!(calls.len(), 200);
    assert!(s.chip.take().is_empty());
    // MSI takes its place whatever the bit says.
    s.write(0x04, 0x402, 2);
    s.write(0x52, 1, 2);
    s.write(0x52, 0, 2);
    s.host.take();
    assert!(s.host.armed.lock().is_empty(), "and a disabled pin does not come back by itself");
    s.write(0x04, 0x002, 2);
    assert!(s.host.armed.lock().contains_key(&IrqKind::Intx));
}

#[test]
fn the_status_of_the_pin_is_the_hardwares() {
    let s = Setup::new();
    s.write(0x04, 0x402, 2);
    assert_eq!(s.read(0x04) >> 16 & 8, 0);
    s.host.config.lock()[6] |= 8;
    assert_eq!((s.read(0x04) >> 16 & 8, s.read(0x04) & 0x400), (8, 0x400));
}

#[test]
fn legacy_vga_ranges_are_there_while_the_device_decodes_them() {
    let display = || {
        let mut host = FakePci::new(sample(), &[(0, 0x4000)]);
        let region = RegionInfo { size: 0xc_0000, readable: true, writable: true, mappable: vec![] };
        host.regions.insert(RegionIndex::Vga, region);
        Arc::new(host)
    };
    let options = || VfioPciOptions { id: "gpu".into(), vga: true, ..VfioPciOptions::default() };
    let router = Router::new();
    let memory = Memory::new();
    let root = PciRoot::new("pcie.0", &Decode::new(memory.clone()));
    assert!(!root.has_legacy_vga());
    let host = display();
    let device = VfioPci::new(host.clone(), &router, options()).unwrap();
    let _slot = root.bus().attach(device.clone(), Some("3")).unwrap();
    assert!(root.has_legacy_vga());
    let seen = || {
        let found = |space, at| memory.view(space).find(at).is_some();
        [found(Space::Mmio, 0xb_8000), found(Space::Pio, 0x3b4), found(Space::Pio, 0x3da), found(Space::Pio, 0x3bc)]
    };
    assert_eq!(seen(), [false; 4]);
    root.route_legacy_vga();
    assert_eq!(seen(), [true, true, true, false]);
    host.take();
    memory.write(Space::Mmio, 0xb_8000, &[0x41, 0x07]);
    memory.write(Space::Pio, 0x3d4, &[0x0f]);
    assert_eq!(host.take(), ["write Vga 0xb8000 [41, 07]", "write Vga 0x3d4 [0f]"]);
    let mut data = [0; 2];
    memory.read(Space::Mmio, 0xb_8000, &mut data);
    assert_eq!(data, [0x41, 0x07]);
    root.write(0, Devfn::new(3, 0).unwrap(), 0x04, &[2, 0]);
    assert_eq!(seen(), [true, false, false, false]);
    let again = VfioPci::new(display(), &router, options()).unwrap();
    let code = |result: Result<Slot>| result.map(|_| ()).unwrap_err().code();
    assert_eq!(code(root.bus().attach(again, Some("4"))), Code::VgaUnavailable);
    let none = VfioPci::new(Arc::new(FakePci::new(sample(), &[(0, 0x4000)])), &router, options());
    assert_eq!(none.map(|_| ()).unwrap_err().code(), Code::VgaUnavailable);
}

#[test]
fn quirks_of_the_table_are_applied() {
    let with_ids = |vendor: u16, device: u16| {
        let mut config = sample();
        config[..2].copy_from_slice(&vendor.to_le_bytes());
        config[2..4].copy_from_slice(&device.to_le_bytes());
        let mut host = FakePci::new(config, &[(0, 0x4000), (3, 0x4000)]);
        let rom = RegionInfo { size: 0x1000, readable: true, ..RegionInfo::default() };
        host.regions.insert(RegionIndex::Rom, rom);
        Setup::of(host)
    };
    let shown = |s: &Setup| (s.device.bar(6).is_some(), s.read(0x3c) >> 8 & 0xff, s.read(0xb8));
    assert_eq!(shown(&with_ids(0x8086, 0x10d3)), (true, 1, 0x2003));
    assert_eq!(shown(&with_ids(0x14e4, 0x168e)), (false, 1, 0x2003), "no ROM");
    assert_eq!(shown(&with_ids(0x8086, 0x1572)), (true, 0, 0x2003), "no pin");
    assert_eq!(shown(&with_ids(0x1425, 0x5801)), (true, 1, 0x1003), "pending bits elsewhere");
}

#[test]
fn a_pin_that_the_kernel_does_not_mask_is_hidden() {
    let s = Setup::of(FakePci { pin_automasked: false, ..FakePci::new(sample(), &[(0, 0x4000), (3, 0x4000)]) });
    s.write(0x04, 0x002, 2);
    assert_eq!(s.read(0x3c) >> 8 & 0xff, 0);
    assert!(s.host.armed.lock().is_empty());
    s.write(0x52, 1, 2);
    assert!(s.host.armed.lock().contains_key(&IrqKind::Msi));
}

#[test]
fn msi_with_32_messages_follows_count_masks_and_messages() {
    let mut config = sample();
    // 32 messages, 64-bit, maskable: 24 bytes, up to 68h.
    config[0x52..0x54].copy_from_slice(&[0x8a, 0x01]);
    let mut host = FakePci::new(config, &[(0, 0x4000)]);
    host.irqs.insert(IrqKind::Msi, 32);
    let s = Setup::of(host);
    s.start();
    s.write(0x54, 0xfee0_1000, 4);
    s.write(0x5c, 0x4060, 2);
    let control = |log2: u32| 0x18a | log2 << 4 | 1;
    let armed = || s.host.armed.lock().get(&IrqKind::Msi).map_or(0, Vec::len);
    for (log2, count) in [(5, 32), (0, 1), (3, 8), (7, 32), (2, 4)] {
        s.write(0x52, control(log2), 2);
        assert_eq!((armed(), s.chip.attached.lock().len()), (count, count), "multiple message enable {log2}");
    }
    // Vectors 1 and 3 masked: what fires is pending, and is delivered when unmasked.
    s.write(0x60, 0b1010, 4);
    assert_eq!(s.chip.attached.lock().len(), 2);
    s.device.core().msi().unwrap().eventfds()[3].write(1).unwrap();
    assert_eq!(s.read(0x64), 1 << 3);
    s.write(0x60, 0b0010, 4);
    assert_eq!((s.read(0x64), s.chip.attached.lock().len()), (0, 3));
    // Messages change with MSI on: the low bits stay the vector's.
    s.write(0x5c, 0x4071, 2);
    let attached: Vec<u32> = s.chip.attached.lock().iter().map(|(gsi, _)| *gsi).collect();
    let mut data: Vec<u32> = s
        .chip
        .routes
        .lock()
        .iter()
        .filter_map(|route| match route.target {
            Target::Msi(message) if attached.contains(&route.gsi) => Some(message.data),
            _ => None,
        })
        .collect();
    data.sort_unstable();
    assert_eq!(data, [0x4070, 0x4072, 0x4073]);
    s.write(0x52, 0x18a, 2);
    assert_eq!(armed(), 0);
}

#[test]
fn a_guest_that_reprograms_in_a_loop_costs_nothing_that_lasts() {
    let s = Setup::new();
    s.start();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut before = None;
    for round in 0..50u32 {
        s.write(MSIX_CONTROL, MSIX_ON.into(), 2);
        for vector in 0..5 {
            s.table(vector, 0x40 + round, round % 2 == 0);
            s.table(vector, 0x80 + round, false);
        }
        s.write(MSIX_CONTROL, 0, 2);
        s.write(0x52, 1, 2);
        s.write(0x52, 0, 2);
        s.write(0x04, 0x006, 2);
        s.write(0x04, 0x406, 2);
        let routes = s.chip.routes.lock().len();
        let now = (routes, s.chip.attached.lock().len());
        assert_eq!(*before.get_or_insert(now), now, "round {round}");
    }
    // Other tests open descriptors meanwhile; a leak would be of hundreds.
    let after = open();
    assert!(after < 1000, "{after} descriptors are open");
}

#[test]
fn a_refused_interrupt_is_no_failure() {
    let mut host = FakePci::new(sample(), &[(0, 0x4000), (3, 0x4000)]);
    host.refuse_arm.extend([IrqKind::Msix, IrqKind::Intx]);
    let s = Setup::of(host);
    s.start();
    s.write(MSIX_CONTROL, MSIX_ON.into(), 2);
    assert_eq!(s.host.take(), ["arm Msix 0 5"]);
    s.write(MSIX_CONTROL, 0, 2);
    s.write(0x04, 0x002, 2);
    assert!(s.chip.attached.lock().is_empty(), "a pin that VFIO does not deliver is not connected");
}

#[test]
fn a_reset_by_the_guest_reaches_the_hardware_when_nothing_is_mapped() {
    let s = Setup::new();
    s.start();
    s.write(MSIX_CONTROL, MSIX_ON.into(), 2);
    s.host.take();
    s.write(0x78, 0x8000, 2);
    let calls = s.host.take();
    assert!(calls[..2].iter().all(|call| call.starts_with("- nic BAR")), "{calls:?}");
    let end = ["disarm Msix", "write Config 0x4 [00, 00]", "reset"];
    assert_eq!(calls[calls.len() - 3..], end);
    assert!(calls.iter().all(|call| !call.starts_with("write Config 0x78")), "{calls:?}");
    assert_eq!(s.read(0x04) & 0xffff, 0);
}

#[test]
fn a_reset_of_the_machine_resets_a_used_device_only() {
    let s = Setup::new();
    s.device.reset();
    assert_eq!(s.host.take(), ["write Config 0x4 [00, 00]", "reset"], "the setup's reset was the fresh one");
    let fresh = Arc::new(FakePci::new(sample(), &[]));
    let device = VfioPci::new(fresh.clone(), &Router::new(), VfioPciOptions::default()).unwrap();
    assert_eq!(fresh.take(), ["write Config 0x4 [03, 00]"], "no bus mastering that the guest did not ask for");
    device.reset();
    assert_eq!(fresh.take(), ["write Config 0x4 [00, 00]"], "the kernel reset it at the opening");
}

/// The command register that the hardware was last told.
fn told(calls: &[String]) -> Option<&String> {
    calls.iter().rfind(|call| call.starts_with("write Config 0x4 "))
}

#[test]
fn bus_mastering_waits_until_all_ram_is_mapped() {
    let gate = Arc::new(Gate::default());
    gate.expect(1);
    let host = FakePci { gate: Some(gate.clone()), ..FakePci::new(sample(), &[(0, 0x4000), (3, 0x4000)]) };
    let s = Arc::new(Setup::of(host));
    s.write(0x04, 0x2, 2);
    assert_eq!(told(&s.host.take()).unwrap(), "write Config 0x4 [02, 00]", "decoding waits for nothing");
    let guest = s.clone();
    let vcpu = std::thread::spawn(move || guest.write(0x04, 0x6, 2));
    // Other registers, of this function too, can be used meanwhile: no lock is held while it waits.
    s.write(0x10, BAR0 as u32, 4);
    s.write(0x3c, 0x0b, 1);
    assert_eq!(s.read(0x04) & 0xffff, 2);
    assert_eq!(told(&s.host.take()), None);
    gate.settled(1);
    vcpu.join().unwrap();
    assert_eq!(told(&s.host.take()).unwrap(), "write Config 0x4 [06, 00]");
    gate.expect(1);
    s.write(0x04, 0x6, 2);
    s.write(0x04, 0x2, 2);
    assert_eq!(told(&s.host.take()).unwrap(), "write Config 0x4 [02, 00]");
}

#[test]
fn who_is_let_go_before_ram_is_mapped_does_not_master_the_bus() {
    for failed in [false, true] {
        let gate = Arc::new(Gate::default());
        gate.expect(1);
        match failed {
            true => gate.fail(crate::error::Error::new(Code::DmaFailed, "why")),
            false => gate.release(true),
        }
        let s = Setup::of(FakePci { gate: Some(gate), ..FakePci::new(sample(), &[(0, 0x4000), (3, 0x4000)]) });
        s.write(0x04, 0x6, 2);
        assert_eq!(told(&s.host.take()).unwrap(), "write Config 0x4 [02, 00]");
        s.write(0x04, 0x6, 1);
        assert_eq!(told(&s.host.take()), None, "whatever the width");
    }
}

#[test]
fn a_guest_that_runs_is_shown_it_when_ram_is_mapped() {
    use crate::device::Device;
    let gate = Arc::new(Gate::default());
    let s = Setup::of(FakePci { gate: Some(gate.clone()), ..FakePci::new(sample(), &[(0, 0x4000), (3, 0x4000)]) });
    assert!(s.device.mapped().is_some_and(|outcome| outcome.is_ok()));
    gate.expect(1);
    assert!(s.device.mapped().is_none());
    gate.fail(crate::error::Error::new(Code::DmaFailed, "why"));
    assert_eq!(s.device.mapped().unwrap().unwrap_err().cause(), "why");
}

#[test]
fn what_was_unplugged_reads_as_ones_and_was_silenced() {
    let s = Setup::new();
    s.start();
    s.write(MSIX_CONTROL, MSIX_ON.into(), 2);
    s.host.take();
    s.device.unplug();
    assert_eq!(s.host.take(), ["disarm Msix", "write Config 0x4 [00, 00]", "reset"]);
    s.device.unplug();
    s.write(0x04, 6, 2);
    assert!(s.host.take().is_empty(), "once and for all");
    assert_eq!(s.read(0), u32::MAX);
    assert_eq!(s.device.config_write(4, &[6, 0]), Changes::empty());
}

#[test]
fn dropping_the_device_silences_it() {
    let s = Setup::new();
    s.start();
    let host = s.host.clone();
    drop(s);
    assert_eq!(host.take().last().map(String::as_str), Some("reset"));
    assert!(host.armed.lock().is_empty());
    assert_eq!(Arc::strong_count(&host), 1, "nothing keeps the descriptor");
}

#[test]
fn the_rom_is_read_once_and_when_it_is_looked_at() {
    let mut host = FakePci::new(sample(), &[(0, 0x4000)]);
    let info = RegionInfo { size: 0x1000, readable: true, writable: false, mappable: vec![] };
    host.regions.insert(RegionIndex::Rom, info);
    host.memory.lock().extend([((RegionIndex::Rom, 0), 0x55), ((RegionIndex::Rom, 1), 0xaa)]);
    let s = Setup::of(host);
    s.write(0x30, 0xf000_0001, 4);
    s.write(0x04, 0x402, 2);
    let mut data = [0; 2];
    s.memory.read(Space::Mmio, 0xf000_0000, &mut data);
    assert_eq!(data, [0x55, 0xaa]);
    *s.host.failure.lock() = Failure::Gone;
    s.memory.read(Space::Mmio, 0xf000_0000, &mut data);
    assert_eq!(data, [0x55, 0xaa], "from memory");
    let options = VfioPciOptions { rom: RomSource::Off, ..VfioPciOptions::default() };
    *s.host.failure.lock() = Failure::None;
    assert!(VfioPci::new(s.host.clone(), &Router::new(), options).unwrap().bar(6).is_none());
}

#[test]
fn what_cannot_be_passed_through_has_a_code() {
    let open = |config: Vec<u8>, failure| {
        let host = FakePci::new(config, &[]);
        *host.failure.lock() = failure;
        VfioPci::new(Arc::new(host), &Router::new(), VfioPciOptions::default()).map(|_| ()).unwrap_err().code()
    };
    let mut bridge = sample();
    bridge[0x0e] = 1;
    assert_eq!(open(bridge, Failure::None), Code::DeviceFailed);
    assert_eq!(open(vec![0; 64], Failure::None), Code::DeviceFailed);
    assert_eq!(open(sample(), Failure::Broken), Code::DeviceFailed);
    let mut gone = sample();
    gone[8..12].fill(0xff);
    assert_eq!(open(gone, Failure::None), Code::NoReset);
}

#[test]
fn a_table_that_no_guest_can_reach_hides_msix() {
    let s = Setup::of(FakePci::new(sample(), &[(0, 0x4000)]));
    assert!(s.device.core().msix().is_none());
    s.write(MSIX_CONTROL, MSIX_ON.into(), 2);
    assert_eq!(s.read(MSIX_CONTROL & !3) >> 16, 0);
}

/// Every access that a guest can make, of any kind.
fn exercise(s: &Setup, steps: &[(u8, u16, Vec<u8>)]) {
    for (kind, off, data) in steps {
        let mut buffer = data.clone();
        match kind % 6 {
            0 => s.root.write(0, s.devfn(), *off, data),
            1 => s.root.read(0, s.devfn(), *off, &mut buffer),
            2 => s.device.config_read(*off, &mut buffer),
            3 => {
                let what = s.device.config_write(*off, data);
                s.device.changed(what);
            }
            4 => s.memory.write(Space::Mmio, BAR3 + u64::from(*off), data),
            _ => s.memory.read(Space::Mmio, BAR3 + u64::from(*off), &mut buffer),
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<(u8, u16, Vec<u8>)>> {
    let off =
        prop_oneof![0u16..0x110, any::<u16>(), Just(0x04), Just(0x44), Just(0x52), Just(0x78), Just(MSIX_CONTROL)];
    prop::collection::vec((any::<u8>(), off, prop::collection::vec(any::<u8>(), 0..10)), 0..40)
}

proptest! {
    /// No access panics, whatever the device answers; VFIO never has two kinds of interrupts armed (the fake asserts).
    #[test]
    fn nothing_panics(steps in steps(), failure in 0u8..3, when in 0usize..40, pokes in prop::collection::vec((0usize..256, any::<u8>()), 0..8)) {
        let mut config = sample();
        for (at, byte) in pokes {
            if !(8..0x0f).contains(&at) {
                config[at] = byte;
            }
        }
        let s = Setup::of(FakePci::new(config, &[(0, 0x4000), (3, 0x4000)]));
        s.start();
        let (before, after) = steps.split_at(when.min(steps.len()));
        exercise(&s, before);
        *s.host.failure.lock() = [Failure::None, Failure::Gone, Failure::Broken][usize::from(failure)];
        exercise(&s, after);
        s.device.reset();
        s.device.unplug();
    }

    /// After any writes: VFIO delivers what the registers ask for, and the hardware decodes whatever is mapped.
    #[test]
    fn hardware_and_registers_agree(steps in steps()) {
        let s = Setup::new();
        s.start();
        for step in steps {
            exercise(&s, &[(0, step.1, step.2)]);
            let wanted = irq::wanted(s.device.core(), s.device.interrupts.mode());
            let armed = s.host.armed.lock().keys().copied().collect::<Vec<_>>();
            let expected = match wanted {
                Mode::Off => vec![],
                Mode::Intx { .. } => vec![IrqKind::Intx],
                Mode::Msi { .. } => vec![IrqKind::Msi],
                Mode::Msix => vec![IrqKind::Msix],
            };
            prop_assert_eq!(armed, expected);
            let command = u16::from(s.host.config.lock()[4]);
            prop_assert_eq!(command & 7, s.device.core().command() & 7);
            let mapped = !s.memory.view(Space::Mmio).ranges().is_empty();
            prop_assert!(!mapped || command & 2 != 0);
        }
    }
}

/// A page for the function, and whether it took it.
fn shown(s: &Setup) -> (HostSlice, bool) {
    let page = Arc::new(HostMem::anonymous(4096, PageSize::Small).unwrap()).slice();
    let took = s.device.show_page(&page);
    (page, took)
}

/// Whether the page reads like the registers, everywhere.
fn agrees(s: &Setup, page: &HostSlice) -> bool {
    (0..4096).step_by(4).all(|off| {
        let mut data = [0; 4];
        page.read(u64::from(off), &mut data);
        u32::from_le_bytes(data) == s.read(off)
    })
}

#[test]
fn a_function_that_nothing_uses_has_a_page_until_a_driver_comes() {
    let s = Setup::new();
    let (page, took) = shown(&s);
    assert!(took && agrees(&s, &page));
    // Sizing a BAR, interrupt line, device control of PCI Express, error reporting.
    for (off, value, len) in [(0x10, u32::MAX, 4), (0x3c, 11, 1), (0x78, 0x2810, 2), (0x108, 0x30, 4)] {
        s.write(off, value, len);
        assert!(s.device.page_is_current() && agrees(&s, &page), "{off:#x}");
    }
    s.write(0x04, 0x402, 2);
    assert!(!s.device.page_is_current(), "memory decoding is on");
    assert!(!shown(&s).1, "a function in use has no page");
    s.device.reset();
    assert!(shown(&s).1);
}

#[test]
fn what_may_have_effects_elsewhere_ends_the_page() {
    for (off, value, len, why) in [
        (0x04, 0x404, 2, "bus mastering"),
        (0x44, 3, 2, "power state"),
        (u32::from(MSIX_CONTROL) as u16, u32::from(MSIX_ON), 2, "MSI-X"),
        (0x78, 0x8000, 2, "function-level reset"),
        (0xf8, 1, 4, "a register of no known structure"),
    ] {
        let s = Setup::new();
        let (_page, took) = shown(&s);
        assert!(took, "{why}");
        s.write(off, value, len);
        assert!(!s.device.page_is_current(), "{why}");
    }
    let s = Setup::new();
    *s.host.failure.lock() = Failure::Broken;
    assert!(!shown(&s).1, "registers that cannot be read");
}

proptest! {
    /// While there is a page it reads like the registers, whatever the guest writes.
    #[test]
    fn a_current_page_reads_like_the_registers(writes in prop::collection::vec((0u16..0x200, any::<u32>()), 0..12)) {
        let s = Setup::new();
        let (page, took) = shown(&s);
        prop_assert!(took);
        for (off, value) in writes {
            s.write(off & !3, value, 4);
            if !s.device.page_is_current() {
                break;
            }
            prop_assert!(agrees(&s, &page), "after {off:#x} = {value:#x}");
        }
    }
}

/// What cannot be reset alone is reset with its siblings, after all of them were quieted; a device that does not come back
/// is noted.
#[test]
fn a_restart_resets_what_shares_a_bus_once_all_are_quiet() {
    use crate::host::reset::{Affected, Alone};
    let own = |owned| Affected { bdf: "01:00.0".parse().unwrap(), owned, driver: None };
    let host = Arc::new(FakePci {
        alone: Alone::Impossible,
        reach: vec![own(true)].into(),
        ..FakePci::new(sample(), &[(0, 0x1000)])
    });
    let device = VfioPci::new(host.clone(), &Router::new(), VfioPciOptions::default()).unwrap();
    device.reset_shared();
    assert!(host.take().contains(&"hot reset".to_owned()), "the kernel could not reset it when it was opened");
    device.reset();
    device.reset_shared();
    assert!(!host.take().iter().any(|call| call.contains("reset")), "nothing has used it");
    device.reset();
    assert!(host.take().contains(&"reset".to_owned()));
    device.reset_shared();
    assert_eq!(host.take(), ["hot reset"]);
    device.reset_shared();
    assert!(host.take().is_empty(), "once for each restart");
    device.reset();
    host.take();
    *host.failure.lock() = Failure::Gone;
    device.reset();
    assert!(host.take().iter().any(|call| call.starts_with("quarantine: after a reset: its class code")));
}

/// A reset that may do nothing is followed by the slot's or the bus's, at the start, at a restart and at the end; where that
/// would hit others it is all there is, and no reason to complain.
#[test]
fn a_doubtful_reset_is_followed_by_a_hot_one() {
    use crate::host::reset::{Affected, Alone};
    let own = |bdf: &str, owned| Affected { bdf: bdf.parse().unwrap(), owned, driver: None };
    let host = Arc::new(FakePci {
        alone: Alone::Doubtful,
        reach: vec![own("01:00.0", true)].into(),
        ..FakePci::new(sample(), &[(0, 0x1000)])
    });
    let hot = |calls: Vec<String>| calls.iter().filter(|call| *call == "hot reset").count();
    let device = VfioPci::new(host.clone(), &Router::new(), VfioPciOptions::default()).unwrap();
    device.reset_shared();
    assert_eq!(hot(host.take()), 1, "at the start");
    device.reset();
    device.reset();
    device.reset_shared();
    assert_eq!(hot(host.take()), 1, "at a restart");
    *host.reach.lock() = vec![own("01:00.0", true), own("01:00.1", false)];
    device.reset();
    device.reset_shared();
    assert_eq!(hot(host.take()), 0, "the other function is somebody else's");
    assert!(device.facts().contains(&("last-reset", "done".to_owned())));
    *host.reach.lock() = vec![own("01:00.0", true), own("01:00.1", true)];
    device.unplug();
    assert_eq!(hot(host.take()), 0, "the other function may be in use");
    let device = VfioPci::new(host.clone(), &Router::new(), VfioPciOptions::default()).unwrap();
    *host.reach.lock() = vec![own("01:00.0", true)];
    drop(device);
    assert_eq!(hot(host.take()), 1, "at the end");
}
