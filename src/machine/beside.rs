//! Which devices cannot be in one machine. Pure.

use crate::error::{Code, Error, Result};
use crate::vfio::front_end;
use crate::virtio::balloon;

/// Types of which one excludes the other, and the error that says why.
const APART: [([&str; 2], Code, &str); 1] = [(
    [balloon::NAME, front_end::NAME],
    Code::BalloonBesideDevice,
    "memory in the balloon stays pinned for the passed-through device",
)];

/// Whether a device of type `new` can be where devices of these types are, each with its id.
///
/// # Errors
/// That of the pair that excludes each other.
pub fn check<'a>(new: &str, there: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Result<()> {
    for ([a, b], code, why) in APART {
        let other = if new == a { b } else { a };
        if new != a && new != b {
            continue;
        }
        if let Some((_, id)) = there.clone().find(|(of_type, _)| *of_type == other) {
            return Err(Error::new(code, format!("{new} cannot be beside {other} `{id}`: {why}"))
                .fix(format!("leave one of them out: {a} or {b}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_and_a_passed_through_device_exclude_each_other_in_either_order() {
        let there = |types: &'static [&'static str]| types.iter().map(|of_type| (*of_type, "d0"));
        for (new, others, fits) in [
            ("virtio-balloon-pci", &["vfio-pci"][..], false),
            ("vfio-pci", &["virtio-net-pci", "virtio-balloon-pci"], false),
            ("vfio-pci", &["vfio-pci"], true),
            ("virtio-balloon-pci", &["virtio-net-pci"], true),
            ("virtio-net-pci", &["vfio-pci", "virtio-balloon-pci"], true),
        ] {
            let error = check(new, there(others)).err();
            assert_eq!(error.map(|error| error.code()), (!fits).then_some(Code::BalloonBesideDevice), "{new}");
        }
    }
}
