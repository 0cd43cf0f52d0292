//! "Did you mean": the known word that is nearest to a mistyped one.

/// Words longer than this are not compared: the comparison costs the product of the two lengths.
const MAX_COMPARED: usize = 64;

/// The word of `known` that `word` most likely stands for, if any is near enough to be worth a hint.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = |candidate: &&str| {
        let distance = distance(word, candidate)?;
        let longest = word.chars().count().max(candidate.chars().count());
        (distance <= longest.div_ceil(3)).then_some(distance)
    };
    let mut best: Option<(usize, &str)> = None;
    for candidate in known {
        if let Some(found) = near(&candidate)
            && best.is_none_or(|(smallest, _)| found < smallest)
        {
            best = Some((found, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// The end of a sentence about an unknown word: `, did you mean "..."?`, or nothing.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map(|candidate| format!(", did you mean `{candidate}`?")).unwrap_or_default()
}

/// How many letters must be inserted, removed, changed or swapped with their neighbour to make `b` of `a` (optimal
/// string alignment), without regard to case and with `_` equal to `-`. None for words too long to compare.
fn distance(a: &str, b: &str) -> Option<usize> {
    let fold = |word: &str| -> Vec<char> {
        word.chars().map(|c| if c == '_' { '-' } else { c.to_ascii_lowercase() }).take(MAX_COMPARED + 1).collect()
    };
    let (a, b) = (fold(a), fold(b));
    if a.len() > MAX_COMPARED || b.len() > MAX_COMPARED {
        return None;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for j in 0..b.len() {
            let changed = above[j] + usize::from(a[i] != b[j]);
            let mut least = changed.min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "", 0),
            ("host", "host", 0),
            ("hots", "host", 1),
            ("hst", "host", 1),
            ("Host", "host", 0),
            ("max_bytes", "max-bytes", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), Some(expected), "{a} {b}");
            assert_eq!(distance(b, a), Some(expected), "{b} {a}");
        }
    }

    #[test]
    fn a_hint_is_given_only_for_near_words() {
        let known = ["vfio-pci", "pcie-root-port", "id", "host"];
        assert_eq!(nearest("vfio", known), None);
        assert_eq!(nearest("vfio_pci", known), Some("vfio-pci"));
        assert_eq!(nearest("pci-root-port", known), Some("pcie-root-port"));
        assert_eq!(nearest("i", known), Some("id"));
        assert_eq!(nearest("zz", known), None);
        assert_eq!(nearest("hots", known), Some("host"));
        assert_eq!(nearest("x", []), None);
        assert_eq!(did_you_mean("hots", known), ", did you mean `host`?");
        assert_eq!(did_you_mean("nothing-like-it", known), "");
    }

    #[test]
    fn long_words_are_not_compared() {
        let long = "x".repeat(100_000);
        assert_eq!(nearest(&long, [long.as_str()]), None);
    }
}
