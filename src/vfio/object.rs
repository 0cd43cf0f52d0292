//! The object `iommufd`: a /dev/iommu that devices are put on by name (`vfio-pci,iommufd=ID`), as in QEMU. Devices on the
//! same object share one address space; devices that name none share the one that passthru opens by itself.

use crate::device::ObjectCx;
use crate::error::Result;
use crate::object::{Create, Int, Kind, Refers, TypeInfo, props, reference};

/// The name of the type.
pub const NAME: &str = "iommufd";

/// The row of the table of object types.
pub static TYPE: TypeInfo<(), ObjectCx> = TypeInfo::of::<IommufdType>();

props! {
    /// The kernel's iommufd, for devices that name it with iommufd=.
    struct IommufdProps {
        /// Descriptor of an open /dev/iommu that passthru was started with; without it, /dev/iommu is opened
        fd: Option<Descriptor>,
    }
}

reference! {
    /// The id of an iommufd, which devices share.
    pub struct IommufdRef(Refers { kind: Kind::Object, types: &[NAME], shared: true });
}

/// A descriptor that the process was started with.
pub type Descriptor = Int<3, { i32::MAX as u64 }>;

/// The number of a descriptor property.
pub fn number(fd: Descriptor) -> i32 {
    // The kind's limits are those of the type.
    i32::try_from(fd.get()).unwrap_or(i32::MAX)
}

struct IommufdType;

impl Create<(), ObjectCx> for IommufdType {
    const NAME: &'static str = NAME;
    const GROUP: &'static str = "Host devices";
    type Props = IommufdProps;

    fn create(props: IommufdProps, cx: &ObjectCx) -> Result<()> {
        cx.vfio.add_iommufd(cx.id.clone(), props.fd.map(number))
    }
}
