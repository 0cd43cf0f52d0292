//! /run/passthru/tokens: folders of processes that are opening or closing a device with a token, which stands in the name of
//! a link there (see [`crate::vfio::token`]). It is there for some milliseconds; a process that was killed in them leaves it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::record::is_trusted;
use super::{Host, read};

/// What the name of a process's folder begins with; its number and another one follow.
pub const PREFIX: &str = "passthru-";

impl Host {
    /// The folder, without what dead processes left in it; `None`: this user cannot have it.
    pub fn token_folder(&self) -> Option<PathBuf> {
        let folder = self.run("tokens");
        DirBuilder::new().recursive(true).mode(0o755).create(&folder).ok()?;
        let trusted = |at: &Path| fs::symlink_metadata(at).is_ok_and(|meta| meta.is_dir() && is_trusted(&meta));
        let usable = folder.parent().is_some_and(trusted) && trusted(&folder);
        self.sweep_tokens();
        usable.then_some(folder)
    }

    /// Removes what dead processes left.
    pub fn sweep_tokens(&self) {
        let folder = self.run("tokens");
        let owner = |name: &str| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok();
        for name in read::names(&folder) {
            if owner(&name).is_some_and(|pid| !self.proc(pid.to_string()).exists()) {
                let left = folder.join(&name);
                // Links alone, and where one cannot be removed the folder stays.
                read::names(&left).iter().for_each(|link| drop(fs::remove_file(left.join(link))));
                let _ = fs::remove_dir(&left);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::host::testtree::TestTree;

    #[test]
    fn what_a_dead_process_left_is_removed_and_nothing_else() {
        let tree = TestTree::new();
        tree.file("proc/7/comm", "passthru");
        for name in ["passthru-7-0/0000:01:10.0 vf_token=x", "passthru-8-0/0000:01:10.0 vf_token=y", "other/z"] {
            tree.file(format!("run/passthru/tokens/{name}"), "");
        }
        let folder = tree.host().token_folder().unwrap();
        let mut left: Vec<_> =
            folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["other", "passthru-7-0"]);
    }

    #[test]
    fn a_folder_that_others_can_write_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let tree = TestTree::new();
        let folder = tree.host().token_folder().unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(tree.host().token_folder(), None);
    }
}
