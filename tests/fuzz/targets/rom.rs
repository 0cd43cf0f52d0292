//! Expansion ROMs, from files and from devices.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passthru::pci::rom::{self, Defect, MAX_IMAGES};

fuzz_target!(|data: &[u8]| {
    let rom = rom::parse(data);
    let shown = rom.trimmed(data);
    assert!(rom.images.len() <= MAX_IMAGES && rom.len <= shown.len().max(rom.len));
    let mut end = 0;
    for image in &rom.images {
        let has_length = image.len > 0 || rom.defects.contains(&Defect::NoLength(image.offset));
        assert!(image.offset >= end && has_length, "the image at {:#x} after {end:#x}", image.offset);
        end = image.offset + image.len;
        assert!(end <= shown.len(), "an image ends at {end:#x} of {:#x}", shown.len());
        assert!(image.is_for(image.vendor, image.device));
        let _ = (image.code.to_string(), image.efi.and_then(|efi| efi.machine_name()));
    }
    assert!(!rom.images.is_empty() || !rom.defects.is_empty(), "neither an image nor a reason");
    // What is shown to the guest is a ROM by itself, and says the same.
    if !rom.images.is_empty() {
        assert_eq!(rom::parse(shown).images, rom.images);
    }
    for defect in &rom.defects {
        assert!(!defect.to_string().is_empty());
    }
});
