//! The lists of capabilities of a hostile configuration space, and what a guest is shown of them.
#![no_main]

use std::collections::BTreeSet;

use fuzz::input::Input;
use libfuzzer_sys::fuzz_target;
use passthru::vfio::Attachment;
use passthru::vfio::config::{self, Abilities};

/// The capabilities that fit at most, 4 bytes each (PCI 6.7, PCIe 7.6).
const MAX: usize = (256 - 0x40) / 4;
const MAX_EXTENDED: usize = (4096 - 256) / 4;

// Flags, accesses, then the space.
fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let flags = input.u8();
    let accesses: Vec<(u16, usize)> =
        (0..8).map(|_| (input.u16() & 0xfff, [1, 2, 4][usize::from(input.u8() % 3)])).collect();
    let bytes = input.rest();
    let source = config::image(bytes);
    walk(source.capabilities().iter().map(|(_, at)| *at), MAX, 0x40..0x100);
    walk(source.ext_capabilities().iter().map(|(_, at)| *at), MAX_EXTENDED, 0x100..0x1000);
    let abilities = Abilities {
        msi: flags & 1 != 0,
        msix: flags & 2 != 0,
        intx: flags & 4 != 0,
        attachment: if flags & 8 != 0 { Attachment::Port } else { Attachment::RootBus },
    };
    let (shown, division) = config::plan(bytes, abilities);
    walk(shown.capabilities().iter().map(|(_, at)| *at), MAX, 0x40..0x100);
    walk(shown.ext_capabilities().iter().map(|(_, at)| *at), MAX_EXTENDED, 0x100..0x1000);
    // SR-IOV, ATS and PASID act on the host.
    assert!(shown.ext_capabilities().iter().all(|(id, _)| ![0x0f, 0x10, 0x1b].contains(id)), "a hidden capability");
    for (off, len) in accesses {
        let off = off & !(len as u16 - 1);
        let mut data = [0; 4];
        division.merge(off, &[0xff; 4][..len], &mut data[..len]);
        let parts = division.forwarded(off, len);
        assert!(parts.windows(2).all(|w| w[0].end <= w[1].start) && parts.iter().all(|part| part.end <= len));
        let _ = division.reads_hardware(off, len);
    }
});

/// A list ends, stays in its space, and never comes back.
fn walk(list: impl Iterator<Item = u16>, max: usize, space: std::ops::Range<u16>) {
    let mut seen = BTreeSet::new();
    for at in list {
        assert!(space.contains(&at) && seen.insert(at), "a capability at {at:#x}");
    }
    assert!(seen.len() <= max);
}
