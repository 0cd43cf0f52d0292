//! A mend of QEMU 10 and 11 for the lab's copy of the binary: they abort with
//! `cpu_interrupt: assertion failed: (bql_locked())` when an L2 guest writes CR8 while a
//! virtual interrupt is pending, which UEFI firmware does on every interrupt.
//!
//! The mend answers the assertion's question ("is the lock held?") with yes: in the function
//! `cpu_interrupt` the first `call` that is followed by `test al,al` becomes `mov eax,1`.

use anyhow::{Context, Result, bail};

const SYMBOL: &[u8] = b"cpu_interrupt";
const CALL: u8 = 0xe8;
const TEST_AL: [u8; 2] = [0x84, 0xc0];
const MOV_EAX_1: [u8; 5] = [0xb8, 1, 0, 0, 0];
/// Type of the section that holds the dynamic symbols (ELF specification).
const SHT_DYNSYM: u32 = 11;
const SYMBOL_SIZE: usize = 24;

/// Changes `binary` in place. Fails, with nothing changed, when the pattern is not there.
pub fn apply(binary: &mut [u8]) -> Result<()> {
    let function = find_function(binary)?;
    let body = binary.get_mut(function).context("function outside the file")?;
    let at = body
        .windows(7)
        .position(|w| w[0] == CALL && w[5..] == TEST_AL)
        .context("no call followed by a test in cpu_interrupt")?;
    body[at..at + 5].copy_from_slice(&MOV_EAX_1);
    Ok(())
}

/// File range of the function, by the dynamic symbol table.
fn find_function(elf: &[u8]) -> Result<std::ops::Range<usize>> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        bail!("not a 64-bit ELF file");
    }
    let sections = number(elf, 0x28, 8)?;
    let (size, count) = (number(elf, 0x3a, 2)?, number(elf, 0x3c, 2)?);
    let section = |i: usize, at: usize, len: usize| number(elf, sections + i * size + at, len);
    for i in 0..count {
        if section(i, 4, 4)? != SHT_DYNSYM as usize {
            continue;
        }
        let (table, length) = (section(i, 0x18, 8)?, section(i, 0x20, 8)?);
        let names = section(section(i, 0x28, 4)?, 0x18, 8)?;
        for symbol in (table..table + length).step_by(SYMBOL_SIZE) {
            let name = names + number(elf, symbol, 4)?;
            let matches =
                elf.get(name..name + SYMBOL.len()) == Some(SYMBOL) && elf.get(name + SYMBOL.len()) == Some(&0);
            if matches {
                let home = number(elf, symbol + 6, 2)?;
                let address = number(elf, symbol + 8, 8)?;
                let start = address.checked_sub(section(home, 0x10, 8)?).context("symbol outside its section")?
                    + section(home, 0x18, 8)?;
                return Ok(start..start + number(elf, symbol + 16, 8)?);
            }
        }
    }
    bail!("no dynamic symbol cpu_interrupt")
}

/// A little-endian number of `len` bytes (at most 8) at `at`.
fn number(bytes: &[u8], at: usize, len: usize) -> Result<usize> {
    let field = bytes.get(at..at + len).context("ELF file cut short")?;
    let value = field.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    Ok(usize::try_from(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A minimal ELF: .text at file 0x200 / address 0x1200, .dynsym with one symbol, .dynstr.
    fn elf(code: &[u8]) -> Vec<u8> {
        let mut f = vec![0u8; 0x600];
        f[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let put = |f: &mut Vec<u8>, at: usize, value: u64, len: usize| {
            f[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        };
        put(&mut f, 0x28, 0x400, 8);
        put(&mut f, 0x3a, 64, 2);
        put(&mut f, 0x3c, 4, 2);
        // section 1: text; 2: dynsym, linked to 3; 3: dynstr
        for (i, kind, addr, offset, size, link) in
            [(1, 1, 0x1200, 0x200, 0x100, 0), (2, 11, 0, 0x300, 24, 3), (3, 3, 0, 0x340, 32, 0)]
        {
            let s = 0x400 + i * 64;
            put(&mut f, s + 4, kind, 4);
            put(&mut f, s + 0x10, addr, 8);
            put(&mut f, s + 0x18, offset, 8);
            put(&mut f, s + 0x20, size, 8);
            put(&mut f, s + 0x28, link, 4);
        }
        put(&mut f, 0x300, 1, 4);
        put(&mut f, 0x306, 1, 2);
        put(&mut f, 0x308, 0x1210, 8);
        put(&mut f, 0x310, 0x40, 8);
        f[0x341..0x341 + SYMBOL.len()].copy_from_slice(SYMBOL);
        f[0x210..0x210 + code.len()].copy_from_slice(code);
        f
    }

    #[test]
    fn the_first_call_with_a_test_is_replaced() {
        let code = [0x53, CALL, 9, 9, 9, 9, 0x90, CALL, 1, 2, 3, 4, 0x84, 0xc0];
        let mut f = elf(&code);
        apply(&mut f).unwrap();
        assert_eq!(f[0x210 + 7..0x210 + 12], MOV_EAX_1);
        assert_eq!(f[0x211], CALL, "the other call stays");
    }

    #[test]
    fn nothing_changes_without_the_pattern() {
        let mut f = elf(&[0x90; 16]);
        let before = f.clone();
        assert!(apply(&mut f).is_err());
        assert_eq!(f, before);
        assert!(apply(&mut [0; 64]).is_err());
    }
}
