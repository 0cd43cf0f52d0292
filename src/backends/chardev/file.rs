//! `file`: output goes to a file; input comes from another, if one is named.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use super::input::Input;
use super::output::Output;
use super::{Attached, Chardev, FrontEnd, Peer};
use crate::backends::BackendCx;
use crate::error::{Code, Error, Result, explain_io};
use crate::object::{Create, TypeInfo, props};

/// The row of the table of character back ends.
pub static TYPE: TypeInfo<Arc<dyn Chardev>, BackendCx> = TypeInfo::of::<FileType>();

props! {
    /// A file that output is written to.
    struct FileProps {
        /// The file
        path: PathBuf,
        /// File that input is read from, up to its end
        input_path: Option<PathBuf>,
        /// Add to the file instead of emptying it
        append: bool = "off",
    }
}

struct FileType;

impl Create<Arc<dyn Chardev>, BackendCx> for FileType {
    const NAME: &'static str = "file";
    const GROUP: &'static str = "Character back ends";
    type Props = FileProps;

    fn create(props: FileProps, cx: &BackendCx) -> Result<Arc<dyn Chardev>> {
        let front = Arc::new(Attached::default());
        let input = match &props.input_path {
            None => None,
            Some(path) => {
                let file = File::open(path).map_err(|error| {
                    Error::new(Code::FileUnusable, "the file for a character back end's input cannot be read")
                        .evidence(format!("{}: {}", path.display(), explain_io(&error)))
                })?;
                let input = Input::new(&cx.event_loop, &front, |_| ());
                input.start_soon(Arc::new(file.into()));
                Some(input)
            }
        };
        Ok(Arc::new(FileChardev { output: Output::file(&props.path, props.append, &front)?, input, front }))
    }
}

struct FileChardev {
    output: Output,
    input: Option<Input>,
    front: Arc<Attached>,
}

impl Chardev for FileChardev {
    fn output(&self) -> Option<&Output> {
        Some(&self.output)
    }

    fn attach(&self, front_end: Weak<dyn FrontEnd>) {
        self.front.set(front_end);
        self.resume();
    }

    fn resume(&self) {
        self.input.iter().for_each(Input::resume);
    }

    fn peer(&self) -> Peer {
        Peer::always("file")
    }
}

#[cfg(test)]
mod tests {
    use super::super::create;
    use super::super::testing::{Port, event_loop, settle};
    use super::*;
    use crate::object::Args;

    #[test]
    fn bytes_go_to_one_file_and_come_from_another() {
        let folder = tempfile::tempdir().unwrap();
        let (to, from) = (folder.path().join("to"), folder.path().join("from"));
        std::fs::write(&from, "typed").unwrap();
        let mut event_loop = event_loop();
        let text = format!("file,id=c0,path={},input-path={}", to.display(), from.display());
        let args = Args::parse("--chardev", Some("backend"), &text).unwrap();
        let chardev = create(args, &event_loop.handle(), &Arc::default()).unwrap().back;
        let port = Port::new(100);
        chardev.attach(port.weak());
        chardev.write(b"said");
        settle(&mut event_loop);
        assert!(chardev.flush(std::time::Duration::from_secs(60)));
        assert_eq!((port.seen(), std::fs::read(&to).unwrap()), (b"typed".to_vec(), b"said".to_vec()));
    }
}
