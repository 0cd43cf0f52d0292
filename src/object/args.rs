//! The properties that the user gave to one option, for the parsers to take one by one.

use super::{PropField, did_you_mean, grammar};
use crate::error::{Code, Error, Result};

/// The properties that the user gave to one option. A parser takes the keys that it knows; what is left when
/// [`finish`](Args::finish) is called is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// The option as it is written on the command line: `--device`.
    option: &'static str,
    /// What the user wrote after it.
    text: String,
    /// The type that the properties belong to, once a registry has found it.
    of_type: Option<&'static str>,
    entries: Vec<(String, String)>,
    /// Every key that a parser has asked for: what an unknown key is compared with.
    known: Vec<&'static str>,
}

/// What the user asks help about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HelpTopic<'a> {
    /// What there is: `--device help`.
    List,
    /// The properties of one type: `--device vfio-pci,help`.
    Type(&'a str),
}

impl Args {
    /// Reads what the user wrote after `option`, in QEMU's form or as JSON. `implied` is the key of a first value that
    /// has none: `driver` for `--device`, `size` for `--memory`.
    pub fn parse(option: &'static str, implied: Option<&'static str>, text: &str) -> Result<Args> {
        let entries = grammar::split(text, implied).map_err(|invalid| {
            Error::new(Code::BadProperty, format!("`{option}` is not understood: {invalid}"))
                .evidence(written(option, text))
                .fix("`passthru run --help` shows the form")
        })?;
        let known = implied.into_iter().collect();
        Ok(Args { option, text: text.to_owned(), of_type: None, entries, known })
    }

    /// The option as it is written on the command line.
    pub fn option(&self) -> &'static str {
        self.option
    }

    /// Gives `key` a value where the user gave none.
    #[must_use]
    pub fn with_default(mut self, key: &str, value: &str) -> Args {
        if self.peek(key).is_none() {
            self.entries.push((key.to_owned(), value.to_owned()));
        }
        self
    }

    /// Gives `key` this value, whatever the user gave.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Args {
        self.entries.retain(|(name, _)| name != key);
        self.entries.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The help that the user asks for, by `help` or `?` as a flag or in the place of the type, whose key is `key`.
    pub fn help_topic(&self, key: &str) -> Option<HelpTopic<'_>> {
        let is_help = |word: &str| matches!(word, "help" | "?");
        match self.peek(key) {
            Some(name) if is_help(name) => Some(HelpTopic::List),
            name if self.entries.iter().any(|(flag, value)| is_help(flag) && value == "on") => {
                Some(name.map_or(HelpTopic::List, HelpTopic::Type))
            }
            _ => None,
        }
    }

    /// The value of `key` that counts (the last one), without taking it.
    pub fn peek(&self, key: &str) -> Option<&str> {
        self.entries.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Every key with its value, in the user's order, without taking them.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Takes the value of `key`: the last one if the user gave it several times, as in QEMU.
    pub fn take(&mut self, key: &'static str) -> Option<String> {
        self.known.push(key);
        let value = self.peek(key).map(str::to_owned);
        self.entries.retain(|(name, _)| name != key);
        value
    }

    /// Takes the property `key`; `default` is parsed where the user gave none.
    pub fn take_field<T: PropField>(&mut self, key: &'static str, default: Option<&'static str>) -> Result<T> {
        if let Some(text) = self.take(key) {
            return T::parse_field(&text).map_err(|invalid| self.bad_value(key, &text, invalid));
        }
        match default {
            Some(text) => T::parse_field(text).map_err(|invalid| self.bad_value(key, text, invalid)),
            None => T::absent().ok_or_else(|| self.error(format!("`{}` needs the property `{key}`", self.owner()))),
        }
    }

    /// The keys under which the user wrote whole types: `file`, for `file.driver=raw`.
    pub fn nested_keys(&self, type_key: &str) -> Vec<String> {
        let mut keys: Vec<String> = Vec::new();
        for (key, _) in &self.entries {
            let Some((outer, inner)) = key.split_once('.') else { continue };
            if inner == type_key && !keys.iter().any(|known| known == outer) {
                keys.push(outer.to_owned());
            }
        }
        keys
    }

    /// Takes what the user wrote under `key`, as properties of their own: of `file.driver=raw` what follows the dot. The
    /// text that errors show stays that of the whole option.
    pub fn take_nested(&mut self, key: &str) -> Args {
        let below = |name: &str| name.strip_prefix(key).and_then(|rest| rest.strip_prefix('.')).map(str::to_owned);
        let entries = self.entries.iter().filter_map(|(name, value)| Some((below(name)?, value.clone()))).collect();
        self.entries.retain(|(name, _)| below(name).is_none());
        Args { option: self.option, text: self.text.clone(), of_type: None, entries, known: Vec::new() }
    }

    /// Takes whatever is left, in the user's order.
    pub fn take_rest(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.entries)
    }

    /// Every key that the user gave must have been taken by now.
    pub fn finish(&self) -> Result<()> {
        match self.entries.first() {
            None => Ok(()),
            Some((key, _)) => {
                let hint = did_you_mean(key, self.known.iter().copied());
                Err(self.error(format!("`{}` has no property `{key}`{hint}", self.owner())))
            }
        }
    }

    /// The error that the value `text` of `key` is not acceptable, because of `why` ("expected on or off").
    pub fn bad_value(&self, key: &str, text: &str, why: impl std::fmt::Display) -> Error {
        self.error(format!("`{}` cannot have {key}=`{text}`: {why}", self.owner()))
    }

    /// An error about these properties, with what the user wrote as evidence and the way to their list.
    pub fn error(&self, cause: impl Into<String>) -> Error {
        let help = match self.of_type {
            Some(name) => format!("{name},help"),
            None => "help".to_owned(),
        };
        Error::new(Code::BadProperty, cause)
            .evidence(written(self.option, &self.text))
            .fix(format!("`passthru run {} {help}` lists the properties", self.option))
    }

    /// What the user wrote, as evidence in errors.
    pub fn written(&self) -> String {
        written(self.option, &self.text)
    }

    /// The properties belong to the type `name`, which errors then mention.
    pub(super) fn set_type(&mut self, name: &'static str) {
        self.of_type = Some(name);
    }

    /// Whose properties these are, in errors.
    fn owner(&self) -> &'static str {
        self.of_type.unwrap_or(self.option)
    }
}

/// Longest text of an option that is repeated in an error, in characters.
const MAX_EVIDENCE: usize = 200;

fn written(option: &str, text: &str) -> String {
    match text.char_indices().nth(MAX_EVIDENCE) {
        Some((at, _)) => format!("{option} {}...", &text[..at]),
        None => format!("{option} {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Size;

    fn device(text: &str) -> Args {
        Args::parse("--device", Some("driver"), text).unwrap()
    }

    #[test]
    fn the_last_of_several_values_counts() {
        let mut args = device("x,a=1,b=2,a=3");
        assert_eq!(args.peek("a"), Some("3"));
        assert_eq!(args.take("a").as_deref(), Some("3"));
        assert_eq!(args.take("a"), None);
        assert_eq!(args.take("driver").as_deref(), Some("x"));
        assert_eq!(args.take_rest(), [("b".to_owned(), "2".to_owned())]);
        assert!(args.finish().is_ok());
    }

    #[test]
    fn fields_are_given_default_optional_or_missing() {
        let mut args = device("x,size=4K");
        assert_eq!(args.take_field::<Size>("size", Some("1")).unwrap(), Size(4096));
        assert_eq!(args.take_field::<Size>("size", Some("1")).unwrap(), Size(1));
        assert_eq!(args.take_field::<Option<Size>>("size", None).unwrap(), None);
        let error = args.take_field::<Size>("size", None).unwrap_err();
        assert_eq!(error.code(), Code::BadProperty);
        assert_eq!(error.cause(), "`--device` needs the property `size`");
    }

    #[test]
    fn errors_name_what_was_written_and_where_the_list_is() {
        let mut args = device("x,hots=1");
        args.set_type("vfio-pci");
        assert_eq!(args.take("driver").as_deref(), Some("x"));
        assert_eq!(args.take("host"), None);
        let error = args.finish().unwrap_err();
        assert_eq!(error.cause(), "`vfio-pci` has no property `hots`, did you mean `host`?");
        assert_eq!(error.evidence_lines(), ["--device x,hots=1"]);
        assert_eq!(error.fix_text(), Some("`passthru run --device vfio-pci,help` lists the properties"));
        let error = device("x,on=maybe").take_field::<bool>("on", None).unwrap_err();
        assert_eq!(error.cause(), "`--device` cannot have on=`maybe`: expected on or off");
    }

    #[test]
    fn help_is_a_flag_or_the_implied_value() {
        for (text, topic) in [
            ("help", Some(HelpTopic::List)),
            ("?", Some(HelpTopic::List)),
            ("driver=help", Some(HelpTopic::List)),
            ("id=x,help", Some(HelpTopic::List)),
            ("x,help", Some(HelpTopic::Type("x"))),
            ("x,?,id=y", Some(HelpTopic::Type("x"))),
            ("", None),
            ("x", None),
            ("x,id=help", None),
            ("x,help=off", None),
            ("helpful", None),
        ] {
            assert_eq!(device(text).help_topic("driver"), topic, "{text}");
        }
    }

    #[test]
    fn a_default_is_only_for_what_is_absent() {
        assert_eq!(device("id=a").with_default("driver", "x").peek("driver"), Some("x"));
        assert_eq!(device("y,id=a").with_default("driver", "x").peek("driver"), Some("y"));
    }

    #[test]
    fn what_is_nested_has_properties_of_its_own() {
        for text in [
            "raw,file.driver=file,file.cache.direct=on,cache.direct=off,size=1",
            r#"{"driver":"raw","file":{"driver":"file","cache":{"direct":true}},"cache":{"direct":false},"size":1}"#,
        ] {
            let mut args = device(text);
            assert_eq!(args.nested_keys("driver"), ["file"], "{text}");
            let file = args.take_nested("file");
            let mut of_file: Vec<_> = file.entries().collect();
            of_file.sort();
            assert_eq!(of_file, [("cache.direct", "on"), ("driver", "file")]);
            assert_eq!((args.peek("file.driver"), args.peek("cache.direct")), (None, Some("off")));
            assert_eq!(file.written(), args.written());
        }
    }

    #[test]
    fn evidence_is_bounded() {
        let args = device(&"ä".repeat(10_000));
        assert_eq!(args.written().chars().count(), "--device ".len() + MAX_EVIDENCE + "...".len());
    }
}
