//! Takes the ELF kernel out of a bzImage (kernel document `arch/x86/boot`, section
//! "The Real-Mode Kernel Header"): the payload starts `payload_offset` bytes after the setup sectors.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::tools;

const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

/// The uncompressed kernel of `bzimage`; the decompressor comes from `tree`.
pub fn extract(tree: &Path, bzimage: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(bzimage)?;
    let argv: &[&str] = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => &["/usr/bin/zstd", "-dcq"],
        [0xfd, b'7', b'z', b'X', ..] => &["/usr/bin/xz", "-dcq"],
        [0x1f, 0x8b, ..] => &["/usr/bin/gzip", "-dcq"],
        _ => bail!("the kernel's payload is packed in a way that the lab does not know"),
    };
    // Four bytes with the unpacked size follow the payload: trailing rubbish to the unpacker.
    let elf = tools::filter(tree, argv, payload, true)?;
    ensure!(elf.starts_with(b"\x7fELF"), "the kernel's payload is no ELF file");
    Ok(elf)
}

fn payload(bzimage: &[u8]) -> Result<&[u8]> {
    let word = |at: usize| -> Result<usize> {
        let bytes = bzimage.get(at..at + 4).context("kernel image too short")?;
        let value = u32::from_le_bytes(bytes.try_into()?);
        Ok(usize::try_from(value)?)
    };
    ensure!(word(HEADER_MAGIC)? == 0x5372_6448, "no bzImage header"); // "HdrS"
    let sectors = match bzimage.get(SETUP_SECTS) {
        Some(0) => 4,
        Some(n) => usize::from(*n),
        None => bail!("kernel image too short"),
    };
    let start = (sectors + 1) * SECTOR + word(PAYLOAD_OFFSET)?;
    let length = word(PAYLOAD_LENGTH)?;
    bzimage.get(start..start + length).context("the payload lies outside the kernel image")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(setup_sects: u8) -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[SETUP_SECTS] = setup_sects;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET] = 16;
        image[PAYLOAD_LENGTH] = 4;
        image
    }

    #[test]
    fn payload_is_found_behind_the_setup_sectors() {
        for (sects, start) in [(1, 1024), (2, 1536), (0, 2560)] {
            let mut image = image(sects);
            image[start + 16..start + 20].copy_from_slice(b"load");
            assert_eq!(payload(&image).unwrap(), b"load");
        }
    }

    #[test]
    fn a_broken_header_is_refused() {
        assert!(payload(&[]).is_err());
        assert!(payload(&vec![0; 4096]).is_err());
        let mut image = image(1);
        image[PAYLOAD_LENGTH + 2] = 0xff;
        assert!(payload(&image).is_err());
    }
}
