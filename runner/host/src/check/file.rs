//! Tier `file`: what can be said without running any of the library's code.

use super::subject::{ensure, fine};
use super::{Check, Miss, Outcome, Subject, fail};
use crate::load::manifest::{self, ElfFacts, Manifest};
use limbeck_abi as abi;

pub(super) const CHECKS: &[Check] = &[
    Check { id: "file.elf", clause: "R1", kinds: &[], run: elf_is_sane },
    Check {
        id: "file.exports",
        clause: "lmb_module_v1: THE exported symbol",
        kinds: &[],
        run: exports,
    },
    Check { id: "file.manifest", clause: "LMB_MANIFEST", kinds: &[], run: manifest },
    Check { id: "file.hardening", clause: "R11", kinds: &[], run: hardening },
    Check { id: "file.loader", clause: "R11: libraries share nothing", kinds: &[], run: loader },
    Check {
        id: "file.mode",
        clause: "files others can write are not trusted",
        kinds: &[],
        run: mode,
    },
];

fn bytes(subject: &Subject) -> Result<Vec<u8>, Miss> {
    std::fs::read(&subject.path).map_err(|e| fail("a readable file", e.to_string()))
}

fn facts(subject: &Subject) -> Result<ElfFacts, Miss> {
    manifest::elf_facts(&bytes(subject)?)
        .map_err(|e| fail("a 64-bit ELF shared library for this machine", e.to_string()))
}

fn elf_is_sane(subject: &mut Subject) -> Outcome {
    let facts = facts(subject)?;
    let glibc = facts.glibc.map(|(major, minor)| format!(", needs GLIBC {major}.{minor}"));
    Ok(format!("needs {}{}", facts.needed.join(" "), glibc.unwrap_or_default()))
}

fn exports(subject: &mut Subject) -> Outcome {
    let mut names = facts(subject)?.exports;
    let entry = "lmb_module_v1";
    ensure(names.iter().any(|n| n == entry), "an exported symbol lmb_module_v1", || {
        if names.is_empty() { "no exported symbol".into() } else { names.join(", ") }
    })?;
    // Later majors may stand beside it; the others are what linkers add by themselves.
    let linker = ["_init", "_fini", "__bss_start", "_edata", "_end"];
    names.retain(|n| !n.starts_with("lmb_module_v") && !linker.contains(&n.as_str()));
    if names.is_empty() {
        return fine();
    }
    let shown: Vec<&str> = names.iter().take(4).map(String::as_str).collect();
    let found = format!("{} more: {}", names.len(), shown.join(", "));
    Err(fail("no other exported symbol (-fvisibility=hidden)", found))
}

/// The manifest of the file.
pub(super) fn manifest_of(subject: &Subject) -> Result<Manifest, Miss> {
    manifest::read(&bytes(subject)?).map_err(|e| fail("a manifest (LMB_MANIFEST)", e.to_string()))
}

fn manifest(subject: &mut Subject) -> Outcome {
    let manifest = manifest_of(subject)?;
    let major = manifest.abi.0;
    ensure(major == abi::ABI_MAJOR, "ABI major 1 in the manifest", || major.to_string())?;
    ensure(!manifest.plugins.is_empty(), "plugins in the manifest", || "none".into())?;
    let ids = manifest.plugins.iter().map(|p| format!("{} {}, {}", p.id, p.version, p.kind));
    let ids: Vec<String> = ids.collect();
    let shown = ids.len().min(4);
    let rest = ids.len() - shown;
    let more = if rest > 0 { format!(", {rest} more") } else { String::new() };
    Ok(format!("{}{more}, ABI {major}.{}", ids[..shown].join("; "), manifest.abi.1))
}

fn hardening(subject: &mut Subject) -> Outcome {
    let facts = facts(subject)?;
    ensure(!facts.exec_stack, "a stack that is not executable", || "PT_GNU_STACK with X".into())?;
    ensure(!facts.text_relocations, "no text relocations (-fPIC)", || "DT_TEXTREL".into())?;
    let absolute: Vec<&str> =
        facts.run_paths.iter().map(String::as_str).filter(|p| !p.starts_with("$ORIGIN")).collect();
    ensure(absolute.is_empty(), "no run path but $ORIGIN", || absolute.join(", "))?;
    fine()
}

fn loader(subject: &mut Subject) -> Outcome {
    let facts = facts(subject)?;
    if !facts.unique_symbols.is_empty() {
        let count = facts.unique_symbols.len();
        return Err(Miss::Warn(format!(
            "{count} unique symbols are shared with other libraries; use -fno-gnu-unique"
        )));
    }
    if facts.static_tls {
        return Err(Miss::Warn(
            "takes space of the static TLS block; use the default TLS model".to_owned(),
        ));
    }
    fine()
}

fn mode(subject: &mut Subject) -> Outcome {
    use std::os::unix::fs::MetadataExt as _;
    let meta =
        std::fs::metadata(&subject.path).map_err(|e| fail("a readable file", e.to_string()))?;
    if meta.mode() & 0o022 != 0 {
        let mode = meta.mode() & 0o777;
        return Err(Miss::Warn(format!(
            "others can write this file (mode {mode:o}): a run may refuse it"
        )));
    }
    fine()
}
