//! The control socket's bytes: requests as they arrive, in pieces of any length. Each message has an answer.

#![no_main]

use fuzz::input::Input;
use libfuzzer_sys::fuzz_target;
use passthru::monitor::message::{Stream, answer, request};

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let piece = usize::from(input.u8()) + 1;
    let mut stream = Stream::default();
    for bytes in input.rest().chunks(piece) {
        stream.feed(bytes);
        let mut messages = 0;
        while let Some(message) = stream.next_message() {
            // A message takes a byte at least, and a mistake all of its line.
            messages += 1;
            assert!(messages <= 2 * data.len(), "the same bytes are read again and again");
            let reply = match message.map(request) {
                Ok(Ok(request)) => answer(request.id, Ok(request.arguments.into())),
                Ok(Err((id, failure))) => answer(id, Err(failure)),
                Err(failure) => answer(None, Err(failure)),
            };
            assert!(reply.is_object(), "{reply}");
        }
    }
});
