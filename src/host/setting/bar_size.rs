//! The size of a resizable BAR (PCIe 7.8.6), which the kernel changes while the device has no driver (sysfs:
//! `resourceN_resize`, Documentation/ABI/testing/sysfs-bus-pci). A guest sees the size that the BAR has.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};
use crate::host::{Host, PciDevice, read};

/// The kernel's unit: size 0 is 1 MiB, each further one twice as much.
const UNIT: u64 = 1 << 20;
/// The largest size that the capability can name: 8 EiB.
const MAX_EXPONENT: u8 = 43;
/// BARs of a function that is no bridge.
const BARS: u8 = 6;

/// A BAR and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BarSize {
    /// 0 to 5.
    pub bar: u8,
    /// The size is 2 to the power of this, in MiB.
    pub exponent: u8,
}

impl BarSize {
    pub(super) fn now(&self, host: &Host, bdf: Bdf) -> Result<BarSize> {
        let device = host.device(bdf)?;
        let bytes = device.resources.iter().find(|it| it.index == usize::from(self.bar)).map_or(0, |it| it.size);
        let exponent = exponent_of(bytes).ok_or_else(|| {
            Error::new(Code::BarSize, format!("BAR {} of {bdf} has no size that could be changed", self.bar))
                .evidence(format!("it has {bytes} bytes"))
        })?;
        Ok(BarSize { exponent, ..*self })
    }

    pub(super) fn set(&self, host: &Host, bdf: Bdf) -> Result<()> {
        if self.now(host, bdf)? == *self {
            return Ok(());
        }
        let file = host.resize_file(bdf, self.bar);
        let refused = |why: String| {
            Error::new(Code::BarSize, format!("{self} of {bdf} was refused"))
                .evidence(why)
                .evidence(format!("it can have {}", sizes_text(host.bar_sizes(bdf, self.bar))))
                .fix(
                    "the bridges above must have room: `lspci -vt` and `dmesg | tail` say what is in the way; \
                     other BARs of the device may have to be made smaller first, or \"Above 4G decoding\" switched on in \
                     the firmware setup",
                )
        };
        host.set_attribute(self, &file, &format!("{}\n", self.exponent), |error| {
            refused(format!("writing {} to {}: {}", self.exponent, file.display(), explain_io(error)))
        })?;
        let now = self.now(host, bdf)?;
        if now == *self { Ok(()) } else { Err(refused(format!("afterwards it is {now}"))) }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let known = self.bar < BARS && self.exponent <= MAX_EXPONENT;
        known.then_some(()).ok_or_else(|| format!("BAR {} of 2^{} MiB cannot be", self.bar, self.exponent))
    }
}

impl fmt::Display for BarSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BAR {} of {}", self.bar, size_text(self.exponent))
    }
}

fn exponent_of(bytes: u64) -> Option<u8> {
    let whole = bytes.is_power_of_two() && bytes >= UNIT;
    whole.then(|| (bytes / UNIT).trailing_zeros() as u8)
}

fn size_text(exponent: u8) -> String {
    let units = ["MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = units.get(usize::from(exponent / 10)).copied().unwrap_or("EiB");
    format!("{} {unit}", 1u64 << (exponent % 10))
}

fn sizes_text(bitmap: u64) -> String {
    let sizes: Vec<String> = (0..=MAX_EXPONENT).filter(|bit| bitmap >> bit & 1 != 0).map(size_text).collect();
    if sizes.is_empty() { "no other size".to_owned() } else { sizes.join(", ") }
}

impl Host {
    /// The sizes that a BAR can have: bit N for 2^N MiB; 0: it cannot be resized.
    pub fn bar_sizes(&self, bdf: Bdf, bar: u8) -> u64 {
        let text = read::text(self.resize_file(bdf, bar)).unwrap_or_default();
        u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0)
    }

    /// The setting that gives a BAR this size.
    pub(super) fn bar_size(&self, device: &PciDevice, bar: u8, bytes: u64) -> Result<BarSize> {
        let bdf = device.bdf;
        let sizes = self.bar_sizes(bdf, bar);
        if sizes == 0 {
            return Err(Error::new(Code::BarSize, format!("BAR {bar} of {bdf} cannot be resized"))
                .evidence(format!("{} is not there or empty", self.resize_file(bdf, bar).display()))
                .fix("the device needs the Resizable BAR capability, and the host Linux 6.0 or newer"));
        }
        let exponent =
            exponent_of(bytes).filter(|exponent| sizes.checked_shr((*exponent).into()).unwrap_or(0) & 1 != 0);
        exponent.map(|exponent| BarSize { bar, exponent }).ok_or_else(|| {
            Error::new(Code::BarSize, format!("BAR {bar} of {bdf} cannot have {bytes} bytes"))
                .evidence(format!("it can have {}", sizes_text(sizes)))
                .fix("give one of these sizes: --bar-size 1:16G")
        })
    }

    fn resize_file(&self, bdf: Bdf, bar: u8) -> std::path::PathBuf {
        self.device_path(bdf).join(format!("resource{bar}_resize"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let table = [(0, "1 MiB"), (9, "512 MiB"), (10, "1 GiB"), (14, "16 GiB"), (20, "1 TiB"), (43, "8 EiB")];
        for (exponent, text) in table {
            assert_eq!(size_text(exponent), text);
        }
        assert_eq!(sizes_text(0b1_0000_0000_0110), "2 MiB, 4 MiB, 4 GiB");
        assert_eq!(
            (exponent_of(1 << 34), exponent_of(3 << 20), exponent_of(4096), exponent_of(0)),
            (Some(14), None, None, None)
        );
    }
}
