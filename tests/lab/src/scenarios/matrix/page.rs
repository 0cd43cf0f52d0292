//! The matrix in docs/passthrough.md: every cell there is a result that a run asserts.

use super::{STEPS, rows};

/// Lines around the table.
const BEGIN: &str = "<!-- The matrix: `UPDATE_GOLDEN=1 cargo test -p lab` writes it. -->\n";
const END: &str = "<!-- End of the matrix. -->\n";

/// The table as Markdown.
fn table() -> String {
    let columns = ["device", "driver", "what it does each time"].iter().chain(STEPS);
    let mut out = format!("| {} |\n", columns.copied().collect::<Vec<_>>().join(" | "));
    out += &format!("|{}\n", "---|".repeat(3 + STEPS.len()));
    for row in rows::ALL.iter().copied().flatten() {
        let driver = if row.driver.is_empty() { row.modules } else { row.driver };
        out += &format!("| {} | {driver} | {} |{}\n", row.name, row.work.about(), " yes |".repeat(STEPS.len()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_matrix() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/passthrough.md");
        let page = std::fs::read_to_string(file).unwrap();
        let (before, rest) = page.split_once(BEGIN).expect("the page has no place for the matrix");
        let (old, after) = rest.split_once(END).expect("the matrix has no end");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(file, format!("{before}{BEGIN}{}{END}{after}", table())).unwrap();
        } else {
            assert_eq!(old, table(), "UPDATE_GOLDEN=1 cargo test -p lab writes the page");
        }
    }
}
