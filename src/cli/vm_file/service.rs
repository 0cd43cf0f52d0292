//! What a VM uses that passthru@.service keeps from its guests, unless a drop-in of the administrator's allows it.

use crate::error::{Code, Error};
use crate::host::Host;

/// The unit's name before the VM's.
const UNIT: &str = "passthru";

/// A type of network back end that the unit is too narrow for.
struct Row {
    netdev: &'static str,
    /// The setting of the unit that has to be switched off.
    setting: &'static str,
    why: &'static str,
    fix: fn(vm: &str) -> String,
}

const ROWS: [Row; 2] = [
    Row {
        netdev: "tap",
        setting: "PrivateNetwork",
        why: "passthru@.service has a network of its own, without the tap, and may not open /dev/net/tun",
        fix: |vm| {
            format!(
                "install -Dm644 /usr/share/passthru/tap.conf /etc/systemd/system/{UNIT}@{vm}.service.d/tap.conf && \
                 systemctl daemon-reload"
            )
        },
    },
    Row {
        netdev: "user",
        setting: "RestrictNamespaces",
        why: "passthru@.service lets nobody make namespaces, as passt does, and has a network of its own",
        fix: |_| "run passt as a service of its own, with `--netdev stream` on its socket; or take a tap".to_owned(),
    },
];

/// What is in the way of the VM `vm`, whose network back ends have these types, as a service.
pub(in crate::cli) fn too_narrow<'a>(vm: &str, netdevs: impl Iterator<Item = &'a str>, host: &Host) -> Vec<Error> {
    let lines = host.drop_in_lines(UNIT, vm);
    let is_off = |setting: &str| {
        // The last one counts.
        let mut values =
            lines.iter().filter_map(|line| line.trim().strip_prefix(setting)?.trim_start().strip_prefix('='));
        values.next_back().is_some_and(|value| ["no", "false", "off", "0"].contains(&value.trim()))
    };
    let netdevs: Vec<&str> = netdevs.collect();
    let rows = ROWS.iter().filter(|row| netdevs.contains(&row.netdev) && !is_off(row.setting));
    let error = |row: &Row| {
        Error::new(Code::ServiceTooNarrow, format!("as a service VM {vm} cannot have its {} network", row.netdev))
            .evidence(row.why)
            .fix((row.fix)(vm))
    };
    rows.map(error).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::TestTree;

    #[test]
    fn a_drop_in_makes_room() {
        let tree = TestTree::new();
        let seen = |vm: &str, netdevs: &[&str]| too_narrow(vm, netdevs.iter().copied(), &tree.host()).len();
        assert_eq!([seen("a", &["tap", "user", "tap"]), seen("a", &["stream"])], [2, 0]);
        let errors = too_narrow("a", ["tap"].into_iter(), &tree.host());
        assert!(errors[0].to_string().contains("/etc/systemd/system/passthru@a.service.d/tap.conf"), "{}", errors[0]);
        tree.file(
            "etc/systemd/system/passthru@a.service.d/tap.conf",
            include_str!("../../../packaging/systemd/tap.conf"),
        );
        assert_eq!([seen("a", &["tap"]), seen("b", &["tap"])], [0, 1]);
        tree.file("etc/systemd/system/passthru@a.service.d/zz.conf", "[Service]\nPrivateNetwork = yes\n");
        assert_eq!(seen("a", &["tap"]), 1, "the last one counts");
        tree.file("etc/systemd/system/passthru@.service.d/all.conf", "[Service]\nPrivateNetwork=false\n");
        assert_eq!(seen("b", &["tap"]), 0);
    }
}
