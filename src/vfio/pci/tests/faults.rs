//! Every request to the host that fails, with every errno: nothing panics, nothing is left behind, and a device whose
//! requests succeed again works again.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::super::testing::Faults;
use super::*;

/// Linux's errno numbers.
const ERRNOS: std::ops::RangeInclusive<i32> = 1..=133;

fn device(config: Vec<u8>, refused: BTreeMap<usize, i32>) -> FakePci {
    let faults = Faults { requests: 0, refused };
    FakePci { faults: faults.into(), orderly: false, ..FakePci::new(config, &[(0, 0x4000), (3, 0x4000)]) }
}

/// A machine with the device; `None` if it was refused, and then nothing of it is left.
fn plug(host: &Arc<FakePci>) -> Option<(Setup, Arc<Router>)> {
    let chip = Arc::new(Recorder::default());
    let router = Router::new();
    router.set_chip(chip.clone()).unwrap();
    let memory = Memory::new();
    let map = memory.listen(Stage::Guest, Arc::new(Map(host.clone()))).unwrap();
    let root = PciRoot::new("pcie.0", &Decode::new(memory.clone()));
    let options = VfioPciOptions { id: "nic".into(), ..VfioPciOptions::default() };
    let plugged = VfioPci::new(host.clone(), &router, options).and_then(|device| {
        let slot = root.bus().attach(device.clone(), Some("3"))?;
        Ok((device, slot))
    });
    match plugged {
        Ok((device, slot)) => {
            device.reset();
            Some((Setup { host: host.clone(), device, memory, root, chip, slot, _map: map }, router))
        }
        Err(error) => {
            assert!(!error.cause().is_empty());
            assert!(host.armed.lock().is_empty(), "interrupts of a device that was refused: {error}");
            assert_eq!(router.routes_in_use(), 0);
            None
        }
    }
}

/// What a guest does with a device from its start to a reset: all three kinds of interrupts, BARs, power, resets.
fn life(s: &Setup) {
    let page = Arc::new(HostMem::anonymous(4096, PageSize::Small).unwrap()).slice();
    s.device.show_page(&page);
    s.start();
    for (off, value, len) in [
        (MSIX_CONTROL, u32::from(MSIX_ON), 2),
        (MSIX_CONTROL, 0, 2),
        (0x52, 1, 2),
        (0x52, 0, 2),
        (0x04, 0x006, 2),
        (0x44, 3, 2),
        (0x44, 0, 2),
        (0x78, 0x8000, 2),
    ] {
        s.write(off, value, len);
        s.read(off);
    }
    s.table(1, 0x41, false);
    let mut data = [0; 4];
    s.memory.read(Space::Mmio, BAR3, &mut data);
}

/// Off the bus and gone: no route, no irqfd, no mapping, no owner.
fn end(s: Setup, router: &Router) {
    let Setup { host, device, memory, chip, slot, _map, root } = s;
    drop(slot);
    device.unplug();
    let weak = Arc::downgrade(&device);
    drop(device);
    assert_eq!(weak.strong_count(), 0, "the device is kept");
    assert_eq!(router.routes_in_use(), 0, "a route is leaked");
    assert!(chip.attached.lock().is_empty(), "an irqfd is leaked");
    assert!(memory.view(Space::Mmio).ranges().is_empty(), "a BAR is left in the map");
    drop((_map, root));
    // This one and the caller's.
    assert_eq!(Arc::strong_count(&host), 2, "the host's device is kept");
}

/// With a device that answers again: a reset of the machine, and its interrupts come.
fn works(s: &Setup, seen: &str) {
    s.device.reset();
    s.start();
    s.write(MSIX_CONTROL, u32::from(MSIX_ON), 2);
    let armed: Vec<_> = s.host.armed.lock().keys().copied().collect();
    assert_eq!(armed, [IrqKind::Msix], "{seen}");
    assert_eq!(s.host.config.lock()[4] & 6, 6, "{seen}");
}

#[test]
fn any_request_may_fail_with_any_errno() {
    let host = Arc::new(device(sample(), BTreeMap::new()));
    let (s, router) = plug(&host).unwrap();
    life(&s);
    let requests = host.faults.lock().requests;
    assert!(requests > 30, "{requests}");
    works(&s, "no fault");
    end(s, &router);
    for request in 0..requests {
        for errno in ERRNOS {
            let host = Arc::new(device(sample(), BTreeMap::from([(request, errno)])));
            let Some((s, router)) = plug(&host) else { continue };
            life(&s);
            works(&s, &format!("request {request} failed with {errno}"));
            end(s, &router);
        }
    }
}

proptest! {
    /// Any device under any guest, with any requests refused: no panic, nothing left, no access that never ends.
    #[test]
    fn hostile_devices_and_refusals_leave_nothing(
        steps in steps(),
        config in prop_oneof![Just(sample()), prop::collection::vec(any::<u8>(), 256..=256)],
        pokes in prop::collection::vec((0usize..256, any::<u8>()), 0..12),
        refused in prop::collection::btree_map(0usize..120, ERRNOS, 0..24),
    ) {
        let mut config = config;
        for (at, byte) in pokes {
            config[at] = byte;
        }
        // An endpoint: a bridge is refused at once.
        config[0x0e] &= 0x80;
        let host = Arc::new(device(config, refused));
        if let Some((s, router)) = plug(&host) {
            s.start();
            exercise(&s, &steps);
            s.device.reset();
            exercise(&s, &steps);
            end(s, &router);
        }
        prop_assert_eq!(Arc::strong_count(&host), 1);
    }
}
