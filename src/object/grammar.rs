//! The two written forms of an option's properties: QEMU's `type,key=value,flag`, and JSON as QEMU takes it
//! (`{"driver":"vfio-pci","host":"01:00.0"}`).

use serde_json::Value;

use super::Invalid;

/// The keys and values of `text` in their order. A first word without `=` is the value of `implied`; any other word
/// without `=` is a flag and has the value `on`.
pub(super) fn split(text: &str, implied: Option<&str>) -> Result<Vec<(String, String)>, Invalid> {
    if text.starts_with('{') { split_json(text) } else { split_commas(text, implied) }
}

/// QEMU's form: elements are separated by commas, a comma inside a value is written twice.
fn split_commas(text: &str, implied: Option<&str>) -> Result<Vec<(String, String)>, Invalid> {
    let mut entries = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let stop = rest.find(['=', ',']).unwrap_or(rest.len());
        let (head, tail) = rest.split_at(stop);
        let entry = if let Some(value) = tail.strip_prefix('=') {
            let (value, after) = take_value(value);
            rest = after;
            (head.to_owned(), value)
        } else {
            let (word, after) = take_value(rest);
            rest = after;
            match implied {
                Some(key) if entries.is_empty() => (key.to_owned(), word),
                _ => (word, "on".to_owned()),
            }
        };
        if entry.0.is_empty() {
            return Err(Invalid::expected("key=value pairs separated by commas (a comma in a value is written twice)"));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// The value at the start of `text`, up to the first single comma, and what follows that comma.
fn take_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    while let Some((part, after)) = rest.split_once(',') {
        value.push_str(part);
        match after.strip_prefix(',') {
            Some(more) => {
                value.push(',');
                rest = more;
            }
            None => return (value, after),
        }
    }
    value.push_str(rest);
    (value, "")
}

/// The JSON form: one object; nested objects and lists become dotted keys.
fn split_json(text: &str) -> Result<Vec<(String, String)>, Invalid> {
    let value = serde_json::from_str(text).map_err(|error| Invalid::new(format!("this is not JSON ({error})")))?;
    let mut entries = Vec::new();
    flatten(String::new(), value, &mut entries)?;
    Ok(entries)
}

/// Appends `value` under `key`. The depth of the recursion is bounded by serde_json's own limit (128).
fn flatten(key: String, value: Value, entries: &mut Vec<(String, String)>) -> Result<(), Invalid> {
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    let text = match value {
        Value::Object(members) => {
            return members.into_iter().try_for_each(|(name, member)| {
                if name.is_empty() {
                    return Err(Invalid::expected("a name for every member of the JSON object"));
                }
                flatten(below(&name), member, entries)
            });
        }
        Value::Array(items) => {
            return items
                .into_iter()
                .enumerate()
                .try_for_each(|(index, item)| flatten(below(&index.to_string()), item, entries));
        }
        Value::Null => return Err(Invalid::expected(format_args!("a value for `{key}`, not null"))),
        Value::Bool(on) => if on { "on" } else { "off" }.to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text,
    };
    entries.push((key, text));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(entries: &[(&str, &str)]) -> Vec<(String, String)> {
        entries.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn commas() {
        for (text, implied, expected) in [
            ("", Some("driver"), &[][..]),
            ("vfio-pci", Some("driver"), &[("driver", "vfio-pci")]),
            ("vfio-pci,host=01:00.0", Some("driver"), &[("driver", "vfio-pci"), ("host", "01:00.0")]),
            ("host=01:00.0,driver=vfio-pci", Some("driver"), &[("host", "01:00.0"), ("driver", "vfio-pci")]),
            ("x,flag,k=v", Some("driver"), &[("driver", "x"), ("flag", "on"), ("k", "v")]),
            ("flag", None, &[("flag", "on")]),
            ("path=/a,,b,,,c=d", None, &[("path", "/a,b,"), ("c", "d")]),
            ("a,,b,c=d", Some("path"), &[("path", "a,b"), ("c", "d")]),
            ("k=a=b", None, &[("k", "a=b")]),
            ("k=", None, &[("k", "")]),
            ("k=,l=1", None, &[("k", ""), ("l", "1")]),
            ("k=v,", None, &[("k", "v")]),
            ("a=1,a=2", None, &[("a", "1"), ("a", "2")]),
            ("a.b.c=1", None, &[("a.b.c", "1")]),
            (",a=1", Some("path"), &[("path", ""), ("a", "1")]),
        ] {
            assert_eq!(split(text, implied), Ok(pairs(expected)), "{text}");
        }
        for text in ["=v", "a=b,=v", ",", ",a"] {
            assert!(split(text, None).is_err(), "{text}");
        }
    }

    #[test]
    fn json() {
        let text = r#"{"driver":"vfio-pci","on":true,"off":false,"n":-5,"f":{"a":{"b":"x,y"}},"l":["p",{"q":1}]}"#;
        let mut entries = split(text, Some("driver")).unwrap();
        entries.sort();
        let expected = [
            ("driver", "vfio-pci"),
            ("f.a.b", "x,y"),
            ("l.0", "p"),
            ("l.1.q", "1"),
            ("n", "-5"),
            ("off", "off"),
            ("on", "on"),
        ];
        assert_eq!(entries, pairs(&expected));
        assert_eq!(split("{}", None), Ok(vec![]));
        for text in ["{", "{}x", r#"{"a":null}"#, r#"{"":1}"#, "{1:2}", &"{\"a\":".repeat(500)] {
            assert!(split(text, None).is_err(), "{text}");
        }
    }

    /// The inverse of [`split_commas`], for keys that hold neither `=` nor `,`.
    fn join(entries: &[(String, String)]) -> String {
        let written: Vec<String> =
            entries.iter().map(|(key, value)| format!("{key}={}", value.replace(',', ",,"))).collect();
        written.join(",")
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(entries in prop::collection::vec(("[a-z][a-z0-9._-]{0,8}", "\\PC{0,12}"), 0..6)) {
            prop_assert_eq!(split(&join(&entries), Some("implied")), Ok(entries));
        }

        #[test]
        fn no_text_panics(text in "[{}\\[\\]\":,=a?0-9é\\PC]{0,40}") {
            let _ = split(&text, Some("implied"));
            let _ = split(&text, None);
        }

        #[test]
        fn json_objects_are_read_back(entries in prop::collection::btree_map("[a-z]{1,8}", "\\PC{0,12}", 0..6)) {
            let text = serde_json::to_string(&entries).unwrap();
            let expected: Vec<(String, String)> = entries.into_iter().collect();
            prop_assert_eq!(split(&text, None), Ok(expected));
        }
    }
}
