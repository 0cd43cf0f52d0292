//! Memory back ends (`--object memory-backend-*`): host memory that a device shows its guest, and that other processes may
//! share by a file.

mod place;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::device::ObjectCx;
use crate::error::{Code, Error, Result, explain_io};
use crate::memory::HostMem;
use crate::memory::host::{PAGE, PageSize};
use crate::object::{Create, Kind, Refers, Size, TypeInfo, prop_enum, props, reference};
use place::{HostNodes, Place, Policy, Threads, no_memory};

/// The rows of the table of objects.
pub static RAM: TypeInfo<(), ObjectCx> = TypeInfo::of::<RamType>();
pub static FILE: TypeInfo<(), ObjectCx> = TypeInfo::of::<FileType>();
pub static MEMFD: TypeInfo<(), ObjectCx> = TypeInfo::of::<MemfdType>();

/// What the name of a memory back end refers to.
pub const REFERS: Refers = Refers {
    kind: Kind::Object,
    types: &["memory-backend-ram", "memory-backend-file", "memory-backend-memfd"],
    shared: false,
};

reference! {
    /// The id of a memory back end.
    pub struct MemoryRef(REFERS);
}

/// What each kind has in common: where its memory comes from.
macro_rules! memory_props {
    ($(#[doc = $summary:literal])+ struct $Name:ident { $($own:tt)* }) => {
        props! {
            $(#[doc = $summary])+
            struct $Name {
                $($own)*
                /// Take it from the host at once
                prealloc: bool = "off",
                /// Threads that do that beside each other, a part of 1 GiB at least each
                prealloc_threads: Threads = "1",
                /// Memory nodes of the host that policy= is about: 0 or 0-1
                host_nodes: Option<HostNodes>,
                /// Which memory node a page comes from
                policy: Policy = "default",
            }
        }

        impl $Name {
            fn place(&self) -> Place {
                let (nodes, threads) = (self.host_nodes.clone(), self.prealloc_threads);
                Place { prealloc: self.prealloc, threads, nodes, policy: self.policy }
            }
        }
    };
}

memory_props! {
    /// Memory of passthru's own.
    struct RamProps {
        /// Length, a multiple of 4 KiB
        size: Size,
        /// Whether other processes that are given it see the same memory
        share: bool = "off",
    }
}

memory_props! {
    /// Memory that is a file, such as one of /dev/shm.
    struct FileProps {
        /// The file, which is made if it is not there
        mem_path: PathBuf,
        /// Length, a multiple of 4 KiB; a file that is there must be as long
        size: Size,
        /// Whether what is written goes to the file, where other processes see it
        share: bool = "off",
    }
}

memory_props! {
    /// Memory of an anonymous file, which other processes can be given.
    struct MemfdProps {
        /// Length, a multiple of the page size
        size: Size,
        /// Whether other processes that are given it see the same memory
        share: bool = "on",
        /// Of the host's huge pages
        hugetlb: bool = "off",
        /// Which of them
        hugetlbsize: HugePage = "2M",
    }
}

prop_enum! {
    /// A size of huge pages.
    enum HugePage {
        /// 2 MiB.
        Two = "2M",
        /// 1 GiB.
        One = "1G",
    }
}

/// Puts a back end into the machine's table.
fn add(cx: &ObjectCx, of_type: &'static str, memory: HostMem, place: &Place) -> Result<()> {
    let memory = Arc::new(memory);
    place.put(&memory)?;
    cx.backends.memories.add(cx.id.clone(), of_type, memory, false)
}

/// A length that can be mapped.
fn whole_pages(Size(len): Size, page: u64) -> Result<u64> {
    if len == 0 || len % page != 0 {
        return Err(Error::new(Code::BadProperty, format!("size= is a multiple of {} KiB and not 0", page >> 10)));
    }
    Ok(len)
}

struct RamType;

impl Create<(), ObjectCx> for RamType {
    const NAME: &'static str = "memory-backend-ram";
    const GROUP: &'static str = "Memory";
    type Props = RamProps;

    fn check(props: &RamProps) -> Result<()> {
        props.place().check()?;
        whole_pages(props.size, PAGE).map(drop)
    }

    fn create(props: RamProps, cx: &ObjectCx) -> Result<()> {
        let len = whole_pages(props.size, PAGE)?;
        let memory = match props.share {
            true => HostMem::memfd(&cx.id, len, PageSize::Transparent),
            false => HostMem::anonymous(len, PageSize::Transparent),
        };
        add(cx, Self::NAME, memory.map_err(|error| no_memory(len, &error))?, &props.place())
    }
}

struct MemfdType;

impl MemfdProps {
    fn pages(&self) -> PageSize {
        match (self.hugetlb, self.hugetlbsize) {
            (false, _) => PageSize::Small,
            (true, HugePage::Two) => PageSize::Huge2M,
            (true, HugePage::One) => PageSize::Huge1G,
        }
    }
}

impl Create<(), ObjectCx> for MemfdType {
    const NAME: &'static str = "memory-backend-memfd";
    const GROUP: &'static str = "Memory";
    type Props = MemfdProps;

    fn check(props: &MemfdProps) -> Result<()> {
        props.place().check()?;
        if !props.share {
            return Err(Error::new(Code::BadProperty, "memory of an anonymous file is shared")
                .fix("use memory-backend-ram for memory that is not"));
        }
        whole_pages(props.size, props.pages().bytes() as u64).map(drop)
    }

    fn create(props: MemfdProps, cx: &ObjectCx) -> Result<()> {
        let len = whole_pages(props.size, props.pages().bytes() as u64)?;
        let memory = HostMem::memfd(&cx.id, len, props.pages()).map_err(|error| no_memory(len, &error))?;
        add(cx, Self::NAME, memory, &props.place())
    }
}

struct FileType;

impl Create<(), ObjectCx> for FileType {
    const NAME: &'static str = "memory-backend-file";
    const GROUP: &'static str = "Memory";
    type Props = FileProps;

    fn check(props: &FileProps) -> Result<()> {
        props.place().check()?;
        whole_pages(props.size, PAGE).map(drop)
    }

    fn create(props: FileProps, cx: &ObjectCx) -> Result<()> {
        let len = whole_pages(props.size, PAGE)?;
        let file = open(&props.mem_path, len)?;
        let mapped = match props.share {
            true => HostMem::shared(file.as_fd(), 0, len),
            false => HostMem::copied(file.as_fd(), len),
        };
        add(cx, Self::NAME, mapped.map_err(|error| unusable(&props.mem_path, &error))?, &props.place())
    }
}

fn unusable(path: &Path, error: &io::Error) -> Error {
    Error::new(Code::FileUnusable, format!("`{}` cannot be memory", path.display())).evidence(explain_io(error))
}

/// Opens the file, or makes it of zeros. One that is too short would end the process that touches what is missing.
fn open(path: &Path, len: u64) -> Result<File> {
    let failed = |error: io::Error| unusable(path, &error);
    match OpenOptions::new().read(true).write(true).create_new(true).open(path) {
        Ok(file) => file.set_len(len).map(|()| file).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
            let there = file.metadata().map_err(failed)?.len();
            match there {
                // A file that was made by another program and has no length yet.
                0 => file.set_len(len).map(|()| file).map_err(failed),
                there if there < len => {
                    Err(Error::new(Code::FileUnusable, format!("`{}` is too short", path.display()))
                        .evidence(format!("it has {there} bytes, size= says {len}")))
                }
                _ => Ok(file),
            }
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::backends::Backends;
    use crate::host::testtree::TestTree;
    use crate::machine::types::OBJECTS;
    use crate::memory::Memory;
    use crate::object::Args;
    use crate::vfio::Vfio;

    fn make(text: &str) -> Result<Arc<HostMem>> {
        let mut args = Args::parse("--object", Some("qom-type"), text)?;
        let of_type = OBJECTS.take_type(&mut args)?;
        let backends = Arc::new(Backends::default());
        let vfio = Vfio::new(TestTree::new().host(), Memory::new());
        of_type.create(&mut args, &ObjectCx { id: "m0".into(), vfio, backends: backends.clone() })?;
        Ok(backends.memories.list().remove(0).back)
    }

    #[test]
    fn memory_of_each_kind() {
        assert_eq!(make("memory-backend-ram,size=64K,prealloc=on").unwrap().len(), 64 << 10);
        let shared = make("memory-backend-ram,size=64K,share=on,prealloc=on,prealloc-threads=4").unwrap();
        assert!(shared.file().is_some());
        let memfd = make("memory-backend-memfd,size=1M,share=on").unwrap();
        assert_eq!((memfd.len(), memfd.file().is_some()), (1 << 20, true));
        for text in [
            "memory-backend-ram,size=5K",
            "memory-backend-ram,size=0",
            "memory-backend-memfd,size=1M,share=off",
            "memory-backend-memfd,size=1M,hugetlb=on",
            "memory-backend-ram,size=1M,policy=bind",
            "memory-backend-ram,size=1M,host-nodes=0",
            "memory-backend-ram,size=1M,prealloc=on,prealloc-threads=0",
        ] {
            assert_eq!(make(text).unwrap_err().code(), Code::BadProperty, "{text}");
        }
    }

    #[test]
    fn a_file_is_made_or_must_be_long_enough() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shm");
        let text = |more: &str| format!("memory-backend-file,mem-path={},{more}", path.display());
        let shared = make(&text("size=8K,share=on")).unwrap();
        shared.slice().write(4096, b"hello");
        let mut content = Vec::new();
        File::open(&path).unwrap().read_to_end(&mut content).unwrap();
        assert_eq!((content.len(), &content[4096..4101]), (8192, &b"hello"[..]));
        let own = make(&text("size=8K")).unwrap();
        own.slice().write(4096, b"other");
        assert!(own.file().is_none());
        assert_eq!(std::fs::read(&path).unwrap(), content, "what is written there is its own");
        let error = make(&text("size=12K,share=on")).unwrap_err();
        assert_eq!(error.code(), Code::FileUnusable, "{error}");
        assert_eq!(make("memory-backend-file,mem-path=/nonexistent/x,size=4K").unwrap_err().code(), Code::FileUnusable);
    }
}
