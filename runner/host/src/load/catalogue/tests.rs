//! Discovery over real files: order, trust, damage.

use super::super::lock::{FILE_NAME, Lock};
use super::super::testing::{PLUGINS, compile, search};
use super::super::{manifest, staging};
use super::*;
use serde_json::json;

fn locked(dir: &Path, file: &Path) -> SearchPath {
    let opened = staging::open(file, true).unwrap();
    let mut lock = Lock::default();
    lock.pin(&manifest::read(&opened.bytes).unwrap(), &opened);
    lock.save(&dir.join(FILE_NAME)).unwrap();
    in_directory(dir)
}

fn in_directory(dir: &Path) -> SearchPath {
    SearchPath {
        directories: vec![dir.to_owned()],
        lock: Some(dir.join(FILE_NAME)),
        cache: Some(dir.join("cache")),
        ..SearchPath::default()
    }
}

fn pinned(dir: &Path, file: &Path, id: &str, version: Option<&str>) -> SearchPath {
    let pinned = vec![PinnedPlugin {
        id: id.into(),
        path: file.into(),
        version: version.map(Into::into),
        span: None,
    }];
    SearchPath { pinned, directories: Vec::new(), ..in_directory(dir) }
}

fn refusal(search: &SearchPath) -> Diagnostic {
    Catalogue::discover(search).err().unwrap().remove(0)
}

#[test]
fn a_library_beside_the_executable_needs_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    compile(dir.path(), "plugins", PLUGINS, &[]);
    let (catalogue, warnings) = Catalogue::discover(&search(dir.path())).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let ids: Vec<&str> = catalogue.plugins().map(|p| p.id.as_str()).collect();
    assert_eq!(ids, ["test.keeper", "test.linear", "test.mse", "test.pass"]);
    let info = catalogue.find("test.mse").unwrap();
    assert_eq!(
        (info.kind, info.abi, info.found.as_str()),
        (PluginKind::Loss, (1, 0), "beside the executable")
    );
    assert_eq!(info.sha256.len(), 64);
    // Discovering again opens nothing twice: `init` fails the second time it is called.
    let (again, _) = Catalogue::discover(&search(dir.path())).unwrap();
    assert!(again.find("test.mse").is_some());
}

#[test]
fn an_unlocked_plugin_is_named_with_its_hash_and_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let file = compile(dir.path(), "plugins", PLUGINS, &[]);
    let (catalogue, warnings) = Catalogue::discover(&in_directory(dir.path())).unwrap();
    assert_eq!(warnings[0].code, "LMB0305");
    assert!(catalogue.find("test.mse").is_none());
    let why = catalogue.missing("test.mse");
    assert_eq!(why.code, "LMB0305");
    assert!(why.notes[0].contains(&staging::open(&file, true).unwrap().sha256));
    assert!(why.help.as_ref().unwrap().contains("limbeck plugin lock"));
    assert_eq!(refusal(&pinned(dir.path(), &file, "test.mse", None)).code, "LMB0305");
    let allowed = SearchPath { allow_unlocked: true, ..in_directory(dir.path()) };
    let (catalogue, warnings) = Catalogue::discover(&allowed).unwrap();
    assert!(warnings.iter().all(|w| w.code == "LMB0317"));
    assert_eq!(catalogue.unlocked().len(), 4);
}

#[test]
fn a_locked_plugin_loads_until_a_byte_of_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let file = compile(dir.path(), "plugins", PLUGINS, &[]);
    let search = locked(dir.path(), &file);
    let (catalogue, warnings) = Catalogue::discover(&search).unwrap();
    assert!(warnings.is_empty() && catalogue.find("test.mse").is_some(), "{warnings:?}");
    compile(dir.path(), "plugins", PLUGINS, &["VERSION=\"0.1.1\""]);
    let (catalogue, warnings) = Catalogue::discover(&search).unwrap();
    assert_eq!(warnings[0].code, "LMB0306");
    assert_eq!(warnings[0].notes.len(), 2, "both hashes");
    assert!(catalogue.find("test.mse").is_none());
    assert_eq!(catalogue.refused().count(), 4);
}

#[test]
fn a_pinned_plugin_must_offer_the_id_in_the_wanted_version() {
    let dir = tempfile::tempdir().unwrap();
    let file = compile(dir.path(), "plugins", PLUGINS, &[]);
    locked(dir.path(), &file);
    assert!(Catalogue::discover(&pinned(dir.path(), &file, "test.mse", Some("^0.1"))).is_ok());
    for (id, version) in
        [("test.other", None), ("test.mse", Some("^0.2")), ("test.mse", Some("newest"))]
    {
        assert_eq!(
            refusal(&pinned(dir.path(), &file, id, version)).code,
            "LMB0314",
            "{id} {version:?}"
        );
    }
    let nowhere = dir.path().join("libnone.so");
    assert_eq!(refusal(&pinned(dir.path(), &nowhere, "test.mse", None)).code, "LMB0302");
}

#[test]
fn another_abi_major_is_refused_before_any_code_runs() {
    let dir = tempfile::tempdir().unwrap();
    compile(dir.path(), "plugins", PLUGINS, &["MANIFEST_ABI=\"[2,0]\""]);
    let (catalogue, warnings) = Catalogue::discover(&search(dir.path())).unwrap();
    assert_eq!(warnings[0].code, "LMB0301");
    assert!(
        warnings[0].message.contains("ABI 2.0, this program speaks 1.0; not loaded"),
        "{warnings:?}"
    );
    assert_eq!(catalogue.missing("test.mse").code, "LMB0301");
}

#[test]
fn a_manifest_that_names_more_than_the_library_offers_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    compile(dir.path(), "plugins", PLUGINS, &["OFFERED=3"]);
    let (_, warnings) = Catalogue::discover(&search(dir.path())).unwrap();
    assert_eq!(warnings[0].code, "LMB0304");
    assert!(warnings[0].message.contains("test.keeper"), "{warnings:?}");
}

#[test]
fn the_first_place_serves_an_id_and_the_second_is_named() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    compile(one.path(), "a", PLUGINS, &[]);
    compile(two.path(), "b", PLUGINS, &["VERSION=\"0.3.0\""]);
    let both = SearchPath {
        data: vec![two.path().to_owned()],
        allow_unlocked: true,
        ..search(one.path())
    };
    let (catalogue, warnings) = Catalogue::discover(&both).unwrap();
    assert_eq!(catalogue.find("test.mse").unwrap().version, "0.1.0");
    assert_eq!(warnings.len(), 4);
    assert!(warnings.iter().all(|w| w.code == "LMB0309"), "{warnings:?}");
}

#[test]
fn other_libraries_and_damaged_files_do_not_disturb() {
    let dir = tempfile::tempdir().unwrap();
    compile(dir.path(), "other", "int answer(void); int answer(void) { return 42; }", &[]);
    std::fs::write(dir.path().join("libtext.so"), "not a library").unwrap();
    std::fs::write(dir.path().join("libcut.so"), b"\x7fELF\x02\x01\x01").unwrap();
    let torn =
        "static const char m[] __attribute__((used, section(\".lmb_manifest\"))) = \"LMBMANI1{\";";
    compile(dir.path(), "torn", torn, &[]);
    let (catalogue, warnings) = Catalogue::discover(&search(dir.path())).unwrap();
    assert_eq!(catalogue.plugins().count(), 0);
    assert_eq!(warnings.iter().map(|w| w.code).collect::<Vec<_>>(), ["LMB0303"]);
}

#[test]
fn a_library_that_cannot_be_opened_says_what_the_loader_said() {
    let dir = tempfile::tempdir().unwrap();
    let source = "#include \"limbeck.h\"\nLMB_MANIFEST(\"{\\\"abi\\\":[1,0],\\\"plugins\\\":[{\\\"id\\\":\\\"x.y\\\",\\\"kind\\\":\\\"loss\\\",\\\"version\\\":\\\"1.0.0\\\"}]}\")\n";
    compile(dir.path(), "noentry", source, &[]);
    let lazy = format!(
        "{source}extern int nowhere(void);\nLMB_EXPORT int f(void); int f(void) {{ return nowhere(); }}\n"
    );
    compile(dir.path(), "unresolved", &lazy.replace("x.y", "x.z"), &[]);
    let (_, warnings) = Catalogue::discover(&search(dir.path())).unwrap();
    assert_eq!(warnings.len(), 2);
    assert!(warnings.iter().all(|w| w.code == "LMB0308"), "{warnings:?}");
    assert!(warnings[0].message.contains("exports no `lmb_module_v1`"), "{warnings:?}");
    assert!(warnings[1].message.contains("nowhere"), "{warnings:?}");
}

#[test]
fn settings_are_checked_and_a_refusal_of_the_plugin_keeps_its_pointer() {
    let (_dir, catalogue) = super::super::testing::catalogue(&[]);
    let with = catalogue.check_settings("test.mse", &json!({})).unwrap();
    assert_eq!(with, json!({"width": 4, "panic": false, "forget": false}));
    let errors = catalogue.check_settings("test.mse", &json!({"widht": 3})).unwrap_err();
    assert_eq!(
        errors[0].diagnostic.help.as_deref(),
        Some("did you mean `width`? (integer >= 1, default 4)")
    );
    let error = catalogue.create("test.mse", &json!({"width": 13})).err().unwrap();
    assert_eq!((error.status, error.note("pointer")), (abi::STATUS_INVALID_CONFIG, Some("/width")));
    assert_eq!(error.diagnostic().code, "LMB0404");
    let unknown = catalogue.check_settings("test.msee", &json!({})).unwrap_err();
    assert_eq!(unknown[0].diagnostic.help.as_deref(), Some("did you mean `test.mse`?"));
    assert_eq!(
        catalogue.create("nothing.here", &json!({})).err().unwrap().status,
        abi::STATUS_NOT_FOUND
    );
}

#[test]
fn the_elf_facts_show_one_export() {
    let dir = tempfile::tempdir().unwrap();
    let file = compile(dir.path(), "plugins", PLUGINS, &[]);
    let facts = manifest::elf_facts(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(facts.exports, ["lmb_module_v1"]);
    assert!(facts.needed.iter().any(|n| n.starts_with("libc.so")), "{facts:?}");
    assert!(
        !facts.exec_stack && !facts.text_relocations && facts.unique_symbols.is_empty(),
        "{facts:?}"
    );
    assert!(facts.glibc.is_some_and(|v| v >= (2, 2)));
}
