//! What the administrator has changed about a unit of systemd (systemd.unit(5), "drop-in").

use std::path::PathBuf;

use super::{Host, read};

impl Host {
    /// The lines of the drop-ins of the unit `template@instance.service`, those of its template first.
    pub fn drop_in_lines(&self, template: &str, instance: &str) -> Vec<String> {
        let units = self.etc.parent().map(|etc| etc.join("systemd/system")).unwrap_or_default();
        let folders = [format!("{template}@.service.d"), format!("{template}@{instance}.service.d")];
        let files = folders.iter().flat_map(|folder| {
            let folder = units.join(folder);
            let names = read::names(&folder).into_iter().filter(|name| name.ends_with(".conf"));
            names.map(|name| folder.join(name)).collect::<Vec<PathBuf>>()
        });
        files.flat_map(read::lines).collect()
    }
}
