//! Made-up ROMs, sound and broken.

use super::*;
use proptest::prelude::*;

/// An image of so many blocks; a BIOS image has a right checksum.
pub(crate) fn image(code: u8, blocks: u8, last: bool) -> Vec<u8> {
    let mut bytes = vec![0; usize::from(blocks) * BLOCK];
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    put(0, &[0x55, 0xaa, blocks]);
    put(HEADER_POINTER, &[0x40, 0]);
    put(0x40, b"PCIR");
    put(0x44, &[0x86, 0x80, 0xd3, 0x10, 0, 0, 0x18, 0, 0, 0, 0, 2, blocks, 0, 1, 0, code, u8::from(last) << 7]);
    if code == 3 {
        put(0x02, &[blocks, 0, 0xf1, 0x0e, 0, 0, 0x0b, 0, 0x64, 0x86, 1, 0]);
    }
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.last_mut() {
        *byte = 0u8.wrapping_sub(sum);
    }
    bytes
}

fn two_images() -> Vec<u8> {
    [image(0, 2, false), image(3, 3, true)].concat()
}

#[test]
fn a_chain_of_a_bios_and_an_efi_image() {
    let rom = parse(&two_images());
    assert_eq!((rom.prefix, rom.len, rom.images.len()), (0, 5 * BLOCK, 2));
    assert_eq!(rom.defects, []);
    let [bios, efi] = &rom.images[..] else { panic!() };
    assert_eq!((bios.offset, bios.len, bios.code, bios.last), (0, 2 * BLOCK, Code::Bios, false));
    assert_eq!((bios.vendor, bios.device, bios.class), (0x8086, 0x10d3, [0, 0, 2]));
    assert_eq!(bios.checksum, Some(true));
    assert_eq!((efi.offset, efi.code, efi.last, efi.checksum), (2 * BLOCK, Code::Efi, true, None));
    assert_eq!(efi.efi, Some(Efi { machine: MACHINE_X86_64, subsystem: 11, compressed: true }));
    assert_eq!(rom.is_for(0x8086, 0x10d3), Some(true));
    assert_eq!(rom.is_for(0x8086, 0x10d4), Some(false));
}

#[test]
fn filling_after_the_last_image_is_no_defect() {
    let rom = parse(&[two_images(), vec![0xff; 0x4000]].concat());
    assert_eq!((rom.len, rom.defects.as_slice()), (5 * BLOCK, [].as_slice()));
}

#[test]
fn a_header_before_the_rom_is_told_from_it() {
    let mut file = vec![0; 0x600];
    file[..4].copy_from_slice(b"NVGI");
    // A signature without a data structure is no beginning.
    file[0x100..0x102].copy_from_slice(&[0x55, 0xaa]);
    file.extend(two_images());
    let rom = parse(&file);
    assert_eq!((rom.prefix, rom.nvidia_prefix, rom.images.len()), (0x600, true, 2));
    assert_eq!(rom.trimmed(&file), two_images());
}

#[test]
fn images_of_nvidias_own_follow_the_last_one() {
    let mut own = image(0xe0, 1, true);
    own[0] = 0x77;
    own[1] = 0xbb;
    own[0x40..0x44].copy_from_slice(b"NPDS");
    let rom = parse(&[two_images(), own].concat());
    assert_eq!(
        rom.images.iter().map(|image| image.code).collect::<Vec<_>>(),
        [Code::Bios, Code::Efi, Code::Other(0xe0)]
    );
    assert_eq!(rom.defects, []);
}

#[test]
fn a_list_of_devices_counts() {
    let mut bytes = image(3, 1, true);
    bytes[0x4c] = 3;
    bytes[0x48] = 0x20;
    bytes[0x60..0x66].copy_from_slice(&[0xd4, 0x10, 0xd5, 0x10, 0, 0]);
    let rom = parse(&bytes);
    assert_eq!(rom.images[0].devices, [0x10d4, 0x10d5]);
    assert_eq!(rom.is_for(0x8086, 0x10d5), Some(true));
    assert_eq!(rom.is_for(0x8087, 0x10d5), Some(false));
}

#[test]
fn what_is_wrong_is_named() {
    let edit = |at: usize, byte: u8| {
        let mut bytes = two_images();
        bytes[at] = byte;
        bytes
    };
    let cases: Vec<(&str, Vec<u8>, usize, Vec<Defect>)> = vec![
        ("empty", vec![], 0, vec![Defect::Empty]),
        ("nobody answered", vec![0xff; 0x8000], 0, vec![Defect::Blank(0xff)]),
        ("too large", vec![1; MAX_SIZE + 1], 0, vec![Defect::TooLarge]),
        ("text", b"#!/bin/sh\n".repeat(100), 0, vec![Defect::NoSignature(0)]),
        ("no data structure", edit(0x41, b'X')[..2 * BLOCK].to_vec(), 0, vec![Defect::NoData(0)]),
        ("pointer out of bounds", edit(HEADER_POINTER + 1, 0xff)[..2 * BLOCK].to_vec(), 0, vec![Defect::NoData(0)]),
        ("wrong checksum", edit(0x200, 1), 2, vec![Defect::Checksum(0)]),
        ("no length", edit(0x50, 0), 1, vec![Defect::NoLength(0)]),
        ("cut off", two_images()[..3 * BLOCK].to_vec(), 2, vec![Defect::CutOff(2 * BLOCK)]),
        ("no second image", [image(0, 2, false), vec![0; BLOCK]].concat(), 1, vec![Defect::NoSignature(2 * BLOCK)]),
        ("the last one is not marked", image(0, 2, false), 1, vec![Defect::NoSignature(2 * BLOCK)]),
        ("no end", image(0, 1, false).repeat(40), MAX_IMAGES, vec![Defect::TooMany]),
    ];
    for (name, bytes, images, defects) in cases {
        let rom = parse(&bytes);
        assert_eq!((rom.images.len(), &rom.defects), (images, &defects), "{name}");
        assert!(defects.iter().all(|defect| !defect.to_string().is_empty()));
    }
}

proptest! {
    /// Whatever a device or a file gives: images lie inside it, one after the other.
    #[test]
    fn images_lie_inside_and_in_order(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        edits in prop::collection::vec((0usize..5 * BLOCK, any::<u8>()), 0..12),
        cut in 0usize..6 * BLOCK,
    ) {
        let mut sound = two_images();
        for (at, byte) in edits {
            sound[at] = byte;
        }
        sound.truncate(cut);
        for bytes in [bytes, sound] {
            let rom = parse(&bytes);
            let mut at = 0;
            for image in &rom.images {
                prop_assert_eq!(image.offset, at);
                at += image.len;
            }
            prop_assert_eq!(at, rom.len);
            prop_assert!(rom.prefix + rom.len <= bytes.len() && rom.images.len() <= MAX_IMAGES);
            prop_assert!(!rom.images.is_empty() || !rom.defects.is_empty());
        }
    }
}
