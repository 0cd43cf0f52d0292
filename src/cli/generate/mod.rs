//! `passthru generate`: man pages and completions of shells, made from the declaration of the command line. For packages;
//! hidden from the help.

mod completions;
mod vm_page;

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Command, ValueEnum};

use crate::error::{Code, Error, Result, explain_io};

/// Write man pages or shell completions into a folder, for packages
#[derive(Debug, Args)]
#[command(hide = true)]
pub(super) struct GenerateArgs {
    /// What is written
    what: What,
    /// The folder; it is made if it is not there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// A man page for each command, passthru.1, passthru-run.1 ..., and passthru.toml.5 for VM files
    Man,
    /// Completions for bash, zsh and fish
    Completions,
}

pub(super) fn execute(args: &GenerateArgs, syntax: Command) -> Result<()> {
    let made = fs::create_dir_all(&args.folder).and_then(|()| match args.what {
        What::Man => man(syntax, &args.folder),
        What::Completions => completions::generate(syntax, &args.folder),
    });
    made.map_err(|error| {
        Error::new(Code::FileUnusable, format!("{} cannot be written", args.folder.display()))
            .evidence(explain_io(&error))
    })
}

/// One page for each command that the help shows, and that about VM files.
fn man(mut syntax: Command, folder: &Path) -> std::io::Result<()> {
    syntax.build();
    if let Some(run) = syntax.find_subcommand("run") {
        fs::write(folder.join(vm_page::NAME), vm_page::page(run))?;
    }
    clap_mangen::generate_to(syntax.term_width(0), folder)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::Cli;
    use super::*;

    /// The names of the pages of `command` and of all that is below it.
    fn pages(command: &Command, name: &str, out: &mut Vec<String>) {
        out.push(format!("{name}.1"));
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            pages(sub, &format!("{name}-{}", sub.get_name()), out);
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn every_command_has_its_page() {
        let folder = tempfile::tempdir().unwrap();
        man(Cli::command(), folder.path()).unwrap();
        let mut expected = Vec::new();
        pages(&Cli::command(), "passthru", &mut expected);
        expected.push(vm_page::NAME.to_owned());
        expected.sort();
        assert_eq!(names(folder.path()), expected);
        assert!(expected.contains(&"passthru-ctl-device_add.1".to_owned()), "{expected:?}");
        let page = fs::read_to_string(folder.path().join("passthru-run.1")).unwrap();
        assert!(page.contains(".TH") && page.contains("shutdown\\-timeout"), "{page}");
        let page = fs::read_to_string(folder.path().join(vm_page::NAME)).unwrap();
        for part in [
            "\\fBkernel\\fR = a text or a number",
            "\\fBmemory\\fR = a text, or a table of its properties",
            "\\fBdevice\\fR = texts or tables, one for each",
            "\\fBno\\-reboot\\fR = true or false",
            "kernel = \"/srv/router/vmlinuz\"",
        ] {
            assert!(page.contains(part), "{part}:\n{page}");
        }
        assert!(!page.contains("nodefaults") && !page.contains("fBhelp"), "{page}");
    }
}
