//! Programs of the Debian tree, run on this machine with the tree's own loader and
//! libraries, so that the host needs neither QEMU nor the decompressors.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Libraries of the tree, as seen from its root; the last ones are fio's.
const LIBRARIES: &[&str] = &["usr/lib/x86_64-linux-gnu", "usr/lib", "usr/lib/x86_64-linux-gnu/ceph"];

/// The words before a program's name that make it run with the tree's libraries.
pub fn loader(tree: &Path) -> Vec<String> {
    let path: Vec<String> = LIBRARIES.iter().map(|l| tree.join(l).display().to_string()).collect();
    vec![tree.join("usr/lib64/ld-linux-x86-64.so.2").display().to_string(), "--library-path".into(), path.join(":")]
}

/// A command that runs `program` (an absolute path inside the tree).
pub fn command(tree: &Path, program: &str) -> Command {
    let mut words = loader(tree).into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command.arg(tree.join(program.trim_start_matches('/')));
    command
}

/// Feeds `input` to a program of the tree and returns its output.
///
/// Programs such as `zstd` report trailing bytes as an error after they have written
/// everything; `lenient` accepts that.
pub fn filter(tree: &Path, argv: &[&str], input: &[u8], lenient: bool) -> Result<Vec<u8>> {
    let (program, args) = argv.split_first().context("no program to run")?;
    let mut child = command(tree, program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(if lenient { Stdio::null() } else { Stdio::inherit() })
        .spawn()
        .with_context(|| format!("cannot run {program} of the lab's tree"))?;
    let mut stdin = child.stdin.take().context("no pipe")?;
    let output = std::thread::scope(|scope| {
        // A reader that has seen enough closes its end: that is no error here.
        scope.spawn(move || stdin.write_all(input).ok());
        child.wait_with_output()
    })?;
    if !output.status.success() && (!lenient || output.stdout.is_empty()) {
        bail!("{program}: {}", output.status);
    }
    Ok(output.stdout)
}
