//! The table, the pending bits and the masks.

use super::*;
use crate::irq::testing::Recorder;
use proptest::prelude::*;

fn setup(vectors: u16) -> (ConfigSpace, Arc<Msix>, Arc<Recorder>) {
    let router = Router::new();
    let chip = Arc::new(Recorder::default());
    router.set_chip(chip.clone()).unwrap();
    chip.take();
    let mut config = ConfigSpace::new();
    let msix = Msix::add(&mut config, MsixSpec::exclusive(1, vectors), &router, "t").unwrap();
    (config, msix, chip)
}

fn control(config: &mut ConfigSpace, msix: &Msix, value: u16) -> bool {
    config.write(0x42, &value.to_le_bytes());
    msix.follow(config)
}

fn entry(msix: &Msix, index: u64, address: u64, data: u32, control: u32) {
    msix.table_write(index * ENTRY, &address.to_le_bytes());
    msix.table_write(index * ENTRY + 8, &data.to_le_bytes());
    msix.table_write(index * ENTRY + 12, &control.to_le_bytes());
}

#[test]
fn the_capability_says_where_everything_is() {
    let (config, msix, _) = setup(300);
    assert_eq!((config.u8(0x40), config.u16(0x42)), (CAP_MSIX, 299));
    assert_eq!((config.u32(0x44), config.u32(0x48)), (1, 0x2001));
    assert_eq!(MsixSpec::parse(&config, 0x40), msix.spec());
    assert_eq!((msix.spec().table_len(), msix.spec().pending_len()), (4800, 40));
    assert_eq!(msix.exclusive_bar().size, 0x4000);
}

#[test]
fn vectors_are_masked_at_power_on_and_enabling_is_one_batch() {
    let (mut config, msix, chip) = setup(3);
    let mut data = [0xaa; 16];
    msix.table_read(16, &mut data);
    assert_eq!(u128::from_le_bytes(data), 1 << 96);
    entry(&msix, 0, 0xfee0_0000, 0x31, 0);
    entry(&msix, 2, 0xfee0_1000, 0x32, 0);
    assert!(chip.take().is_empty() && msix.eventfds().is_empty());
    assert!(control(&mut config, &msix, CONTROL_ENABLE));
    assert_eq!(chip.take(), ["routes 2", "attach 24 edge", "attach 25 edge"]);
    assert_eq!(msix.eventfds().len(), 3, "all eventfds are there at once");
    assert!(!control(&mut config, &msix, CONTROL_ENABLE | CONTROL_FUNCTION_MASK));
    assert_eq!(chip.take(), ["detach 24", "detach 25"]);
    assert!(control(&mut config, &msix, 0));
    assert!(chip.take().is_empty());
}

#[test]
fn programming_a_masked_vector_costs_nothing_until_it_is_unmasked() {
    let (mut config, msix, chip) = setup(2);
    control(&mut config, &msix, CONTROL_ENABLE);
    entry(&msix, 1, 0xfee0_0000, 0x40, 1);
    assert!(chip.take().is_empty());
    msix.table_write(28, &[0]);
    assert_eq!(chip.take(), ["routes 1", "attach 24 edge"]);
}

#[test]
fn pending_is_seen_while_masked_and_kept_for_the_unmasking() {
    let (mut config, msix, chip) = setup(70);
    control(&mut config, &msix, CONTROL_ENABLE);
    msix.fire(65);
    let mut bits = [0; 8];
    msix.pending_read(8, &mut bits);
    assert_eq!(u64::from_le_bytes(bits), 2);
    msix.pending_io().write(8, &[0xff]);
    entry(&msix, 65, 0xfee0_0000, 0x40, 0);
    msix.pending_read(8, &mut bits);
    assert_eq!(u64::from_le_bytes(bits), 0, "KVM takes it from the eventfd");
    assert_eq!(chip.take(), ["routes 1", "attach 24 edge"]);
    control(&mut config, &msix, CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
    msix.pending_read(8, &mut bits);
    assert_eq!(u64::from_le_bytes(bits), 2, "nobody took it: the recorder is no KVM");
}

#[test]
fn switched_off_nothing_fires_and_stale_events_are_dropped() {
    let (mut config, msix, _chip) = setup(2);
    control(&mut config, &msix, CONTROL_ENABLE);
    control(&mut config, &msix, 0);
    msix.fire(0);
    msix.eventfds()[1].write(1).unwrap();
    control(&mut config, &msix, CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
    let mut bits = [0];
    msix.pending_read(0, &mut bits);
    assert_eq!(bits, [0]);
}

#[test]
fn outside_the_table_reads_as_ones() {
    let (_, msix, _) = setup(1);
    let mut data = [0; 8];
    for off in [16, u64::MAX - 7, u64::MAX] {
        msix.table_read(off, &mut data);
        assert_eq!(data, [0xff; 8], "at {off:#x}");
        msix.table_write(off, &[0; 8]);
        msix.pending_read(off, &mut data);
    }
}

proptest! {
    /// Any writes, of any width and alignment: attached is exactly what the table and the control word say.
    #[test]
    fn masks_are_exact(vectors in 1u16..6, steps in prop::collection::vec((any::<Option<u8>>(), 0u64..100, any::<u64>(), 1usize..=8), 0..40)) {
        let (mut config, msix, chip) = setup(vectors);
        let mut model = vec![0u8; usize::from(vectors) * 16];
        model.iter_mut().skip(12).step_by(16).for_each(|byte| *byte = 1);
        for (word, off, value, len) in steps {
            match word {
                Some(word) => { control(&mut config, &msix, u16::from(word) << 8); }
                None => {
                    let bytes = &value.to_le_bytes()[..len];
                    msix.table_write(off, bytes);
                    for (at, byte) in (off as usize..).zip(bytes) {
                        if let Some(old) = model.get_mut(at) { *old = if at % 16 > 12 { 0 } else if at % 16 == 12 { byte & 1 } else { *byte }; }
                    }
                }
            }
            let mut table = vec![0; model.len()];
            msix.table_read(0, &mut table);
            prop_assert_eq!(&table, &model);
            let on = config.u16(0x42) & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) == CONTROL_ENABLE;
            let live = if on { model.iter().skip(12).step_by(16).filter(|byte| **byte == 0).count() } else { 0 };
            prop_assert_eq!(chip.attached.lock().len(), live);
        }
        msix.reset();
        prop_assert!(chip.attached.lock().is_empty());
    }
}
