//! The nodes of a VM's devices, and who may open them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::note::Granted;
use super::{Prepared, Wish};
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};
use crate::host::Host;
use crate::host::acl::{Acl, READ, READ_WRITE};
use crate::host::files::FileUse;

impl Host {
    /// The nodes that a guest opens, with its rights: KVM's; of each device its group's and its own; those that belong to no
    /// device, by which both are put into an address space; and those that its options name.
    fn nodes_of(&self, wish: &Wish) -> Vec<(PathBuf, u16)> {
        let own = self.nodes_of_devices(&wish.devices).into_iter().map(|node| (node, READ_WRITE));
        let mut nodes: BTreeMap<PathBuf, u16> = own.collect();
        for FileUse { path, write, .. } in &wish.files {
            // By its plain path: a link could lead elsewhere when the rights are taken back.
            let Ok(path) = path.canonicalize() else { continue };
            if self.is_node(&path) {
                *nodes.entry(path).or_default() |= if *write { READ_WRITE } else { READ };
            }
        }
        nodes.into_iter().collect()
    }

    fn nodes_of_devices(&self, devices: &[Bdf]) -> Vec<PathBuf> {
        let mut nodes = BTreeSet::from([self.dev("kvm")]);
        for &bdf in devices {
            let group = self.device(bdf).ok().and_then(|device| device.iommu_group);
            nodes.extend(group.into_iter().flat_map(|id| [self.dev("vfio/vfio"), self.group_node(id)]));
            nodes.extend(self.device_node(bdf).into_iter().flat_map(|node| [self.dev("iommu"), node]));
        }
        nodes.into_iter().filter(|node| node.exists()).collect()
    }

    /// Gives the user the VM's nodes, and notes each before.
    pub(super) fn grant(&self, note: &mut Prepared, wish: &Wish) -> Result<()> {
        let Some(user) = wish.user else { return Ok(()) };
        if note.user.is_some_and(|before| before != user) {
            self.revoke(note)?;
            note.nodes.clear();
        }
        note.user = Some(user);
        let others = self.other_notes(note);
        for (node, rights) in self.nodes_of(wish) {
            let acl = self.acl(&node)?;
            if note.grant(user, &node).is_none() {
                // What another VM gave is not what was there before.
                let given = others.iter().find_map(|other| other.grant(user, &node));
                let former = given.map_or_else(|| acl.rights_of(user), |granted| granted.former);
                note.nodes.push(Granted { path: node.clone(), former });
                self.note_vm(note)?;
            }
            let mut wanted = acl.clone();
            wanted.set(user, Some(rights | acl.rights_of(user).unwrap_or_default()));
            self.set_acl(&node, &acl, &wanted)?;
        }
        Ok(())
    }

    /// Takes back what [`Host::grant`] gave, but for what the same user has for another VM. Gives the nodes.
    pub(super) fn revoke(&self, note: &Prepared) -> Result<Vec<PathBuf>> {
        let Some(user) = note.user else { return Ok(Vec::new()) };
        let others = self.other_notes(note);
        let mut taken = Vec::new();
        for Granted { path, former } in note.nodes.iter().rev() {
            if others.iter().any(|other| other.grant(user, path).is_some()) || !path.exists() {
                continue;
            }
            let acl = self.acl(path)?;
            let mut wanted = acl.clone();
            wanted.set(user, *former);
            self.set_acl(path, &acl, &wanted)?;
            taken.push(path.clone());
        }
        Ok(taken)
    }

    fn other_notes(&self, note: &Prepared) -> Vec<Prepared> {
        let others = self.prepared_vms().into_iter().filter(|vm| *vm != note.vm);
        others.filter_map(|vm| self.prepared(&vm).ok().flatten()).collect()
    }

    fn acl(&self, node: &Path) -> Result<Acl> {
        let (mode, list) = self.effects().acl(node).map_err(|error| failed(node, &error))?;
        match list {
            None => Ok(Acl::of_mode(mode)),
            Some(bytes) => Acl::parse(&bytes)
                .ok_or_else(|| failed(node, &io::Error::other("its access control list is of an unknown form"))),
        }
    }

    fn set_acl(&self, node: &Path, now: &Acl, wanted: &Acl) -> Result<()> {
        if now == wanted {
            return Ok(());
        }
        self.effects().set_acl(node, &wanted.bytes()).map_err(|error| failed(node, &error))
    }
}

fn failed(node: &Path, error: &io::Error) -> Error {
    Error::new(Code::GrantFailed, "the access to a node cannot be changed")
        .evidence(format!("{}: {}", node.display(), explain_io(error)))
        .fix("run it as root; /dev must be a devtmpfs or tmpfs with access control lists (CONFIG_TMPFS_POSIX_ACL)")
}
