//! Facts of a plugin file, read with an ELF parser before any of its code runs.
//!
//! Refuses files that are no 64-bit little-endian ELF libraries and manifests that are missing, torn or not what the
//! header says. Knows bytes only: neither opens nor trusts the file.

use super::catalogue::PluginKind;
use limbeck_abi as abi;
use object::elf;
use object::read::elf::{Dyn, ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol};
use serde::Deserialize;

/// Longest manifest that is read, in bytes.
const LIMIT: usize = 1 << 20;

/// What a library says about itself in its manifest section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Manifest {
    /// ABI (major, minor) it was built for.
    pub abi: (u32, u32),
    /// Draft revision, compared for equality while the layout may still change.
    #[serde(default)]
    pub pre: Option<u32>,
    /// Its plugins.
    pub plugins: Vec<ManifestPlugin>,
}

/// One plugin of a [`Manifest`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ManifestPlugin {
    /// Plugin id.
    pub id: String,
    /// `teacher`, `student`, `loss`, `scheduler`; others are skipped.
    pub kind: String,
    /// semver.
    pub version: String,
}

impl ManifestPlugin {
    /// The kind, `None` for one that this host does not know.
    pub fn known_kind(&self) -> Option<PluginKind> {
        PluginKind::from_name(&self.kind)
    }
}

/// Why a file is no plugin.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not an ELF library for this machine.
    #[error("not a 64-bit little-endian ELF library: {0}")]
    NotElf(String),
    /// No manifest section: some other library.
    #[error("no `{}` section, so it is not a Limbeck plugin", abi::MANIFEST_SECTION)]
    Absent,
    /// The section does not start with the magic.
    #[error("the manifest does not start with LMBMANI1")]
    Magic,
    /// The rest is not the JSON that the header describes.
    #[error("the manifest is not what the contract says: {0}")]
    Json(String),
}

/// Reads the manifest.
///
/// # Errors
/// See [`ManifestError`].
pub fn read(file: &[u8]) -> Result<Manifest, ManifestError> {
    let elf = parse(file)?;
    let section = elf.section_by_name(abi::MANIFEST_SECTION).ok_or(ManifestError::Absent)?;
    let data = section.data().map_err(|e| ManifestError::NotElf(e.to_string()))?;
    let json = data.strip_prefix(abi::MANIFEST_MAGIC.as_slice()).ok_or(ManifestError::Magic)?;
    // A C string literal ends with NUL; sections may be padded with more.
    let json = json.split(|b| *b == 0).next().unwrap_or_default();
    if json.len() > LIMIT {
        return Err(ManifestError::Json(format!("{} bytes", json.len())));
    }
    let manifest: Manifest =
        serde_json::from_slice(json).map_err(|e| ManifestError::Json(e.to_string()))?;
    match manifest.plugins.iter().find(|p| !is_id(&p.id)) {
        Some(plugin) => Err(ManifestError::Json(format!("`{}` is no plugin id", plugin.id))),
        None => Ok(manifest),
    }
}

/// Whether a text is a plugin id: `[a-z0-9.-]`, not empty.
pub fn is_id(id: &str) -> bool {
    !id.is_empty()
        && id
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-')
}

fn parse(file: &[u8]) -> Result<ElfFile64<'_, Endianness>, ManifestError> {
    let bad = |text: &str| ManifestError::NotElf(text.to_owned());
    if !file.starts_with(b"\x7fELF") {
        return Err(bad("it does not start with ELF's magic"));
    }
    let elf =
        ElfFile64::<Endianness>::parse(file).map_err(|e| ManifestError::NotElf(e.to_string()))?;
    if !elf.is_little_endian() {
        return Err(bad("big-endian"));
    }
    let header = elf.elf_header();
    if header.e_type(elf.endian()) != elf::ET_DYN {
        return Err(bad("not a shared library"));
    }
    let machine = if cfg!(target_arch = "aarch64") { elf::EM_AARCH64 } else { elf::EM_X86_64 };
    if header.e_machine(elf.endian()) != machine {
        return Err(bad("built for another processor"));
    }
    Ok(elf)
}

/// What the loader would see in the file; the checker's file tier judges it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ElfFacts {
    /// Defined dynamic symbols that other libraries could bind to.
    pub exports: Vec<String>,
    /// Libraries it needs.
    pub needed: Vec<String>,
    /// `DT_RPATH` and `DT_RUNPATH` entries.
    pub run_paths: Vec<String>,
    /// Highest `GLIBC_x.y` that it needs.
    pub glibc: Option<(u32, u32)>,
    /// The stack would be executable.
    pub exec_stack: bool,
    /// Code would be patched at load time.
    pub text_relocations: bool,
    /// Uses the static TLS block, of which there is little.
    pub static_tls: bool,
    /// `STB_GNU_UNIQUE` symbols: shared between libraries, never unmapped.
    pub unique_symbols: Vec<String>,
}

/// Reads what the dynamic loader would act on.
///
/// # Errors
/// [`ManifestError::NotElf`].
pub fn elf_facts(file: &[u8]) -> Result<ElfFacts, ManifestError> {
    let broken = |e: object::Error| ManifestError::NotElf(e.to_string());
    let elf = parse(file)?;
    let endian = elf.endian();
    let mut facts = ElfFacts::default();
    for symbol in elf.dynamic_symbols() {
        let name = symbol.name().unwrap_or_default().to_owned();
        if symbol.is_undefined() || name.is_empty() {
            continue;
        }
        let raw = symbol.elf_symbol();
        let bind = raw.st_bind();
        let hidden = matches!(raw.st_visibility(), elf::STV_HIDDEN | elf::STV_INTERNAL);
        if bind == elf::STB_GNU_UNIQUE {
            facts.unique_symbols.push(name.clone());
        }
        if bind != elf::STB_LOCAL && !hidden {
            facts.exports.push(name);
        }
    }
    facts.exports.sort();
    let headers = elf.elf_program_headers();
    facts.exec_stack = headers
        .iter()
        .any(|h| h.p_type(endian) == elf::PT_GNU_STACK && h.p_flags(endian).0 & elf::PF_X.0 != 0);
    read_dynamic(&elf, file, &mut facts).map_err(broken)?;
    facts.glibc = highest_glibc(file);
    Ok(facts)
}

fn read_dynamic(
    elf: &ElfFile64<'_, Endianness>,
    file: &[u8],
    facts: &mut ElfFacts,
) -> object::Result<()> {
    let endian = elf.endian();
    let sections = elf.elf_section_table();
    let Some((entries, link)) = sections.dynamic(endian, file)? else { return Ok(()) };
    let strings = sections.strings(endian, file, link)?;
    for entry in entries {
        let tag = entry.tag(endian);
        let text = || {
            let bytes = entry.string(endian, strings).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        match tag {
            elf::DT_NULL => break,
            elf::DT_NEEDED => facts.needed.push(text()),
            elf::DT_RPATH | elf::DT_RUNPATH => facts.run_paths.push(text()),
            elf::DT_TEXTREL => facts.text_relocations = true,
            elf::DT_FLAGS => {
                let flags = entry.val32(endian).unwrap_or(0);
                facts.static_tls |= flags & elf::DF_STATIC_TLS.0 as u32 != 0;
                facts.text_relocations |= flags & elf::DF_TEXTREL.0 as u32 != 0;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The highest `GLIBC_x.y` among the version strings of the file.
fn highest_glibc(file: &[u8]) -> Option<(u32, u32)> {
    let mut highest = None;
    let mut rest = file;
    while let Some(at) = rest.windows(6).position(|w| w == b"GLIBC_") {
        rest = rest.get(at + 6..).unwrap_or_default();
        let end = rest.iter().position(|b| !b.is_ascii_digit() && *b != b'.').unwrap_or(rest.len());
        let version =
            std::str::from_utf8(rest.get(..end.min(16)).unwrap_or_default()).unwrap_or_default();
        let mut parts = version.split('.').map(str::parse::<u32>);
        if let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) {
            highest = highest.max(Some((major, minor)));
        }
    }
    highest
}
