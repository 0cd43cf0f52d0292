//! `passthru write-attribute`: the child process by which passthru itself writes to sysfs; no command for people.

use std::path::PathBuf;

use clap::Args;

use crate::host::bounded;

/// Write to an attribute of the kernel; used by passthru itself
#[derive(Debug, Args)]
#[command(name = bounded::WRITE_COMMAND, hide = true)]
pub(super) struct WriteAttributeArgs {
    /// The process that waits for it
    #[arg(value_name = "PARENT")]
    parent: i32,
    /// The attribute's file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What is written
    #[arg(value_name = "VALUE")]
    value: String,
}

/// Gives the exit code, which is the system's answer.
pub(super) fn execute(args: &WriteAttributeArgs) -> u8 {
    bounded::write_for(args.parent, &args.file, &args.value)
}
