//! `null`: swallows everything and has nothing to say.

use std::sync::{Arc, Weak};

use super::{Chardev, FrontEnd, Peer};
use crate::backends::BackendCx;
use crate::error::Result;
use crate::object::{Create, TypeInfo, props};

/// The row of the table of character back ends.
pub static TYPE: TypeInfo<Arc<dyn Chardev>, BackendCx> = TypeInfo::of::<NullType>();

props! {
    /// Nothing: output is dropped, there is no input.
    struct NullProps {}
}

struct NullType;

impl Create<Arc<dyn Chardev>, BackendCx> for NullType {
    const NAME: &'static str = "null";
    const GROUP: &'static str = "Character back ends";
    type Props = NullProps;

    fn create(_: NullProps, _: &BackendCx) -> Result<Arc<dyn Chardev>> {
        Ok(Arc::new(Null))
    }
}

/// The back end that swallows everything.
#[derive(Debug, Clone, Copy)]
pub struct Null;

impl Chardev for Null {
    fn write(&self, _data: &[u8]) {}

    fn attach(&self, _front_end: Weak<dyn FrontEnd>) {}

    fn peer(&self) -> Peer {
        Peer::always("null")
    }
}
