//! Single-dash long options, as QEMU takes them (`-device`, `-no-reboot`), become double-dash ones before clap sees them.
//!
//! The options and whether they take a value come from clap's own table, so that there is no second list. passthru's
//! short options have one letter and are never joined, therefore a single dash before more letters can only be meant so.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command};

/// `argv` with double dashes. Only words after a known subcommand change; values of options and everything after `--`
/// stay as they are.
pub(super) fn rewrite(argv: Vec<OsString>, syntax: &Command) -> Vec<OsString> {
    let mut words = argv.into_iter().peekable();
    let mut out: Vec<OsString> = words.by_ref().take(2).collect();
    let Some(subcommand) = out.get(1).and_then(|name| syntax.find_subcommand(name)) else {
        out.extend(words);
        return out;
    };
    while let Some(word) = words.next() {
        if word == "--" {
            out.push(word);
            break;
        }
        let word = with_two_dashes(word);
        let option = option(&word, subcommand);
        out.push(word);
        if let Some(value) = option.and_then(|option| words.next_if(|next| may_be_value(next, option))) {
            out.push(value);
        }
    }
    out.extend(words);
    out
}

/// `-device` as `--device`; any other word as it is.
fn with_two_dashes(word: OsString) -> OsString {
    match word.as_encoded_bytes() {
        [b'-', first, _, ..] if *first != b'-' => {
            let mut long = OsString::from("-");
            long.push(word);
            long
        }
        _ => word,
    }
}

/// The option that `word` names and that takes a value, if the value is not in the word itself.
fn option<'a>(word: &OsStr, subcommand: &'a Command) -> Option<&'a Arg> {
    let word = word.to_str()?;
    subcommand.get_arguments().filter(|arg| arg.get_action().takes_values()).find(|arg| {
        match (word.strip_prefix("--"), word.strip_prefix('-')) {
            (Some(long), _) => arg.get_long_and_visible_aliases().is_some_and(|names| names.contains(&long)),
            (None, Some(letter)) => letter.parse().is_ok_and(|letter: char| arg.get_short() == Some(letter)),
            (None, None) => false,
        }
    })
}

/// Whether `word` after `option` is its value, and not an option: then the value is missing, and clap says so.
fn may_be_value(word: &OsStr, option: &Arg) -> bool {
    let is_option = word.len() > 1 && word.as_encoded_bytes().starts_with(b"-");
    !is_option || option.is_allow_hyphen_values_set()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ArgAction;

    fn rewritten(words: &str) -> String {
        let run = Command::new("run")
            .arg(Arg::new("machine").long("machine").short('M').action(ArgAction::Append))
            .arg(Arg::new("append").long("append").allow_hyphen_values(true))
            .arg(Arg::new("no-reboot").long("no-reboot").action(ArgAction::SetTrue))
            .arg(Arg::new("rest").num_args(0..));
        let mut syntax = Command::new("passthru").subcommand(run);
        syntax.build();
        let argv = words.split(' ').map(OsString::from).collect();
        rewrite(argv, &syntax).join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn long_options_get_a_second_dash() {
        for (given, expected) in [
            ("passthru run -machine q35", "passthru run --machine q35"),
            ("passthru run --machine q35", "passthru run --machine q35"),
            ("passthru run -machine=q35 -no-reboot", "passthru run --machine=q35 --no-reboot"),
            ("passthru run -M q35 -no-reboot", "passthru run -M q35 --no-reboot"),
            ("passthru run -unknown x", "passthru run --unknown x"),
            ("passthru run -help", "passthru run --help"),
            ("passthru run - -h", "passthru run - -h"),
        ] {
            assert_eq!(rewritten(given), expected);
        }
    }

    #[test]
    fn values_stay() {
        for (given, expected) in [
            ("passthru run -append -machine -machine a", "passthru run --append -machine --machine a"),
            ("passthru run --append -no-reboot", "passthru run --append -no-reboot"),
            ("passthru run -append=-x -no-reboot", "passthru run --append=-x --no-reboot"),
            ("passthru run -M -append a", "passthru run -M --append a"),
            ("passthru run -no-reboot -machine -append", "passthru run --no-reboot --machine --append"),
            ("passthru run -machine - -append -", "passthru run --machine - --append -"),
            ("passthru run -append", "passthru run --append"),
            ("passthru run a -- -machine", "passthru run a -- -machine"),
        ] {
            assert_eq!(rewritten(given), expected);
        }
    }

    #[test]
    fn only_a_subcommand_has_options_of_qemu() {
        assert_eq!(rewritten("passthru -machine q35"), "passthru -machine q35");
        assert_eq!(rewritten("passthru nothing -machine q35"), "passthru nothing -machine q35");
        assert_eq!(rewritten("passthru"), "passthru");
    }

    #[test]
    fn words_that_are_no_text_pass_through() {
        use std::os::unix::ffi::OsStringExt;
        let word = OsString::from_vec(vec![b'/', 0xff]);
        let syntax = Command::new("passthru").subcommand(Command::new("run"));
        let argv = vec!["passthru".into(), "run".into(), word.clone()];
        assert_eq!(rewrite(argv, &syntax).pop(), Some(word));
    }
}
