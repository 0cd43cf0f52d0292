//! QMP's messages: JSON objects, one after the other, with or without line ends between them. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::error::Error;

/// The longest request, in bytes.
pub const MAX_REQUEST: usize = 64 << 10;

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What the client calls it; the answer carries the same.
    pub id: Option<Value>,
    /// The command.
    pub command: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
}

/// A request, or why there is none, with the id that the answer needs all the same.
pub type Parsed = Result<Request, (Option<Value>, Failure)>;

/// QMP's classes of errors (QEMU qapi/error.json).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// Everything else.
    Generic,
    /// There is no such command, or not now.
    CommandNotFound,
    /// There is no device of that id.
    DeviceNotFound,
    /// A device that is needed for it is not there.
    DeviceNotActive,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// For programs.
    pub class: FailureClass,
    /// For people, in one line.
    pub text: String,
    /// An error's code, evidence and remedy; no part of QMP, which lets clients ignore what they do not know.
    pub data: Option<Value>,
}

impl Failure {
    /// A failure of this class.
    pub fn new(class: FailureClass, text: impl Into<String>) -> Failure {
        Failure { class, text: text.into(), data: None }
    }

    /// A failure of the class `GenericError`.
    pub fn generic(text: impl Into<String>) -> Failure {
        Failure::new(FailureClass::Generic, text)
    }

    /// QEMU's words for what needs a balloon.
    pub fn no_balloon() -> Failure {
        Failure::new(FailureClass::DeviceNotActive, "No balloon device has been activated")
    }

    /// A device that is not there.
    pub fn no_device(id: &str) -> Failure {
        Failure::new(FailureClass::DeviceNotFound, format!("Device '{id}' not found"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let data = json!({
            "code": error.code().to_string(),
            "evidence": error.evidence_lines(),
            "mend": error.fix_text(),
        });
        Failure { data: Some(data), ..Failure::generic(error.cause()) }
    }
}

/// Cuts a stream of bytes into messages.
#[derive(Debug, Default)]
pub struct Stream {
    bytes: Vec<u8>,
    /// What comes up to the next line end belongs to a message that was given up.
    skipping: bool,
}

impl Stream {
    /// Takes bytes as they arrive. The caller takes all messages out before it comes with more.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message that is there in full, or what is wrong with it.
    pub fn next_message(&mut self) -> Option<Result<Value, Failure>> {
        if self.skipping {
            match self.bytes.iter().position(|byte| *byte == b'\n') {
                Some(end) => drop(self.bytes.drain(..=end)),
                None => {
                    self.bytes.clear();
                    return None;
                }
            }
            self.skipping = false;
        }
        let mut values = serde_json::Deserializer::from_slice(&self.bytes).into_iter::<Value>();
        let next = values.next();
        let used = values.byte_offset();
        match next {
            None => {
                // White space only.
                self.bytes.clear();
                None
            }
            Some(Ok(value)) => {
                self.bytes.drain(..used);
                Some(Ok(value))
            }
            Some(Err(error)) if error.is_eof() && self.bytes.len() <= MAX_REQUEST => None,
            Some(Err(error)) => {
                self.skipping = true;
                let why = if error.is_eof() { "the message is too long".into() } else { error.to_string() };
                Some(Err(Failure::generic(format!("JSON parse error, {why}"))))
            }
        }
    }
}

/// The request in a message; where it is none, the id that the answer needs all the same.
///
/// # Errors
/// What QEMU says of such a message.
pub fn request(message: Value) -> Parsed {
    let Value::Object(mut members) = message else {
        return Err((None, Failure::generic("QMP input must be a JSON object")));
    };
    let id = members.remove("id");
    let refuse = |text: String| Err((id.clone(), Failure::generic(text)));
    let command = match members.remove("execute") {
        Some(Value::String(command)) => command,
        Some(_) => return refuse("QMP input member 'execute' must be a string".into()),
        None => return refuse("QMP input lacks member 'execute'".into()),
    };
    let arguments = match members.remove("arguments") {
        None => Map::new(),
        Some(Value::Object(arguments)) => arguments,
        Some(_) => return refuse("QMP input member 'arguments' must be an object".into()),
    };
    match members.keys().next() {
        Some(other) => refuse(format!("QMP input member '{other}' is unexpected")),
        None => Ok(Request { id, command, arguments }),
    }
}

/// The version as QMP has it. The protocol's name for the field is its first implementation's; the package says who
/// answers.
pub fn version() -> Value {
    let part = |text: &str| text.parse::<u32>().unwrap_or(0);
    json!({
        "qemu": {
            "major": part(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": part(env!("CARGO_PKG_VERSION_MINOR")),
            "micro": part(env!("CARGO_PKG_VERSION_PATCH")),
        },
        "package": concat!("passthru ", env!("CARGO_PKG_VERSION")),
    })
}

/// The first message to a client.
pub fn greeting() -> Value {
    json!({ "QMP": { "version": version(), "capabilities": [] } })
}

/// The answer to a request.
pub fn answer(id: Option<Value>, result: Result<Value, Failure>) -> Value {
    let mut message = match result {
        Ok(value) => json!({ "return": value }),
        Err(Failure { class, text, data }) => {
            let class = match class {
                FailureClass::Generic => "GenericError",
                FailureClass::CommandNotFound => "CommandNotFound",
                FailureClass::DeviceNotFound => "DeviceNotFound",
                FailureClass::DeviceNotActive => "DeviceNotActive",
            };
            match data {
                Some(data) => json!({ "error": { "class": class, "desc": text, "data": data } }),
                None => json!({ "error": { "class": class, "desc": text } }),
            }
        }
    };
    if let (Some(id), Some(members)) = (id, message.as_object_mut()) {
        members.insert("id".into(), id);
    }
    message
}

/// The host's time since 1970.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// An event that happened at `time`.
pub fn event(name: &str, data: Option<Value>, time: Duration) -> Value {
    let timestamp = json!({ "seconds": time.as_secs(), "microseconds": time.subsec_micros() });
    match data {
        Some(data) => json!({ "event": name, "data": data, "timestamp": timestamp }),
        None => json!({ "event": name, "timestamp": timestamp }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain(stream: &mut Stream) -> Vec<Result<Value, String>> {
        std::iter::from_fn(|| stream.next_message()).map(|next| next.map_err(|failure| failure.text)).collect()
    }

    #[test]
    fn messages_need_no_line_ends_and_come_in_any_pieces() {
        let mut stream = Stream::default();
        stream.feed(b"  {\"a\":1}{\"b\"");
        assert_eq!(drain(&mut stream), [Ok(json!({"a": 1}))]);
        stream.feed(b":2}\r\n\r\n[3]\n");
        assert_eq!(drain(&mut stream), [Ok(json!({"b": 2})), Ok(json!([3]))]);
        stream.feed(b" \n");
        assert!(drain(&mut stream).is_empty());
    }

    #[test]
    fn nonsense_is_skipped_to_the_line_s_end() {
        let mut stream = Stream::default();
        stream.feed(b"hello }{ there\n{\"a\":1}\n");
        let seen = drain(&mut stream);
        assert!(seen[0].as_ref().is_err_and(|text| text.starts_with("JSON parse error")), "{seen:?}");
        assert_eq!(seen[1..], [Ok(json!({"a": 1}))]);
    }

    #[test]
    fn a_message_without_end_is_given_up() {
        let mut stream = Stream::default();
        stream.feed(b"{\"a\": \"");
        let mut failures = 0;
        for _ in 0..100 {
            stream.feed(&[b'x'; 4096]);
            failures += drain(&mut stream).len();
        }
        assert_eq!(failures, 1, "and said once");
        assert!(stream.bytes.len() <= MAX_REQUEST + 4096);
        stream.feed(b"\"}\n{\"b\":1}");
        assert_eq!(drain(&mut stream), [Ok(json!({"b": 1}))]);
    }

    #[test]
    fn what_is_no_request_is_said_with_its_id() {
        for (message, id, text) in [
            (json!([]), None, "QMP input must be a JSON object"),
            (json!({"id": 7}), Some(json!(7)), "QMP input lacks member 'execute'"),
            (json!({"execute": 1}), None, "QMP input member 'execute' must be a string"),
            (json!({"execute": "x", "arguments": 1}), None, "QMP input member 'arguments' must be an object"),
            (json!({"execute": "x", "also": 1, "id": "q"}), Some(json!("q")), "QMP input member 'also' is unexpected"),
        ] {
            let (given, failure) = request(message).unwrap_err();
            assert_eq!((given, failure.text.as_str()), (id, text));
        }
        let good = request(json!({"execute": "x", "id": [1]})).unwrap();
        assert_eq!((good.command.as_str(), good.id), ("x", Some(json!([1]))));
    }

    #[test]
    fn answers_and_events_have_qmp_s_form() {
        assert_eq!(answer(Some(json!("a")), Ok(json!({}))), json!({"return": {}, "id": "a"}));
        assert_eq!(
            answer(None, Err(Failure::no_device("nic0"))),
            json!({"error": {"class": "DeviceNotFound", "desc": "Device 'nic0' not found"}})
        );
        let time = Duration::new(5, 7_000);
        assert_eq!(event("STOP", None, time), json!({"event": "STOP", "timestamp": {"seconds": 5, "microseconds": 7}}));
    }

    proptest! {
        #[test]
        fn any_bytes(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let mut stream = Stream::default();
            for piece in pieces {
                stream.feed(&piece);
                while let Some(message) = stream.next_message() {
                    let _ = message.map(request);
                }
            }
        }
    }
}
