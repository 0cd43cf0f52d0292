//! `--blockdev qcow2`: which image, and what it stands on.

use std::sync::Arc;

use super::{Qcow2, read_header};
use crate::backends::BackendCx;
use crate::backends::block::chain::{self, How};
use crate::backends::block::file::Discard;
use crate::backends::block::types::{claim, made};
use crate::backends::block::{BlockNode, Child};
use crate::error::{Code, Error, Result};
use crate::object::{Create, NodeRef, TypeInfo, props};

props! {
    /// An image that grows as it is written, and that can stand on another image.
    pub struct Qcow2Props {
        /// The node that holds the image
        file: NodeRef,
        /// The node that it stands on; without it the file that the image names, with all below that
        backing: Option<NodeRef>,
        /// Refuse writes
        read_only: bool = "off",
        /// Whether what the guest discards is given back to the image
        discard: Discard = "ignore",
    }
}

/// The row of the table.
pub static TYPE: TypeInfo<Arc<dyn BlockNode>, BackendCx> = TypeInfo::of::<Qcow2Type>();

struct Qcow2Type;

impl Create<Arc<dyn BlockNode>, BackendCx> for Qcow2Type {
    const NAME: &'static str = "qcow2";
    const GROUP: &'static str = "Formats";
    type Props = Qcow2Props;

    fn create(props: Qcow2Props, cx: &BackendCx) -> Result<Arc<dyn BlockNode>> {
        let file = claim(cx, &props.file)?;
        let backing = match &props.backing {
            Some(name) => Some(claim(cx, name)?),
            None => named_backing(&file)?,
        };
        Ok(made(Qcow2::open(file, backing, props.read_only, props.discard == Discard::Unmap)?))
    }
}

/// What the image on `file` names below it.
fn named_backing(file: &Child) -> Result<Option<Child>> {
    let header = read_header(&*file.node, &file.name)?;
    let Some(name) = &header.backing else { return Ok(None) };
    let Some(path) = file.node.filename() else {
        return Err(Error::new(Code::BackingChain, format!("`{}` stands on `{name}`, and is in no folder", file.name))
            .fix("name the node that it stands on with backing="));
    };
    let chain = chain::open_backing(&path, &header, &How::default())?;
    Ok(chain.first().map(|top| Child::own(top.node.clone(), top.path.display().to_string())))
}
