//! By which of the kernel's two interfaces a device is opened: its own node, bound to an iommufd, or its group, in a
//! container of type 1. Pure: what was asked for and what was found give the choice and its reason.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::token::VfToken;
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result};
use crate::object::prop_enum;

prop_enum! {
    /// Which interface a device is to be opened by (`iommu=`).
    #[derive(Default)]
    pub enum IommuChoice {
        #[default]
        /// iommufd where the kernel and its permissions allow it, else type1.
        Auto = "auto",
        /// The device's own node, bound to an iommufd.
        Iommufd = "iommufd",
        /// The device's group, in a container.
        Type1 = "type1",
    }
}

/// The two interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// Device nodes and one IOAS.
    Iommufd,
    /// Groups in a container.
    #[default]
    Type1,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Iommufd => "iommufd",
            Backend::Type1 => "type1",
        })
    }
}

/// What was asked for a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// `iommu=`.
    pub iommu: IommuChoice,
    /// `iommufd=`: the id of an object.
    pub object: Option<Arc<str>>,
    /// `fd=`: the device's node, opened by whoever started the process.
    pub fd: Option<RawFd>,
    /// `vf-token=`.
    pub token: Option<VfToken>,
}

impl Wish {
    /// Whether the properties fit together.
    ///
    /// # Errors
    /// [`Code::BadProperty`].
    pub fn check(&self) -> Result<()> {
        let named = self.object.is_some() || self.fd.is_some();
        if self.iommu == IommuChoice::Type1 && named {
            return Err(Error::new(Code::BadProperty, "iommu=type1 opens the device's group, and uses no iommufd")
                .fix("leave out iommu=type1, or iommufd= and fd="));
        }
        Ok(())
    }

    /// The back end, if only one is possible, and which property says so.
    fn only(&self) -> Option<(Backend, &'static str)> {
        match self {
            Wish { fd: Some(_), .. } => Some((Backend::Iommufd, "fd= gives its node")),
            Wish { object: Some(_), .. } => Some((Backend::Iommufd, "iommufd= names the object")),
            Wish { iommu: IommuChoice::Iommufd, .. } => Some((Backend::Iommufd, "iommu=iommufd")),
            Wish { iommu: IommuChoice::Type1, .. } => Some((Backend::Type1, "iommu=type1")),
            Wish { iommu: IommuChoice::Auto, .. } => None,
        }
    }
}

/// The address spaces of a guest's devices. Each pins all of the guest's memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spaces {
    containers: u64,
    /// By their object; `None`: the IOAS of devices that name none.
    ioas: BTreeSet<Option<Arc<str>>>,
}

impl Spaces {
    /// Those that there are.
    pub fn new(containers: u64, ioas: BTreeSet<Option<Arc<str>>>) -> Spaces {
        Spaces { containers, ioas }
    }

    /// Counts the one in that a device will be in, as far as its properties tell. `has_iommufd`: whether the kernel has it.
    /// A container is taken to do for all groups.
    pub fn add(&mut self, wish: &Wish, has_iommufd: bool) {
        let only_type1 = self.containers > 0 && self.ioas.is_empty();
        match wish.only() {
            Some((Backend::Iommufd, _)) => drop(self.ioas.insert(wish.object.clone())),
            None if has_iommufd && !only_type1 => drop(self.ioas.insert(None)),
            _ => self.containers = self.containers.max(1),
        }
    }

    /// Containers.
    pub fn containers(&self) -> u64 {
        self.containers
    }

    /// Address spaces of iommufd.
    pub fn ioas(&self) -> u64 {
        self.ioas.len() as u64
    }
}

/// What this guest has already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Present {
    /// The back end of the devices of the same IOMMU group.
    pub group: Option<Backend>,
    /// Whether any device is on type1, and none on iommufd.
    pub only_type1: bool,
}

/// A back end that was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// This one.
    Fixed(Backend, String),
    /// iommufd if its nodes can be opened and take the device, else type1.
    Try,
}

/// Chooses the back end of `bdf`.
///
/// # Errors
/// [`Code::MixedBackends`]: devices of one group would be on both.
pub fn choose(bdf: Bdf, wish: &Wish, present: Present) -> Result<Choice> {
    let asked = wish.only();
    match (asked, present.group) {
        (Some((asked, why)), Some(there)) if asked != there => {
            let cause = format!("{bdf} cannot be on {asked}: a device of its IOMMU group is on {there}");
            Err(Error::new(Code::MixedBackends, cause)
                .evidence(format!("asked for by {why}"))
                .fix("give all devices of the group the same iommu="))
        }
        (Some((asked, why)), _) => Ok(Choice::Fixed(asked, why.to_owned())),
        (None, Some(there)) => Ok(Choice::Fixed(there, "as the other device of its IOMMU group".to_owned())),
        // A second address space would pin all of the guest's memory once more.
        (None, None) if present.only_type1 => {
            Ok(Choice::Fixed(Backend::Type1, "as the guest's other devices".to_owned()))
        }
        (None, None) => Ok(Choice::Try),
    }
}

/// What a device is opened by, and why: for `info vfio`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    /// The host's address.
    pub host: String,
    /// The interface.
    pub backend: Backend,
    /// Why this one.
    pub why: String,
    /// The number of the IOMMU group.
    pub group: u32,
    /// The object `iommufd` that it is on, if it was named.
    pub object: Option<String>,
    /// Which of the guest's address spaces it is in, from 0.
    pub address_space: usize,
    /// How many ranges are mapped there.
    pub mappings: usize,
}

impl DeviceReport {
    /// Names and values, but for the host's address.
    pub fn into_facts(self) -> Vec<(&'static str, String)> {
        let mut facts = vec![("iommu", self.backend.to_string()), ("iommu-reason", self.why)];
        facts.extend(self.object.map(|id| ("iommufd", id)));
        facts.extend([
            ("iommu-group", self.group.to_string()),
            ("address-space", self.address_space.to_string()),
            ("mappings", self.mappings.to_string()),
        ]);
        facts
    }
}

impl fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceReport { host, backend, why, group, address_space, .. } = self;
        write!(f, "{host}: {backend} ({why}), group {group}, address space {address_space}")
    }
}

#[cfg(test)]
#[allow(clippy::type_complexity, reason = "tables")]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_and_what_is_there_give_the_choice() {
        use Backend::{Iommufd, Type1};
        let wish = |iommu| Wish { iommu, ..Wish::default() };
        let fd = Wish { fd: Some(5), ..Wish::default() };
        let object = Wish { object: Some("i0".into()), ..Wish::default() };
        let none = Present::default();
        let in_group = |backend| Present { group: Some(backend), only_type1: backend == Type1 };
        let only_type1 = Present { group: None, only_type1: true };
        let table: [(&Wish, Present, Result<Option<Backend>, &str>); 13] = [
            (&wish(IommuChoice::Auto), none, Ok(None)),
            (&wish(IommuChoice::Auto), only_type1, Ok(Some(Type1))),
            (&wish(IommuChoice::Auto), in_group(Type1), Ok(Some(Type1))),
            (&wish(IommuChoice::Auto), in_group(Iommufd), Ok(Some(Iommufd))),
            (&wish(IommuChoice::Iommufd), none, Ok(Some(Iommufd))),
            (&wish(IommuChoice::Iommufd), only_type1, Ok(Some(Iommufd))),
            (&wish(IommuChoice::Iommufd), in_group(Type1), Err("cannot be on iommufd")),
            (&wish(IommuChoice::Type1), none, Ok(Some(Type1))),
            (&wish(IommuChoice::Type1), in_group(Type1), Ok(Some(Type1))),
            (&wish(IommuChoice::Type1), in_group(Iommufd), Err("cannot be on type1")),
            (&fd, none, Ok(Some(Iommufd))),
            (&object, only_type1, Ok(Some(Iommufd))),
            (&object, in_group(Type1), Err("asked for by iommufd=")),
        ];
        for (wish, present, expected) in table {
            match (choose("0000:01:00.0".parse().unwrap(), wish, present), expected) {
                (Ok(Choice::Try), Ok(None)) => {}
                (Ok(Choice::Fixed(backend, why)), Ok(Some(expected))) => {
                    assert_eq!(backend, expected, "{wish:?}");
                    assert!(!why.is_empty());
                }
                (Err(error), Err(words)) => {
                    assert_eq!(error.code(), Code::MixedBackends);
                    assert!(error.to_string().contains(words), "{error}");
                }
                (choice, _) => panic!("{wish:?} with {present:?}: {choice:?}"),
            }
        }
    }

    #[test]
    fn address_spaces_are_those_that_the_devices_will_be_in() {
        let wish = |text: &str| match text {
            "auto" => Wish::default(),
            "type1" => Wish { iommu: IommuChoice::Type1, ..Wish::default() },
            "iommufd" => Wish { iommu: IommuChoice::Iommufd, ..Wish::default() },
            "fd" => Wish { fd: Some(5), ..Wish::default() },
            object => Wish { object: Some(object.into()), ..Wish::default() },
        };
        for (wishes, has_iommufd, expected) in [
            (&["auto", "auto"][..], false, (1, 0)),
            (&["auto", "auto", "iommufd", "fd"], true, (0, 1)),
            (&["type1", "auto"], true, (1, 0)),
            (&["auto", "type1"], true, (1, 1)),
            (&["type1", "iommufd", "auto"], true, (1, 1)),
            (&["i0", "i0", "i1"], true, (0, 2)),
            (&["i0", "auto", "type1", "type1"], true, (1, 2)),
        ] {
            let mut spaces = Spaces::default();
            wishes.iter().for_each(|text| spaces.add(&wish(text), has_iommufd));
            assert_eq!((spaces.containers(), spaces.ioas()), expected, "{wishes:?}");
        }
        let mut two = Spaces::new(2, BTreeSet::new());
        two.add(&wish("type1"), true);
        assert_eq!((two.containers(), two.ioas()), (2, 0), "it joins one");
    }

    #[test]
    fn type1_takes_no_descriptor_of_iommufd() {
        for (iommu, object, fd, good) in [
            (IommuChoice::Type1, None, None, true),
            (IommuChoice::Type1, Some("i0".into()), None, false),
            (IommuChoice::Type1, None, Some(4), false),
            (IommuChoice::Auto, Some("i0".into()), Some(4), true),
        ] {
            let checked = Wish { iommu, object, fd, token: None }.check();
            assert_eq!(checked.is_ok(), good);
        }
    }
}
