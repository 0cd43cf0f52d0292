//! `passthru write-attribute`: the child process by which passthru itself writes to sysfs; no command for people.

use std::path::PathBuf;

use clap::Args;

use crate::host::bounded;

/// Write standard input to an attribute of the kernel; used by passthru itself
#[derive(Debug, Args)]
#[command(name = bounded::WRITE_COMMAND, hide = true)]
pub(super) struct WriteAttributeArgs {
    /// The attribute's file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Gives the exit code, which is the system's answer.
pub(super) fn execute(args: &WriteAttributeArgs) -> u8 {
    bounded::write_from_input(&args.file)
}
