//! Why something was not mapped for DMA, and what the user is told.

use std::io;
use std::ops::Range;

use nix::errno::Errno;

use crate::error::{Code, Error, explain_io};
use crate::host::Host;
use crate::host::limits::UNLIMITED;
use crate::host::limits::memlock::{LockRights, MemlockPlan, plan_memlock};
use crate::vfio::backend::Backend;

/// Why a range was not mapped.
pub(super) enum Refusal {
    /// The IOMMU keeps these addresses for itself.
    Reserved(Range<u64>),
    /// No mapping is left.
    Limit,
    /// It does not begin with one of the IOMMU's pages.
    Odd,
    /// The request failed.
    Kernel(io::Error),
    /// What can be mapped is not known.
    Unknown(Error),
}

impl Refusal {
    /// For a warning: the second half of a sentence.
    pub(super) fn reason(&self) -> String {
        match self {
            Refusal::Reserved(range) => format!("the IOMMU reserves {}", text(range)),
            Refusal::Limit => "the limit of mappings is reached".to_owned(),
            Refusal::Odd => "it is not made of whole pages of the IOMMU".to_owned(),
            Refusal::Kernel(error) => explain_io(error),
            Refusal::Unknown(error) => error.cause().to_owned(),
        }
    }

    /// The error for guest RAM at `at` that could not be mapped, with `missing` bytes of RAM, those included, not mapped.
    pub(super) fn for_ram(
        self,
        backend: Backend,
        at: &Range<u64>,
        missing: u64,
        usable: &[Range<u64>],
        mapped: usize,
    ) -> Error {
        let what = format!("guest memory at {}", text(at));
        match self {
            Refusal::Reserved(reserved) => {
                let error = Error::new(Code::ReservedIova, format!("{what} meets addresses that the IOMMU reserves"))
                    .evidence(format!("reserved: {}", text(&reserved)));
                usable.iter().fold(error, |error, range| error.evidence(format!("usable: {}", text(range))))
            }
            Refusal::Limit => {
                Error::new(Code::DmaLimit, format!("{what} cannot be mapped for DMA: no mapping is left"))
                    .evidence(format!("this guest has {mapped} mappings, and the kernel takes no more"))
                    .fix("raise the limit: `echo 1048576 > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit`")
            }
            Refusal::Odd => Error::new(Code::DmaFailed, format!("{what} is not made of whole pages of the IOMMU")),
            Refusal::Kernel(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOMEM) => no_memory(backend, &what, missing, &error, &Host::real().lock_rights()),
                Some(Errno::ENOSPC) => Refusal::Limit.for_ram(backend, at, missing, usable, mapped),
                _ => Error::new(Code::DmaFailed, format!("{what} could not be mapped for DMA")).evidence(format!(
                    "{}: {}",
                    request(backend),
                    explain_io(&error)
                )),
            },
            Refusal::Unknown(error) => error,
        }
    }
}

fn request(backend: Backend) -> &'static str {
    match backend {
        Backend::Type1 => "VFIO_IOMMU_MAP_DMA",
        Backend::Iommufd => "IOMMU_IOAS_MAP",
    }
}

/// ENOMEM: the limit of locked memory, if it does not suffice, else the host has no page left to pin.
pub(super) fn no_memory(backend: Backend, what: &str, needed: u64, answer: &io::Error, rights: &LockRights) -> Error {
    let asked = format!("{} of {what}: {}", request(backend), explain_io(answer));
    match plan_memlock(needed, rights) {
        Err(error) => error.evidence(asked),
        Ok(MemlockPlan::Raise(hard)) => Error::new(Code::Memlock, format!("{what} could not be pinned"))
            .evidence(asked)
            .evidence(format!("RLIMIT_MEMLOCK of this process: soft {} bytes, hard {hard} bytes", rights.soft))
            .fix("`ulimit -S -l hard` before it"),
        // type1 counts what the process has pinned, iommufd what all processes of the user have.
        Ok(MemlockPlan::Enough) if backend == Backend::Iommufd && !rights.exempt && rights.soft != UNLIMITED => {
            Error::new(Code::Memlock, format!("{what} could not be pinned"))
                .evidence(asked)
                .evidence("iommufd counts the pinned memory of all processes of the user together")
                .fix("as root, `ulimit -l unlimited` before it, or run one guest for each user")
        }
        Ok(MemlockPlan::Enough) => Error::new(Code::DmaFailed, format!("{what} could not be pinned"))
            .evidence(asked)
            .evidence("the limit of locked memory suffices: the host has no memory left for it")
            .fix("give the guest less memory with -m, or free memory"),
    }
}

pub(super) fn text(range: &Range<u64>) -> String {
    format!("{:#x}-{:#x}", range.start, range.end.saturating_sub(1))
}

/// The first part of `range` that no usable range covers.
pub fn first_reserved(usable: &[Range<u64>], range: Range<u64>) -> Option<Range<u64>> {
    let mut at = range.start;
    for free in usable {
        if free.start > at {
            break;
        }
        at = at.max(free.end);
    }
    if at >= range.end {
        return None;
    }
    let next = usable.iter().map(|free| free.start).find(|start| *start > at).unwrap_or(u64::MAX);
    Some(at..next)
}
