//! `export!`: the entry symbol, the manifest and the module table of a plugin library.
//!
//! The manifest bytes are made by the compiler from the same constants as the descriptors, so the two agree.

use crate::guard::{guarded, report};
use crate::kinds;
use crate::{Error, Host, Loss, Result, Scheduler, Settings, Student, Teacher, settings};
use limbeck_abi as abi;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// One plugin of a library.
#[doc(hidden)]
pub struct PluginEntry {
    id: &'static str,
    kind: i32,
    summary: &'static str,
    features: &'static [&'static str],
    devices: &'static [i32],
    schema: fn() -> String,
    create: fn(Host, &str) -> Result<*const abi::Plugin>,
}

impl PluginEntry {
    /// Entry of a loss.
    pub const fn loss<T: Loss>() -> Self {
        Self {
            id: T::ID,
            kind: abi::KIND_LOSS,
            summary: T::SUMMARY,
            features: T::FEATURES,
            devices: T::DEVICES,
            schema: settings::schema::<T::Config>,
            create: kinds::create_loss::<T>,
        }
    }
    /// Entry of a teacher.
    pub const fn teacher<T: Teacher>() -> Self {
        Self {
            id: T::ID,
            kind: abi::KIND_TEACHER,
            summary: T::SUMMARY,
            features: T::FEATURES,
            devices: T::DEVICES,
            schema: settings::schema::<T::Config>,
            create: kinds::create_teacher::<T>,
        }
    }
    /// Entry of a student.
    pub const fn student<T: Student>() -> Self {
        Self {
            id: T::ID,
            kind: abi::KIND_STUDENT,
            summary: T::SUMMARY,
            features: T::FEATURES,
            devices: T::DEVICES,
            schema: settings::schema::<T::Config>,
            create: kinds::create_student::<T>,
        }
    }
    /// Entry of a teacher through which gradients of its inputs flow: a student without a trainable parameter.
    pub const fn differentiable_teacher<T: Student>() -> Self {
        let student = Self::student::<T>();
        Self { kind: abi::KIND_TEACHER, ..student }
    }
    /// Entry of a scheduler.
    pub const fn scheduler<T: Scheduler>() -> Self {
        Self {
            id: T::ID,
            kind: abi::KIND_SCHEDULER,
            summary: T::SUMMARY,
            features: T::FEATURES,
            devices: T::DEVICES,
            schema: settings::schema::<T::Config>,
            create: kinds::create_scheduler::<T>,
        }
    }
    /// Plugin id.
    pub const fn id(&self) -> &'static str {
        self.id
    }
    /// A `limbeck_abi::KIND_*` constant.
    pub const fn kind(&self) -> i32 {
        self.kind
    }
    /// The closed JSON Schema of the settings.
    pub fn config_schema(&self) -> String {
        (self.schema)()
    }
    /// Creates an instance without a library: for tests.
    pub fn create(&self, host: Host, config: &str) -> Result<*const abi::Plugin> {
        (self.create)(host, config)
    }
}

/// All that a library offers; one static per library, made by `export!`.
#[doc(hidden)]
pub struct Library {
    entries: &'static [PluginEntry],
    version: &'static str,
    license: &'static str,
    /// Kept here so that no linker drops the section.
    manifest: &'static [u8],
    texts: OnceLock<Texts>,
    ready: AtomicBool,
}

/// Descriptors and what they point to; built once, never freed.
struct Texts {
    descriptors: Box<[abi::Descriptor]>,
    _schemas: Box<[String]>,
    _features: Box<[Box<[abi::Str]>]>,
}

impl Library {
    /// See `export!`.
    pub const fn new(
        entries: &'static [PluginEntry],
        version: &'static str,
        license: &'static str,
        manifest: &'static [u8],
    ) -> Self {
        let texts = OnceLock::new();
        Self { entries, version, license, manifest, texts, ready: AtomicBool::new(false) }
    }

    fn texts(&self) -> &Texts {
        self.texts.get_or_init(|| {
            let schemas: Box<[String]> = self.entries.iter().map(|e| (e.schema)()).collect();
            let features: Box<[Box<[abi::Str]>]> = self
                .entries
                .iter()
                .map(|e| e.features.iter().map(|f| abi::Str::new(f)).collect())
                .collect();
            let descriptors = self.entries.iter().zip(&schemas).zip(&features);
            let descriptors = descriptors.map(|((entry, schema), features)| abi::Descriptor {
                struct_size: abi::struct_size::<abi::Descriptor>(),
                kind: entry.kind,
                reserved: 0,
                id: abi::Str::new(entry.id),
                version: abi::Str::new(self.version),
                summary: abi::Str::new(entry.summary),
                license: abi::Str::new(self.license),
                config_schema: abi::Str::new(schema),
                device_mask: entry.devices.iter().fold(0, |mask, d| mask | 1 << d),
                features: features.as_ptr(),
                num_features: features.len() as u64,
                requires_host: std::ptr::null(),
                num_requires_host: 0,
            });
            let descriptors = descriptors.collect();
            Texts { descriptors, _schemas: schemas, _features: features }
        })
    }

    /// `lmb_module_v1`.
    ///
    /// # Safety
    /// `host` is NULL or the host's table.
    pub unsafe fn entry(
        &'static self,
        host: *const abi::Host,
        module: &'static abi::Module,
    ) -> *const abi::Module {
        std::hint::black_box(self.manifest.as_ptr());
        // SAFETY: the caller's promise; `abi_major` stands in every version of the table.
        let speaks = !host.is_null() && unsafe { (*host).abi_major } == abi::ABI_MAJOR;
        if speaks { module } else { std::ptr::null() }
    }

    /// `lmb_module.init`.
    ///
    /// # Safety
    /// As the contract says.
    pub unsafe fn init(&self, host: *const abi::Host, error: *mut abi::Error) -> abi::Status {
        // SAFETY: the host's table (limbeck.h, lmb_module.init).
        let host = unsafe { Host::from_abi(host) };
        if !abi::has!(host.abi(), abi::Host, tensor_copy) {
            let failure = Error::unsupported("the host's table is smaller than that of ABI 1.0");
            return report(host, error, &failure);
        }
        let outcome = guarded(|| {
            if !self.ready.swap(true, Ordering::AcqRel) {
                crate::guard::install_panic_hook();
                crate::log::install(host);
            }
            Ok(())
        });
        outcome.map_or_else(|e| report(host, error, &e), |()| abi::STATUS_OK)
    }

    /// `lmb_module.descriptor`.
    pub fn descriptor(&self, index: u64) -> *const abi::Descriptor {
        let find = || {
            let texts = self.texts();
            let found = usize::try_from(index).ok().and_then(|i| texts.descriptors.get(i));
            Ok(found.map_or(std::ptr::null(), std::ptr::from_ref))
        };
        guarded(find).unwrap_or(std::ptr::null())
    }

    /// `lmb_module.create`.
    ///
    /// # Safety
    /// As the contract says.
    pub unsafe fn create(
        &self,
        host: *const abi::Host,
        id: abi::Str,
        config: abi::Str,
        out: *mut *const abi::Plugin,
        error: *mut abi::Error,
    ) -> abi::Status {
        if host.is_null() || out.is_null() {
            return abi::STATUS_INVALID_ARGUMENT;
        }
        // SAFETY: the host's table.
        let host = unsafe { Host::from_abi(host) };
        let outcome = guarded(|| {
            // SAFETY: R6.
            let (id, config) = unsafe { (id.text(), config.text()) };
            let entry = self.entries.iter().find(|e| Some(e.id) == id);
            let entry = entry.ok_or_else(|| {
                Error::not_found(format!("no plugin `{}` in this library", id.unwrap_or("?")))
            })?;
            let config = config.ok_or_else(|| Error::config("", "the settings are not UTF-8"))?;
            (entry.create)(host, config)
        });
        match outcome {
            Ok(plugin) => {
                // SAFETY: the host's out-parameter, checked above.
                unsafe { out.write(plugin) };
                abi::STATUS_OK
            }
            Err(failure) => report(host, error, &failure),
        }
    }
}

/// Compiler and SDK, for bug reports.
#[doc(hidden)]
pub const BUILD_INFO: &str = concat!("rust, limbeck-sdk ", env!("CARGO_PKG_VERSION"));

const fn kind_name(kind: i32) -> &'static str {
    match kind {
        abi::KIND_TEACHER => "teacher",
        abi::KIND_STUDENT => "student",
        abi::KIND_LOSS => "loss",
        _ => "scheduler",
    }
}

/// Writes `text` into `out` at `at` (only counts when `out` is empty).
const fn put<const N: usize>(mut out: [u8; N], at: usize, text: &str) -> ([u8; N], usize) {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if N > 0 {
            out[at + i] = bytes[i];
        }
        i += 1;
    }
    (out, at + i)
}

/// The manifest of a library: `LMBMANI1` and a JSON object. With `N` = 0 only the length is found.
#[doc(hidden)]
pub const fn manifest<const N: usize>(entries: &[PluginEntry], version: &str) -> ([u8; N], usize) {
    let (mut out, mut at) = put([0; N], 0, "LMBMANI1{\"abi\":[1,0],\"plugins\":[");
    let mut i = 0;
    while i < entries.len() {
        if i > 0 {
            (out, at) = put(out, at, ",");
        }
        (out, at) = put(out, at, "{\"id\":\"");
        (out, at) = put(out, at, entries[i].id);
        (out, at) = put(out, at, "\",\"kind\":\"");
        (out, at) = put(out, at, kind_name(entries[i].kind));
        (out, at) = put(out, at, "\",\"version\":\"");
        (out, at) = put(out, at, version);
        (out, at) = put(out, at, "\"}");
        i += 1;
    }
    put(out, at, "]}")
}

/// Refuses ids that the contract does not allow, at compile time.
#[doc(hidden)]
pub const fn check_ids(entries: &[PluginEntry]) {
    let mut i = 0;
    while i < entries.len() {
        let id = entries[i].id.as_bytes();
        assert!(!id.is_empty(), "a plugin id is empty");
        let mut j = 0;
        while j < id.len() {
            let ok = id[j].is_ascii_lowercase()
                || id[j].is_ascii_digit()
                || matches!(id[j], b'.' | b'-');
            assert!(ok, "a plugin id has a character outside [a-z0-9.-]");
            j += 1;
        }
        i += 1;
    }
}

/// `lmb_module.get_interface`.
#[doc(hidden)]
pub type Lookup = unsafe extern "C" fn(abi::Str) -> *const std::ffi::c_void;

/// Keeps the bound of settings visible in documentation.
#[doc(hidden)]
pub const fn assert_settings<T: Settings>() {}

/// Makes a library of plugins: the one exported symbol `lmb_module_v1`, the manifest section, descriptors, tables.
///
/// Kinds: `loss`, `teacher`, `student`, `scheduler`; with feature `candle` also `candle_loss`, `candle_teacher`,
/// `candle_student` and `candle_differentiable_teacher` (a `CandleStudent` whose weights are all frozen). Version and license are those of the calling crate.
/// `; interface PATH` at the end offers interfaces of the module: a `fn(&str) -> *const c_void`, NULL for an unknown id.
///
/// ```ignore
/// limbeck_sdk::export! {
///     loss ReverseKl,
///     loss Cosine,
/// }
/// ```
#[macro_export]
macro_rules! export {
    ($($kind:ident $plugin:ty),+ $(,)? $(; interface $interface:path)?) => {
        const _: () = {
            const ENTRIES: &[$crate::export::PluginEntry] =
                &[$($crate::__entry!($kind $plugin)),+];
            const VERSION: &str = env!("CARGO_PKG_VERSION");
            const LEN: usize = $crate::export::manifest::<0>(ENTRIES, VERSION).1;
            const _: () = $crate::export::check_ids(ENTRIES);

            #[used]
            #[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".lmb_manifest"))]
            #[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__lmb_manifest"))]
            static MANIFEST: [u8; LEN] = $crate::export::manifest::<LEN>(ENTRIES, VERSION).0;

            static LIBRARY: $crate::export::Library = $crate::export::Library::new(
                ENTRIES,
                VERSION,
                env!("CARGO_PKG_LICENSE"),
                &MANIFEST,
            );

            static MODULE: $crate::abi::Module = $crate::abi::Module {
                struct_size: $crate::abi::struct_size::<$crate::abi::Module>(),
                abi_major: $crate::abi::ABI_MAJOR,
                abi_minor: $crate::abi::ABI_MINOR,
                build_info: $crate::abi::Str::new($crate::export::BUILD_INFO),
                init: ::core::option::Option::Some(init),
                deinit: ::core::option::Option::None,
                descriptor,
                get_interface: {
                    const OFFERED: &[$crate::export::Lookup] = &[$({
                        const _: fn(&str) -> *const ::core::ffi::c_void = $interface;
                        get_interface
                    })?];
                    match OFFERED {
                        [lookup] => ::core::option::Option::Some(*lookup),
                        _ => ::core::option::Option::None,
                    }
                },
                create,
            };

            $(
                unsafe extern "C" fn get_interface(
                    id: $crate::abi::Str,
                ) -> *const ::core::ffi::c_void {
                    // SAFETY: R6, borrowed for the call.
                    match unsafe { id.text() } {
                        ::core::option::Option::Some(id) => $interface(id),
                        ::core::option::Option::None => ::core::ptr::null(),
                    }
                }
            )?

            unsafe extern "C" fn init(
                host: *const $crate::abi::Host,
                error: *mut $crate::abi::Error,
            ) -> $crate::abi::Status {
                // SAFETY: called by the host as the contract says.
                unsafe { LIBRARY.init(host, error) }
            }

            unsafe extern "C" fn descriptor(index: u64) -> *const $crate::abi::Descriptor {
                LIBRARY.descriptor(index)
            }

            unsafe extern "C" fn create(
                host: *const $crate::abi::Host,
                id: $crate::abi::Str,
                config: $crate::abi::Str,
                out: *mut *const $crate::abi::Plugin,
                error: *mut $crate::abi::Error,
            ) -> $crate::abi::Status {
                // SAFETY: called by the host as the contract says.
                unsafe { LIBRARY.create(host, id, config, out, error) }
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn lmb_module_v1(
                host: *const $crate::abi::Host,
            ) -> *const $crate::abi::Module {
                // SAFETY: called by the host as the contract says.
                unsafe { LIBRARY.entry(host, &MODULE) }
            }
        };
    };
}

/// One entry of `export!`.
#[doc(hidden)]
#[macro_export]
macro_rules! __entry {
    (loss $plugin:ty) => {
        $crate::export::PluginEntry::loss::<$plugin>()
    };
    (teacher $plugin:ty) => {
        $crate::export::PluginEntry::teacher::<$plugin>()
    };
    (student $plugin:ty) => {
        $crate::export::PluginEntry::student::<$plugin>()
    };
    (scheduler $plugin:ty) => {
        $crate::export::PluginEntry::scheduler::<$plugin>()
    };
    (candle_loss $plugin:ty) => {
        $crate::export::PluginEntry::loss::<$crate::candle::LossAdapter<$plugin>>()
    };
    (candle_teacher $plugin:ty) => {
        $crate::export::PluginEntry::teacher::<$crate::candle::TeacherAdapter<$plugin>>()
    };
    (candle_differentiable_teacher $plugin:ty) => {
        $crate::export::PluginEntry::differentiable_teacher::<
            $crate::candle::StudentAdapter<$plugin>,
        >()
    };
    (candle_student $plugin:ty) => {
        $crate::export::PluginEntry::student::<$crate::candle::StudentAdapter<$plugin>>()
    };
}
