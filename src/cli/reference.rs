//! The pages of docs/ that are made from the code: docs/devices.md from the tables of types, docs/troubleshooting.md from
//! the table of error codes, docs/qmp.md from the control socket's commands. tests/cli compares the files with these texts.

use super::explain::meaning;
use super::output;
use crate::device::bus_name;
use crate::error::{Class, Code};
use crate::monitor::commands;
use crate::object::{Preset, Prop, Registry, TypeInfo};

/// Columns of a page's running text.
const WIDTH: usize = 120;
/// Said at the top of a page, for who wants to edit it.
const MADE: &str = "<!-- Made from the code: UPDATE_GOLDEN=1 cargo test --test cli -->\n";

/// docs/devices.md: the types of each option, as [`page`] makes them.
pub fn devices(pages: &[String]) -> String {
    let mut out = format!("# Machines, devices and back ends\n\n{MADE}");
    out += "\nEvery table of this page is also printed by `passthru run`, with `help` in the place of a type (`-M help`,\n\
        `--device help`) or after it (`-M q35,help`, `--device vfio-pci,help`). A type and its properties are written\n\
        `TYPE,KEY=VALUE,...`, a comma in a value twice; or as JSON, `{\"driver\":\"vfio-pci\",\"host\":\"01:00.0\"}`.\n";
    out + &pages.concat()
}

/// The types of one option, with their properties.
pub fn page<O, C>(heading: &str, registry: &Registry<O, C>) -> String {
    let mut out = format!("\n## {heading}: `{} TYPE`\n", registry.option);
    if !registry.common.is_empty() {
        out += &format!("\nProperties of every {}:\n\n", registry.what);
        table(&mut out, registry.common);
    }
    for (bus, props) in registry.on_bus {
        out += &format!("\nProperties of every {} on a {bus} bus:\n\n", registry.what);
        table(&mut out, props);
    }
    for of_type in registry.types {
        entry(&mut out, of_type);
    }
    out
}

fn entry<O, C>(out: &mut String, of_type: &TypeInfo<O, C>) {
    *out += &format!("\n### {}\n\n{}.", of_type.name(), of_type.doc().trim_end_matches('.'));
    if let Some(bus) = of_type.bus() {
        *out += &format!(" Goes on a {bus} bus.");
    }
    if let Some(kind) = of_type.adds_bus() {
        *out += &format!(" Adds a {kind} bus, which is called {}.", bus_name(kind, "ID"));
    }
    *out += "\n\n";
    if of_type.props().is_empty() {
        *out += "It has no properties of its own.\n";
    } else {
        table(out, of_type.props());
    }
}

fn table(out: &mut String, props: &[Prop]) {
    *out += "| property | kind | default | what it does |\n|---|---|---|---|\n";
    for prop in props {
        let preset = match prop.preset {
            Preset::Required => "must be given".to_owned(),
            Preset::Absent => String::new(),
            Preset::Text(text) => format!("`{text}`"),
        };
        let doc = prop.doc.trim_end_matches('.');
        *out += &format!("| `{}` | {} | {preset} | {} |\n", prop.name, cell(prop.kind), cell(doc));
    }
}

/// `text` in a cell of a table, where a bar would end the cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// docs/troubleshooting.md: every error code.
pub fn errors() -> String {
    let mut out = format!("# Troubleshooting: every error code\n\n{MADE}");
    out += "\nAn error of passthru is a cause, what was seen (`seen:`), what mends it (`mend:`) and a code whose meaning never\n\
        changes. `passthru explain PT006` prints what is below. The exit code of the process follows from the code's class:\n";
    out += "\n| exit code | class | meaning |\n|---|---|---|\n| 0 | | all went well |\n";
    for class in [Class::Usage, Class::Host, Class::Device, Class::Guest] {
        let (name, meaning) = meaning(class);
        out += &format!("| {} | {name} | {meaning} |\n", class.exit_code());
    }
    out += "\n| code | class | what is wrong |\n|---|---|---|\n";
    for code in Code::ALL {
        let entry = code.entry();
        let anchor = code.to_string().to_lowercase();
        out += &format!("| [{code}](#{anchor}) | {} | {} |\n", meaning(entry.class).0, cell(entry.title));
    }
    for code in Code::ALL {
        let entry = code.entry();
        let (class, _) = meaning(entry.class);
        out += &format!(
            "\n## {code}\n\n**{}** (class {class}, exit code {})\n\n",
            sentence(entry.title),
            entry.class.exit_code()
        );
        out += &format!("{}\n", super::output::wrap(entry.text, WIDTH));
    }
    out
}

/// docs/qmp.md: the commands and events of the control socket.
pub fn qmp() -> String {
    let mut out = format!("# The control socket: every command and event\n\n{MADE}");
    out += QMP_INTRODUCTION;
    for (heading, commands) in commands::GROUPS {
        out += &format!("\n## {heading}\n");
        for command in *commands {
            out += &format!("\n### {}\n\n{}.\n", command.name, output::wrap(command.doc, WIDTH));
            if !command.params.is_empty() {
                out += "\n| argument | kind | | what it means |\n|---|---|---|---|\n";
            }
            for param in command.params {
                let needed = if param.optional { "optional" } else { "must be given" };
                out += &format!("| `{}` | {} | {needed} | {} |\n", param.name, param.kind.name(), cell(param.doc));
            }
        }
    }
    out += "\n## Events\n\n| event | data | when |\n|---|---|---|\n";
    for event in commands::EVENTS {
        out += &format!("| `{}` | {} | {} |\n", event.name, event.data, cell(event.doc));
    }
    out
}

const QMP_INTRODUCTION: &str = "
`passthru run --qmp unix:/run/passthru/guest.sock,wait=off ...` makes a socket on which programs control the running
guest. The protocol is QEMU's machine protocol, so clients of QEMU's can be used: a greeting, then JSON objects, one
request and one answer each, and events in between. Every session begins with `qmp_capabilities`:

```
$ socat - UNIX-CONNECT:/run/passthru/guest.sock
{\"QMP\": {\"capabilities\": [], \"version\": ...}}
{\"execute\": \"qmp_capabilities\"}
{\"return\": {}}
{\"execute\": \"device_add\", \"arguments\": {\"driver\": \"vfio-pci\", \"id\": \"nic0\", \"bus\": \"rp1\", \"host\": \"01:00.0\"}, \"id\": 1}
{\"return\": {}, \"id\": 1}
```

Every guest has such a socket without being asked for one, at /run/passthru/vm/NAME/qmp.sock, or below $XDG_RUNTIME_DIR
if its user is not root; `passthru ctl NAME` speaks with it ([service.md](service.md)). A character back end can have a
client as well: `--chardev socket,id=m0,path=m0.sock,server=on,wait=off --mon m0,mode=control`. Up to 16 clients of sockets
are served at a time, others wait. A request has 64 KiB at most. A client that leaves 1 MiB of answers and events unread is
dropped. Where a command fails for a reason that has an error code, the error's `data` has the code,
what was seen and what mends it ([troubleshooting.md](troubleshooting.md)).
";

/// `title` with a capital letter.
fn sentence(title: &str) -> String {
    let mut letters = title.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::testing;

    #[test]
    fn every_property_has_a_row() {
        let page = devices(&[
            page("Machine types", &testing::MACHINES),
            page("Device types", &testing::DEVICES),
            page("Object types", &testing::OBJECTS),
        ]);
        for row in [
            "## Device types: `--device TYPE`",
            "| `id` | str |  | Unique name of the device, and of the bus that it adds |",
            "### number\n\nA device that is only a number. Goes on a PCI bus.\n",
            "| `value` | uint32 | must be given | The number |",
            "| `room` | size | `4K` | A size |",
            "### nothing\n\nA device without properties.\n\nIt has no properties of its own.\n",
        ] {
            assert!(page.contains(row), "{row}\n{page}");
        }
    }

    #[test]
    fn every_code_has_a_section() {
        let page = errors();
        for code in Code::ALL {
            assert!(page.contains(&format!("\n## {code}\n")), "{code}");
        }
        assert_eq!(cell("on|off"), "on\\|off");
    }
}
