use proptest::prelude::*;

use super::super::io::write_from;
use super::super::testing::MemoryNode;
use super::create::New;
use super::*;

fn child(node: Arc<dyn BlockNode>, name: &str) -> Child {
    Child::own(node, name)
}

fn image(size: u64) -> (Arc<MemoryNode>, Qcow2) {
    let file = Arc::new(MemoryNode::new(Vec::new()));
    create::create(file.clone(), &New::of(size)).unwrap();
    let image = Qcow2::open(child(file.clone(), "file"), None, false, true).unwrap();
    (file, image)
}

fn overlay(base: Arc<dyn BlockNode>, size: u64) -> Qcow2 {
    let file = Arc::new(MemoryNode::new(Vec::new()));
    let new = New { backing: Some(("base".into(), "raw".into())), ..New::of(size) };
    create::create(file.clone(), &new).unwrap();
    Qcow2::open(child(file, "file"), Some(child(base, "base")), false, true).unwrap()
}

fn bytes(node: &dyn BlockNode, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xaa; len];
    read_into(node, offset, &mut bytes).unwrap();
    bytes
}

#[test]
fn an_image_grows_as_it_is_written_and_is_there_again() {
    let (file, image) = image(1 << 30);
    assert_eq!(image.info().len, 1 << 30);
    let empty = file.bytes().len();
    assert!(empty < 1 << 20, "{empty}");
    write_from(&image, (1 << 30) - 5, &mut [1, 2, 3, 4, 5]).unwrap();
    assert!(write_from(&image, (1 << 30) - 4, &mut [0; 5]).is_err());
    image.flush().unwrap();
    let again = Qcow2::open(child(Arc::new(MemoryNode::new(file.bytes())), "copy"), None, true, false).unwrap();
    assert_eq!(bytes(&again, (1 << 30) - 6, 6), [0, 1, 2, 3, 4, 5]);
    assert_eq!(write_from(&again, 0, &mut [0]).unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert_eq!(image.extent(0, 1 << 30).unwrap().0, Extent::Zero);
    assert_eq!(image.extent((1 << 30) - 5, 1 << 30).unwrap(), (Extent::Data, 1 << 30));
}

#[test]
fn an_overlay_leaves_its_base_alone() {
    let base = Arc::new(MemoryNode::new(vec![7; 300_000]));
    let top = overlay(base.clone(), 400_000);
    assert_eq!(bytes(&top, 299_999, 3), [7, 0, 0]);
    assert_eq!(top.extent(0, 400_000).unwrap().0, Extent::Backing);
    write_from(&top, 100, &mut [1]).unwrap();
    assert_eq!(bytes(&top, 99, 3), [7, 1, 7]);
    top.write_zeroes(65536..131_072, true).unwrap();
    assert_eq!(bytes(&top, 65_535, 2), [7, 0]);
    assert_eq!(top.extent(65_536, 400_000).unwrap(), (Extent::Zero, 131_072));
    assert!(base.bytes().iter().all(|byte| *byte == 7));
    assert_eq!(top.children(), ["file".into(), "base".into()]);
}

#[test]
fn growing_does_not_show_what_the_base_has_behind_the_end() {
    let top = overlay(Arc::new(MemoryNode::new(vec![7; 300_000])), 65_536);
    top.resize(200_000).unwrap();
    assert_eq!(top.info().len, 200_000);
    assert_eq!(bytes(&top, 65_535, 3), [7, 0, 0]);
    top.resize(1000).unwrap();
    assert!(read_into(&top, 1000, &mut [0]).is_err());
}

#[test]
fn a_full_disk_is_an_error_and_the_image_stays_whole() {
    for writes in 0..40 {
        let (file, image) = image(64 << 20);
        write_from(&image, 0, &mut [1; 1000]).unwrap();
        image.flush().unwrap();
        file.full_after(writes);
        let mut failed = None;
        for at in 0..20u64 {
            if let Err(error) = write_from(&image, at * (3 << 20), &mut [2; 1000]).and_then(|()| image.flush()) {
                failed = Some(error);
                break;
            }
        }
        if let Some(error) = &failed {
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
        }
        // Room again: what was there before is there, the failed request can be made again.
        file.full_after(u64::MAX);
        write_from(&image, 60 << 20, &mut [3; 1000]).unwrap();
        image.flush().unwrap();
        let again = Qcow2::open(child(Arc::new(MemoryNode::new(file.bytes())), "copy"), None, true, false).unwrap();
        assert_eq!(bytes(&again, 60 << 20, 1000), [3; 1000]);
        assert!(matches!(bytes(&again, 0, 1000)[..], [1, ..] | [2, ..]));
    }
}

#[test]
fn a_bad_medium_is_an_error() {
    let base = Arc::new(MemoryNode::new(vec![7; 300_000]));
    base.bad_from(200_000);
    let top = overlay(base, 300_000);
    assert_eq!(bytes(&top, 0, 10), [7; 10]);
    assert_eq!(read_into(&top, 199_999, &mut [0; 2]).unwrap_err().raw_os_error(), Some(libc::EIO));
}

#[test]
fn a_reader_can_become_a_writer() {
    let (file, image) = image(1 << 20);
    drop(image);
    let image = Qcow2::open(child(file, "file"), None, true, false).unwrap();
    assert!(write_from(&image, 0, &mut [1]).is_err());
    image.set_writable(true).unwrap();
    write_from(&image, 0, &mut [1]).unwrap();
    assert_eq!(bytes(&image, 0, 2), [1, 0]);
}

#[test]
fn what_is_no_image_is_refused() {
    for (content, words) in [(vec![0; 4096], "no qcow2 image"), (b"QFI\xfb\0\0\0\x03".to_vec(), "its header is wrong")]
    {
        let file = Arc::new(MemoryNode::new(content));
        let error = Qcow2::open(child(file, "disk"), None, true, false).map(drop).unwrap_err();
        assert_eq!(error.code(), Code::ImageUnusable);
        assert!(error.evidence_lines()[0].contains(words), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// An overlay does what plain memory does, whatever comes in which order.
    #[test]
    fn an_overlay_is_a_disk(
        requests in prop::collection::vec((0u8..5, 0u64..400_000, 0usize..150_000, 1u8..), 1..24),
    ) {
        let size = 400_000;
        let mut model: Vec<u8> = (0..300_000).map(|at| (at % 251) as u8).collect();
        let top = overlay(Arc::new(MemoryNode::new(model.clone())), size);
        model.resize(size as usize, 0);
        for (what, offset, count, byte) in requests {
            let count = count.min((size - offset) as usize);
            let range = offset..offset + count as u64;
            let part = &mut model[offset as usize..offset as usize + count];
            match what {
                0 => {
                    write_from(&top, offset, &mut vec![byte; count]).unwrap();
                    part.fill(byte);
                }
                1 | 2 => {
                    top.write_zeroes(range, what == 1).unwrap();
                    part.fill(0);
                }
                3 => top.flush().unwrap(),
                _ => prop_assert!(bytes(&top, offset, count) == part),
            }
        }
        prop_assert!(bytes(&top, 0, size as usize) == model);
    }
}

/// An image with an overlay's table, data, zeros and holes, in small clusters.
fn busy() -> Vec<u8> {
    let file = Arc::new(MemoryNode::new(Vec::new()));
    create::create(file.clone(), &New { cluster_size: 512, ..New::of(1 << 20) }).unwrap();
    let image = Qcow2::open(child(file.clone(), "file"), None, false, true).unwrap();
    for at in 0..8 {
        write_from(&image, at * 100_000, &mut [at as u8 + 1; 3000]).unwrap();
    }
    image.write_zeroes(200_000..202_000, true).unwrap();
    drop(image);
    file.bytes()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// A damaged image is an error, or reads as something; it is never more than that.
    #[test]
    fn a_damaged_image_does_no_harm(
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..9)), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut image = busy();
        for (at, value) in damage {
            // Tables lie in front.
            let at = at.index(16 << 10).min(image.len() - value.len());
            image[at..at + value.len()].copy_from_slice(&value);
        }
        if let Some(cut) = cut {
            image.truncate(cut.index(image.len()));
        }
        let file = Arc::new(MemoryNode::new(image));
        let Ok(image) = Qcow2::open(child(file.clone(), "file"), None, false, true) else { return Ok(()) };
        let len = image.info().len.min(1 << 20);
        let mut into = vec![0; 5000];
        for at in (0..len.saturating_sub(5000)).step_by(90_000) {
            let _ = read_into(&image, at, &mut into);
            let _ = image.extent(at, len);
            let _ = write_from(&image, at + 1000, &mut into[..2000]);
            let _ = image.discard(at..at + 4000);
            let _ = image.write_zeroes(at..at + 3000, true);
        }
        let _ = image.flush();
        let _ = image.resize(len + 100_000);
        prop_assert!(file.info().len <= 64 << 20);
    }
}

/// The crate looks for a free cluster with no end where a used one is not counted, and it would take the header's for free.
#[test]
fn an_image_whose_refcounts_have_holes_is_only_read() {
    let (file, image) = image(1 << 20);
    write_from(&image, 0, &mut [1; 1000]).unwrap();
    image.flush().unwrap();
    let table = usize::try_from(image.header().refcount_table_offset).unwrap();
    drop(image);
    let whole = file.bytes();
    let with = |entries: &[(usize, u64)]| {
        let mut bytes = whole.clone();
        for (index, entry) in entries {
            bytes[table + 8 * index..][..8].copy_from_slice(&entry.to_be_bytes());
        }
        bytes
    };
    let first = u64::from_be_bytes(whole[table..table + 8].try_into().unwrap());
    for entries in [vec![(0, 0)], vec![(2, first)], vec![(0, 0), (1, first)], vec![(7, first)]] {
        let node = || child(Arc::new(MemoryNode::new(with(&entries))), "damaged");
        let error = Qcow2::open(node(), None, false, true).err().unwrap();
        assert_eq!(error.code(), Code::ImageUnusable, "{entries:?}");
        let read = Qcow2::open(node(), None, true, true).unwrap();
        assert_eq!(bytes(&read, 999, 2), [1, 0]);
        assert!(read.set_writable(true).is_err());
    }
    Qcow2::open(child(Arc::new(MemoryNode::new(with(&[(1, first)]))), "file"), None, false, true).unwrap();
}
