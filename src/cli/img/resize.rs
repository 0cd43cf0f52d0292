//! `passthru img resize`.

use clap::Args;

use super::{Image, failed, open, value, whole_sectors};
use crate::backends::block::chain::How;
use crate::cli::output;
use crate::error::{Code, Error, Result};
use crate::host::limits::size_text;
use crate::object::{Invalid, PropValue, Size};

/// Make a disk longer or shorter
///
/// The guest's partitions stay as they are: make them smaller before, or larger afterwards, in the guest.
#[derive(Debug, Args)]
pub(super) struct ResizeArgs {
    #[command(flatten)]
    image: Image,
    /// Allow the disk to lose its end
    #[arg(long)]
    shrink: bool,
    /// Print nothing
    #[arg(short = 'q', long)]
    quiet: bool,
    /// New length, such as 20G, or by how much: +5G, -1G
    #[arg(value_name = "[+-]SIZE", allow_hyphen_values = true, value_parser = value::<Change>)]
    size: Change,
}

/// A length, or a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    To(u64),
    Longer(u64),
    Shorter(u64),
}

impl PropValue for Change {
    const KIND: &'static str = "size";

    fn parse(text: &str) -> Result<Self, Invalid> {
        let size = |text| Size::parse(text).map(|size| size.0);
        match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(more), _) => size(more).map(Change::Longer),
            (_, Some(less)) => size(less).map(Change::Shorter),
            _ => size(text).map(Change::To),
        }
    }
}

impl Change {
    fn of(self, len: u64) -> Option<u64> {
        match self {
            Change::To(len) => Some(len),
            Change::Longer(more) => len.checked_add(more),
            Change::Shorter(less) => len.checked_sub(less),
        }
    }
}

pub(super) fn execute(args: &ResizeArgs) -> Result<()> {
    let path = &args.image.file;
    let (top, _below) = open(path, args.image.format, &How { writable: true, ..How::default() })?;
    let old = top.node.info().len;
    let Some(new) = args.size.of(old).map(whole_sectors) else {
        return Err(Error::new(Code::Usage, format!("the disk has {old} bytes, and cannot become that long")));
    };
    if new < old && !args.shrink {
        return Err(Error::new(Code::Usage, format!("the disk would lose its last {}", size_text(old - new)))
            .fix("make the guest's partitions smaller first, then add `--shrink`"));
    }
    top.node.resize(new).and_then(|()| top.node.flush()).map_err(|error| failed(path, &error))?;
    if args.quiet { Ok(()) } else { output::print(&format!("{}: {} ({new} bytes)\n", path.display(), size_text(new))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_differences() {
        for (text, change, of_100) in [
            ("1K", Change::To(1024), Some(1024)),
            ("+1k", Change::Longer(1024), Some(1124)),
            ("-60", Change::Shorter(60), Some(40)),
            ("-101", Change::Shorter(101), None),
        ] {
            let parsed = Change::parse(text).unwrap();
            assert_eq!((parsed, parsed.of(100)), (change, of_100), "{text}");
        }
        assert_eq!(Change::Longer(1).of(u64::MAX), None);
        for text in ["", "+", "+-1", "x"] {
            assert!(Change::parse(text).is_err(), "{text}");
        }
    }
}
