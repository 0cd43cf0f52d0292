//! Where an MSI-X table and its pending bits may lie, and a guest's accesses to them.
#![no_main]

use std::sync::Arc;

use fuzz::device::HostileDevice;
use fuzz::input::Input;
use libfuzzer_sys::fuzz_target;
use passthru::irq::Router;
use passthru::memory::IoHandler;
use passthru::pci::{ConfigSpace, Msix, MsixSpec};
use passthru::vfio::HostPci;
use passthru::vfio::bars::{self, Part};
use passthru::vfio::seams::{BARS, RegionIndex};
use passthru::vfio::trap::BarTrap;

/// Vectors of a run at most: each is a descriptor.
const MAX_VECTORS: u16 = 16;
const PAGE: u64 = 4096;

// Description of the device, the capability's two registers, then accesses.
fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let device: Arc<dyn HostPci> = Arc::new(HostileDevice::describe(&mut input).with_config(&[]));
    let (control, table, pending) = (input.u16(), input.u32(), input.u32());
    let mut source = ConfigSpace::new();
    let Ok(at) = source
        .add_capability(0x11, &[&control.to_le_bytes()[..], &table.to_le_bytes(), &pending.to_le_bytes()].concat())
    else {
        return;
    };
    let mut spec = MsixSpec::parse(&source, at);
    spec.vectors = spec.vectors.min(MAX_VECTORS);
    for bar in 0..BARS as u8 {
        check_parts(bar, &*device, &spec);
    }
    let router = Router::new();
    let msix = Msix::at(&mut source, at, spec, &router, "dev");
    if msix.prepare().is_err() {
        return;
    }
    while !input.is_empty() {
        let (bar, off, value, more) = (input.u8() % BARS as u8, input.u32(), input.u32(), input.u8());
        let len = 1 << (more & 3);
        let bytes = &mut [value.to_le_bytes(), (!value).to_le_bytes()].concat()[..len];
        let trap = BarTrap::new(bar, &device, Some(msix.clone()));
        match more >> 6 {
            0 => trap.write(u64::from(off), bytes),
            1 => trap.read(u64::from(off), bytes),
            2 => msix.fire(usize::from(off as u16)),
            _ => trap.write(u64::from(spec.table_offset) + u64::from(off % 0x140), bytes),
        }
    }
});

/// The parts cover the BAR without gaps, mapped ones are whole pages, and none shows the table.
fn check_parts(bar: u8, device: &dyn HostPci, spec: &MsixSpec) {
    let region = device.region(RegionIndex::Bar(bar));
    let table = u64::from(spec.table_offset)..u64::from(spec.table_offset) + spec.table_len();
    let mut end = 0;
    for (range, part) in bars::parts(bar, &region, Some(spec)) {
        assert!(range.start == end && range.end > range.start, "a gap or an overlap at {end:#x}");
        end = range.end;
        if part == Part::Mapped {
            assert!(range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE));
            let shows = spec.table_bar == bar && range.start < table.end && table.start < range.end;
            assert!(!shows, "BAR {bar}: {range:x?} shows the table at {table:x?}");
        }
    }
    assert_eq!(end, region.size);
}
