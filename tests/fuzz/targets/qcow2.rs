//! Images: opening, reading and writing one with any content, and its check.
#![no_main]

use std::sync::Arc;

use fuzz::disk::Disk;
use libfuzzer_sys::fuzz_target;
use passthru::backends::block::io::{read_into, write_from};
use passthru::backends::block::qcow2::{Qcow2, check, read_header, snapshots};
use passthru::backends::block::{BlockNode, Child};

/// Bytes of a request.
const REQUEST: u64 = 5000;
/// How far into the disk requests go.
const REACH: u64 = 4 << 20;

fuzz_target!(|data: &[u8]| {
    let file: Arc<dyn BlockNode> = Arc::new(Disk::new(data));
    let Ok(header) = read_header(&*file, "image") else { return };
    let _ = check::check(&*file, &header);
    let _ = snapshots::read(&*file, &header);
    let Ok(image) = Qcow2::open(Child::own(file, "file"), None, false, true) else { return };
    let len = image.info().len;
    let mut bytes = vec![0; REQUEST as usize];
    for at in (0..len.min(REACH).saturating_sub(REQUEST)).step_by(100_000) {
        let (_, end) = image.extent(at, len).unwrap_or((passthru::backends::block::Extent::Data, at + 1));
        assert!(end > at && end <= len, "an extent from {at} to {end} of {len}");
        let _ = read_into(&image, at, &mut bytes);
        let _ = write_from(&image, at + 1000, &mut bytes[..2000]);
        let _ = image.discard(at..at + 4000);
        let _ = image.write_zeroes(at..at + 3000, true);
    }
    let _ = image.flush();
});
