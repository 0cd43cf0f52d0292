//! Finds the Debian mirror in the machine's own apt configuration, so that the lab
//! downloads from where the machine's owner wants it to. Reads both formats of
//! sources.list(5): one line each (`.list`) and deb822 (`.sources`).

use std::path::Path;

use anyhow::{Result, bail};

/// Where Debian packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    pub uri: String,
    /// Keyring given by `Signed-By`, if it is a file.
    pub signed_by: Option<String>,
}

impl Mirror {
    /// The line of sources.list(5) for the lab's release.
    pub fn line(&self) -> String {
        let options = self.signed_by.as_ref().map_or(String::new(), |key| format!("[signed-by={key}] "));
        format!("deb {options}{} {} main", self.uri, super::recipe::SUITE)
    }
}

/// Suites that mark an entry as Debian's main archive.
const SUITES: &[&str] = &["bookworm", "trixie", "stable", "testing", "sid", "forky"];

/// The first usable mirror of `/etc/apt`.
pub fn find_mirror(etc_apt: &Path) -> Result<Mirror> {
    let mut files = vec![etc_apt.join("sources.list")];
    if let Ok(dir) = std::fs::read_dir(etc_apt.join("sources.list.d")) {
        files.extend(dir.flatten().map(|e| e.path()));
    }
    files.sort();
    for file in &files {
        let Ok(text) = std::fs::read_to_string(file) else {
            continue;
        };
        let found = match file.extension().and_then(|e| e.to_str()) {
            Some("list") => parse_list(&text),
            Some("sources") => parse_deb822(&text),
            _ => None,
        };
        if let Some(mirror) = found {
            return Ok(mirror);
        }
    }
    bail!("no Debian mirror found in {}: the lab needs an entry for bookworm or trixie main", etc_apt.display())
}

/// One-line format: `deb [options] URI suite component...`
fn parse_list(text: &str) -> Option<Mirror> {
    text.lines().find_map(|line| {
        let line = line.split('#').next()?.trim();
        let mut rest = line.strip_prefix("deb")?.trim_start();
        if rest.len() == line.len() - 3 {
            return None; // deb-src and the like
        }
        let mut signed_by = None;
        if let Some(inner) = rest.strip_prefix('[') {
            let (options, after) = inner.split_once(']')?;
            signed_by = options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(str::to_owned);
            rest = after.trim_start();
        }
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        choose(&[uri], &[suite], &words.collect::<Vec<_>>(), signed_by)
    })
}

/// deb822 format: stanzas of `Key: values`, separated by empty lines.
fn parse_deb822(text: &str) -> Option<Mirror> {
    let mut stanza: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            if let Some(mirror) = from_stanza(&stanza) {
                return Some(mirror);
            }
            stanza.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((key, value)) = line.split_once(':') {
            stanza.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    None
}

fn from_stanza(stanza: &[(String, String)]) -> Option<Mirror> {
    let get = |key: &str| {
        let value = stanza.iter().find(|(k, _)| k == key).map(|(_, v)| v);
        value.map_or("", String::as_str)
    };
    let words = |key: &str| get(key).split_whitespace().collect::<Vec<_>>();
    if !words("types").contains(&"deb") || get("enabled").eq_ignore_ascii_case("no") {
        return None;
    }
    let signed_by = get("signed-by");
    let keyring = signed_by.starts_with('/').then(|| signed_by.to_owned());
    choose(&words("uris"), &words("suites"), &words("components"), keyring)
}

/// Takes an entry if it is Debian's main archive (not security, not updates alone).
fn choose(uris: &[&str], suites: &[&str], components: &[&str], signed_by: Option<String>) -> Option<Mirror> {
    let main = components.contains(&"main") && suites.iter().any(|s| SUITES.contains(s));
    let uri = uris.iter().find(|u| {
        (u.starts_with("http://") || u.starts_with("https://") || u.starts_with("file:")) && !u.contains("security")
    })?;
    main.then(|| Mirror { uri: uri.trim_end_matches('/').to_owned(), signed_by })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(uri: &str, key: Option<&str>) -> Option<Mirror> {
        Some(Mirror { uri: uri.into(), signed_by: key.map(str::to_owned) })
    }

    #[test]
    fn one_line_format() {
        let cases = [
            ("deb http://m.example/debian bookworm main contrib\n", mirror("http://m.example/debian", None)),
            (
                "# deb http://old/ x main\ndeb-src http://m.example/debian trixie main\n\
                 deb [arch=amd64 signed-by=/k.gpg] https://m.example/debian/ trixie main # own\n",
                mirror("https://m.example/debian", Some("/k.gpg")),
            ),
            ("deb http://m.example/debian-security bookworm-security main", None),
            ("deb http://m.example/other jammy main", None),
            ("debx\ndeb\ndeb [broken", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_list(text), expected, "{text}");
        }
    }

    #[test]
    fn deb822_format() {
        let text = "Types: deb\nURIs: http://m.example/debian-security\nSuites: trixie-security\nComponents: main\n\n\
            # comment\nTypes: deb deb-src\n# http://snapshot\nURIs:\n http://m.example/debian\nSuites: trixie\n trixie-updates\n\
            Components: main\nSigned-By: /usr/share/keyrings/k.gpg\n";
        assert_eq!(parse_deb822(text), mirror("http://m.example/debian", Some("/usr/share/keyrings/k.gpg")));
        assert_eq!(parse_deb822(&text.replace("Types:", "Enabled: no\nTypes:")), None);
    }

    #[test]
    fn looks_into_both_places() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find_mirror(dir.path()).is_err());
        std::fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        std::fs::write(dir.path().join("sources.list.d/x.list"), "deb http://m.example/debian trixie main").unwrap();
        assert_eq!(find_mirror(dir.path()).ok(), mirror("http://m.example/debian", None));
    }
}
