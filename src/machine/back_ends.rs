//! Back ends and objects of the command line (`--chardev`, `--blockdev`, `--netdev`, `--object`): what devices name but is no
//! device. Checked without the host, then made before the first device.

use std::io::{self, IsTerminal};
use std::sync::Arc;

use super::options::{RunOptions, serial};
use super::places::Place;
use super::references::{Named, Planned, Targets, plan, plan_one};
use super::types::OBJECTS;
use crate::backends::block::{self, BLOCKDEVS, BlockNode};
use crate::backends::chardev::shorthand::Target;
use crate::backends::chardev::{self, CHARDEVS, Chardev};
use crate::backends::memory;
use crate::backends::net::{self, NETDEVS, Netdev};
use crate::backends::table::Table;
use crate::backends::{BackendCx, Backends};
use crate::device::ObjectCx;
use crate::error::Result;
use crate::event_loop::LoopHandle;
use crate::object::{Args, Id, Kind, PropValue, Props, Refers, props};
use crate::vfio::Vfio;

props! {
    /// What an object is called.
    pub struct ObjectCommon {
        /// Unique name of the object
        id: Id,
    }
}

impl Named for ObjectCommon {
    const KIND: Kind = Kind::Object;

    fn name(&self) -> Arc<str> {
        self.id.as_str().into()
    }
}

impl Named for chardev::Common {
    const KIND: Kind = Kind::Chardev;

    fn name(&self) -> Arc<str> {
        self.id.as_str().into()
    }
}

impl Named for block::Common {
    const KIND: Kind = Kind::Node;

    fn name(&self) -> Arc<str> {
        self.node_name.as_str().into()
    }
}

impl Named for net::Common {
    const KIND: Kind = Kind::Netdev;

    fn name(&self) -> Arc<str> {
        self.id.as_str().into()
    }
}

/// Whom a monitor's back end is used by, in errors.
pub const MONITOR: &str = "monitor";
/// Whom the object that is the guest's memory is used by, in errors.
pub const RAM: &str = "the guest's memory";

/// What the names of types begin with whose work is done by another process, which maps the guest's memory.
const VHOST_USER: &str = "vhost-user";

/// What is to be made before the devices.
pub struct BackEnds {
    /// The one of the board's serial port, if there is a port.
    serial: Option<String>,
    /// Those that have a monitor for people.
    monitors: Vec<String>,
    /// Those that have one for programs.
    controls: Vec<String>,
    objects: Vec<Planned<(), ObjectCx>>,
    chardevs: Vec<Planned<Arc<dyn Chardev>, BackendCx>>,
    nodes: Vec<Planned<Arc<dyn BlockNode>, BackendCx>>,
    netdevs: Vec<Planned<Arc<dyn Netdev>, BackendCx>>,
}

impl BackEnds {
    /// Checks what the user wrote, as far as it alone can say.
    ///
    /// # Errors
    /// [`crate::error::Code::UnknownType`], [`crate::error::Code::BadProperty`], [`crate::error::Code::DuplicateId`].
    pub fn plan(options: &RunOptions) -> Result<BackEnds> {
        let mut chardevs = options.back_ends(Kind::Chardev).to_vec();
        let mut monitors = Vec::new();
        for target in [&options.serial].into_iter().chain(&options.monitors.people) {
            let is_serial = std::ptr::eq(target, &options.serial);
            match target {
                Target::New(new) => {
                    let line = new.clone().resolve(io::stdin().is_terminal());
                    // A mux that a short form has on the console is there for the monitor.
                    if !is_serial || chardev::is_shared(&line) {
                        monitors.extend(line.peek("id").map(str::to_owned));
                    }
                    chardevs.push(line);
                }
                Target::Named(id) if !is_serial => monitors.push(id.to_string()),
                Target::Named(_) | Target::None => {}
            }
        }
        Ok(BackEnds {
            monitors,
            controls: options.monitors.programs.clone(),
            serial: serial::back_end(&options.serial),
            chardevs: plan::<chardev::Common, _, _>(&CHARDEVS, &chardevs)?,
            objects: plan::<ObjectCommon, _, _>(&OBJECTS, options.back_ends(Kind::Object))?,
            nodes: plan::<block::Common, _, _>(&BLOCKDEVS, &block::expand(options.back_ends(Kind::Node))?)?,
            netdevs: plan::<net::Common, _, _>(&NETDEVS, options.back_ends(Kind::Netdev))?,
        })
    }

    /// Whether what the devices name is there, and theirs alone; `ram`: the objects that are the guest's memory.
    ///
    /// # Errors
    /// Those of [`Targets::check_devices`].
    pub fn check_uses(&self, places: &[Place], ram: &[&str]) -> Result<()> {
        let mut targets = Targets::default();
        targets.add(Kind::Object, &self.objects, |_| false);
        for id in ram {
            let ram = targets.take(&RAM.into(), memory::REFERS, id);
            ram.map_err(|error| error.evidence(format!("-M memory-backend={id} or --numa node,memdev={id}")))?;
        }
        targets.add(Kind::Chardev, &self.chardevs, |planned| chardev::is_shared(&planned.line));
        // What nobody writes may have several readers.
        targets.add(Kind::Node, &self.nodes, |node| {
            node.args.peek("read-only").is_some_and(|text| bool::parse(text) == Ok(true))
        });
        targets.add(Kind::Netdev, &self.netdevs, |_| false);
        // A node that another stands on is no device's: its parent comes first.
        targets.check(&self.nodes)?;
        targets.check(&self.netdevs)?;
        if let Some(id) = &self.serial {
            let serial = targets.take(&serial::ID.into(), Refers::to(Kind::Chardev), id);
            serial.map_err(|error| error.evidence(format!("--serial chardev:{id}")))?;
        }
        for id in self.monitors.iter().chain(&self.controls) {
            let monitor = targets.take(&MONITOR.into(), Refers::to(Kind::Chardev), id);
            monitor.map_err(|error| error.evidence(format!("--mon {id}")))?;
        }
        targets.check_devices(places)
    }

    /// Whether other processes are to be given the guest's memory: the daemons of vhost-user devices.
    pub fn share_memory(&self, places: &[Place]) -> bool {
        let is_of = |name: &str| name.starts_with(VHOST_USER);
        places.iter().any(|place| is_of(place.of_type.name()))
            || self.netdevs.iter().any(|netdev| is_of(netdev.of_type.name()))
    }

    /// The name of the back end of the board's serial port, if there is a port.
    pub fn serial(&self) -> Option<&str> {
        self.serial.as_deref()
    }

    /// The names of the back ends that have a monitor for programs.
    pub fn controls(&self) -> &[String] {
        &self.controls
    }

    /// The names of the back ends that have a monitor for people.
    pub fn monitors(&self) -> &[String] {
        &self.monitors
    }

    /// Makes all of them.
    ///
    /// # Errors
    /// The host does not have what one of them needs.
    pub fn make(self, vfio: &Arc<Vfio>, event_loop: &LoopHandle) -> Result<Arc<Backends>> {
        let backends = Arc::new(Backends::default());
        let makes = Makes { vfio, event_loop, backends: &backends };
        self.objects.into_iter().try_for_each(|planned| makes.object(planned))?;
        self.chardevs.into_iter().try_for_each(|planned| makes.chardev(planned.line))?;
        self.nodes.into_iter().try_for_each(|planned| makes.node(planned))?;
        self.netdevs.into_iter().try_for_each(|planned| makes.netdev(planned))?;
        Ok(backends)
    }
}

/// What back ends are made with.
pub struct Makes<'a> {
    pub vfio: &'a Arc<Vfio>,
    pub event_loop: &'a LoopHandle,
    pub backends: &'a Arc<Backends>,
}

impl Makes<'_> {
    /// Makes one more while the machine is there.
    ///
    /// # Errors
    /// What is wrong with the properties, or with the host; nothing of it is left then.
    pub fn add(&self, kind: Kind, args: Args) -> Result<()> {
        match kind {
            Kind::Object => self.object(plan_one::<ObjectCommon, _, _>(&OBJECTS, args)?),
            Kind::Chardev => self.chardev(args),
            Kind::Netdev => self.netdev(plan_one::<net::Common, _, _>(&NETDEVS, args)?),
            Kind::Node => {
                let planned = plan::<block::Common, _, _>(&BLOCKDEVS, &block::expand(&[args])?)?;
                let names: Vec<_> = planned.iter().map(|node| node.name.clone()).collect();
                for (count, node) in planned.into_iter().enumerate() {
                    if let Err(error) = self.node(node) {
                        // The nodes inside it, which were made before it.
                        names[..count].iter().rev().for_each(|name| drop(self.backends.nodes.remove(name)));
                        return Err(error);
                    }
                }
                Ok(())
            }
        }
    }

    fn object(&self, Planned { of_type, mut args, name, .. }: Planned<(), ObjectCx>) -> Result<()> {
        of_type.create(&mut args, &ObjectCx { id: name, vfio: self.vfio.clone(), backends: self.backends.clone() })
    }

    fn chardev(&self, line: Args) -> Result<()> {
        let made = chardev::create(line, self.event_loop, self.backends)?;
        self.backends.chardevs.add(made.name, made.of_type, made.back, made.shared)
    }

    fn node(&self, planned: Planned<Arc<dyn BlockNode>, BackendCx>) -> Result<()> {
        let line = planned.line.clone();
        let common = block::Common::parse(&mut line.clone())?;
        self.make(planned, &self.backends.nodes, |node| {
            let node = block::detect_zeroes::wrap(node, common.detect_zeroes);
            let node = node.map_err(|error| error.evidence(line.written()))?;
            let shared = node.info().read_only;
            Ok((node, shared))
        })
    }

    fn netdev(&self, planned: Planned<Arc<dyn Netdev>, BackendCx>) -> Result<()> {
        self.make(planned, &self.backends.netdevs, |netdev| Ok((netdev, false)))
    }

    /// Makes a back end and puts it into its table, as `finish` leaves it and says whether it may have several users.
    fn make<T: ?Sized>(
        &self,
        Planned { of_type, mut args, name, .. }: Planned<Arc<T>, BackendCx>,
        table: &Table<T>,
        finish: impl FnOnce(Arc<T>) -> Result<(Arc<T>, bool)>,
    ) -> Result<()> {
        let cx = BackendCx { name: name.clone(), event_loop: self.event_loop.clone(), backends: self.backends.clone() };
        let (made, shared) = finish(of_type.create(&mut args, &cx)?)?;
        table.add(name, of_type.name(), made, shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::machine::places;

    fn check(objects: &[&str], devices: &[&str]) -> Result<()> {
        check_with_ram(objects, devices, None)
    }

    fn check_with_ram(objects: &[&str], devices: &[&str], ram: Option<&str>) -> Result<()> {
        let parse = |option, key| move |text: &&str| Args::parse(option, Some(key), text);
        let objects: Vec<Args> = objects.iter().map(parse("--object", OBJECTS.key)).collect::<Result<_>>()?;
        let devices: Vec<Args> = devices.iter().map(parse("--device", "driver")).collect::<Result<_>>()?;
        let (_, places) = places::plan(&devices, &crate::host::testtree::TestTree::new().host())?;
        let objects = plan::<ObjectCommon, _, _>(&OBJECTS, &objects)?;
        BackEnds {
            serial: None,
            monitors: Vec::new(),
            controls: Vec::new(),
            objects,
            chardevs: Vec::new(),
            nodes: Vec::new(),
            netdevs: Vec::new(),
        }
        .check_uses(&places, ram.as_slice())
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

    #[test]
    fn the_guests_memory_is_an_object_of_its_own() {
        let object: &[&str] = &["memory-backend-memfd,id=m0,size=1G,share=on"];
        check_with_ram(object, &[], Some("m0")).unwrap();
        for (objects, devices, ram, code) in [
            (object, &[][..], "m1", Code::UnknownObject),
            (&["iommufd,id=m0"][..], &[][..], "m0", Code::WrongBackend),
            (object, &["ivshmem-plain,memdev=m0"][..], "m0", Code::BackendInUse),
        ] {
            assert_eq!(check_with_ram(objects, devices, Some(ram)).unwrap_err().code(), code);
        }
    }

    #[test]
    fn what_cannot_be_made_leaves_nothing() {
        let host = crate::host::testtree::TestTree::new().host();
        let vfio = Vfio::new(host, crate::memory::Memory::new());
        let event_loop = crate::event_loop::EventLoop::new(|_, _| {}).unwrap().handle();
        let backends = Arc::new(Backends::default());
        let makes = Makes { vfio: &vfio, event_loop: &event_loop, backends: &backends };
        let add = |kind: Kind, key, text: &str| makes.add(kind, Args::parse(kind.option(), Some(key), text).unwrap());
        let names = || backends.nodes.list().into_iter().map(|node| node.name.to_string()).collect::<Vec<_>>();
        let wrong = "raw,node-name=a,size=1T,file.driver=null-co,file.size=1M";
        assert!(add(Kind::Node, "driver", wrong).is_err());
        assert!(names().is_empty());
        add(Kind::Node, "driver", "raw,node-name=a,file.driver=null-co").unwrap();
        assert_eq!(names(), ["a.file", "a"]);
        for (kind, key, text, code) in [
            (Kind::Node, "driver", "null-co,node-name=a", Code::DuplicateId),
            (Kind::Node, "driver", "null-co", Code::BadProperty),
            (Kind::Node, "driver", "raw,node-name=b,file=a.file", Code::BackendInUse),
            (Kind::Netdev, "type", "stream,id=n,addr.type=unix,addr.path=/nonexistent/socket", Code::NetdevFailed),
            (Kind::Netdev, "type", "stream,id=n,addr.type=unix", Code::BadProperty),
            (Kind::Object, "qom-type", "iomufd,id=i", Code::UnknownType),
        ] {
            assert_eq!(add(kind, key, text).unwrap_err().code(), code, "{text}");
        }
        assert_eq!(names(), ["a.file", "a"]);
        assert!(backends.netdevs.list().is_empty());
        add(Kind::Chardev, "backend", "null,id=c0").unwrap();
        assert_eq!(backends.chardevs.list().len(), 1);
    }
}
