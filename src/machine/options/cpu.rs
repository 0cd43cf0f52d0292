//! `--cpu`: the CPU model and changes of its features.

use crate::error::{Code, Error, Result};
use crate::object::{Args, PropValue, did_you_mean, prop_enum};

prop_enum! {
    /// What the guest's CPUs are like.
    pub enum CpuModel {
        /// The host's CPU.
        Host = "host",
        /// Everything that KVM can offer on this host.
        Max = "max",
    }
}

/// The CPU model and changes of its features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuOptions {
    /// Where the features come from.
    pub model: CpuModel,
    /// Features to add (true) or to take away (false), in the user's order: a later one counts.
    pub features: Vec<(bool, String)>,
}

/// Whether a feature of this name can exist; which ones do is KVM's to say.
fn is_feature(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// `host`, then any of `+feature`, `-feature` and, as QEMU takes it too, `feature=on|off`.
/// Reads the option.
pub fn parse(mut args: Args) -> Result<CpuOptions> {
    let model = match args.take("model") {
        None => CpuModel::Host,
        Some(name) => CpuModel::parse(&name).map_err(|_| {
            let hint = did_you_mean(&name, ["host", "max"]);
            Error::new(Code::UnknownCpu, format!("there is no CPU model `{name}`{hint}"))
                .evidence(args.written())
                .fix("use `--cpu host` or `--cpu max`")
        })?,
    };
    let mut features = Vec::new();
    for (key, value) in args.take_rest() {
        let on = bool::parse(&value).map_err(|invalid| args.bad_value(&key, &value, invalid))?;
        let (on, name) = match (key.split_at_checked(1), on) {
            (Some(("+", name)), true) => (true, name),
            (Some(("-", name)), true) => (false, name),
            (_, on) => (on, key.as_str()),
        };
        if !is_feature(name) {
            return Err(Error::new(Code::UnknownCpu, format!("`{key}` is not the name of a CPU feature"))
                .evidence(args.written())
                .fix("write `+feature` or `-feature` with the names of /proc/cpuinfo"));
        }
        features.push((on, name.to_owned()));
    }
    Ok(CpuOptions { model, features })
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

    fn cpu(text: &str) -> Result<CpuOptions> {
        parse(Args::parse("--cpu", Some("model"), text)?)
    }

    #[test]
    fn models_and_features() {
        for (text, model, expected) in [
            ("", CpuModel::Host, &[][..]),
            ("max", CpuModel::Max, &[]),
            ("host,+x2apic,-avx512f", CpuModel::Host, &[(true, "x2apic"), (false, "avx512f")]),
            ("host,avx2=off,sse4.1", CpuModel::Host, &[(false, "avx2"), (true, "sse4.1")]),
            ("host,+a,-a", CpuModel::Host, &[(true, "a"), (false, "a")]),
        ] {
            let features = expected.iter().map(|&(on, name)| (on, name.to_owned())).collect();
            assert_eq!(cpu(text).unwrap(), CpuOptions { model, features }, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, code, cause) in [
            ("hots", Code::UnknownCpu, "there is no CPU model `hots`, did you mean `host`?"),
            ("Skylake-Client", Code::UnknownCpu, "there is no CPU model `Skylake-Client`"),
            ("host,+", Code::UnknownCpu, "`+` is not the name of a CPU feature"),
            ("host,+avx=off", Code::UnknownCpu, "`+avx` is not the name of a CPU feature"),
            ("host,é", Code::UnknownCpu, "`é` is not the name of a CPU feature"),
            ("host,avx=maybe", Code::BadProperty, "`--cpu` cannot have avx=`maybe`: expected on or off"),
        ] {
            let error = cpu(text).unwrap_err();
            assert_eq!((error.code(), error.cause()), (code, cause), "{text}");
        }
    }

    #[test]
    fn help_lists_every_model() {
        for model in CpuModel::KIND.split('|') {
            assert!(help().contains(&format!("\n{model} ")), "{model}");
        }
    }
}
