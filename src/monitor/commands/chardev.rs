//! Character back ends: what there is, and those that come and go.

use serde_json::{Map, Value, json};

use super::super::message::Failure;
use super::{Arguments, Command, Control, Kind, nothing, optional, param};
use crate::backends::chardev::{CHARDEVS, Chardev};
use crate::object::{self, Args};

/// Most bytes that one `ringbuf-read` gives.
const MAX_READ: u64 = 64 << 20;

/// The commands of this file.
pub static COMMANDS: &[Command] = &[
    Command {
        name: "query-chardev",
        doc: "The character back ends: name, where the other end is, and whether a front end has it",
        params: &[],
        open: false,
        run: |control, _| {
            let described = control.chardevs().list().into_iter().map(|row| {
                json!({ "label": &*row.name, "filename": row.back.peer().place, "frontend-open": !row.users.is_empty() })
            });
            Ok(described.collect::<Value>().into())
        },
    },
    Command {
        name: "query-chardev-backends",
        doc: "The types of character back ends",
        params: &[],
        open: false,
        run: |_, _| {
            Ok(CHARDEVS.types.iter().map(|of_type| json!({ "name": of_type.name() })).collect::<Value>().into())
        },
    },
    Command {
        name: "chardev-add",
        doc: "Makes a character back end; `backend` is {\"type\": TYPE, \"data\": {...}} as QEMU has it. Returns the name of \
              a pseudo-terminal",
        params: &[
            param("id", Kind::String, "Name of the back end"),
            param("backend", Kind::Object, "Its type and properties"),
        ],
        open: false,
        run: |control, arguments| {
            let text = of_qapi(&arguments)?.to_string();
            control.add_back_end(object::Kind::Chardev, Args::parse("--chardev", Some(CHARDEVS.key), &text)?)?;
            let id = arguments.text("id");
            let made = control.chardevs().list().into_iter().find(|row| &*row.name == id);
            let pty = made.and_then(|row| row.back.peer().place.strip_prefix("pty:").map(str::to_owned));
            Ok(pty.map_or_else(|| json!({}), |pty| json!({ "pty": pty })).into())
        },
    },
    Command {
        name: "chardev-remove",
        doc: "Removes a character back end that no front end has",
        params: &[param("id", Kind::String, "Name of the back end")],
        open: false,
        run: |control, arguments| {
            control.chardevs().remove(arguments.text("id"))?;
            Ok(nothing())
        },
    },
    Command {
        name: "ringbuf-read",
        doc: "Takes the oldest bytes out of a ringbuf back end; what is no UTF-8 is replaced, unless the format is base64",
        params: &[
            param("device", Kind::String, "Name of the back end"),
            param("size", Kind::Integer, "How many bytes at most"),
            optional("format", Kind::String, "utf8 (the default) or base64"),
        ],
        open: false,
        run: |control, arguments| {
            let size = arguments.number("size").unwrap_or(0).min(MAX_READ);
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            let encode: fn(&[u8]) -> String = match arguments.text("format") {
                "" | "utf8" => |bytes| String::from_utf8_lossy(bytes).into_owned(),
                "base64" => base64,
                other => return Err(Failure::generic(format!("Parameter 'format' does not accept value '{other}'"))),
            };
            with_ring(control, &arguments, |back| back.ring().map(|ring| encode(&ring.read(size)).into()))
        },
    },
    Command {
        name: "ringbuf-write",
        doc: "Adds text to a ringbuf back end",
        params: &[param("device", Kind::String, "Name of the back end"), param("data", Kind::String, "The text")],
        open: false,
        run: |control, arguments| {
            let data = arguments.text("data").to_owned();
            with_ring(control, &arguments, |back| {
                back.ring().map(|ring| {
                    ring.write(data.as_bytes());
                    json!({})
                })
            })
        },
    },
];

fn with_ring(
    control: &mut dyn Control,
    arguments: &Arguments,
    run: impl FnOnce(&dyn Chardev) -> Option<Value>,
) -> Result<super::Reply, Failure> {
    let name = arguments.text("device");
    let row = control.chardevs().list().into_iter().find(|row| &*row.name == name);
    let row = row.ok_or_else(|| Failure::generic(format!("Device '{name}' not found")))?;
    let done = run(&*row.back).ok_or_else(|| Failure::generic(format!("{name} is not a ringbuf device")))?;
    Ok(done.into())
}

/// What `--chardev` would have, of QEMU's form: nested, with an address as an object of its own, `out` for a file's path.
fn of_qapi(arguments: &Arguments) -> Result<Value, Failure> {
    let missing = |name: &str| Failure::generic(format!("Parameter '{name}' is missing"));
    let backend = arguments.object("backend");
    let of_type = backend.get("type").and_then(Value::as_str).ok_or_else(|| missing("backend.type"))?;
    let mut out = Map::new();
    for (key, value) in backend.get("data").and_then(Value::as_object).into_iter().flatten() {
        match (of_type, key.as_str()) {
            ("file", "out") => drop(out.insert("path".into(), value.clone())),
            ("file", "in") => drop(out.insert("input-path".into(), value.clone())),
            ("socket", "addr") => out.extend(value.get("data").and_then(Value::as_object).cloned().unwrap_or_default()),
            _ => drop(out.insert(key.clone(), value.clone())),
        }
    }
    if of_type == "socket" {
        // QAPI's default of `server` is true, and a running guest waits for nobody.
        let server = *out.entry("server").or_insert(Value::Bool(true)) == Value::Bool(true);
        if server {
            out.entry("wait").or_insert(Value::Bool(false));
        }
    }
    out.insert(CHARDEVS.key.into(), of_type.into());
    out.insert("id".into(), arguments.text("id").into());
    Ok(Value::Object(out))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            out.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(backend: Value) -> Result<Value, Failure> {
        let Value::Object(map) = json!({ "id": "c0", "backend": backend }) else { unreachable!() };
        of_qapi(&Arguments(map))
    }

    #[test]
    fn qemu_s_form_becomes_that_of_the_command_line() {
        for (backend, expected) in [
            (json!({"type": "null", "data": {}}), json!({"backend": "null", "id": "c0"})),
            (json!({"type": "pty"}), json!({"backend": "pty", "id": "c0"})),
            (
                json!({"type": "file", "data": {"out": "/tmp/a", "in": "/tmp/b", "append": true}}),
                json!({"backend": "file", "id": "c0", "path": "/tmp/a", "input-path": "/tmp/b", "append": true}),
            ),
            (
                json!({"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": "/a"}}}}),
                json!({"backend": "socket", "id": "c0", "path": "/a", "server": true, "wait": false}),
            ),
            (
                json!({"type": "socket", "data": {"addr": {"type": "inet", "data": {"host": "h", "port": "1"}}, "server": false}}),
                json!({"backend": "socket", "id": "c0", "host": "h", "port": "1", "server": false}),
            ),
        ] {
            let made = given(backend).unwrap();
            assert_eq!(made, expected);
            let args = Args::parse("--chardev", Some("backend"), &made.to_string()).unwrap();
            crate::object::Catalogue::check(&CHARDEVS, &args).unwrap();
        }
        assert!(given(json!({})).unwrap_err().text.contains("backend.type"));
    }

    #[test]
    fn bytes_as_base64() {
        for (bytes, text) in
            [(&b""[..], ""), (b"f", "Zg=="), (b"fo", "Zm8="), (b"foo", "Zm9v"), (b"\xff\xff\xfe", "///+")]
        {
            assert_eq!(base64(bytes), text);
        }
    }
}
