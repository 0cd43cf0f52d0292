//! `passthru set-vf`: the child process by which passthru itself sets what a virtual function is; no command for people.

use std::path::PathBuf;

use clap::Args;

use crate::host::bounded;
use crate::host::setting::{VfAttribute, netlink};

/// Tell a physical function's driver what a virtual function is to be; used by passthru itself
#[derive(Debug, Args)]
#[command(name = bounded::SET_VF_COMMAND, hide = true)]
pub(super) struct SetVfArgs {
    /// The process that waits for it
    #[arg(value_name = "PARENT")]
    parent: i32,
    /// The folder of the physical function's network interface
    #[arg(value_name = "FOLDER")]
    interface: PathBuf,
    /// The virtual function's number
    #[arg(value_name = "NUMBER")]
    number: u32,
    /// What it is to be, as JSON
    #[arg(value_name = "ATTRIBUTE", value_parser = attribute)]
    attribute: VfAttribute,
}

fn attribute(text: &str) -> Result<VfAttribute, serde_json::Error> {
    serde_json::from_str(text)
}

/// Gives the exit code, which is the system's answer.
pub(super) fn execute(args: &SetVfArgs) -> u8 {
    bounded::act_for(args.parent, || netlink::set_vf(&args.interface, args.number, args.attribute))
}
