//! Masks, capability lists, reset and the mirror.

use super::*;
use crate::memory::host::{HostMem, PageSize};
use proptest::prelude::*;
use std::sync::Arc;

#[test]
fn masks_decide_what_a_write_changes() {
    let mut config = ConfigSpace::new();
    config.set_u32(0x40, 0xff00_00aa);
    config.allow(0x40, &[0x0f, 0, 0, 0]);
    config.allow_clear(0x43, &[0x81]);
    config.write(0x40, &[0x55, 0x55, 0x55, 0x01]);
    assert_eq!(config.u32(0x40), 0xfe00_00a5);
    config.write(0x43, &[0x80]);
    assert_eq!(config.u8(0x43), 0x7e);
}

#[test]
fn beyond_the_end_reads_as_ones() {
    let mut config = ConfigSpace::new();
    let mut data = [0; 4];
    config.read(4094, &mut data);
    assert_eq!(data, [0, 0, 0xff, 0xff]);
    config.read(u16::MAX, &mut data);
    assert_eq!(data, [0xff; 4]);
    config.write(u16::MAX, &data);
    config.set_u32(u16::MAX, 1);
    assert_eq!(config.u32(u16::MAX), u32::MAX);
}

#[test]
fn capabilities_are_linked_in_order() {
    let mut config = ConfigSpace::new();
    assert!(config.capabilities().is_empty());
    assert_eq!(config.add_capability(5, &[0; 8]).unwrap(), 0x40);
    assert_eq!(config.add_capability(0x11, &[1; 10]).unwrap(), 0x4c);
    assert_eq!(config.capabilities(), [(5, 0x40), (0x11, 0x4c)]);
    assert_eq!(config.find(0x11), Some(0x4c));
    assert_eq!(config.find(1), None);
    assert_eq!(config.add_ext_capability(1, 2, &[0; 40]).unwrap(), 0x100);
    assert_eq!(config.add_ext_capability(0xd, 1, &[0; 4]).unwrap(), 0x12c);
    assert_eq!(config.ext_capabilities(), [(1, 0x100), (0xd, 0x12c)]);
    assert_eq!(config.u32(0x100), 0x12c2_0001);
}

#[test]
fn a_full_space_refuses_a_capability() {
    let mut config = ConfigSpace::new();
    config.add_capability(9, &[0; 190]).unwrap();
    assert!(config.add_capability(9, &[]).is_err());
    config.add_ext_capability(9, 1, &[0; 3836]).unwrap();
    assert!(config.add_ext_capability(9, 1, &[]).is_err());
}

#[test]
fn reset_restores_what_a_guest_can_change() {
    let mut config = ConfigSpace::new();
    config.allow(0x40, &[0xf0]);
    config.set_u8(0x40, 0x5a);
    config.seal();
    config.write(0x40, &[0xff]);
    config.write(INTERRUPT_LINE, &[7]);
    config.set_u8(0x41, 3);
    config.reset();
    assert_eq!((config.u16(0x40), config.u8(INTERRUPT_LINE)), (0x035a, 0));
}

#[test]
fn the_mirror_follows_every_change() {
    let mem = Arc::new(HostMem::anonymous(4096, PageSize::Small).unwrap());
    let mut config = ConfigSpace::new();
    config.set_u32(0, 0x29c0_8086);
    config.mirror(Some(mem.slice()));
    config.write(INTERRUPT_LINE, &[9]);
    config.set_u16(0xffe, 0x1234);
    let (mut page, mut own) = ([0; 4096], [0; 4096]);
    mem.slice().read(0, &mut page);
    config.read(0, &mut own);
    assert_eq!(page, own);
    assert_eq!(&page[..4], &[0x86, 0x80, 0xc0, 0x29]);
}

proptest! {
    /// Lists made of any bytes end, and name every offset at most once.
    #[test]
    fn lists_end(bytes in prop::collection::vec(any::<u8>(), SIZE)) {
        let mut config = ConfigSpace::new();
        config.set(0, &bytes);
        config.set_u16(STATUS, STATUS_CAPABILITIES);
        prop_assert!(config.capabilities().len() <= MAX_CAPABILITIES);
        let mut seen: Vec<u16> = config.ext_capabilities().into_iter().map(|(_, at)| at).collect();
        seen.sort_unstable();
        prop_assert!(seen.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn writes_keep_what_they_may_not_change(off in 0u16..4100, data in prop::collection::vec(any::<u8>(), 1..=4), mask: [u8; 4]) {
        let mut config = ConfigSpace::new();
        config.allow(off, &mask);
        let before: Vec<u8> = (0..CONFIG_SIZE).map(|at| config.u8(at)).collect();
        config.write(off, &data);
        for at in 0..CONFIG_SIZE {
            let changed = config.u8(at) ^ before[usize::from(at)];
            prop_assert_eq!(changed & !config.changeable(at), 0);
        }
    }
}
