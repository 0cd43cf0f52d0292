//! QEMU's command line.

use super::draft::Draft;
use crate::cli::run;

/// `text` as a shell splits it into words; none if a quotation mark is open.
pub fn split(text: &str) -> Option<Vec<String>> {
    shlex::split(text)
}

/// Takes over what `words` say.
pub fn read(words: &[String], draft: &mut Draft) {
    let mut words = words.iter().skip_while(|word| !word.starts_with('-')).peekable();
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            draft.leave(word, "a disk image without an option: `--drive file=PATH,format=FORMAT,if=virtio` is one");
            continue;
        };
        let option = draft.option(name);
        let takes_value = option.is_none_or(|option| option.get_action().takes_values());
        // QEMU's own options have one value or none, and a value rarely begins with a dash.
        let hyphens = option.is_some_and(|option| option.is_allow_hyphen_values_set());
        let value = if takes_value { words.next_if(|next| hyphens || !next.starts_with('-')) } else { None };
        if run::is_of_process(name) {
            continue;
        }
        let what = value.map_or(format!("-{name}"), |value| format!("-{name} {value}"));
        let value = value.map(|value| if name == "machine" || name == "M" { machine(value) } else { value.clone() });
        draft.set(&what, name, value.as_deref());
    }
}

/// QEMU's versioned machine types (`pc-q35-9.2`, Proxmox's `q35+pve0`) are all the one that passthru has, and KVM is what it
/// runs by.
fn machine(value: &str) -> String {
    let words = value.split(',').filter(|word| *word != "accel=kvm");
    let words = words.map(|word| {
        let name = word.strip_prefix("type=").unwrap_or(word);
        if name.starts_with("pc-q35-") || name.starts_with("q35+") { "q35" } else { word }
    });
    words.collect::<Vec<_>>().join(",")
}
