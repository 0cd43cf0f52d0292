//! What `--cpu` asks for: `host|max[,+feature][,-feature]`.
//!
//! Both models are everything that KVM offers on this host. Nested virtualisation (vmx, svm) is left out unless it is
//! asked for: a guest that does not use it must not pay for it, and cannot misuse it.

use super::features::{self, Bit};
use crate::error::{Code, Error, Result};

/// A parsed `--cpu`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Model {
    /// The switches in the order of the command line; a later one overrides an earlier one.
    pub switches: Vec<Switch>,
}

/// One `+feature` or `-feature`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    /// The feature's name as the user wrote it.
    pub name: String,
    /// Its bit.
    pub bit: Bit,
    /// `+`.
    pub on: bool,
}

impl Model {
    /// Parses the value of `--cpu`. QEMU's `feature=on|off` is understood too.
    ///
    /// # Errors
    /// [`Code::UnknownCpu`] for an unknown model or feature, with the name that was probably meant.
    pub fn parse(text: &str) -> Result<Model> {
        let mut parts = text.split(',').map(str::trim);
        match parts.next() {
            Some("host" | "max") => {}
            other => {
                let name = other.unwrap_or_default();
                return Err(Error::new(Code::UnknownCpu, format!("there is no CPU model \"{name}\""))
                    .fix("use host, with +feature and -feature where it must differ"));
            }
        }
        parts.map(Switch::parse).collect::<Result<_>>().map(|switches| Model { switches })
    }
}

impl Switch {
    fn parse(text: &str) -> Result<Switch> {
        let (name, on) = match text.split_once('=') {
            Some((name, "on")) => (name, true),
            Some((name, "off")) => (name, false),
            _ => match (text.strip_prefix('+'), text.strip_prefix('-')) {
                (Some(name), _) => (name, true),
                (_, Some(name)) => (name, false),
                _ => {
                    return Err(Error::new(Code::UnknownCpu, format!("\"{text}\" is no switch of a CPU feature"))
                        .fix("write +feature or -feature"));
                }
            },
        };
        match features::find(name) {
            Some(bit) => Ok(Switch { name: name.to_owned(), bit, on }),
            None => {
                let error = Error::new(Code::UnknownCpu, format!("there is no CPU feature \"{name}\""));
                Err(match features::nearest(name) {
                    Some(meant) => error.fix(format!("did you mean {meant}?")),
                    None => error.fix("use the names that /proc/cpuinfo shows as flags"),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_are_parsed_in_order() {
        let model = Model::parse("host,+svm,-avx2,x2apic=off").unwrap();
        let switches: Vec<_> = model.switches.iter().map(|switch| (&*switch.name, switch.on)).collect();
        assert_eq!(switches, [("svm", true), ("avx2", false), ("x2apic", false)]);
        assert_eq!(Model::parse("max").unwrap(), Model::default());
    }

    #[test]
    fn what_is_unknown_is_refused_with_a_suggestion() {
        let refused = |text| {
            let error = Model::parse(text).unwrap_err();
            assert_eq!(error.code(), Code::UnknownCpu);
            error.to_string()
        };
        assert!(refused("host,+avx22").contains("did you mean avx2?"));
        assert!(refused("host,avx2").contains("write +feature"));
        assert!(refused("host,").contains("write +feature"));
        assert!(refused("Skylake").contains("Skylake"));
        assert!(refused("").contains("no CPU model"));
        assert!(refused("host,+").contains("no CPU feature"));
    }
}
