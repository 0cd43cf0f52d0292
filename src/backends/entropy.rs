//! Sources of random numbers (`--object rng-*`) that a device gives its guest.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::device::ObjectCx;
use crate::error::{Code, Error, Result, explain_io};
use crate::object::{Create, Kind, Refers, TypeInfo, props, reference};

/// Where the kernel's own come from.
pub const KERNEL: &str = "/dev/urandom";

/// The rows of the table of objects.
pub static RANDOM: TypeInfo<(), ObjectCx> = TypeInfo::of::<RandomType>();
pub static BUILTIN: TypeInfo<(), ObjectCx> = TypeInfo::of::<BuiltinType>();

reference! {
    /// The id of a source of random numbers.
    pub struct EntropyRef(Refers { kind: Kind::Object, types: &["rng-random", "rng-builtin"], shared: true });
}

props! {
    /// A device or file whose bytes are random numbers.
    struct RandomProps {
        /// The device or file
        filename: PathBuf = "/dev/urandom",
    }
}

props! {
    /// The host kernel's random numbers.
    struct BuiltinProps {}
}

struct RandomType;

impl Create<(), ObjectCx> for RandomType {
    const NAME: &'static str = "rng-random";
    const GROUP: &'static str = "Back ends";
    type Props = RandomProps;

    fn create(props: RandomProps, cx: &ObjectCx) -> Result<()> {
        add(cx, Self::NAME, &props.filename)
    }
}

struct BuiltinType;

impl Create<(), ObjectCx> for BuiltinType {
    const NAME: &'static str = "rng-builtin";
    const GROUP: &'static str = "Back ends";
    type Props = BuiltinProps;

    fn create(_: BuiltinProps, cx: &ObjectCx) -> Result<()> {
        add(cx, Self::NAME, Path::new(KERNEL))
    }
}

fn add(cx: &ObjectCx, of_type: &'static str, source: &Path) -> Result<()> {
    cx.backends.entropies.add(cx.id.clone(), of_type, Arc::new(open(source)?), true)
}

/// Opens a source.
///
/// # Errors
/// [`Code::FileUnusable`].
pub fn open(source: &Path) -> Result<File> {
    File::open(source).map_err(|error| {
        Error::new(Code::FileUnusable, format!("`{}` cannot be read", source.display())).evidence(explain_io(&error))
    })
}
