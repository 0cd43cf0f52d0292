//! The pages of docs/: those that are made from the code are what the code makes, and no link leads nowhere.

use std::fs;
use std::path::{Path, PathBuf};

use passthru::backends::block::BLOCKDEVS;
use passthru::backends::chardev::CHARDEVS;
use passthru::backends::net::NETDEVS;
use passthru::cli::reference::{self, page};
use passthru::machine::types;

use crate::golden;

#[test]
fn the_page_of_devices_is_what_the_code_says() {
    let pages = [
        page("Machine types", &types::MACHINES),
        page("Device types", &types::DEVICES),
        page("Character back ends", &CHARDEVS),
        page("Block drivers", &BLOCKDEVS),
        page("Network back ends", &NETDEVS),
        page("Object types", &types::OBJECTS),
    ];
    golden::check_file("docs/devices.md", &reference::devices(&pages));
}

#[test]
fn the_page_of_errors_is_what_the_code_says() {
    golden::check_file("docs/troubleshooting.md", &reference::errors());
}

#[test]
fn the_page_of_the_control_socket_is_what_the_code_says() {
    golden::check_file("docs/qmp.md", &reference::qmp());
}

/// README and docs/.
fn pages(root: &Path) -> Vec<PathBuf> {
    let pages = fs::read_dir(root.join("docs")).expect("docs/").map(|entry| entry.expect("a page").path());
    pages.chain([root.join("README.md")]).filter(|path| path.extension() == Some("md".as_ref())).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = pages(root);
    assert!(pages.len() > 2, "{pages:?}");
    let mut dead = Vec::new();
    for page in &pages {
        let text = fs::read_to_string(page).expect("a page");
        for target in links(&text) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { page.clone() } else { page.with_file_name(file) };
            let found = match fs::read_to_string(&path) {
                Ok(text) => anchor.is_empty() || anchors(&text).any(|known| known == anchor),
                Err(_) => path.is_dir() && anchor.is_empty(),
            };
            if !found {
                dead.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "links that lead nowhere: {dead:#?}");
}

/// The targets of a page's links that stay in the repository.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://"))
}

/// The names by which links reach a page's headings: lower case, hyphens for spaces, other marks left out.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter(|line| line.starts_with('#')).map(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        title
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    })
}

/// Every command that a reader finds in a box is one that this build has, with these options.
#[test]
fn every_command_that_is_shown_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for page in pages(root) {
        let text = fs::read_to_string(&page).expect("a page");
        for command in commands(&text) {
            let words: Vec<&str> = command.split_whitespace().skip(1).take_while(|word| *word != "--").collect();
            // `rom inspect` and `img create` have help of their own.
            let help = [2, 1].into_iter().find_map(|depth| {
                let words = words.get(..depth)?;
                let plain = words.iter().all(|word| word.chars().all(|c| c.is_ascii_lowercase()));
                let output = golden::passthru().args(words).arg("--help").output().expect("passthru starts");
                (plain && output.status.success()).then(|| String::from_utf8_lossy(&output.stdout).into_owned())
            });
            let help = help.unwrap_or_else(|| panic!("{}: there is no `{command}`", page.display()));
            for word in words.iter().filter(|word| word.starts_with("--")) {
                let option = word.split('=').next().unwrap_or(word);
                assert!(help.contains(option), "{}: {option} is unknown in `{command}`", page.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 30, "only {seen} commands");
}

/// The lines of a page's boxes for the shell that begin with passthru, without their comments, each as one line.
fn commands(text: &str) -> Vec<String> {
    let boxes = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = boxes.map(|shell| shell.replace("\\\n", " "));
    let lines = lines.flat_map(|shell| shell.lines().map(str::to_owned).collect::<Vec<_>>());
    let plain = |line: String| line.split(" # ").next().unwrap_or_default().trim().to_owned();
    lines.map(plain).filter(|line| line.starts_with("passthru ")).collect()
}

#[test]
fn links_and_headings_are_read_as_they_are_shown() {
    let text = "# A page: the `first`\n[a](b.md#c) and [d](https://e.example/f)[g](h/)\n";
    assert_eq!(links(text).collect::<Vec<_>>(), ["b.md#c", "h/"]);
    assert_eq!(anchors(text).collect::<Vec<_>>(), ["a-page-the-first"]);
}
