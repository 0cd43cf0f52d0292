//! Which devices cannot be in one machine. Pure.

use crate::error::{Code, Error, Result};
use crate::vfio::front_end;
use crate::virtio::{balloon, mem};

/// Types of which one excludes the other, and the error that says why.
const APART: [([&str; 2], Code, &str); 3] = [
    (
        [balloon::NAME, front_end::NAME],
        Code::BalloonBesideDevice,
        "memory in the balloon stays pinned for the passed-through device",
    ),
    ([mem::NAME, balloon::NAME], Code::MemoryDeviceApart, "the balloon knows the memory of -m alone"),
    ([mem::NAME, VHOST_USER], Code::MemoryDeviceApart, "its daemon cannot be given so many pieces of memory"),
];
/// The types that daemons serve begin with this.
const VHOST_USER: &str = "vhost-user-*";

/// Whether `of_type` is one that `name`, or what stands before its star, means.
fn is(of_type: &str, name: &str) -> bool {
    match name.strip_suffix('*') {
        Some(begin) => of_type.starts_with(begin),
        None => of_type == name,
    }
}

/// Whether a device of type `new` can be where devices of these types are, each with its id.
///
/// # Errors
/// That of the pair that excludes each other.
pub fn check<'a>(new: &str, there: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Result<()> {
    for ([a, b], code, why) in APART {
        let other = if is(new, a) { b } else { a };
        if !is(new, a) && !is(new, b) {
            continue;
        }
        if let Some((other, id)) = there.clone().find(|(of_type, _)| is(of_type, other)) {
            return Err(Error::new(code, format!("{new} cannot be beside {other} `{id}`: {why}"))
                .fix(format!("leave one of them out: {new} or {other}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_comes_and_goes_is_not_for_all() {
        let there = |of_type: &'static str| std::iter::once((of_type, "d0"));
        for (new, other, fits) in [
            ("virtio-mem-pci", "virtio-balloon-pci", false),
            ("vhost-user-fs-pci", "virtio-mem-pci", false),
            ("virtio-mem-pci", "vhost-user-blk-pci", false),
            ("virtio-mem-pci", "vfio-pci", true),
            ("virtio-mem-pci", "virtio-mem-pci", true),
            ("vhost-user-fs-pci", "virtio-net-pci", true),
        ] {
            let error = check(new, there(other)).err();
            assert_eq!(error.map(|error| error.code()), (!fits).then_some(Code::MemoryDeviceApart), "{new} {other}");
        }
    }

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
