//! The registry of diagnostic codes: code, title, exit code of a program that ends with it.
//!
//! Each code has one paragraph in `runner/docs/errors.md` and each code that the sources use stands here: tests below
//! check both. A code is never used again for something else. Exit codes follow from codes and from nothing else, so
//! a code that were used for two things would show as a wrong exit code.

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
    code("LMB0118", 78, "setting refused by the schema"),
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
    code("LMB0213", 78, "run that cannot be gone on from"),
    code("LMB0220", 0, "declared and not used"),
    code("LMB0221", 0, "scheduler state dropped"),
    code("LMB0222", 0, "best student of a stream"),
    code("LMB0223", 0, "f32 instead of bf16"),
    code("LMB0224", 0, "negative weight"),
    code("LMB0230", 78, "source that does not exist"),
    code("LMB0231", 78, "port without a source"),
    code("LMB0232", 78, "port that does not exist"),
    code("LMB0233", 78, "shapes differ"),
    code("LMB0234", 78, "element types differ"),
    code("LMB0235", 78, "cycle between models"),
    code("LMB0236", 78, "two owners of one thing"),
    code("LMB0237", 78, "plugin of another kind"),
    code("LMB0238", 78, "input without a gradient"),
    code("LMB0239", 78, "row group that does not exist"),
    code("LMB0240", 78, "plugin is not deterministic"),
    code("LMB0241", 78, "no teacher to read from"),
    code("LMB0242", 0, "optional port left unbound"),
    code("LMB0243", 78, "tokenizer does not fit the model"),
    code("LMB0244", 78, "teacher cache is stale"),
    code("LMB0245", 0, "tokenizer of fewer tokens"),
    code("LMB0250", 78, "tasks that do not fit the scenario"),
    code("LMB0251", 78, "buffer without room for each class"),
    code("LMB0301", 77, "built for another ABI"),
    code("LMB0302", 77, "plugin file missing"),
    code("LMB0303", 77, "not a plugin"),
    code("LMB0304", 76, "manifest and library disagree"),
    code("LMB0305", 77, "plugin not locked"),
    code("LMB0306", 77, "plugin changed since it was locked"),
    code("LMB0307", 77, "plugin in an unsafe place"),
    code("LMB0308", 77, "plugin cannot be opened"),
    code("LMB0309", 0, "plugin id offered twice"),
    code("LMB0310", 77, "lock cannot be read"),
    code("LMB0311", 76, "plugin failed to start"),
    code("LMB0312", 74, "plugin cannot be staged"),
    code("LMB0313", 77, "plugin needs a newer program"),
    code("LMB0314", 77, "plugin of another version"),
    code("LMB0315", 78, "no such plugin"),
    code("LMB0316", 66, "input of a plugin missing"),
    code("LMB0317", 0, "unlocked plugin allowed"),
    code("LMB0318", 77, "input changed since it was locked"),
    code("LMB0401", 76, "plugin reported an error"),
    code("LMB0402", 76, "plugin broke its contract"),
    code("LMB0403", 76, "plugin panicked"),
    code("LMB0404", 78, "plugin refused a setting"),
    code("LMB0405", 69, "plugin out of memory"),
    code("LMB0406", 75, "plugin call was cancelled"),
    code("LMB0407", 65, "plugin met malformed data"),
    code("LMB0408", 66, "plugin misses an input"),
    code("LMB0409", 69, "plugin lost its device"),
    code("LMB0410", 74, "plugin could not read or write"),
    code("LMB0411", 79, "plugin met a number that is not finite"),
    code("LMB0412", 0, "plugin call takes long"),
    code("LMB0501", 66, "data file missing"),
    code("LMB0502", 66, "data file cannot be read"),
    code("LMB0503", 65, "broken compressed file"),
    code("LMB0504", 65, "data is not UTF-8"),
    code("LMB0505", 65, "column missing in the data"),
    code("LMB0506", 65, "not a number"),
    code("LMB0507", 65, "not a class number"),
    code("LMB0508", 65, "wrong number of values"),
    code("LMB0509", 65, "broken row"),
    code("LMB0510", 65, "file is not of this format"),
    code("LMB0511", 65, "file is cut or too long"),
    code("LMB0512", 65, "rows reach past the end"),
    code("LMB0513", 65, "no rows left"),
    code("LMB0514", 65, "columns differ in rows"),
    code("LMB0515", 78, "text without a tokenizer"),
    code("LMB0516", 65, "tokenizer cannot be used"),
    code("LMB0517", 78, "dataset asks for the impossible"),
    code("LMB0518", 65, "value missing"),
    code("LMB0519", 65, "rows do not fit the models"),
    code("LMB0520", 65, "teacher cache cannot be used"),
    code("LMB0601", 79, "non-finite number in training"),
    code("LMB0602", 79, "gate missed"),
    code("LMB0701", 74, "no space left"),
    code("LMB0702", 74, "cannot write"),
    code("LMB0703", 73, "run owned by another process"),
    code("LMB0704", 0, "checkpoint not whole"),
    code("LMB0705", 65, "no whole checkpoint"),
    code("LMB0706", 66, "no such run"),
    code("LMB0707", 78, "inputs changed since the checkpoint"),
    code("LMB0708", 78, "run of another pipeline"),
    code("LMB0709", 65, "checkpoint cannot be used"),
    code("LMB0710", 66, "student not trained yet"),
    code("LMB0711", 73, "output cannot be created"),
    code("LMB0741", 73, "export would overwrite something"),
    code("LMB0742", 74, "export cannot be written"),
    code("LMB0743", 74, "tracker cannot be written"),
    code("LMB0801", 69, "device not available"),
    code("LMB0802", 69, "the device failed"),
    code("LMB0803", 0, "continued on another device"),
    code("LMB0901", 70, "bug in Limbeck"),
    code("LMB1001", 2, "argument that does not fit"),
    code("LMB1002", 66, "directory cannot be entered"),
    code("LMB1003", 73, "output exists already"),
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
    fn the_error_guide_gives_each_code_the_registered_meaning_and_exit_code() {
        let guide = std::fs::read_to_string(root().join("runner/docs/errors.md"))
            .expect("runner/docs/errors.md");
        let headings: Vec<&str> = guide.lines().filter(|l| l.starts_with("**LMB")).collect();
        let registered: Vec<String> =
            CODES.iter().map(|c| format!("**{}** {} ({}).", c.code, c.title, c.exit)).collect();
        for (heading, registered) in headings.iter().zip(&registered) {
            assert!(heading.starts_with(registered), "`{heading}` explains `{registered}`");
        }
        assert_eq!(headings.len(), registered.len(), "a paragraph a code, in their order");
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
