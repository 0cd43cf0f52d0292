//! A VM file's text as words of the command line.

use std::ffi::OsString;
use std::ops::Range;
use std::path::Path;

use clap::{Arg, ArgAction, Command};
use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Code, Error, Result};
use crate::object::did_you_mean;

/// One option with its value, if it takes one.
#[derive(Debug, PartialEq, Eq)]
pub struct Word {
    /// Its long name, without dashes.
    pub option: String,
    pub value: Option<String>,
}

impl From<Word> for OsString {
    fn from(word: Word) -> Self {
        match word.value {
            None => format!("--{}", word.option),
            // In one piece: a value may begin with a dash.
            Some(value) => format!("--{}={value}", word.option),
        }
        .into()
    }
}

/// The options that `text`, the text of `file`, gives to `command`, in the order of the file.
///
/// # Errors
/// [`Code::VmFile`] with the line, if it is no TOML, if a key is no option of `command`, or a value is not of its kind.
pub fn read(file: &Path, text: &str, command: &Command) -> Result<Vec<Word>> {
    let source = Source { file, text };
    let table = DeTable::parse(text).map_err(|error| source.error(error.span().unwrap_or(0..0), error.message()))?;
    let mut found: Vec<(usize, Word)> = Vec::new();
    for (key, value) in table.get_ref() {
        let name: &str = key.get_ref();
        let Some(option) = option(command, name) else {
            let meant = did_you_mean(name, options(command).filter_map(Arg::get_long));
            let what = format!("`{name}` is no option of `passthru run`{meant}");
            return Err(source.error(key.span(), &what));
        };
        for value in each(option, value) {
            let word = source.word(name, option, value).map_err(|what| source.error(value.span(), &what))?;
            found.extend(word.map(|word| (value.span().start, word)));
        }
    }
    // The parser sorts its keys; devices are added in the order in which they stand.
    found.sort_by_key(|(at, _)| *at);
    Ok(found.into_iter().map(|(_, word)| word).collect())
}

/// The values of an option that may be given many times are a list, or one alone.
fn each<'v, 't>(option: &Arg, value: &'v Spanned<DeValue<'t>>) -> Vec<&'v Spanned<DeValue<'t>>> {
    match value.get_ref() {
        DeValue::Array(items) if matches!(option.get_action(), ArgAction::Append) => items.iter().collect(),
        _ => vec![value],
    }
}

/// The options that are keys.
pub fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| !arg.is_positional() && arg.get_id() != "help")
}

fn option<'c>(command: &'c Command, name: &str) -> Option<&'c Arg> {
    options(command).find(|arg| arg.get_long() == Some(name))
}

struct Source<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn error(&self, at: Range<usize>, what: &str) -> Error {
        let line = self.text.get(..at.start).unwrap_or_default().matches('\n').count() + 1;
        Error::new(Code::VmFile, "the VM file is not understood")
            .evidence(format!("{}:{line}: {what}", self.file.display()))
            .fix("`passthru run --help` lists the options, which are the keys of a VM file")
    }

    fn word(&self, name: &str, option: &Arg, value: &Spanned<DeValue>) -> Result<Option<Word>, String> {
        let value = value.get_ref();
        if !option.get_action().takes_values() {
            return match value {
                DeValue::Boolean(on) => Ok(on.then(|| Word { option: name.to_owned(), value: None })),
                _ => Err(format!("`{name}` is true or false")),
            };
        }
        let text = match value {
            DeValue::Table(table) if has_properties(option) => Value::Object(json_table(name, table)?).to_string(),
            DeValue::Table(_) => return Err(format!("`{name}` has no properties")),
            value => scalar(name, value)?,
        };
        Ok(Some(Word { option: name.to_owned(), value: Some(text) }))
    }
}

/// Whether a value of `option` may have properties, `TYPE,KEY=VALUE`.
pub fn has_properties(option: &Arg) -> bool {
    option.get_value_names().is_some_and(|names| names.iter().any(|name| name.contains("KEY=VALUE")))
}

/// The text of a value as the command line has it.
fn scalar(name: &str, value: &DeValue) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.clone().into_owned()),
        DeValue::Integer(number) => Ok(number.to_string()),
        DeValue::Boolean(on) => Ok(if *on { "on" } else { "off" }.to_owned()),
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
            Err(format!("`{name}` has one value: a text, a whole number, true or false"))
        }
    }
}

fn json_table(name: &str, table: &DeTable) -> Result<Map<String, Value>, String> {
    table.iter().map(|(key, value)| json_member(name, key.get_ref(), value.get_ref())).collect()
}

fn json_member(name: &str, key: &str, value: &DeValue) -> Result<(String, Value), String> {
    let path = format!("{name}.{key}");
    let json = match value {
        DeValue::Table(table) => Value::Object(json_table(&path, table)?),
        DeValue::Array(items) => {
            let item = |item: &Spanned<DeValue>| scalar(&path, item.get_ref()).map(Value::String);
            Value::Array(items.iter().map(item).collect::<Result<_, _>>()?)
        }
        value => Value::String(scalar(&path, value)?),
    };
    Ok((key.to_owned(), json))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn command() -> Command {
        let mut command = Command::new("run")
            .arg(Arg::new("vm").value_name("NAME"))
            .arg(Arg::new("kernel").long("kernel").value_name("FILE"))
            .arg(Arg::new("memory").long("memory").value_name("SIZE[,KEY=VALUE...]"))
            .arg(Arg::new("no-reboot").long("no-reboot").action(ArgAction::SetTrue))
            .arg(Arg::new("device").long("device").value_name("TYPE[,KEY=VALUE...]").action(ArgAction::Append));
        command.build();
        command
    }

    fn words(text: &str) -> Result<Vec<String>> {
        let words = read(Path::new("/etc/passthru/vm.toml"), text, &command())?;
        Ok(words.into_iter().map(|word| OsString::from(word).into_string().unwrap()).collect())
    }

    #[test]
    fn keys_are_options() {
        for (text, expected) in [
            ("", &[][..]),
            ("kernel = \"/boot/vmlinuz\"", &["--kernel=/boot/vmlinuz"]),
            ("memory = 4096", &["--memory=4096"]),
            ("memory = { size = \"4G\", hugepages = \"2M\" }", &[r#"--memory={"hugepages":"2M","size":"4G"}"#]),
            ("no-reboot = true", &["--no-reboot"]),
            ("no-reboot = false", &[]),
            ("device = \"a\"", &["--device=a"]),
            ("device = [\"b,x=1\", \"a\"]\nkernel = \"-k\"", &["--device=b,x=1", "--device=a", "--kernel=-k"]),
            (
                "[[device]]\ndriver = \"b\"\nhost = \"01:00.0\"\non = true\n[[device]]\ndriver = \"a\"\nn = 7",
                &[r#"--device={"driver":"b","host":"01:00.0","on":"on"}"#, r#"--device={"driver":"a","n":"7"}"#],
            ),
            ("device = [{ driver = \"a\", x.y = [\"1\", 2] }]", &[r#"--device={"driver":"a","x":{"y":["1","2"]}}"#]),
        ] {
            assert_eq!(words(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, line, what) in [
            ("kernel =", 1, ""),
            ("\n\nkernal = \"x\"", 3, "did you mean `kernel`?"),
            ("vm = \"x\"", 1, "`vm` is no option"),
            ("help = true", 1, "`help` is no option"),
            ("m = 1", 1, "`m` is no option"),
            ("kernel = [\"a\"]", 1, "`kernel` has one value"),
            ("kernel = { file = \"a\" }", 1, "`kernel` has no properties"),
            ("kernel = 1.5", 1, "`kernel` has one value"),
            ("kernel = \"a\"\nno-reboot = \"yes\"", 2, "`no-reboot` is true or false"),
            ("[[device]]\ndriver = \"a\"\n[[device]]\nx = 1.5", 3, "`device.x` has one value"),
        ] {
            let error = words(text).unwrap_err();
            assert_eq!(error.code(), Code::VmFile);
            let told = error.to_string();
            assert!(told.contains(&format!("/etc/passthru/vm.toml:{line}: ")) && told.contains(what), "{text}: {told}");
        }
    }

    proptest! {
        #[test]
        fn no_file_panics(text in "\\PC*") {
            let _ = words(&text);
        }
    }
}
