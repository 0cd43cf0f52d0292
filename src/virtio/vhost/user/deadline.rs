//! A daemon that does not answer must not stop the guest for ever: an exchange of messages that takes too long is ended by
//! closing the connection under it, because the protocol's library waits without a limit.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use super::Failure;

/// How long a daemon has for one exchange: to finish its requests when a queue is stopped, at the longest.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Does `work`, which waits for what comes on `socket`, for at most `limit`. Afterwards the connection is of no use if the
/// limit was reached.
///
/// # Errors
/// Those of `work`; the limit was reached; no thread is left.
pub fn within<R>(
    socket: &Arc<UnixStream>,
    limit: Duration,
    work: impl FnOnce() -> Result<R, Failure>,
) -> Result<R, Failure> {
    let (done, ended): (Sender<()>, _) = channel();
    let watched = socket.clone();
    let watch = thread::Builder::new().name("vhost-deadline".to_owned()).spawn(move || {
        let late = ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        if late {
            // An error says that the other end has closed it already.
            let _ = watched.shutdown(Shutdown::Both);
        }
        late
    });
    let watch = watch.map_err(|error| format!("no thread is left that watches it: {error}"))?;
    let result = work();
    drop(done);
    match (result, watch.join()) {
        (Err(_), Ok(true)) => Err(format!("no answer within {} s", limit.as_secs())),
        (result, _) => result,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn silence_ends_and_work_in_time_does_not() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = Arc::new(ours);
        assert_eq!(within(&ours, LIMIT, || Ok(7)), Ok(7));
        assert_eq!(within(&ours, LIMIT, || Err::<(), _>("own".to_owned())), Err("own".to_owned()));
        let silent = within(&ours, Duration::from_millis(20), || match (&*ours).read(&mut [0]) {
            Ok(0) => Err::<(), _>("closed".to_owned()),
            other => panic!("{other:?}"),
        });
        assert_eq!(silent, Err("no answer within 0 s".to_owned()));
        assert_eq!((&theirs).read(&mut [0]).unwrap(), 0, "the daemon hears of it, too");
    }
}
