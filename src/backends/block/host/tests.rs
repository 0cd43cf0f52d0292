use std::io::Write;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::super::Direction;
use super::super::io::{read_into, write_from};
use super::*;

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn open(file: &NamedTempFile, writable: bool, direct: bool) -> HostFile {
    let options = Options { direct, ..Options::plain(file.path(), writable) };
    HostFile::open(options, Kind::File).unwrap()
}

#[test]
fn what_is_written_is_read_and_bounds_hold() {
    let on_disk = file(&[7; 1000]);
    let node = open(&on_disk, true, false);
    assert_eq!(node.info().len, 1000);
    write_from(&node, 990, &mut [1; 10]).unwrap();
    let mut bytes = [0; 12];
    read_into(&node, 988, &mut bytes).unwrap();
    assert_eq!(bytes, [7, 7, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    assert_eq!(write_from(&node, 990, &mut [1; 11]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(read_into(&node, 989, &mut bytes).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    node.resize(2000).unwrap();
    read_into(&node, 1988, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 12]);
    node.flush().unwrap();
}

#[test]
fn a_file_that_became_shorter_is_an_error() {
    let on_disk = file(&[7; 1000]);
    let node = open(&on_disk, false, false);
    on_disk.as_file().set_len(500).unwrap();
    let error = read_into(&node, 499, &mut [0; 2]).unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (io::ErrorKind::UnexpectedEof, "the file ends at 500".to_owned()));
}

#[test]
fn zeros_and_holes() {
    let on_disk = file(&[7; 256 << 10]);
    let node = open(&on_disk, true, false);
    for (at, may_unmap) in [(0, true), (64 << 10, false)] {
        node.write_zeroes(at + 10..at + (64 << 10) - 10, may_unmap).unwrap();
        let mut bytes = vec![1; 64 << 10];
        read_into(&node, at, &mut bytes).unwrap();
        assert!(bytes[..10].iter().chain(&bytes[(64 << 10) - 10..]).all(|byte| *byte == 7));
        assert!(bytes[10..(64 << 10) - 10].iter().all(|byte| *byte == 0));
    }
    node.discard(128 << 10..192 << 10).unwrap();
    assert_eq!(node.info().len, 256 << 10);
}

#[test]
fn what_is_only_read_is_not_changed_until_it_is_made_writable() {
    let on_disk = file(&[7; 1000]);
    let node = open(&on_disk, false, false);
    assert!(node.info().read_only);
    assert_eq!(write_from(&node, 0, &mut [1]).unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert_eq!(node.resize(1).unwrap_err().raw_os_error(), Some(libc::EROFS));
    let other = open(&on_disk, false, false);
    assert!(node.set_writable(true).is_err(), "another reads it");
    assert!(node.info().read_only);
    drop(other);
    node.set_writable(true).unwrap();
    write_from(&node, 0, &mut [1]).unwrap();
    let refused = HostFile::open(Options::plain(on_disk.path(), false), Kind::File).map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::DiskInUse);
    node.set_writable(false).unwrap();
    drop(open(&on_disk, false, false));
}

#[test]
fn what_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, kind, words) in [
        (folder.path(), Kind::File, "is no regular file"),
        (&pipe, Kind::File, "is no regular file"),
        (Path::new("/dev/null"), Kind::Device, "is no disk or partition"),
        (Path::new("/nothing/there"), Kind::File, "cannot be used as a disk"),
    ] {
        let error = HostFile::open(Options::plain(path, false), kind).map(drop).unwrap_err();
        assert!(error.code() == Code::FileUnusable && error.cause().ends_with(words), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Direct I/O with its bounce buffers does what buffered I/O does.
    #[test]
    fn unaligned_direct_requests(
        len in 1u64..40_000,
        requests in prop::collection::vec((any::<bool>(), 0u64..40_000, 0usize..9000, any::<u8>()), 1..20),
    ) {
        let on_disk = file(&vec![9; len as usize]);
        // Not every file system has direct I/O.
        let options = Options { direct: true, ..Options::plain(on_disk.path(), true) };
        let Ok(node) = HostFile::open(options, Kind::File) else { return Ok(()) };
        let mut model = vec![9; len as usize];
        for (write, offset, count, byte) in requests {
            let offset = offset.min(len);
            let count = count.min((len - offset) as usize);
            let part = offset as usize..offset as usize + count;
            if write {
                write_from(&node, offset, &mut vec![byte; count]).unwrap();
                model[part].fill(byte);
            } else {
                let mut bytes = vec![0; count];
                read_into(&node, offset, &mut bytes).unwrap();
                prop_assert_eq!(&bytes, &model[part]);
            }
        }
        drop(node);
        prop_assert_eq!(std::fs::read(on_disk.path()).unwrap(), model);
    }
}

/// What is done together is what is done one by one, also where the ring does not take it.
#[test]
fn transfers_are_done_together_or_alone() {
    for (together, direct) in [(Together::No, false), (Together::Yes, false), (Together::Yes, true)] {
        let on_disk = file(&[0; 64 << 10]);
        let options = Options { together, direct, ..Options::plain(on_disk.path(), true) };
        let node = match HostFile::open(options, Kind::File) {
            // A kernel without io_uring, a file system without direct I/O.
            Err(_) if together == Together::Yes => continue,
            node => node.unwrap(),
        };
        let mut memory: Vec<u8> = (0..16u8).flat_map(|block| [block + 1; 4096]).collect();
        // Whole blocks and parts of them; the last lies behind the end.
        let lens = [4096, 4096, 1000, 3096, 4096, 512, 4096];
        let (mut left, mut at, mut slices) = (&mut memory[..], 0, Vec::new());
        for len in lens {
            let (part, rest) = left.split_at_mut(len);
            slices.push((at, [VolatileSlice::from(part)]));
            (left, at) = (rest, at + len as u64);
        }
        slices.last_mut().unwrap().0 = (64 << 10) - 512;
        let transfers = |direction| -> Vec<Transfer> {
            slices.iter().map(|(offset, buffers)| Transfer { direction, offset: *offset, buffers }).collect()
        };
        for direction in [Direction::Write, Direction::Read] {
            let done = node.transfer(&transfers(direction));
            assert!(done[..6].iter().all(io::Result::is_ok), "{together:?} {direct}: {done:?}");
            assert_eq!(done[6].as_ref().unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        let written: usize = lens[..6].iter().sum();
        assert_eq!(std::fs::read(on_disk.path()).unwrap()[..written], memory[..written], "{together:?} {direct}");
        // Somebody makes it shorter.
        on_disk.as_file().set_len(4096).unwrap();
        let mut buffer = [1; 4096];
        let buffers = [VolatileSlice::from(&mut buffer[..])];
        let read = Transfer { direction: Direction::Read, offset: 8192, buffers: &buffers };
        let ended: Vec<_> = node.transfer(&[read]).into_iter().map(|done| done.unwrap_err().kind()).collect();
        assert_eq!(ended, [io::ErrorKind::UnexpectedEof]);
    }
}
