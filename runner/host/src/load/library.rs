//! Opens plugin libraries: the only place in the program that does.
//!
//! Opens a path once per process, `RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE`, negotiates the ABI, runs `init` once and
//! never unloads. Floating-point modes that a library's constructors changed are put back.

use super::catalogue::PluginKind;
use super::instance::{Instance, PluginError, check_table, mark_call};
use super::services::{self, ErrorSlot};
use limbeck_abi as abi;
use std::collections::HashMap;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// More plugins than any real library has.
const MAX_PLUGINS: u64 = 4096;

/// Why a library is not used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LibraryError {
    /// The dynamic loader refused it.
    #[error("the system cannot open it: {0}")]
    Open(String),
    /// No entry symbol.
    #[error("it exports no `lmb_module_v1`")]
    NoEntry,
    /// The entry gave NULL, or another major.
    #[error("it does not work with this program's ABI {}.{}", abi::ABI_MAJOR, abi::ABI_MINOR)]
    Abi,
    /// It broke the contract.
    #[error("{0}")]
    Contract(String),
    /// `init` failed.
    #[error("its init failed: {}", .0.message)]
    Init(PluginError),
}

/// An open library. Lives as long as the process.
pub struct Library {
    module: &'static abi::Module,
    /// ABI it was compiled against.
    pub abi: (u32, u32),
    /// Compiler, SDK version, commit.
    pub build_info: String,
    /// Its plugins of known kinds.
    pub plugins: Vec<Described>,
}

/// A descriptor, copied; text that becomes `'static` because libraries never go away.
pub struct Described {
    /// Plugin id.
    pub id: &'static str,
    /// Kind.
    pub kind: PluginKind,
    /// semver.
    pub version: &'static str,
    /// One line.
    pub summary: String,
    /// SPDX.
    pub license: String,
    /// JSON Schema of its settings.
    pub schema: serde_json::Value,
    /// `1 << DLDeviceType` bits.
    pub device_mask: u64,
    /// Features.
    pub features: Vec<String>,
    /// Host interfaces it cannot do without and that this host lacks.
    pub unmet: Vec<String>,
}

type Opened = Result<&'static Library, LibraryError>;
static OPEN: Mutex<Option<HashMap<PathBuf, Opened>>> = Mutex::new(None);

/// Opens a staged library, or gives the one that is open already (or its failure: constructors do not run twice).
///
/// # Errors
/// See [`LibraryError`].
pub fn open(staged: &Path) -> Opened {
    let mut guard = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let all = guard.get_or_insert_default();
    if let Some(opened) = all.get(staged) {
        return opened.clone();
    }
    let opened = open_first(staged);
    all.insert(staged.to_owned(), opened.clone());
    opened
}

/// Ends library-wide threads: after the last instance is destroyed, before the process ends. Does nothing while an
/// instance is alive. No plugin may be used afterwards.
pub fn shutdown() {
    if super::instance::live_instances() > 0 {
        tracing::warn!(target: "limbeck::host", "instances alive at the end: libraries are not told");
        return;
    }
    let all = OPEN.lock().unwrap_or_else(PoisonError::into_inner).take();
    for library in all.into_iter().flat_map(HashMap::into_values).flatten() {
        if let Some(deinit) = library.module.deinit {
            // SAFETY: [main], after the last destroy; called once, since the table is taken.
            unsafe { deinit() };
        }
    }
}

fn open_first(staged: &Path) -> Opened {
    let file = staged.display().to_string();
    let file: &'static str = Box::leak(file.into_boxed_str());
    let _modes = FloatModes::save();
    let _mark = mark_call(file, "dlopen", 0);
    let flags =
        libloading::os::unix::RTLD_NOW | libloading::os::unix::RTLD_LOCAL | libc::RTLD_NODELETE;
    // SAFETY: plugins are trusted code (header): the file was locked or stands beside the executable, and this is a
    // verified private copy.
    let library = unsafe { libloading::os::unix::Library::open(Some(staged), flags) }
        .map_err(|e| LibraryError::Open(reason(&e)))?;
    // SAFETY: the contract gives this symbol this type.
    let entry = unsafe { library.get::<abi::Entry>(abi::ENTRY_SYMBOL) }.map(|symbol| *symbol);
    // Never unloaded (R11).
    let _ = library.into_raw();
    let entry = entry.map_err(|_| LibraryError::NoEntry)?;
    // SAFETY: [main]; the table lives as long as the process.
    let module = unsafe { entry(services::host()) };
    if module.is_null() {
        return Err(LibraryError::Abi);
    }
    let mandatory = [offset_of!(abi::Module, descriptor), offset_of!(abi::Module, create)];
    // SAFETY: a growable struct (R3), static plugin memory.
    unsafe { check_table::<abi::Module>(module.cast(), &mandatory) }
        .map_err(|text| LibraryError::Contract(format!("lmb_module: {text}")))?;
    // SAFETY: checked size, static.
    let module: &'static abi::Module = unsafe { &*module };
    if module.abi_major != abi::ABI_MAJOR {
        return Err(LibraryError::Abi);
    }
    run_init(module, file)?;
    let plugins = describe(module)?;
    take_vector(module);
    take_device(module);
    // SAFETY: R6, static plugin memory.
    let build_info = unsafe { module.build_info.text() }.unwrap_or_default().to_owned();
    let abi = (module.abi_major, module.abi_minor);
    Ok(Box::leak(Box::new(Library { module, abi, build_info, plugins })))
}

/// The loader's own words, which `libloading` keeps as the source.
fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn run_init(module: &abi::Module, file: &'static str) -> Result<(), LibraryError> {
    let Some(init) = module.init else { return Ok(()) };
    let slot = ErrorSlot::default();
    let _mark = mark_call(file, "init", 0);
    // SAFETY: [main], once per process (see `open`), before everything else.
    match unsafe { init(services::host(), slot.as_ptr()) } {
        abi::STATUS_OK => Ok(()),
        status => Err(LibraryError::Init(PluginError::from_slot((file, ""), "init", status, slot))),
    }
}

/// A CUDA `lmb.vector/1` of the module serves every plugin.
fn take_vector(module: &abi::Module) {
    let Some(get_interface) = module.get_interface else { return };
    // SAFETY: [any]; the id is static.
    let table = unsafe { get_interface(abi::Str::new(abi::VECTOR_ID)) };
    let mandatory = [
        offset_of!(abi::Vector, axpby),
        offset_of!(abi::Vector, mul),
        offset_of!(abi::Vector, dot),
    ];
    // SAFETY: NULL or a growable struct (R3) that lives as long as the process.
    if !table.is_null() && unsafe { check_table::<abi::Vector>(table, &mandatory) }.is_ok() {
        // SAFETY: checked just now.
        services::vector::register_device(unsafe { &*table.cast::<abi::Vector>() });
    }
}

/// A `lmb.device/1` of the module gives the host its memory there.
fn take_device(module: &abi::Module) {
    let Some(get_interface) = module.get_interface else { return };
    // SAFETY: [any]; the id is static.
    let table = unsafe { get_interface(abi::Str::new(abi::DEVICE_ID)) };
    let mandatory = [
        offset_of!(abi::Device, count),
        offset_of!(abi::Device, describe),
        offset_of!(abi::Device, open),
        offset_of!(abi::Device, alloc),
        offset_of!(abi::Device, free),
        offset_of!(abi::Device, clear),
        offset_of!(abi::Device, upload),
        offset_of!(abi::Device, download),
        offset_of!(abi::Device, copy),
    ];
    // SAFETY: NULL or a growable struct (R3) that lives as long as the process.
    if !table.is_null() && unsafe { check_table::<abi::Device>(table, &mandatory) }.is_ok() {
        // SAFETY: checked just now.
        crate::device::register(unsafe { &*table.cast::<abi::Device>() });
    }
}

fn describe(module: &abi::Module) -> Result<Vec<Described>, LibraryError> {
    let mut plugins: Vec<Described> = Vec::new();
    for index in 0..=MAX_PLUGINS {
        // SAFETY: [any]; NULL past the last.
        let descriptor = unsafe { (module.descriptor)(index) };
        if descriptor.is_null() {
            return Ok(plugins);
        }
        let broken = |text: String| LibraryError::Contract(format!("descriptor {index}: {text}"));
        // SAFETY: a growable struct (R3), plugin memory while the process lives.
        unsafe { check_table::<abi::Descriptor>(descriptor.cast(), &[]) }.map_err(broken)?;
        // SAFETY: checked size.
        let Some(kind) = PluginKind::from_abi(unsafe { (*descriptor).kind }) else { continue };
        // SAFETY: as above.
        let described = unsafe { copy(&*descriptor, kind) }.map_err(broken)?;
        if plugins.iter().any(|p| p.id == described.id) {
            return Err(broken(format!("plugin `{}` twice", described.id)));
        }
        plugins.push(described);
    }
    Err(LibraryError::Contract(format!("more than {MAX_PLUGINS} plugins")))
}

/// # Safety
/// A descriptor of a library that is never unloaded.
unsafe fn copy(d: &'static abi::Descriptor, kind: PluginKind) -> Result<Described, String> {
    let text = |s: abi::Str, what: &str| {
        // SAFETY: R6; the bytes are unchanged while the process lives.
        unsafe { s.text::<'static>() }.ok_or_else(|| format!("{what} is not UTF-8"))
    };
    let list = |list: *const abi::Str, count: u64, what: &str| -> Result<Vec<String>, String> {
        if count > 256 || (count > 0 && list.is_null()) {
            return Err(format!("{count} {what} at {list:?}"));
        }
        // SAFETY: the list has `count` entries.
        (0..count as usize)
            .map(|i| text(unsafe { *list.add(i) }, what).map(str::to_owned))
            .collect()
    };
    let id = text(d.id, "id")?;
    if !super::manifest::is_id(id) {
        return Err(format!("`{id}` is no plugin id ([a-z0-9.-])"));
    }
    let schema = text(d.config_schema, "config_schema")?;
    let schema = serde_json::from_str(schema)
        .map_err(|e| format!("`{id}`: config_schema is not JSON: {e}"))?;
    let unmet = list(d.requires_host, d.num_requires_host, "requires_host")?
        .into_iter()
        .filter(|id| {
            // SAFETY: [any]; the id lives during the call.
            unsafe { (services::host().get_interface)(services::host(), abi::Str::new(id)) }
                .is_null()
        })
        .collect();
    Ok(Described {
        id,
        kind,
        version: text(d.version, "version")?,
        summary: text(d.summary, "summary")?.to_owned(),
        license: text(d.license, "license")?.to_owned(),
        schema,
        device_mask: d.device_mask,
        features: list(d.features, d.num_features, "features")?,
        unmet,
    })
}

impl Library {
    /// The module, for the conformance checker.
    pub fn module(&self) -> &'static abi::Module {
        self.module
    }

    /// Creates an instance of one of its plugins from complete settings.
    ///
    /// # Errors
    /// What the plugin said, or how its instance breaks the contract.
    pub fn create(&self, plugin: &Described, config: &str) -> Result<Instance, PluginError> {
        let slot = ErrorSlot::default();
        let mut out: *const abi::Plugin = std::ptr::null();
        let status = {
            let _mark = mark_call(plugin.id, "create", 0);
            let (id, config) = (abi::Str::new(plugin.id), abi::Str::new(config));
            // SAFETY: [main]; arguments and the place for the result live during the call.
            unsafe { (self.module.create)(services::host(), id, config, &mut out, slot.as_ptr()) }
        };
        if status != abi::STATUS_OK {
            return Err(PluginError::from_slot(
                (plugin.id, plugin.version),
                "create",
                status,
                slot,
            ));
        }
        // SAFETY: a successful `create`; nobody else owns the instance.
        unsafe { Instance::adopt(out, plugin.id, plugin.version, plugin.kind) }
    }
}

/// MXCSR and x87 control word on x86-64, FPCR on AArch64; put back on drop.
struct FloatModes {
    #[cfg(target_arch = "x86_64")]
    modes: (u32, u16),
    #[cfg(target_arch = "aarch64")]
    modes: u64,
}

impl FloatModes {
    #[cfg(target_arch = "x86_64")]
    fn save() -> Self {
        let (mut mxcsr, mut x87) = (0u32, 0u16);
        // SAFETY: stores two control registers into two locals.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", "fnstcw [{}]", in(reg) &mut mxcsr, in(reg) &mut x87)
        };
        // The status flags in the low six bits are not modes.
        Self { modes: (mxcsr & !0x3f, x87) }
    }

    #[cfg(target_arch = "aarch64")]
    fn save() -> Self {
        let modes: u64;
        // SAFETY: reads a control register.
        unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) modes) };
        Self { modes }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn save() -> Self {
        Self {}
    }
}

impl Drop for FloatModes {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        {
            let (mxcsr, x87) = self.modes;
            // SAFETY: loads control words that were in force before.
            unsafe { std::arch::asm!("ldmxcsr [{}]", "fldcw [{}]", in(reg) &mxcsr, in(reg) &x87) };
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("msr fpcr, {}", in(reg) self.modes)
        };
    }
}
