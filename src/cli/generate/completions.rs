//! Completions of shells: made of the declaration of the command line, and what only the host knows asked of `passthru
//! complete` when the key is pressed.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

/// What a command's words without a dash name: the words of `passthru complete`.
const POSITIONALS: &[(&str, &str)] = &[
    ("bind", "devices"),
    ("release", "devices"),
    ("inspect", "devices"),
    ("check", "vms devices"),
    ("run", "vms"),
    ("plan", "vms"),
    ("ctl", "guests"),
];

/// The functions of bash-completion keep an address in one piece, which bash alone splits at each colon.
const BASH: &str = r#"
_passthru_with_values() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} what=
    if declare -F _get_comp_words_by_ref > /dev/null; then
        _get_comp_words_by_ref -n : cur prev
    fi
    case $prev in
    -device | --device) what=types ;;
    *)
        [[ $cur == -* || $COMP_CWORD -lt 2 ]] || case ${COMP_WORDS[1]} in
@CASES@        esac
        ;;
    esac
    _passthru "$@"
    if [[ -n $what ]]; then
        COMPREPLY+=($(compgen -W "$(passthru complete $what 2> /dev/null)" -- "$cur"))
        if declare -F __ltrim_colon_completions > /dev/null; then
            __ltrim_colon_completions "$cur"
        fi
    fi
}
complete -F _passthru_with_values -o nosort -o bashdefault -o default passthru
"#;

/// Writes one file for each shell.
pub(super) fn generate(mut syntax: Command, folder: &Path) -> io::Result<()> {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let file = clap_complete::generate_to(shell, &mut syntax, "passthru", folder)?;
        match shell {
            Shell::Bash => append(&file, &bash())?,
            Shell::Fish => append(&file, &fish())?,
            _ => fs::write(&file, zsh(&fs::read_to_string(&file)?))?,
        }
    }
    Ok(())
}

fn append(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().append(true).open(file)?.write_all(text.as_bytes())
}

fn bash() -> String {
    let cases = POSITIONALS.iter().map(|(command, what)| format!("        {command}) what=\"{what}\" ;;\n"));
    BASH.replace("@CASES@", &cases.collect::<String>())
}

fn fish() -> String {
    let seen = |command: &str| format!("complete -c passthru -n \"__fish_seen_subcommand_from {command}\"");
    let positionals =
        POSITIONALS.iter().map(|(command, what)| format!("{} -f -a \"(passthru complete {what})\"\n", seen(command)));
    let types = format!("{} -l device -x -a \"(passthru complete types)\"\n", seen("run"));
    positionals.chain([types]).collect()
}

/// Where a device or a type is to be named, the function that asks takes the place of the one that offers files.
fn zsh(made: &str) -> String {
    let line = |line: &str| {
        let trimmed = line.trim_start();
        let is = |start: &str| trimmed.starts_with(start) && line.contains(":_default'");
        match () {
            () if is("'*::devices --") => line.replace(":_default'", ":_passthru_devices'"),
            () if is("'*--device=") => line.replace(":_default'", ":_passthru_types'"),
            () => line.to_owned(),
        }
    };
    let functions = "\n(( $+functions[_passthru_devices] )) ||\n_passthru_devices() {\n    local -a words=(${(f)\"$(passthru \
         complete devices 2> /dev/null)\"})\n    compadd -a words\n}\n\n(( $+functions[_passthru_types] )) ||\n_passthru_types() \
         {\n    local -a words=(${(f)\"$(passthru complete types 2> /dev/null)\"})\n    compadd -S , -a words\n}\n\n";
    let text: String = made.lines().map(|text| line(text) + "\n").collect();
    // The file ends with the call of its main function, before which all others must be known.
    match text.rfind("\nif [ \"$funcstack[1]\"") {
        Some(end) => format!("{}{functions}{}", &text[..end], &text[end..]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn commands_and_values_are_completed() {
        let folder = tempfile::tempdir().unwrap();
        generate(Cli::command(), folder.path()).unwrap();
        for (name, asked) in [
            ("passthru.bash", &["bind) what=\"devices\"", "what=types", "complete -F _passthru_with_values"][..]),
            ("passthru.fish", &["from bind\" -f -a \"(passthru complete devices)\"", "-l device -x -a"]),
            ("_passthru", &[":_passthru_devices'", ":_passthru_types'", "_passthru_devices() {"]),
        ] {
            let text = fs::read_to_string(folder.path().join(name)).unwrap();
            for part in asked.iter().chain(&["device_del", "shutdown-timeout"]) {
                assert!(text.contains(part), "{name}: {part}");
            }
        }
        let syntax = Cli::command();
        for (command, _) in POSITIONALS {
            let positional = syntax.find_subcommand(command).and_then(|command| command.get_positionals().next());
            assert!(positional.is_some(), "{command}");
        }
    }

    /// By the shell itself, where there is one.
    #[test]
    fn bash_offers_what_passthru_says() {
        let folder = tempfile::tempdir().unwrap();
        generate(Cli::command(), folder.path()).unwrap();
        let script = "passthru() { printf '%s\\n' 01:00.0 \"$2\"; }; source passthru.bash; COMP_WORDS=(passthru bind \"\"); \
                      COMP_CWORD=2; _passthru_with_values passthru '' bind; echo ${COMPREPLY[@]}; \
                      COMP_WORDS=(passthru run --device v); COMP_CWORD=3; compgen() { command compgen \"$@\"; }; \
                      unset -f compgen; passthru() { echo vfio-pci; }; COMPREPLY=(); \
                      _passthru_with_values passthru v --device; echo ${COMPREPLY[@]}";
        let shell = std::process::Command::new("bash").arg("-c").arg(script).current_dir(folder.path()).output();
        let Ok(output) = shell else { return };
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("01:00.0 devices") && lines[1].ends_with("vfio-pci"), "{output:?}");
    }
}
