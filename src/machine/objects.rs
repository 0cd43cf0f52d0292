//! Objects of the command line (`--object`): what devices name but is no device. Checked without the host, then made
//! before the first device.

use std::sync::Arc;

use super::places::Place;
use super::types::OBJECTS;
use crate::device::ObjectCx;
use crate::error::{Code, Error, Result};
use crate::object::{Args, Id, Props, TypeInfo, did_you_mean, props};
use crate::vfio::{Vfio, object};

props! {
    /// What an object is called.
    pub struct ObjectCommon {
        /// Unique name of the object
        id: Id,
    }
}

/// An object that is to be made, with everything about it checked that needs no host.
pub struct Object {
    of_type: &'static TypeInfo<(), ObjectCx>,
    args: Args,
    id: Arc<str>,
}

/// Checks `objects`, as the user wrote them.
///
/// # Errors
/// [`Code::UnknownType`], [`Code::BadProperty`], [`Code::DuplicateId`].
pub fn plan(objects: &[Args]) -> Result<Vec<Object>> {
    let mut known: Vec<Object> = Vec::new();
    for args in objects {
        let mut args = args.clone();
        let of_type = OBJECTS.take_type(&mut args)?;
        let id: Arc<str> = ObjectCommon::parse(&mut args)?.id.as_str().into();
        of_type.check(&args)?;
        if known.iter().any(|object| object.id == id) {
            return Err(Error::new(Code::DuplicateId, format!("the id `{id}` is used twice")).evidence(args.written()));
        }
        known.push(Object { of_type, args, id });
    }
    Ok(known)
}

/// Whether the devices name objects that there are.
///
/// # Errors
/// [`Code::UnknownObject`].
pub fn check_uses(places: &[Place], objects: &[Object]) -> Result<()> {
    let uses = places.iter().filter_map(|place| Some((place, place.args.peek(object::NAME)?)));
    for (place, id) in uses {
        let mut fitting = objects.iter().filter(|known| known.of_type.name() == object::NAME).map(|known| &*known.id);
        if fitting.clone().any(|known| known == id) {
            continue;
        }
        let hint = did_you_mean(id, fitting.by_ref());
        return Err(Error::new(Code::UnknownObject, format!("there is no object `{id}` of type iommufd{hint}"))
            .evidence(place.args.written())
            .fix(format!("add `--object iommufd,id={id}`")));
    }
    Ok(())
}

/// Makes the objects.
pub fn create(objects: Vec<Object>, vfio: &Arc<Vfio>) -> Result<()> {
    for Object { of_type, mut args, id } in objects {
        of_type.create(&mut args, &ObjectCx { id, vfio: vfio.clone() })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::places;

    fn check(objects: &[&str], devices: &[&str]) -> Result<()> {
        let parse = |option, key| move |text: &&str| Args::parse(option, Some(key), text);
        let objects: Vec<Args> = objects.iter().map(parse("--object", OBJECTS.key)).collect::<Result<_>>()?;
        let devices: Vec<Args> = devices.iter().map(parse("--device", "driver")).collect::<Result<_>>()?;
        check_uses(&places::plan(&devices, &crate::host::testtree::TestTree::new().host())?.1, &plan(&objects)?)
    }

    #[test]
    fn objects_are_checked_before_the_host_is() {
        let device = "vfio-pci,host=01:00.0,iommufd=i0";
        check(&["iommufd,id=i0"], &[device]).unwrap();
        check(&["iommufd,id=i0,fd=7", "iommufd,id=i1"], &["vfio-pci,host=01:00.0,iommufd=i1"]).unwrap();
        check(&[r#"{"qom-type":"iommufd","id":"i0"}"#], &[device]).unwrap();
        let table: [(&[&str], &[&str], Code, &str); 8] = [
            (&[], &[device], Code::UnknownObject, "--object iommufd,id=i0"),
            (&["iommufd,id=i1"], &[device], Code::UnknownObject, "did you mean `i1`?"),
            (&["iommufd"], &[], Code::BadProperty, "needs the property `id`"),
            (&["iommufd,id=i0", "iommufd,id=i0"], &[], Code::DuplicateId, "used twice"),
            (&["iommufd,id=i0,fd=2"], &[], Code::BadProperty, "fd"),
            (&["iomufd,id=i0"], &[], Code::UnknownType, "did you mean `iommufd`?"),
            (&[], &["vfio-pci,host=01:00.0,fd=4"], Code::BadProperty, "host= and fd="),
            (&[], &["vfio-pci,fd=4,iommu=type1"], Code::BadProperty, "iommu=type1"),
        ];
        for (objects, devices, code, words) in table {
            let error = check(objects, devices).unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
