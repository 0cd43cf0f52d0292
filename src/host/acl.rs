//! POSIX access control lists as the kernel keeps them, in the extended attribute `system.posix_acl_access`
//! (include/uapi/linux/posix_acl_xattr.h): the rights of one more user on a file, and nothing else of it. Pure.

/// The attribute's name.
pub(super) const ATTRIBUTE: &str = "system.posix_acl_access";
/// To read.
pub(super) const READ: u16 = 4;
/// To read and to write.
pub(super) const READ_WRITE: u16 = 6;

const VERSION: u32 = 2;
const HEADER: usize = 4;
const ENTRY: usize = 8;
/// Entries have no id unless they are about a named user or group.
const NO_ID: u32 = u32::MAX;
/// Kinds of entries, in the order in which the kernel wants them.
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    tag: u16,
    id: u32,
    rights: u16,
}

/// The list of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

impl Acl {
    /// What a file's mode says where there is no list.
    pub(super) fn of_mode(mode: u32) -> Acl {
        let entry = |tag, shift: u32| Entry { tag, id: NO_ID, rights: (mode >> shift & 7) as u16 };
        Acl(vec![entry(USER_OBJ, 6), entry(GROUP_OBJ, 3), entry(OTHER, 0)])
    }

    /// Reads the attribute; `None`: it is not of the form that is known.
    pub(super) fn parse(bytes: &[u8]) -> Option<Acl> {
        let (header, entries) = bytes.split_at_checked(HEADER)?;
        if u32::from_le_bytes(header.try_into().ok()?) != VERSION || entries.len() % ENTRY != 0 {
            return None;
        }
        let entry = |bytes: &[u8]| {
            Some(Entry {
                tag: u16::from_le_bytes(bytes.get(0..2)?.try_into().ok()?),
                rights: u16::from_le_bytes(bytes.get(2..4)?.try_into().ok()?),
                id: u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?),
            })
        };
        entries.chunks_exact(ENTRY).map(entry).collect::<Option<Vec<_>>>().map(Acl)
    }

    /// The attribute.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let entry = |entry: &Entry| {
            let mut bytes = [0; ENTRY];
            bytes[0..2].copy_from_slice(&entry.tag.to_le_bytes());
            bytes[2..4].copy_from_slice(&entry.rights.to_le_bytes());
            bytes[4..8].copy_from_slice(&entry.id.to_le_bytes());
            bytes
        };
        VERSION.to_le_bytes().into_iter().chain(self.0.iter().flat_map(entry)).collect()
    }

    /// What the list gives a user by name.
    pub(super) fn rights_of(&self, user: u32) -> Option<u16> {
        self.0.iter().find(|entry| (entry.tag, entry.id) == (USER, user)).map(|entry| entry.rights)
    }

    /// Gives a user these rights by name; `None`: takes the entry out. Where no named user or group is left, the list says
    /// what a mode can say: the kernel then drops it and sets the mode, so that nothing of it stays.
    pub(super) fn set(&mut self, user: u32, rights: Option<u16>) {
        self.0.retain(|entry| (entry.tag, entry.id) != (USER, user) && entry.tag != MASK);
        self.0.extend(rights.map(|rights| Entry { tag: USER, id: user, rights }));
        let named = |entry: &&Entry| matches!(entry.tag, USER | GROUP);
        if self.0.iter().any(|entry| named(&entry)) {
            // The mask is the most that all but owner and others get: as setfacl computes it.
            let most = self.0.iter().filter(|entry| named(entry) || entry.tag == GROUP_OBJ);
            let rights = most.fold(0, |most, entry| most | entry.rights);
            self.0.push(Entry { tag: MASK, id: NO_ID, rights });
        }
        self.0.sort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_more_user_and_none_again() {
        let before = Acl::of_mode(0o100_660);
        let mut acl = before.clone();
        acl.set(998, Some(READ_WRITE));
        assert_eq!(acl.rights_of(998), Some(READ_WRITE));
        // As `setfacl -m u:998:rw` on a file of mode 0660 writes it.
        let wanted = [
            2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 6, 0, 0xe6, 3, 0, 0, 4, 0, 6, 0, 255, 255, 255, 255,
            0x10, 0, 6, 0, 255, 255, 255, 255, 0x20, 0, 0, 0, 255, 255, 255, 255,
        ];
        assert_eq!(acl.bytes(), wanted);
        assert_eq!(Acl::parse(&wanted).unwrap(), acl);
        acl.set(998, None);
        assert_eq!(acl, before);
    }

    #[test]
    fn the_group_keeps_what_it_had() {
        let mut acl = Acl::of_mode(0o600);
        acl.set(7, Some(READ_WRITE));
        acl.set(9, Some(4));
        acl.set(7, None);
        assert_eq!((acl.rights_of(7), acl.rights_of(9)), (None, Some(4)));
        acl.set(9, None);
        assert_eq!(acl, Acl::of_mode(0o600));
    }

    #[test]
    fn what_is_not_known_is_left() {
        for bytes in [&[][..], &[2, 0, 0], &[1, 0, 0, 0], &[2, 0, 0, 0, 1]] {
            assert_eq!(Acl::parse(bytes), None);
        }
    }

    proptest! {
        #[test]
        fn no_attribute_panics(bytes: Vec<u8>) {
            if let Some(mut acl) = Acl::parse(&bytes) {
                acl.set(1, Some(6));
                acl.set(1, None);
                prop_assert_eq!(Acl::parse(&acl.bytes()), Some(acl));
            }
        }
    }
}
