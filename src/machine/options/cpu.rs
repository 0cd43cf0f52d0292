//! `--cpu`: the CPU model and changes of its features.

use crate::cpu::{Model, Switch};
use crate::error::{Code, Error, Result};
use crate::object::{Args, PropValue, did_you_mean};

/// The models. Both are everything that KVM offers on this host.
const MODELS: [&str; 2] = ["host", "max"];

/// Reads `host` or `max`, then any of `+feature`, `-feature` and, as QEMU takes it too, `feature=on|off`.
pub fn parse(mut args: Args) -> Result<Model> {
    if let Some(name) = args.take("model")
        && !MODELS.contains(&&*name)
    {
        let hint = did_you_mean(&name, MODELS);
        return Err(Error::new(Code::UnknownCpu, format!("there is no CPU model `{name}`{hint}"))
            .evidence(args.written())
            .fix("use `--cpu host`, with +FEATURE and -FEATURE where it must differ"));
    }
    let mut switches = Vec::new();
    for (key, value) in args.take_rest() {
        let on = bool::parse(&value).map_err(|invalid| args.bad_value(&key, &value, invalid))?;
        let (on, name) = match (key.split_at_checked(1), on) {
            (Some(("+", name)), true) => (true, name),
            (Some(("-", name)), true) => (false, name),
            (_, on) => (on, key.as_str()),
        };
        switches.push(Switch::new(name, on).map_err(|error| error.evidence(args.written()))?);
    }
    Ok(Model { switches })
}

/// What the option takes.
pub fn help() -> String {
    "\
CPU models:
host  The host's CPU
max   Everything that KVM can offer on this host

+FEATURE adds a feature, -FEATURE takes one away, with the names of /proc/cpuinfo.
"
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(text: &str) -> Result<Model> {
        parse(Args::parse("--cpu", Some("model"), text)?)
    }

    #[test]
    fn models_and_features() {
        for (text, expected) in [
            ("", &[][..]),
            ("max", &[]),
            ("host,+svm,-avx2", &[(true, "svm"), (false, "avx2")]),
            ("host,avx2=off,sse4.1", &[(false, "avx2"), (true, "sse4.1")]),
            ("host,+avx,-avx", &[(true, "avx"), (false, "avx")]),
        ] {
            let model = cpu(text).unwrap();
            let switches: Vec<_> = model.switches.iter().map(|switch| (switch.on, &*switch.name)).collect();
            assert_eq!(switches, expected, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, code, cause) in [
            ("hots", Code::UnknownCpu, "there is no CPU model `hots`, did you mean `host`?"),
            ("Skylake-Client", Code::UnknownCpu, "there is no CPU model `Skylake-Client`"),
            ("host,+", Code::UnknownCpu, "there is no CPU feature ``"),
            ("host,+avx22", Code::UnknownCpu, "there is no CPU feature `avx22`, did you mean `avx2`?"),
            ("host,+avx=off", Code::UnknownCpu, "there is no CPU feature `+avx`, did you mean `avx`?"),
            ("host,avx=maybe", Code::BadProperty, "`--cpu` cannot have avx=`maybe`: expected on or off"),
        ] {
            let error = cpu(text).unwrap_err();
            assert_eq!((error.code(), error.cause()), (code, cause), "{text}");
        }
    }

    #[test]
    fn help_lists_every_model() {
        for model in MODELS {
            assert!(help().contains(&format!("\n{model} ")), "{model}");
        }
    }
}
