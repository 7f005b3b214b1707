//! The boundary's promises: the header compiles cleanly, C and Rust agree on every byte, and old and new sides mix.

mod growth;
mod layout;

use crate::support::{cc, temp_dir};

const STRICT: &[&str] = &["-Wall", "-Wextra", "-pedantic", "-Wpadded", "-Werror", "-fsyntax-only"];

fn compile_alone(file_name: &str) -> Result<(), String> {
    let folder = temp_dir();
    let file = folder.path().join(file_name);
    std::fs::write(&file, "#include \"limbeck.h\"\nint main(void) { return 0; }\n").expect("write");
    // DLPack is another project's file: its own padding is not this header's.
    let theirs = format!("-isystem{}", cc::include().display());
    let copy = folder.path().join("limbeck.h");
    std::fs::copy(cc::include().join("limbeck.h"), &copy).expect("copy");
    let here = format!("-I{}", folder.path().display());
    let mut args = STRICT.to_vec();
    args.extend([here.as_str(), theirs.as_str()]);
    cc::run(&file, &args)
}

#[test]
fn header_is_clean_c99_without_hidden_padding() {
    compile_alone("alone.c").unwrap_or_else(|text| panic!("{text}"));
}

#[test]
fn header_is_clean_cpp11() {
    compile_alone("alone.cpp").unwrap_or_else(|text| panic!("{text}"));
}

#[test]
fn strict_flags_see_a_padded_struct() {
    let folder = temp_dir();
    let file = folder.path().join("padded.c");
    std::fs::write(&file, "struct padded { char a; long b; };\nint main(void) { return (int)sizeof(struct padded); }\n")
        .expect("write");
    assert!(cc::run(&file, STRICT).is_err(), "-Wpadded would not notice a hole");
}
