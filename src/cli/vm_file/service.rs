//! What a VM uses that passthru@.service keeps from its guests, unless a drop-in of the administrator's allows it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::error::{Code, Error};
use crate::host::Host;
use crate::host::files::FileUse;

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

/// What is in the way of the VM `vm`, whose network back ends have these types and which uses these files, as a service.
pub(in crate::cli) fn too_narrow<'a>(
    vm: &str,
    netdevs: impl Iterator<Item = &'a str>,
    files: &[FileUse],
    host: &Host,
) -> Vec<Error> {
    let lines = host.drop_in_lines(UNIT, vm);
    let is_off = |setting: &str| {
        // The last one counts.
        values(&lines, setting).next_back().is_some_and(|value| ["no", "false", "off", "0"].contains(&value))
    };
    let netdevs: Vec<&str> = netdevs.collect();
    let rows = ROWS.iter().filter(|row| netdevs.contains(&row.netdev) && !is_off(row.setting));
    let error = |row: &Row| {
        Error::new(Code::ServiceTooNarrow, format!("as a service VM {vm} cannot have its {} network", row.netdev))
            .evidence(row.why)
            .fix((row.fix)(vm))
    };
    rows.map(error).chain(closed(vm, files, &lines, host)).collect()
}

/// The user who runs the VM `vm` as a service.
pub(in crate::cli) fn service_user(vm: &str, host: &Host) -> String {
    values(&host.drop_in_lines(UNIT, vm), "User").next_back().unwrap_or(UNIT).to_owned()
}

/// Whether the VM `vm` may lock any memory as a service: the unit says so, unless a drop-in says otherwise.
pub(in crate::cli) fn locks_any_memory(vm: &str, host: &Host) -> bool {
    values(&host.drop_in_lines(UNIT, vm), "LimitMEMLOCK").next_back().is_none_or(|limit| limit == "infinity")
}

/// The values that these lines give a setting.
fn values<'a>(lines: &'a [String], setting: &'a str) -> impl DoubleEndedIterator<Item = &'a str> {
    lines.iter().filter_map(move |line| Some(line.trim().strip_prefix(setting)?.trim_start().strip_prefix('=')?.trim()))
}

/// Files that the unit keeps closed, and one drop-in that opens all of them.
fn closed(vm: &str, files: &[FileUse], lines: &[String], host: &Host) -> Option<Error> {
    let wanted: Vec<Opened> = files.iter().filter_map(|file| Opened::of(vm, file, host)).collect();
    let missing: Vec<&Opened> = wanted.iter().filter(|opened| !opened.is_among(lines)).collect();
    let error = Error::new(Code::ServiceTooNarrow, format!("as a service VM {vm} cannot use all of its files"));
    let error =
        missing.iter().map(|opened| opened.why()).collect::<BTreeSet<_>>().into_iter().fold(error, Error::evidence);
    // All that it needs, since an earlier file of that name is replaced.
    let settings: BTreeSet<String> = wanted.iter().map(|opened| quoted(&opened.setting())).collect();
    let folder = format!("/etc/systemd/system/{UNIT}@{vm}.service.d");
    let fix = format!(
        "mkdir -p {folder} && printf '%s\\n' '[Service]' {} > {folder}/files.conf && systemctl daemon-reload",
        Vec::from_iter(settings).join(" ")
    );
    (!missing.is_empty()).then(|| error.fix(fix))
}

/// A word of the shell; systemd's own signs in it mean themselves.
fn quoted(setting: &str) -> String {
    format!("'{}'", setting.replace('%', "%%").replace('\'', "'\\''"))
}

/// A file that the unit itself does not open.
#[derive(Debug)]
enum Opened {
    /// A node of a device.
    Node { path: PathBuf, write: bool },
    /// A file that is written, or the folder in which it is made.
    Write(PathBuf),
}

impl Opened {
    fn of(vm: &str, file: &FileUse, host: &Host) -> Option<Opened> {
        let FileUse { path, write, made } = file;
        if host.is_node(path) {
            return Some(Opened::Node { path: path.clone(), write: *write });
        }
        let open = [&host.run(format!("vm/{vm}")), Path::new("/tmp"), Path::new("/var/tmp"), &host.dev("")];
        if !write || !path.is_absolute() || open.iter().any(|folder| path.starts_with(folder)) {
            return None;
        }
        let folder = if *made { path.parent() } else { None };
        Some(Opened::Write(folder.unwrap_or(path).to_owned()))
    }

    fn is_among(&self, lines: &[String]) -> bool {
        match self {
            Opened::Node { path, write } => values(lines, "DeviceAllow").any(|value| {
                let (node, rights) = value.split_once(' ').unwrap_or((value, "rwm"));
                Path::new(node) == path && rights.contains('r') && (!write || rights.contains('w'))
            }),
            Opened::Write(path) => {
                values(lines, "ReadWritePaths").flat_map(str::split_whitespace).any(|open| path.starts_with(open))
            }
        }
    }

    fn setting(&self) -> String {
        match self {
            Opened::Node { path, write: true } => format!("DeviceAllow={} rw", path.display()),
            Opened::Node { path, write: false } => format!("DeviceAllow={} r", path.display()),
            Opened::Write(path) => format!("ReadWritePaths={}", path.display()),
        }
    }

    fn why(&self) -> String {
        match self {
            Opened::Node { path, .. } => format!("{UNIT}@.service may not open {}", path.display()),
            Opened::Write(path) => format!("for {UNIT}@.service {} is read-only", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::TestTree;

    #[test]
    fn a_drop_in_makes_room() {
        let tree = TestTree::new();
        let seen = |vm: &str, netdevs: &[&str]| too_narrow(vm, netdevs.iter().copied(), &[], &tree.host()).len();
        assert_eq!([seen("a", &["tap", "user", "tap"]), seen("a", &["stream"])], [2, 0]);
        let errors = too_narrow("a", ["tap"].into_iter(), &[], &tree.host());
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
        assert!(locks_any_memory("a", &tree.host()));
        tree.file("etc/systemd/system/passthru@a.service.d/less.conf", "[Service]\nLimitMEMLOCK=1G\n");
        assert!(!locks_any_memory("a", &tree.host()) && locks_any_memory("b", &tree.host()));
    }

    #[test]
    fn one_drop_in_opens_all_files() {
        let tree = TestTree::new();
        let host = tree.host();
        let file = |path: &str, write, made| FileUse { path: path.into(), write, made };
        let node = |name: &str, write| FileUse { path: host.dev(name), write, made: false };
        let errors = |files: &[FileUse]| too_narrow("a", [].into_iter(), files, &host);
        let open = [
            file("/srv/vmlinuz", false, false),
            file("/tmp/log", true, true),
            FileUse { path: host.run("vm/a/log"), write: true, made: true },
            node("null", true),
            node("shm/memory", true),
            file("disk.img", true, false),
        ];
        assert_eq!(errors(&open).len(), 0);
        let mut all = vec![node("sdb", true), node("sdc", false), file("/srv/it's.img", true, false)];
        all.push(file("/var/log/vm/a", true, true));
        let [error] = &errors(&all)[..] else { panic!("not one") };
        let dev = host.dev("").display().to_string();
        let fix = error.fix_text().unwrap().replace(&dev, "/dev/");
        assert_eq!(
            fix,
            "mkdir -p /etc/systemd/system/passthru@a.service.d && printf '%s\\n' '[Service]' 'DeviceAllow=/dev/sdb rw' \
             'DeviceAllow=/dev/sdc r' 'ReadWritePaths=/srv/it'\\''s.img' 'ReadWritePaths=/var/log/vm' \
             > /etc/systemd/system/passthru@a.service.d/files.conf && systemctl daemon-reload"
        );
        // What the administrator has opened is not asked for, unless it is less than what is needed.
        let drop_in = format!("[Service]\nDeviceAllow={0}sdb r\nDeviceAllow={0}sdc\nReadWritePaths=/srv /mnt\n", dev);
        tree.file("etc/systemd/system/passthru@a.service.d/mine.conf", &drop_in);
        let evidence = errors(&all)[0].to_string().replace(&dev, "/dev/");
        assert!(evidence.contains("open /dev/sdb") && evidence.contains("/var/log/vm is read-only"), "{evidence}");
        assert!(!evidence.contains("open /dev/sdc") && !evidence.contains("it's.img is"), "{evidence}");
    }
}
