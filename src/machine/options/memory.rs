//! `-m`: the guest's memory.

use crate::error::Result;
use crate::object::{Args, Int, MemSize, Props, options_help, prop_enum, props};

prop_enum! {
    /// The pages that the guest's memory is made of.
    pub enum HugePages {
        /// Huge pages of 2 MiB from the host's pool.
        TwoMiB = "2M",
        /// Huge pages of 1 GiB from the host's pool.
        OneGiB = "1G",
        /// Whatever transparent huge pages the host has.
        Transparent = "thp",
        /// Pages of 4 KiB.
        Off = "off",
    }
}

impl HugePages {
    /// What the memory's size must be a multiple of, in bytes.
    pub fn page_size(self) -> u64 {
        match self {
            HugePages::TwoMiB => 2 << 20,
            HugePages::OneGiB => 1 << 30,
            HugePages::Transparent | HugePages::Off => 4 << 10,
        }
    }
}

props! {
    /// The guest's memory.
    pub struct MemoryOptions {
        /// Size of the memory; a bare number is MiB
        size: MemSize = "512M",
        /// The most memory that the guest can come to have, by memory devices (virtio-mem-pci); by default its size
        maxmem: Option<MemSize>,
        /// QEMU's word for how many memory modules fit: the guest has none, and its memory devices are PCI functions
        slots: Option<Int<0, 256>>,
        /// Huge pages from the host's pool (2M, 1G), transparent ones (thp) or none (off)
        hugepages: HugePages = "thp",
        /// Add the huge pages that are missing to the host's pool, and take them away at the end (root only)
        #[name = "grow-pool"]
        grow_pool: bool = "off",
        /// Memory of a memfd, which other processes can share, instead of anonymous memory
        share: bool = "off",
    }
}

impl MemoryOptions {
    /// The most memory that the guest can come to have, in bytes.
    pub fn most(&self) -> u64 {
        self.maxmem.map_or(self.size.0, |MemSize(most)| most)
    }
}

/// Reads the option.
pub fn parse(mut args: Args) -> Result<MemoryOptions> {
    let given = args.peek("size").unwrap_or_default().to_owned();
    let most = args.peek("maxmem").unwrap_or_default().to_owned();
    let memory = MemoryOptions::parse(&mut args)?;
    args.finish()?;
    let page = memory.hugepages.page_size();
    if memory.size.0 == 0 || memory.size.0 % page != 0 {
        let why = format!("expected a multiple of {}, the size of a page", MemSize(page));
        return Err(args.bad_value("size", &given, why));
    }
    if memory.most() < memory.size.0 {
        return Err(args.bad_value("maxmem", &most, format!("expected {} or more, the size", memory.size)));
    }
    if memory.grow_pool && !matches!(memory.hugepages, HugePages::TwoMiB | HugePages::OneGiB) {
        return Err(args.bad_value(
            "grow-pool",
            "on",
            "only hugepages=2M and hugepages=1G come from a pool".to_owned(),
        ));
    }
    Ok(memory)
}

/// What the option takes.
pub fn help() -> String {
    options_help("-m options", &[MemoryOptions::TABLE])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::testing::check_props;

    fn memory(text: &str) -> Result<MemoryOptions> {
        parse(Args::parse("-m", Some("size"), text)?)
    }

    #[test]
    fn the_forms_of_a_size() {
        for (text, bytes) in [("", 512 << 20), ("768", 768 << 20), ("768M", 768 << 20), ("size=1.5G", 3 << 29)] {
            let expected = MemoryOptions {
                size: MemSize(bytes),
                maxmem: None,
                slots: None,
                hugepages: HugePages::Transparent,
                grow_pool: false,
                share: false,
            };
            assert_eq!(memory(text).unwrap(), expected, "{text}");
        }
        let memory = memory("size=768M,hugepages=2M,share=on").unwrap();
        assert_eq!(memory.hugepages, HugePages::TwoMiB);
        assert!(memory.share);
        assert_eq!((memory.size, memory.most()), (MemSize(768 << 20), 768 << 20));
        assert_eq!(super::tests::memory("1G,slots=4,maxmem=8G").unwrap().most(), 8 << 30);
    }

    #[test]
    fn the_size_is_made_of_whole_pages() {
        for (text, cause) in [
            ("0", "`-m` cannot have size=`0`: expected a multiple of 4K, the size of a page"),
            ("4097B", "`-m` cannot have size=`4097B`: expected a multiple of 4K, the size of a page"),
            ("2G,maxmem=1G", "`-m` cannot have maxmem=`1G`: expected 2G or more, the size"),
            ("3M,hugepages=2M", "`-m` cannot have size=`3M`: expected a multiple of 2M, the size of a page"),
            ("1G,grow-pool=on", "`-m` cannot have grow-pool=`on`: only hugepages=2M and hugepages=1G come from a pool"),
            ("1536,hugepages=1G", "`-m` cannot have size=`1536`: expected a multiple of 1G, the size of a page"),
        ] {
            assert_eq!(memory(text).unwrap_err().cause(), cause, "{text}");
        }
    }

    #[test]
    fn the_table_is_sound() {
        check_props("-m", MemoryOptions::TABLE);
    }
}
