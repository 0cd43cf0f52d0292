//! Objects of the command line (`--object`): what devices name but is no device. Checked without the host, then made
//! before the first device.

use std::sync::Arc;

use super::references::Planned;
use crate::device::ObjectCx;
use crate::error::Result;
use crate::object::{Id, props};
use crate::vfio::Vfio;

props! {
    /// What an object is called.
    pub struct ObjectCommon {
        /// Unique name of the object
        id: Id,
    }
}

/// An object that is to be made.
pub type Object = Planned<(), ObjectCx>;

/// Makes the objects.
pub fn create(objects: Vec<Object>, vfio: &Arc<Vfio>) -> Result<()> {
    for Object { of_type, mut args, name } in objects {
        of_type.create(&mut args, &ObjectCx { id: name, vfio: vfio.clone() })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::machine::places;
    use crate::machine::references::{Targets, plan};
    use crate::machine::types::OBJECTS;
    use crate::object::{Args, Kind};

    fn check(objects: &[&str], devices: &[&str]) -> Result<()> {
        let parse = |option, key| move |text: &&str| Args::parse(option, Some(key), text);
        let objects: Vec<Args> = objects.iter().map(parse("--object", OBJECTS.key)).collect::<Result<_>>()?;
        let devices: Vec<Args> = devices.iter().map(parse("--device", "driver")).collect::<Result<_>>()?;
        let (_, places) = places::plan(&devices, &crate::host::testtree::TestTree::new().host())?;
        let mut targets = Targets::default();
        targets.add(Kind::Object, &plan::<ObjectCommon, _, _>(&OBJECTS, &objects)?, |_| false);
        targets.check_devices(&places)
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
