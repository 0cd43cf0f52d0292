//! Guests as other programs describe them, and what becomes of them: the files of tests/cli/convert. `UPDATE_GOLDEN=1 cargo
//! test --lib cli::convert` writes the results.

use std::fs;
use std::path::Path;

use clap::CommandFactory;

use super::draft::Draft;
use super::{libvirt, qemu, whole};
use crate::cli::{Cli, ThisHost, vm_file};
use crate::host::Host;
use crate::host::testtree::{TestTree, bdf};

#[test]
fn guests_of_others_are_carried_over() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/convert");
    let types = ThisHost { host: Host::real() };
    let mut syntax = Cli::command();
    syntax.build();
    for name in ["proxmox.txt", "virt-manager.xml"] {
        let text = fs::read_to_string(folder.join(name)).unwrap();
        let mut draft = Draft::new(&syntax, &types);
        match name.ends_with("xml") {
            true => libvirt::read(&text, &mut draft).unwrap(),
            false => qemu::read(&qemu::split(&text).unwrap(), &mut draft),
        }
        whole::complete(&mut draft);
        let (seen, golden) = (draft.file(), folder.join(name).with_extension("toml"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &seen).unwrap();
        }
        assert_eq!(seen, fs::read_to_string(&golden).unwrap_or_default(), "{name}");
        // The file is one that `run` takes.
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").group(1).add();
        tree.file("etc/passthru/guest.toml", &seen);
        let vm = vm_file::Vm::read("guest", &syntax, &ThisHost { host: tree.host() }).unwrap();
        assert_eq!(vm.devices, [bdf("01:00.0")], "{name}");
    }
}
