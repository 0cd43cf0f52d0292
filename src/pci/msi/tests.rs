//! The four layouts of the capability, and masking.

use super::*;
use crate::irq::testing::Recorder;
use proptest::prelude::*;

fn setup(spec: MsiSpec) -> (ConfigSpace, Msi, Arc<Recorder>) {
    let router = Router::new();
    let chip = Arc::new(Recorder::default());
    router.set_chip(chip.clone()).unwrap();
    chip.take();
    let mut config = ConfigSpace::new();
    let msi = Msi::add(&mut config, spec, &router, "t").unwrap();
    (config, msi, chip)
}

const FULL: MsiSpec = MsiSpec { vectors: 4, address_64bit: true, maskable: true };

#[test]
fn lengths_and_offsets_are_the_four_layouts() {
    for (address_64bit, maskable, len, data, mask) in [
        (false, false, 10, 8, None),
        (true, false, 14, 12, None),
        (false, true, 20, 8, Some(12)),
        (true, true, 24, 12, Some(16)),
    ] {
        let spec = MsiSpec { vectors: 1, address_64bit, maskable };
        assert_eq!((spec.len(), spec.data(), spec.mask()), (len, data, mask));
    }
    assert_eq!(MsiSpec::from_control(0x018a), MsiSpec { vectors: 32, address_64bit: true, maskable: true });
    assert_eq!(MsiSpec::from_control(0x000e).vectors, 32, "reserved encodings are no more than 32");
}

#[test]
fn enabling_several_vectors_is_one_batch_with_their_numbers_in_the_data() {
    let (mut config, msi, chip) = setup(FULL);
    config.write(0x44, &0xfee0_1000u32.to_le_bytes());
    config.write(0x4c, &0x4043u16.to_le_bytes());
    assert!(!msi.follow(&config));
    assert!(msi.eventfds().is_empty());
    config.write(0x42, &0x0021u16.to_le_bytes());
    assert!(msi.follow(&config));
    assert_eq!(chip.take(), ["routes 4", "attach 24 edge", "attach 25 edge", "attach 26 edge", "attach 27 edge"]);
    assert_eq!((msi.enabled_vectors(), msi.eventfds().len()), (4, 4));
    let state = msi.state.lock();
    assert_eq!(state.current[3], Some(MsiMessage { address: 0xfee0_1000, data: 0x4043 }));
    assert_eq!(state.current[1], Some(MsiMessage { address: 0xfee0_1000, data: 0x4041 }));
}

#[test]
fn a_masked_vector_is_pending_and_fires_when_unmasked() {
    let (mut config, msi, chip) = setup(FULL);
    config.write(0x42, &[0x21]);
    config.write(0x50, &[0x02]);
    assert!(msi.follow(&config));
    chip.take();
    msi.fire(1);
    assert!(msi.shows_pending(0x54, 1) && !msi.shows_pending(0x50, 4));
    msi.refresh(&mut config);
    assert_eq!(config.u32(0x54), 2);
    config.write(0x50, &[0]);
    assert!(!msi.follow(&config), "masks do not concern the owner");
    assert_eq!(chip.take(), ["routes 4", "attach 27 edge"]);
    msi.refresh(&mut config);
    assert_eq!(config.u32(0x54), 0, "an unmasked vector is never pending");
}

#[test]
fn nothing_is_pending_from_before_it_was_switched_on() {
    let (mut config, msi, _chip) = setup(FULL);
    msi.prepare().unwrap();
    msi.eventfds()[0].write(1).unwrap();
    msi.fire(0);
    config.write(0x50, &[1]);
    config.write(0x42, &[1]);
    msi.follow(&config);
    msi.refresh(&mut config);
    assert_eq!(config.u32(0x54), 0);
}

proptest! {
    /// Whatever is written, as many irqfds are attached as vectors are enabled and unmasked.
    #[test]
    fn attached_is_what_the_registers_say(vectors in 0u8..=40, wide: bool, maskable: bool,
            writes in prop::collection::vec((0u16..24, any::<u8>()), 0..40)) {
        let (mut config, msi, chip) = setup(MsiSpec { vectors, address_64bit: wide, maskable });
        for (off, byte) in writes {
            config.write(0x40 + off, &[byte]);
            msi.follow(&config);
            let registers = msi.spec.parse(&config, 0x40);
            let live = (0..msi.vectors.count() as u32).filter(|&index| registers.wanted(index).is_some()).count();
            prop_assert_eq!(chip.attached.lock().len(), live);
        }
    }
}

#[test]
fn no_more_is_offered_than_can_be_delivered() {
    let eight = MsiSpec::from_control(3 << CONTROL_CAPABLE_SHIFT);
    let offered = |count| eight.at_most(count).vectors;
    assert_eq!([0, 1, 3, 4, 8, 32, u32::MAX].map(offered), [1, 1, 2, 4, 8, 8, 8]);
}
