//! `--cpu-placement`: which of the host's CPUs the guest gets.

use crate::error::{Code, Error, Result};
use crate::host::topology::CpuSet;
use crate::placement::Choice;

/// Reads the option.
pub fn parse(text: &str) -> Result<Choice> {
    match text {
        "off" => Ok(Choice::Off),
        "auto" => Ok(Choice::Auto),
        list => CpuSet::parse(list).filter(|list| !list.is_empty()).map(Choice::List).ok_or_else(|| {
            Error::new(Code::Usage, format!("`--cpu-placement` cannot be `{text}`"))
                .fix("write off, auto, or a list of the host's CPUs such as 2-5,10-13")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms() {
        assert_eq!(parse("off").unwrap(), Choice::Off);
        assert_eq!(parse("auto").unwrap(), Choice::Auto);
        assert_eq!(parse("2-3,7").unwrap(), Choice::List([2, 3, 7].into_iter().collect()));
        for text in ["", "on", "2-", "3-2", "0x3"] {
            assert_eq!(parse(text).unwrap_err().code(), Code::Usage, "{text}");
        }
    }
}
