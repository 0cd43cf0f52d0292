//! What a card shows, as QEMU's `screendump` writes it, and what the guest's console must look like on it.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// A cell of the console, in pixels: the kernel's VGA font.
const CELL: (usize, usize) = (8, 16);
/// Cells of a colour bar; there is one for each of the console's eight colours.
const BAR: usize = 40;
/// Linux's console colours in the order of their numbers (`drivers/tty/vt/vt.c`, `default_red` and so on).
const COLOURS: [[u8; 3]; 8] = [
    [0, 0, 0],
    [0xaa, 0, 0],
    [0, 0xaa, 0],
    [0xaa, 0x55, 0],
    [0, 0, 0xaa],
    [0xaa, 0, 0xaa],
    [0, 0xaa, 0xaa],
    [0xaa, 0xaa, 0xaa],
];
/// Colour of text.
const TEXT: [u8; 3] = COLOURS[7];
/// "PASS" in the kernel's VGA font, one byte for each line of a character.
const WORD: [[u8; CELL.1]; 4] = [
    [0, 0, 0xfc, 0x66, 0x66, 0x66, 0x7c, 0x60, 0x60, 0x60, 0x60, 0xf0, 0, 0, 0, 0],
    [0, 0, 0x10, 0x38, 0x6c, 0xc6, 0xc6, 0xfe, 0xc6, 0xc6, 0xc6, 0xc6, 0, 0, 0, 0],
    [0, 0, 0x7c, 0xc6, 0xc6, 0x60, 0x38, 0x0c, 0x06, 0xc6, 0xc6, 0x7c, 0, 0, 0, 0],
    [0, 0, 0x7c, 0xc6, 0xc6, 0x60, 0x38, 0x0c, 0x06, 0xc6, 0xc6, 0x7c, 0, 0, 0, 0],
];

/// A picture in memory, three bytes a pixel.
#[derive(Debug)]
pub struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Picture {
    /// Reads a file in PPM format (`P6`, 255 levels).
    pub fn read(file: &Path) -> Result<Self> {
        Self::parse(&std::fs::read(file).with_context(|| format!("no screenshot {}", file.display()))?)
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let mut words = Vec::new();
        let mut at = 0;
        while words.len() < 4 {
            let rest = bytes.get(at..).context("the screenshot ends in its header")?;
            let length = rest.iter().position(u8::is_ascii_whitespace).context("the screenshot ends in its header")?;
            words.push(std::str::from_utf8(&rest[..length])?);
            at += length + 1;
        }
        ensure!(words[0] == "P6" && words[3] == "255", "a screenshot of an unknown kind: {words:?}");
        let (width, height) = (words[1].parse()?, words[2].parse()?);
        let pixels = bytes.get(at..).unwrap_or_default().to_vec();
        ensure!(pixels.len() == width * height * 3, "{width}x{height} pixels do not have {} bytes", pixels.len());
        Ok(Self { width, height, pixels })
    }

    fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        [self.pixels[at], self.pixels[at + 1], self.pixels[at + 2]]
    }

    /// Every pixel must be what `work.sh` has written to the console with `turn`; of each colour the upper `bits` count.
    pub fn compare(&self, turn: usize, bits: u32) -> Result<()> {
        ensure!(self.width >= 640 && self.height >= 400, "the card shows {}x{} pixels", self.width, self.height);
        let mask = u8::try_from(0xff00_u32 >> bits & 0xff)?;
        for y in 0..self.height {
            for x in 0..self.width {
                let (shown, expected) = (self.pixel(x, y), expected(x, y, turn));
                if shown.map(|c| c & mask) != expected.map(|c| c & mask) {
                    bail!("the pixel at {x}, {y} is {shown:02x?}, it should be {expected:02x?}");
                }
            }
        }
        Ok(())
    }
}

fn expected(x: usize, y: usize, turn: usize) -> [u8; 3] {
    let (column, row) = (x / CELL.0, y / CELL.1);
    if row < COLOURS.len() && column < BAR {
        return COLOURS[(row + turn) % COLOURS.len()];
    }
    let glyph = if row == COLOURS.len() { WORD.get(column) } else { None };
    match glyph {
        Some(glyph) if glyph[y % CELL.1] >> (7 - x % CELL.0) & 1 == 1 => TEXT,
        _ => [0; 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture of what is expected, as a file.
    fn picture(turn: usize) -> Vec<u8> {
        let mut bytes = b"P6\n640 400\n255\n".to_vec();
        for y in 0..400 {
            bytes.extend((0..640).flat_map(|x| expected(x, y, turn)));
        }
        bytes
    }

    #[test]
    fn one_wrong_pixel_is_found() {
        let mut bytes = picture(3);
        Picture::parse(&bytes).unwrap().compare(3, 8).unwrap();
        assert!(Picture::parse(&bytes).unwrap().compare(2, 8).is_err());
        let last = bytes.len() - 1;
        bytes[last] = 7;
        Picture::parse(&bytes).unwrap().compare(3, 5).unwrap();
        let error = Picture::parse(&bytes).unwrap().compare(3, 8).unwrap_err().to_string();
        assert!(error.contains("639, 399"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_picture_is_refused() {
        for bytes in [&b""[..], b"P6", b"P5\n1 1\n255\n1", b"P6\n2 2\n255\n123"] {
            assert!(Picture::parse(bytes).is_err());
        }
    }
}
