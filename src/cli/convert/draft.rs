//! The VM file in the making: options that passthru takes, and the list of what it does not.

use std::ffi::OsString;
use std::fmt::{self, Write as _};

use clap::{Arg, ArgAction, Command};
use serde::Serialize;

use crate::cli::vm_file::Word;
use crate::cli::{Platform, run};
use crate::error::Result;
use crate::object::{Args, Catalogue, Kind};

/// Something that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// As the other VMM has it.
    what: String,
    why: String,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

/// One option of the file.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) option: String,
    /// None for a flag.
    pub(super) value: Option<String>,
    repeated: bool,
}

impl Setting {
    /// One that may stand several times.
    pub(super) fn repeated(option: &str, value: String) -> Setting {
        Setting { option: option.to_owned(), value: Some(value), repeated: true }
    }
}

/// A VM file in the making.
pub struct Draft<'a> {
    /// `passthru` with its subcommands.
    syntax: &'a Command,
    platform: &'a dyn Platform,
    pub(super) settings: Vec<Setting>,
    left: Vec<Left>,
}

impl<'a> Draft<'a> {
    pub fn new(syntax: &'a Command, platform: &'a dyn Platform) -> Self {
        Draft { syntax, platform, settings: Vec::new(), left: Vec::new() }
    }

    /// The option of `passthru run` that is called `name`, or has this short name.
    pub fn option(&self, name: &str) -> Option<&'a Arg> {
        let run = self.syntax.find_subcommand("run")?;
        run.get_arguments()
            .find(|arg| arg.get_long() == Some(name) || arg.get_short().is_some_and(|short| name.chars().eq([short])))
    }

    /// What could not be carried over.
    pub fn left(&self) -> &[Left] {
        &self.left
    }

    /// The types of the network back ends.
    pub fn netdev_types(&self) -> Vec<String> {
        let netdevs = self.settings.iter().filter(|setting| setting.option == "netdev");
        let key = self.platform.back_ends(Kind::Netdev).key();
        let of_type = |text: &str| Some(Args::parse("--", Some(key), text).ok()?.peek(key)?.to_owned());
        netdevs.filter_map(|setting| of_type(setting.value.as_deref()?)).collect()
    }

    /// The properties of a setting that has a type.
    pub(super) fn properties(&self, setting: &Setting) -> Option<Args> {
        let key = catalogue(self.platform, &setting.option)?.key();
        Args::parse("--", Some(key), setting.value.as_deref()?).ok()
    }

    /// What [`Draft::properties`] gave, without some of them.
    pub(super) fn without(&self, option: &str, args: &Args, keys: &[&str]) -> Option<String> {
        let key = catalogue(self.platform, option)?.key();
        Some(written(args.entries().filter(|(name, _)| !keys.contains(name)), Some(key)))
    }

    /// Whether `passthru run` takes the option in this form.
    pub(super) fn takes(&self, option: &str, value: &str) -> bool {
        self.check(option, Some(value)).is_ok()
    }

    /// Notes what cannot be carried over, once.
    pub fn leave(&mut self, what: impl Into<String>, why: impl Into<String>) {
        let left = Left { what: what.into(), why: why.into() };
        if !self.left.contains(&left) {
            self.left.push(left);
        }
    }

    /// Sets the option `name`, if passthru takes the value; `what` is what the other VMM calls it.
    pub fn set(&mut self, what: &str, name: &str, value: Option<&str>) {
        let Some(option) = self.option(name) else {
            return self.leave(what, "passthru has no such option");
        };
        let long = option.get_long().unwrap_or(name).to_owned();
        let repeated = matches!(option.get_action(), ArgAction::Append);
        let value = value.map(|text| self.known_properties(what, &long, text));
        match self.agreed(&long, value) {
            Ok((value, refused)) => {
                for Refused { key, value, why } in refused {
                    self.leave(format!("{key}={value} of {}", short(what)), why);
                }
                if !repeated {
                    self.settings.retain(|setting| setting.option != long);
                }
                // What passthru does anyway needs no line.
                if !run::is_implied(&long) {
                    self.settings.push(Setting { option: long, value, repeated });
                }
            }
            Err(error) => self.leave(what, error.cause()),
        }
    }

    /// `text` without the properties that the type does not have.
    fn known_properties(&mut self, what: &str, option: &str, text: &str) -> String {
        let Some(catalogue) = catalogue(self.platform, option) else { return text.to_owned() };
        let Ok(args) = Args::parse("--", Some(catalogue.key()), text) else { return text.to_owned() };
        let Some(known) = args.peek(catalogue.key()).and_then(|name| catalogue.properties(name)) else {
            return text.to_owned();
        };
        let (kept, unknown): (Vec<_>, Vec<_>) =
            args.entries().partition(|(key, _)| *key == catalogue.key() || known.contains(key));
        for (key, value) in unknown {
            let of_type = args.peek(catalogue.key()).unwrap_or_default();
            self.leave(format!("{key}={value} of {}", short(what)), format!("`{of_type}` has no such property"));
        }
        written(kept.into_iter(), Some(catalogue.key()))
    }

    /// The value without those of its properties that are refused.
    ///
    /// # Errors
    /// Why it is refused as a whole.
    fn agreed(&self, option: &str, value: Option<String>) -> Result<(Option<String>, Vec<Refused>)> {
        let (mut value, mut refused) = (value, Vec::new());
        let mut first_error = None;
        loop {
            let Err(error) = self.check(option, value.as_deref()) else { return Ok((value, refused)) };
            let args = match (value.as_deref(), self.first_key(option)) {
                (Some(text), Some(FirstKey(first))) => Args::parse("--", first, text).ok().map(|args| (args, first)),
                _ => None,
            };
            let culprit = args.as_ref().and_then(|(args, first)| {
                let mut entries = args.entries().filter(|(key, _)| Some(*key) != *first && !ESSENTIAL.contains(key));
                entries.find(|(key, value)| is_about(error.cause(), key, value))
            });
            let (Some((args, first)), Some((key, of_key))) = (&args, culprit) else {
                return Err(first_error.unwrap_or(error));
            };
            value = Some(written(args.entries().filter(|(other, _)| *other != key), *first));
            refused.push(Refused { key: key.to_owned(), value: of_key.to_owned(), why: error.cause().to_owned() });
            first_error.get_or_insert(error);
        }
    }

    /// Whether `passthru run` takes the option, as far as this host does not matter: files need not be there.
    fn check(&self, option: &str, value: Option<&str>) -> Result<()> {
        let Some(catalogue) = catalogue(self.platform, option) else { return self.check_form(option, value) };
        let Some(value) = value else { return self.check_form(option, None) };
        let args = Args::parse("--", Some(catalogue.key()), value)?;
        let of_form = args.entries().filter(|(key, _)| !OF_FILES.contains(key));
        let text = written(of_form, Some(catalogue.key()));
        self.check_form(option, Some(&text))?;
        catalogue.check(&Args::parse("--", Some(catalogue.key()), &text)?)
    }

    fn check_form(&self, option: &str, value: Option<&str>) -> Result<()> {
        run::check(OsString::from(Word { option: option.to_owned(), value: value.map(str::to_owned) }), self.platform)
    }

    /// The key of a first value that has none, of an option with a list of properties.
    fn first_key(&self, option: &str) -> Option<FirstKey> {
        match option {
            "drive" => Some(FirstKey(None)),
            "smp" => Some(FirstKey(Some("cpus"))),
            "memory" => Some(FirstKey(Some("size"))),
            other => Some(FirstKey(Some(catalogue(self.platform, other)?.key()))),
        }
    }

    /// The VM file.
    pub fn file(&self) -> String {
        let mut out = String::new();
        for left in &self.left {
            let _ = writeln!(out, "# left out: {left}");
        }
        if !self.left.is_empty() {
            out.push('\n');
        }
        // What has a type is a table of its own, after all that is a line.
        let typed = |setting: &&Setting| setting.repeated && catalogue(self.platform, &setting.option).is_some();
        let lines: Vec<&Setting> = self.settings.iter().filter(|setting| !typed(setting)).collect();
        for (at, setting) in lines.iter().enumerate() {
            if lines[..at].iter().any(|before| before.option == setting.option) {
                continue;
            }
            let same = lines[at..].iter().filter(|other| other.option == setting.option);
            let values: Vec<String> =
                same.map(|it| it.value.as_deref().map_or("true".to_owned(), toml_value)).collect();
            let _ = match values.as_slice() {
                [value] => writeln!(out, "{} = {value}", setting.option),
                several => writeln!(out, "{} = [{}]", setting.option, several.join(", ")),
            };
        }
        for setting in self.settings.iter().filter(typed) {
            let _ = writeln!(out, "\n[[{}]]", setting.option);
            let text = setting.value.as_deref().unwrap_or_default();
            let Some(catalogue) = catalogue(self.platform, &setting.option) else { continue };
            let Ok(args) = Args::parse("--", Some(catalogue.key()), text) else { continue };
            for (key, value) in args.entries() {
                let _ = writeln!(out, "{key} = {}", toml_value(value));
            }
        }
        out
    }
}

/// The key of a first value that has none, if there is one.
struct FirstKey(Option<&'static str>);

/// A property that was left out of an option.
struct Refused {
    key: String,
    value: String,
    why: String,
}

/// Properties without which an option would mean something else: a disk that is to stay as it is would be written.
const ESSENTIAL: &[&str] = &["if", "file", "format", "media", "readonly", "read-only", "snapshot"];
/// Properties that name files, which `passthru check` looks at on the machine that runs the guest.
const OF_FILES: &[&str] = &["rom", "romfile"];

/// Whether an error's cause names this property.
fn is_about(cause: &str, key: &str, value: &str) -> bool {
    /// Shorter values are found in any sentence.
    const TELLING: usize = 4;
    cause.contains(&format!("`{key}`"))
        || cause.contains(&format!("{key}=`"))
        || (value.len() >= TELLING && cause.contains(value))
}

/// Enough of an option to find it again.
fn short(what: &str) -> String {
    /// Properties that are shown.
    const SHOWN: usize = 3;
    let words: Vec<&str> = what.split(',').collect();
    match words.get(..SHOWN) {
        Some(first) if words.len() > SHOWN => format!("{},...", first.join(",")),
        _ => what.to_owned(),
    }
}

/// Properties as an option takes them.
fn written<'t>(entries: impl Iterator<Item = (&'t str, &'t str)>, first: Option<&str>) -> String {
    let words = entries.map(|(key, value)| {
        let value = value.replace(',', ",,");
        if Some(key) == first { value } else { format!("{key}={value}") }
    });
    words.collect::<Vec<_>>().join(",")
}

/// The types that `option` chooses from.
fn catalogue<'a>(platform: &'a dyn Platform, option: &str) -> Option<&'a dyn Catalogue> {
    match option {
        "device" => Some(platform.devices()),
        "machine" => Some(platform.machines()),
        other => {
            let kind = Kind::ALL.into_iter().find(|kind| kind.option().trim_start_matches('-') == other)?;
            Some(platform.back_ends(kind))
        }
    }
}

/// A whole number as it is, anything else as a TOML string.
fn toml_value(text: &str) -> String {
    let number = text.parse::<i64>().is_ok_and(|number| number.to_string() == text);
    if number { text.to_owned() } else { toml::Value::from(text).to_string() }
}
