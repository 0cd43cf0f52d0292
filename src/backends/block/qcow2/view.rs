//! The crate's view of an image, which no content of an image can make end the process.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};

use super::header::Header;
use super::refcounts;
use super::storage::NodeStorage;
use crate::backends::block::Child;

/// An open image of the crate imago.
///
/// The crate has assertions on what it reads. [`Header`] and [`refcounts`] refuse what is known to reach one; for what is not
/// known, a panic is an error of the request here, and every later request fails: tables in memory may be half changed.
pub struct View {
    image: FormatAccess<NodeStorage>,
    broken: AtomicBool,
}

impl View {
    /// Opens the image on `file`.
    ///
    /// # Errors
    /// Those of the file, and [`io::ErrorKind::InvalidData`].
    pub fn open(file: &Child, backing: Option<&Child>, header: &Header, writable: bool) -> io::Result<View> {
        if writable {
            refcounts::check_covered(&*file.node, header)?;
        }
        let open = || {
            let gate = DenyImplicitOpenGate::default;
            let backing = match backing {
                None => None,
                Some(backing) => {
                    let raw = imago::raw::Raw::builder(NodeStorage::new(backing.node.clone()));
                    Some(FormatAccess::new(raw.open(gate())?))
                }
            };
            let builder = imago::qcow2::Qcow2::<NodeStorage>::builder(NodeStorage::new(file.node.clone()));
            let image = builder.write(writable).backing(backing).data_file(None).open(gate())?;
            Ok(View { image: FormatAccess::new(image), broken: AtomicBool::new(false) })
        };
        // Unwind safety: what was half open is dropped.
        catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| Err(contradiction()))
    }

    /// Does something to the image beside others.
    ///
    /// # Errors
    /// Those of `act`, and [`io::ErrorKind::InvalidData`].
    pub fn with<T>(&self, act: impl FnOnce(&FormatAccess<NodeStorage>) -> io::Result<T>) -> io::Result<T> {
        contain(&self.broken, || act(&self.image))
    }

    /// Does something to the image alone.
    ///
    /// # Errors
    /// Those of `act`, and [`io::ErrorKind::InvalidData`].
    pub fn alone<T>(&mut self, act: impl FnOnce(&mut FormatAccess<NodeStorage>) -> io::Result<T>) -> io::Result<T> {
        let View { image, broken } = self;
        contain(broken, || act(image))
    }
}

fn contain<T>(broken: &AtomicBool, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if broken.load(Ordering::Acquire) {
        return Err(contradiction());
    }
    // Unwind safety: nothing is done with the image after that.
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| {
        broken.store(true, Ordering::Release);
        Err(contradiction())
    })
}

fn contradiction() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "its tables contradict each other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_done_after_a_panic() {
        let broken = AtomicBool::new(false);
        assert_eq!(contain(&broken, || Ok(1)).unwrap(), 1);
        let hit: io::Result<()> = contain(&broken, || panic!("as the crate does"));
        assert_eq!(hit.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let after = contain(&broken, || -> io::Result<()> { unreachable!("it is broken") });
        assert_eq!(after.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
