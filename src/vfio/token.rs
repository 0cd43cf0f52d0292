//! The token that a physical function and its virtual functions share when VFIO has both (`vf-token=`).
//!
//! Whoever has the physical function can change what its virtual functions are, so the kernel gives one of them out to
//! those only who know its token: a UUID that the opener of the physical function has set.
//!
//! The kernel takes it in the name of the device that is asked of a group (`0000:01:10.0 vf_token=UUID`; kernel:
//! `vfio_pci_core_match`). vfio-ioctls makes that name of the last part of the device's path, and knows of no other: [`Alias`]
//! is a path whose last part it is. It is there while the device is opened, and again while it is closed with its group: the
//! crate looks at its path then. iommufd takes the token in the request that binds the device.

use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use crate::bdf::Bdf;
use crate::host::tokens::PREFIX;
use crate::object::{Invalid, PropValue};

/// Characters of the parts of a UUID (RFC 9562, section 4).
const PARTS: [usize; 5] = [8, 4, 4, 4, 12];
/// Names of folders that are tried; those before it were left by processes that were killed.
const MAX_TRIES: u32 = 100;

/// A UUID, its bytes in the order in which they are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VfToken([u8; 16]);

impl VfToken {
    /// The bytes as iommufd takes them.
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

/// A secret: not for logs.
impl fmt::Debug for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VfToken")
    }
}

impl PropValue for VfToken {
    const KIND: &'static str = "uuid";

    fn parse(text: &str) -> Result<Self, Invalid> {
        parse(text).ok_or_else(|| Invalid::expected("a UUID, such as 2ab74924-c335-45f4-9b16-8569e5b08258"))
    }
}

fn parse(text: &str) -> Option<VfToken> {
    if !text.split('-').map(str::len).eq(PARTS) {
        return None;
    }
    let mut digits = text.chars().filter(|c| *c != '-').map(|c| c.to_digit(16));
    let mut bytes = [0; 16];
    for byte in &mut bytes {
        let (high, low) = (digits.next()??, digits.next()??);
        *byte = (high << 4 | low) as u8;
    }
    Some(VfToken(bytes))
}

/// A link to a device's folder in sysfs, whose name is the device's with the token. It is in a folder that only this user
/// can look into, and both are gone when it is dropped.
pub(super) struct Alias {
    folder: PathBuf,
    link: PathBuf,
}

impl Alias {
    /// Makes the link in a new folder below `parent`.
    ///
    /// # Errors
    /// Those of mkdir(2) and symlink(2).
    pub(super) fn new(parent: &Path, sysfs: &Path, bdf: Bdf, token: VfToken) -> io::Result<Alias> {
        let folder = private_folder(parent)?;
        let link = folder.join(format!("{bdf} vf_token={token}"));
        let alias = Alias { folder, link };
        symlink(sysfs, &alias.link)?;
        Ok(alias)
    }

    /// The path for vfio-ioctls.
    pub(super) fn path(&self) -> &Path {
        &self.link
    }

    /// Makes the link anew that had this path.
    ///
    /// # Errors
    /// Those of mkdir(2), where the folder is there: it may be anybody's; and of symlink(2).
    pub(super) fn again(path: &Path, sysfs: &Path) -> io::Result<Alias> {
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        DirBuilder::new().mode(0o700).create(&folder)?;
        let alias = Alias { folder, link: path.to_owned() };
        symlink(sysfs, &alias.link)?;
        Ok(alias)
    }
}

impl Drop for Alias {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.link);
        let _ = std::fs::remove_dir(&self.folder);
    }
}

/// A new folder that nobody else can use: mkdir(2) never takes one that is there, whoever made it.
fn private_folder(parent: &Path) -> io::Result<PathBuf> {
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for number in 0..MAX_TRIES {
        let folder = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    const TOKEN: &str = "2ab74924-c335-45f4-9b16-8569e5b08258";

    #[test]
    fn a_token_is_a_uuid_and_nothing_else() {
        let token = VfToken::parse(TOKEN).unwrap();
        assert_eq!(token.bytes()[..5], [0x2a, 0xb7, 0x49, 0x24, 0xc3]);
        assert_eq!(token.to_string(), TOKEN);
        assert_eq!(VfToken::parse(&TOKEN.to_uppercase()).unwrap(), token);
        assert_eq!(format!("{token:?}"), "VfToken", "a secret");
        for bad in [
            "",
            "-",
            "2ab74924c33545f49b168569e5b08258",
            "{2ab74924-c335-45f4-9b16-8569e5b08258}",
            "2ab74924-c335-45f4-9b16-8569e5b0825",
            "2ab74924-c335-45f4-9b16-8569e5b082589",
            "2ab74924-c335-45f4-9b16-8569e5b0825g",
            "2ab74924-c33545f4--9b16-8569e5b08258",
            "+ab74924-c335-45f4-9b16-8569e5b08258",
            " 2ab74924-c335-45f4-9b16-8569e5b0825",
            "2ab74924-c335-45f4-9b16-8569e5b08258-",
            "äb74924-c335-45f4-9b16-8569e5b08258",
        ] {
            assert!(VfToken::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_alias_is_private_and_goes_with_its_device() {
        let parent = tempfile::tempdir().unwrap();
        let sysfs = parent.path().join("0000:01:10.0");
        std::fs::create_dir_all(&sysfs).unwrap();
        std::fs::write(sysfs.join("vendor"), "0x8086").unwrap();
        let new = || {
            let bdf = "0000:01:10.0".parse().unwrap();
            Alias::new(parent.path(), &sysfs, bdf, VfToken::parse(TOKEN).unwrap()).unwrap()
        };
        let (first, second) = (new(), new());
        assert_ne!(first.path(), second.path());
        assert_eq!(first.path().file_name().unwrap().to_str(), Some(&*format!("0000:01:10.0 vf_token={TOKEN}")));
        assert_eq!(std::fs::read_to_string(first.path().join("vendor")).unwrap(), "0x8086");
        assert_eq!(std::fs::metadata(&first.folder).unwrap().permissions().mode() & 0o777, 0o700);
        let path = first.path().to_owned();
        assert!(Alias::again(&path, &sysfs).is_err(), "its folder is there");
        drop((first, second));
        assert_eq!(
            std::fs::read_to_string(Alias::again(&path, &sysfs).unwrap().path().join("vendor")).unwrap(),
            "0x8086"
        );
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1, "only the device is left");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(bytes: [u8; 16]) {
            prop_assert_eq!(VfToken::parse(&VfToken(bytes).to_string()).ok(), Some(VfToken(bytes)));
        }

        #[test]
        fn nothing_else_is_read(text in "[0-9a-f-]{34,38}") {
            if let Ok(token) = VfToken::parse(&text) {
                prop_assert_eq!(token.to_string(), text);
            }
        }
    }
}
