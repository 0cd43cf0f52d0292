//! Opening an image by its name with all that is below it, as its headers say.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::host::{HostFile, Kind, Options};
use super::qcow2::header::{Header, MAGIC};
use super::qcow2::{Qcow2, read_header};
use super::{BlockNode, Child, io};
use crate::error::{Code, Error, Result, explain_io};
use crate::object::prop_enum;

/// Most images that stand on each other.
pub const MAX_DEPTH: usize = 64;

prop_enum! {
    /// What a file holds.
    pub enum Format {
        /// The disk's bytes as they are.
        Raw = "raw",
        /// An image with tables.
        Qcow2 = "qcow2",
    }
}

/// One image of a chain.
pub struct Layer {
    /// Its file.
    pub path: PathBuf,
    /// What it holds.
    pub format: Format,
    /// Its header, if it has one.
    pub header: Option<Header>,
    /// The file itself.
    pub file: Arc<dyn BlockNode>,
    /// The disk that the image is.
    pub node: Arc<dyn BlockNode>,
    /// The same, if it is an image with tables.
    pub image: Option<Arc<Qcow2>>,
}

/// How a chain is opened.
#[derive(Debug, Clone, Default)]
pub struct How {
    /// The top image can be written; those below it are only read.
    pub writable: bool,
    /// Past the host's page cache.
    pub direct: bool,
    /// Whether to lock the files; `None`: where the file system can.
    pub locking: Option<bool>,
    /// The top image alone: what it has not reads as zeros.
    pub top_only: bool,
}

/// Opens `path`, top image first. `format`: what it holds; without it the first bytes say.
///
/// # Errors
/// [`Code::FileUnusable`], [`Code::DiskInUse`], [`Code::ImageUnusable`], [`Code::BackingChain`].
pub fn open(path: &Path, format: Option<Format>, how: &How) -> Result<Vec<Layer>> {
    let mut seen = Vec::new();
    let (file, is) = open_file(path, how, how.writable, &mut seen)?;
    let format = match format {
        Some(format) => format,
        None => probe(&*file, path)?,
    };
    let mut layers = Vec::new();
    descend(file, is, format, how, how.writable, &mut seen, &mut layers)?;
    layers.reverse();
    Ok(layers)
}

/// The backing image that `header` of the image `path` names, with all below it; top first.
///
/// # Errors
/// As [`open`].
pub fn open_backing(path: &Path, header: &Header, how: &How) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    let mut seen = fs::metadata(path).iter().map(|data| (data.dev(), data.ino())).collect();
    below(path, header, how, &mut seen, &mut layers)?;
    layers.reverse();
    Ok(layers)
}

/// The file that holds a backing image: `name` as the header of the image `of` has it.
///
/// # Errors
/// [`Code::BackingChain`].
pub fn backing_path(of: &Path, name: &str) -> Result<PathBuf> {
    let plain = name.strip_prefix("file:").unwrap_or(name);
    // As QEMU: a colon before the first slash is the end of a protocol's name.
    let protocol = plain.split('/').next().is_some_and(|first| first.contains(':'));
    if protocol || plain.is_empty() {
        return Err(Error::new(Code::BackingChain, format!("the backing file `{name}` is no file of this host"))
            .evidence(format!("header of {}", of.display()))
            .fix("give the chain as nodes: `--blockdev qcow2,file=...,backing=NODE`"));
    }
    Ok(of.parent().unwrap_or(Path::new("")).join(plain))
}

/// What the first bytes of a file say that it holds.
pub fn probe(file: &dyn BlockNode, path: &Path) -> Result<Format> {
    let mut magic = [0; MAGIC.len()];
    if file.info().len < magic.len() as u64 {
        return Ok(Format::Raw);
    }
    io::read_into(file, 0, &mut magic).map_err(|error| {
        Error::new(Code::ImageFailed, format!("{} cannot be read", path.display())).evidence(explain_io(&error))
    })?;
    Ok(if magic == MAGIC { Format::Qcow2 } else { Format::Raw })
}

type Seen = Vec<(u64, u64)>;

/// Opens one file of the chain, which has not come before in it.
fn open_file(path: &Path, how: &How, writable: bool, seen: &mut Seen) -> Result<(Arc<dyn BlockNode>, PathBuf)> {
    let chain =
        |cause: String| Error::new(Code::BackingChain, cause).evidence(format!("backing file {}", path.display()));
    let mut kind = Kind::File;
    // What cannot be looked at cannot be opened, and that is said below.
    if let Ok(data) = fs::metadata(path) {
        if seen.contains(&(data.dev(), data.ino())) {
            return Err(chain("the chain of backing files leads back to itself".to_owned())
                .fix("`qemu-img rebase -u -b OTHER FILE` names another backing file"));
        }
        if seen.len() >= MAX_DEPTH {
            return Err(chain(format!("more than {MAX_DEPTH} images stand on each other"))
                .fix("`passthru img commit` or `convert` makes the chain shorter"));
        }
        seen.push((data.dev(), data.ino()));
        if data.file_type().is_block_device() {
            kind = Kind::Device;
        }
    }
    let options = Options { direct: how.direct, locking: how.locking, ..Options::plain(path, writable) };
    Ok((Arc::new(HostFile::open(options, kind)?), path.to_owned()))
}

/// Opens what stands on `file`: first all that is below it, then the image itself.
fn descend(
    file: Arc<dyn BlockNode>,
    path: PathBuf,
    format: Format,
    how: &How,
    writable: bool,
    seen: &mut Seen,
    layers: &mut Vec<Layer>,
) -> Result<()> {
    if format == Format::Raw {
        layers.push(Layer { path, format, header: None, node: file.clone(), file, image: None });
        return Ok(());
    }
    let name: Arc<str> = path.display().to_string().into();
    let header = read_header(&*file, &name)?;
    if !how.top_only {
        below(&path, &header, how, seen, layers)?;
    }
    let backing = layers.last().map(|below| Child::own(below.node.clone(), below.path.display().to_string()));
    let image = Qcow2::open(Child::own(file.clone(), name), backing, !writable, true)?;
    let image = Arc::new(image);
    layers.push(Layer { path, format, header: Some(header), file, node: image.clone(), image: Some(image) });
    Ok(())
}

/// Opens the backing image that `header` names, bottom first.
fn below(path: &Path, header: &Header, how: &How, seen: &mut Seen, layers: &mut Vec<Layer>) -> Result<()> {
    let Some(name) = &header.backing else { return Ok(()) };
    let of = format!("`{name}`, the backing file of {}", path.display());
    let format = match header.backing_format.as_deref() {
        Some("raw" | "file" | "host_device") => Format::Raw,
        Some("qcow2") => Format::Qcow2,
        // Its first bytes must not say: a guest that writes a raw disk can make it begin like an image that names any file.
        None => {
            return Err(Error::new(Code::BackingChain, format!("nothing says what is in {of}"))
                .fix(format!("`qemu-img rebase -u -F FORMAT -b {name} {}` writes it down", path.display())));
        }
        Some(other) => {
            return Err(Error::new(Code::BackingChain, format!("{of} has the format {other}, which is not supported"))
                .fix("`qemu-img convert -O qcow2` makes an image of it"));
        }
    };
    let (file, path) = open_file(&backing_path(path, name)?, how, false, seen)
        .map_err(|error| if error.code() == Code::FileUnusable { absent(&of, &error) } else { error })?;
    descend(file, path, format, how, false, seen, layers)
}

fn absent(of: &str, error: &Error) -> Error {
    let mut absent = Error::new(Code::BackingChain, format!("cannot open {of}"));
    for line in error.evidence_lines() {
        absent = absent.evidence(line);
    }
    absent.fix("put it where the header says, or `qemu-img rebase -u -b NAME -F FORMAT FILE`")
}

/// What a file's name says that it holds: `disk.qcow2`.
pub fn by_name(path: &Path) -> Format {
    if path.extension() == Some(OsStr::new("qcow2")) { Format::Qcow2 } else { Format::Raw }
}

#[cfg(test)]
mod tests {
    use super::super::io::{read_into, write_from};
    use super::super::qcow2::create::{New, create};
    use super::*;

    fn file(path: &Path) -> Arc<dyn BlockNode> {
        fs::File::create(path).unwrap();
        Arc::new(HostFile::open(Options::plain(path, true), Kind::File).unwrap())
    }

    fn image(path: &Path, backing: Option<(&str, &str)>) {
        let backing = backing.map(|(name, format)| (name.to_owned(), format.to_owned()));
        create(file(path), &New { backing, ..New::of(1 << 20) }).unwrap();
    }

    fn error(path: &Path) -> Error {
        open(path, None, &How::default()).map(drop).unwrap_err()
    }

    #[test]
    fn a_chain_is_opened_as_its_headers_say() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("below")).unwrap();
        fs::write(at("below/base.raw"), vec![5; 1 << 20]).unwrap();
        image(&at("below/mid.qcow2"), Some(("base.raw", "raw")));
        image(&at("top.qcow2"), Some(("below/mid.qcow2", "qcow2")));
        let chain = open(&at("top.qcow2"), None, &How { writable: true, ..How::default() }).unwrap();
        let names: Vec<_> = chain.iter().map(|layer| (layer.path.clone(), layer.format)).collect();
        assert_eq!(
            names,
            [
                (at("top.qcow2"), Format::Qcow2),
                (at("below/mid.qcow2"), Format::Qcow2),
                (at("below/base.raw"), Format::Raw),
            ]
        );
        let mut byte = [0];
        read_into(&*chain[0].node, 1000, &mut byte).unwrap();
        assert_eq!(byte, [5]);
        write_from(&*chain[0].node, 1000, &mut [6]).unwrap();
        read_into(&*chain[1].node, 1000, &mut byte).unwrap();
        assert_eq!(byte, [5]);
    }

    #[test]
    fn chains_that_cannot_be() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        image(&at("self"), Some(("self", "qcow2")));
        image(&at("a"), Some(("b", "qcow2")));
        image(&at("b"), Some(("a", "qcow2")));
        image(&at("absent"), Some(("nothing", "raw")));
        image(&at("net"), Some(("nbd://host/disk", "raw")));
        image(&at("json"), Some(("json:{\"driver\":\"file\"}", "raw")));
        image(&at("vmdk"), Some(("self", "vmdk")));
        image(&at("not-an-image"), Some(("raw", "qcow2")));
        fs::write(at("raw"), [0; 512]).unwrap();
        for (name, code, words) in [
            ("self", Code::BackingChain, "leads back to itself"),
            ("a", Code::BackingChain, "leads back to itself"),
            ("absent", Code::BackingChain, "cannot open `nothing`"),
            ("net", Code::BackingChain, "no file of this host"),
            ("json", Code::BackingChain, "no file of this host"),
            ("vmdk", Code::BackingChain, "has the format vmdk"),
            ("not-an-image", Code::ImageUnusable, "cannot be used"),
        ] {
            let error = error(&at(name));
            assert!(error.code() == code && error.cause().contains(words), "{name}: {error}");
        }
        for level in 0..=MAX_DEPTH {
            image(&at(&format!("level{level}")), Some((&format!("level{}", level + 1), "qcow2")));
        }
        assert!(error(&at("level0")).cause().contains("stand on each other"));
    }
}
