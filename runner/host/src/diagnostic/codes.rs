//! The registry of diagnostic codes: code, title, exit code of a program that ends with it.
//!
//! Each code has one paragraph in `runner/docs/errors.md` and each code that the sources use stands here: tests below
//! check both. A code is never used again for something else.

/// One code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// `LMB0101`.
    pub code: &'static str,
    /// A few words.
    pub title: &'static str,
    /// Exit code of the program when this error ends it.
    pub exit: u8,
}

const fn code(code: &'static str, exit: u8, title: &'static str) -> Code {
    Code { code, title, exit }
}

/// Every code, sorted.
pub const CODES: &[Code] = &[
    code("LMB0100", 78, "not valid YAML"),
    code("LMB0101", 78, "unknown key"),
    code("LMB0102", 78, "missing key"),
    code("LMB0103", 78, "wrong type"),
    code("LMB0104", 78, "not a text file"),
    code("LMB0105", 78, "value out of range"),
    code("LMB0106", 78, "not one of the choices"),
    code("LMB0107", 78, "key given twice"),
    code("LMB0108", 78, "file over its limits"),
    code("LMB0109", 78, "YAML that pipelines do not use"),
    code("LMB0110", 78, "in a later release"),
    code("LMB0111", 78, "not an amount"),
    code("LMB0112", 78, "--set leads nowhere"),
    code("LMB0113", 78, "keys exclude each other"),
    code("LMB0114", 78, "not a name"),
    code("LMB0115", 78, "merge key without a mapping"),
    code("LMB0116", 78, "unknown pipeline version"),
    code("LMB0117", 66, "pipeline cannot be read"),
    code("LMB0201", 78, "reference to something undeclared"),
    code("LMB0202", 78, "reference to a later stage"),
    code("LMB0203", 78, "kind and teacher do not agree"),
    code("LMB0204", 78, "layer that is not there"),
    code("LMB0205", 78, "name given twice"),
    code("LMB0206", 78, "metric that is not measured"),
    code("LMB0207", 78, "stage without such a student"),
    code("LMB0208", 78, "scheduler state without its student"),
    code("LMB0209", 78, "dataset cannot serve here"),
    code("LMB0211", 78, "vocabularies differ"),
    code("LMB0212", 78, "tokenizers differ"),
    code("LMB0220", 0, "declared and not used"),
    code("LMB0221", 0, "scheduler state dropped"),
    code("LMB0222", 0, "best student of a stream"),
    code("LMB0223", 0, "f32 instead of bf16"),
];

/// The entry of a code.
pub fn find(code: &str) -> Option<&'static Code> {
    CODES.binary_search_by_key(&code, |c| c.code).ok().and_then(|i| CODES.get(i))
}

/// Exit code for an error with this code; 70 (a bug) for a code that nobody registered.
pub fn exit(code: &str) -> u8 {
    find(code).map_or(70, |c| c.exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                sources(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }

    /// Codes in a text: `LMB` and four digits.
    fn codes_in(text: &str) -> BTreeSet<String> {
        text.match_indices("LMB")
            .filter_map(|(at, _)| text.get(at..at + 7))
            .filter(|c| c[3..].bytes().all(|b| b.is_ascii_digit()))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn codes_are_sorted_and_unique() {
        assert!(CODES.windows(2).all(|w| w[0].code < w[1].code));
        assert_eq!(find("LMB0101").map(|c| c.title), Some("unknown key"));
        assert_eq!(exit("LMB9999"), 70);
    }

    #[test]
    fn each_code_has_one_paragraph_in_the_error_guide() {
        let guide = std::fs::read_to_string(root().join("runner/docs/errors.md"))
            .expect("runner/docs/errors.md");
        for code in CODES {
            let headings =
                guide.lines().filter(|l| l.starts_with(&format!("**{}** ", code.code))).count();
            assert_eq!(
                headings, 1,
                "{} needs exactly one paragraph in runner/docs/errors.md",
                code.code
            );
        }
        let unknown: Vec<_> = codes_in(&guide).into_iter().filter(|c| find(c).is_none()).collect();
        assert!(unknown.is_empty(), "explained but not registered: {unknown:?}");
    }

    #[test]
    fn each_code_in_the_sources_is_registered() {
        let mut files = Vec::new();
        sources(&root().join("runner"), &mut files);
        assert!(files.len() > 20, "found only {} sources", files.len());
        let mut missing = BTreeSet::new();
        for file in files {
            let text = std::fs::read_to_string(&file).expect("readable");
            missing.extend(
                codes_in(&text).into_iter().filter(|c| find(c).is_none() && c != "LMB9999"),
            );
        }
        assert!(missing.is_empty(), "used but not registered: {missing:?}");
    }
}
