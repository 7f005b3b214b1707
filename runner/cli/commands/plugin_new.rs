//! `limbeck plugin new NAME`.
//!
//! Writes sources only; never over something that exists.

use super::{Answer, Shell, Stop};
use crate::args::{KindArg, LangArg, PluginNewArgs};
use crate::exit;
use limbeck_host::diagnostic::Diagnostic;
use serde_json::json;
use std::path::{Path, PathBuf};

const C_LOSS: &str = include_str!("../../../tests/fixtures/fkl.c");
const C_SCHEDULER: &str = include_str!("../../../tests/fixtures/window.c");
const C_MAKEFILE: &str = include_str!("../templates/Makefile");
const HEADER: &str = include_str!("../../../plugins/abi/include/limbeck.h");
const DLPACK: &str = include_str!("../../../plugins/abi/include/dlpack/dlpack.h");
const RUST_LOSS: &str = include_str!("../templates/loss.rs");
const RUST_STUDENT: &str = include_str!("../templates/student.rs");
const RUST_TEACHER: &str = include_str!("../templates/teacher.rs");
const RUST_SCHEDULER: &str = include_str!("../templates/scheduler.rs");
const CARGO: &str = include_str!("../templates/Cargo.toml.in");

/// Writes a crate, or a C file with a Makefile and the headers it needs.
///
/// # Errors
/// A name that is none; a directory that exists; no C template of the kind.
pub fn new(args: &PluginNewArgs, shell: &Shell) -> Answer {
    let usage = |message: String, help: &str| -> Stop {
        Diagnostic::error("LMB1001", message).help(help).into()
    };
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let starts = args.name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    if !starts || !args.name.bytes().all(legal) || args.name.ends_with('-') {
        let message = format!("`{}` is no plugin name", args.name);
        return Err(usage(message, "use lower-case letters, digits and dashes, a letter first"));
    }
    if args.lang == LangArg::C && !matches!(args.kind, KindArg::Loss | KindArg::Scheduler) {
        let message = "only losses and schedulers have a C template".to_owned();
        return Err(usage(message, "use `--lang rust`; limbeck.h describes every kind for C"));
    }
    let to = args.to.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    let files = match args.lang {
        LangArg::C => c_files(args),
        LangArg::Rust => rust_files(args, shell)?,
    };
    if to.exists() {
        let problem = Diagnostic::error("LMB1003", format!("{} exists", to.display()));
        return Err(problem.help("choose another name, or --to DIR").into());
    }
    for (name, text) in &files {
        write(&to.join(name), text)?;
    }
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    let value = json!({"type": "created", "directory": to, "files": names});
    let library = format!("lib{}.so", args.name.replace('-', "_"));
    let next = match args.lang {
        LangArg::C => format!("make -C {0} && limbeck plugin check {0}/{library}", to.display()),
        LangArg::Rust => format!(
            "cargo build --release --manifest-path {0}/Cargo.toml && limbeck plugin check {0}/target/release/{library}",
            to.display()
        ),
    };
    shell
        .renderer
        .answer(&format!("wrote {}: {}\nnext: {next}", to.display(), names.join(" ")), &value);
    Ok(exit::DONE)
}

fn write(path: &Path, text: &str) -> Result<(), Stop> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(path, text));
    written.map_err(|e| {
        Diagnostic::error("LMB0711", format!("cannot write {}: {e}", path.display())).into()
    })
}

fn fill(template: &str, name: &str) -> String {
    let camel: String = name
        .split('-')
        .map(|word| {
            word.chars()
                .take(1)
                .flat_map(char::to_uppercase)
                .chain(word.chars().skip(1))
                .collect::<String>()
        })
        .collect();
    // Sources are Rust as they stand, so that the workspace compiles them (see the SDK's examples).
    template
        .replace("org.example.template", &format!("org.example.{name}"))
        .replace("Template", &camel)
        .replace("@NAME@", name)
        .replace("@SNAKE@", &name.replace('-', "_"))
}

fn c_files(args: &PluginNewArgs) -> Vec<(&'static str, String)> {
    let (source, id) = match args.kind {
        KindArg::Scheduler => (C_SCHEDULER, "org.example.window"),
        _ => (C_LOSS, "org.example.fkl"),
    };
    vec![
        ("plugin.c", source.replace(id, &format!("org.example.{}", args.name))),
        ("Makefile", fill(C_MAKEFILE, &args.name)),
        ("include/limbeck.h", HEADER.to_owned()),
        ("include/dlpack/dlpack.h", DLPACK.to_owned()),
    ]
}

/// The SDK to depend on: `--sdk`, else the sources that this program was built from.
fn sdk(args: &PluginNewArgs) -> Option<PathBuf> {
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/sdk");
    let sdk = args.sdk.clone().unwrap_or(built_from);
    std::fs::canonicalize(sdk).ok().filter(|p| p.join("Cargo.toml").is_file())
}

fn rust_files(args: &PluginNewArgs, shell: &Shell) -> Result<Vec<(&'static str, String)>, Stop> {
    let (source, features) = match args.kind {
        KindArg::Loss => (RUST_LOSS, ""),
        KindArg::Student => (RUST_STUDENT, ", features = [\"candle\"]"),
        KindArg::Teacher => (RUST_TEACHER, ", features = [\"candle\"]"),
        KindArg::Scheduler => (RUST_SCHEDULER, ""),
    };
    let dependency = match (sdk(args), &args.sdk) {
        (Some(path), _) => {
            shell.renderer.note(&format!("limbeck-sdk: {}", path.display()));
            format!("{{ path = \"{}\"{features} }}", path.display())
        }
        (None, Some(asked)) => {
            let message = format!("no limbeck-sdk crate in {}", asked.display());
            return Err(Diagnostic::error("LMB1001", message).into());
        }
        (None, None) => {
            shell.renderer.note(
                "limbeck-sdk: by version; the sources of this program are not here (see --sdk)",
            );
            format!("{{ version = \"{}\"{features} }}", env!("CARGO_PKG_VERSION"))
        }
    };
    let cargo = fill(CARGO, &args.name).replace("@SDK@", &dependency);
    Ok(vec![("Cargo.toml", cargo), ("src/lib.rs", fill(source, &args.name))])
}
