//! The library under test: opened once per process, with pictures of the process before and after.

use super::effects::Picture;
use super::live::Live;
use super::{Miss, Outcome, fail, sample};
use crate::load::services::{self, ErrorSlot};
use limbeck_abi as abi;
use serde_json::Value;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What a check works on.
pub struct Subject {
    /// Library file.
    pub path: PathBuf,
    /// Plugin of the library.
    pub plugin: Option<String>,
    /// Seed of random cases.
    pub seed: u64,
    /// Settings to create with; otherwise the schema's.
    pub with: Option<Value>,
    /// Hears what is about to be done, so that a crash can be placed.
    pub doing: Box<dyn Fn(&str)>,
    opened: Option<Opened>,
}

/// An open library.
#[derive(Clone)]
pub struct Opened {
    /// The entry function.
    pub entry: abi::Entry,
    /// What it gave.
    pub module: &'static abi::Module,
    /// Before `dlopen`, and after `init`.
    pub pictures: (Picture, Picture),
    /// Of `dlopen`, entry and `init`.
    pub took: Duration,
}

/// A descriptor, owned.
#[derive(Clone, Debug)]
pub struct Described {
    pub id: String,
    pub kind: i32,
    pub version: String,
    pub summary: String,
    pub license: String,
    pub schema: String,
    pub device_mask: u64,
    pub features: Vec<String>,
}

/// Text of a string that must be UTF-8 (R6).
pub fn text(s: abi::Str, what: &str) -> Result<String, Miss> {
    // SAFETY: R5, R6: plugin memory, alive now.
    let found = unsafe { s.text() };
    found.map(str::to_owned).ok_or_else(|| fail(format!("UTF-8 in {what} (R6)"), "other bytes"))
}

impl Subject {
    /// A library that is not open yet.
    pub fn new(path: PathBuf, plugin: Option<String>, seed: u64) -> Self {
        Self { path, plugin, seed, with: None, doing: Box::new(|_| ()), opened: None }
    }

    /// Opens the library, calls entry and `init`.
    ///
    /// # Errors
    /// Anything the contract does not allow on the way.
    pub fn open(&mut self) -> Result<Opened, Miss> {
        if let Some(opened) = &self.opened {
            return Ok(opened.clone());
        }
        let before = Picture::take();
        let begin = Instant::now();
        (self.doing)("dlopen");
        let entry = entry_of(&self.path)?;
        (self.doing)("lmb_module_v1");
        // SAFETY: the entry's contract; the host table lives for ever.
        let module = unsafe { entry(services::host()).as_ref() };
        let module = module.ok_or_else(|| fail("a module for a host of ABI 1.0", "NULL"))?;
        if module.abi_major != abi::ABI_MAJOR {
            let found = format!("abi_major {}", module.abi_major);
            return Err(fail("a module compiled against ABI major 1", found));
        }
        if module.struct_size < abi::struct_size::<abi::Module>() {
            let found = format!("struct_size {}", module.struct_size);
            return Err(fail("an lmb_module of at least 72 bytes (R3)", found));
        }
        if let Some(init) = module.init {
            (self.doing)("init");
            let slot = ErrorSlot::default();
            // SAFETY: [main], once per process.
            let status = unsafe { init(services::host(), slot.as_ptr()) };
            if status != abi::STATUS_OK {
                return Err(fail("init to succeed", told(status, slot)));
            }
        }
        let took = begin.elapsed();
        let opened = Opened { entry, module, pictures: (before, Picture::take()), took };
        self.opened = Some(opened.clone());
        Ok(opened)
    }

    /// Descriptors in order.
    ///
    /// # Errors
    /// Strings that are not UTF-8; structs that are too small; no end.
    pub fn descriptors(&mut self) -> Result<Vec<Described>, Miss> {
        let module = self.open()?.module;
        let mut all = Vec::new();
        for index in 0..1000 {
            // SAFETY: [any]; NULL past the last.
            let Some(d) = (unsafe { (module.descriptor)(index).as_ref() }) else { return Ok(all) };
            if d.struct_size < abi::struct_size::<abi::Descriptor>() {
                return Err(fail(
                    "an lmb_descriptor of at least 136 bytes (R3)",
                    d.struct_size.to_string(),
                ));
            }
            let list = |ptr: *const abi::Str, num: u64| -> Vec<abi::Str> {
                // SAFETY: plugin memory of `num` entries.
                (0..num as usize).map(|i| unsafe { *ptr.add(i) }).collect()
            };
            let features = list(d.features, d.num_features);
            all.push(Described {
                id: text(d.id, "descriptor.id")?,
                kind: d.kind,
                version: text(d.version, "descriptor.version")?,
                summary: text(d.summary, "descriptor.summary")?,
                license: text(d.license, "descriptor.license")?,
                schema: text(d.config_schema, "descriptor.config_schema")?,
                device_mask: d.device_mask,
                features: features
                    .into_iter()
                    .map(|f| text(f, "features"))
                    .collect::<Result<_, _>>()?,
            });
        }
        Err(fail("NULL past the last descriptor", "more than 1000 descriptors"))
    }

    /// The descriptor of the plugin under test.
    ///
    /// # Errors
    /// No such plugin.
    pub fn described(&mut self) -> Result<Described, Miss> {
        let wanted = self.plugin.clone().unwrap_or_default();
        let all = self.descriptors()?;
        let found = all.into_iter().find(|d| d.id == wanted);
        found.ok_or_else(|| fail(format!("a descriptor of `{wanted}`"), "none"))
    }

    /// Ids and kinds, as far as they can be read.
    pub fn plugins(&mut self) -> Vec<(String, String)> {
        let all = self.descriptors().unwrap_or_default();
        all.into_iter().map(|d| (d.id, kind_name(d.kind).to_owned())).collect()
    }

    /// Settings to create with: those given, else the schema's smallest.
    ///
    /// # Errors
    /// The schema is not JSON; settings that it refuses.
    pub fn settings(&mut self) -> Result<Value, Miss> {
        let described = self.described()?;
        let schema: Value = serde_json::from_str(&described.schema)
            .map_err(|e| fail("a JSON Schema in config_schema", e.to_string()))?;
        let settings = self.with.clone().unwrap_or_else(|| sample::minimal(&schema));
        let validator = jsonschema::validator_for(&schema)
            .map_err(|e| fail("a JSON Schema in config_schema", e.to_string()))?;
        match validator.validate(&settings) {
            Ok(()) => Ok(settings),
            Err(error) => {
                Err(Miss::Skip(format!("no settings guessed: {error}; give some with --with")))
            }
        }
    }

    /// Calls `create`.
    ///
    /// # Errors
    /// The status and what was said.
    pub fn create_with(
        &mut self,
        id: &str,
        config: &str,
    ) -> Result<Result<Live, (abi::Status, String)>, Miss> {
        let module = self.open()?.module;
        (self.doing)("create");
        let slot = ErrorSlot::default();
        let mut out = std::ptr::null();
        let (id, config) = (abi::Str::new(id), abi::Str::new(config));
        // SAFETY: [main]; arguments live during the call.
        let status =
            unsafe { (module.create)(services::host(), id, config, &raw mut out, slot.as_ptr()) };
        if status != abi::STATUS_OK {
            return Ok(Err((status, told(status, slot))));
        }
        // SAFETY: a successful create of a library that is never unloaded.
        unsafe { Live::new(out) }.map(Ok)
    }

    /// Creates the plugin under test with [`Subject::settings`].
    ///
    /// # Errors
    /// A skip when it needs files or other settings; a miss when it breaks the contract.
    pub fn create(&mut self) -> Result<Live, Miss> {
        let id = self.plugin.clone().unwrap_or_default();
        let settings = self.settings()?;
        match self.create_with(&id, &settings.to_string())? {
            Ok(live) => Ok(live),
            Err((abi::STATUS_INVALID_CONFIG | abi::STATUS_NOT_FOUND | abi::STATUS_IO, said)) => {
                Err(Miss::Skip(format!(
                    "not created with {settings}: {said}; give settings with --with"
                )))
            }
            Err((_, said)) => Err(fail(format!("create with {settings} to succeed"), said)),
        }
    }

    /// Whether the plugin declares a feature.
    ///
    /// # Errors
    /// As [`Subject::described`].
    pub fn has_feature(&mut self, feature: &str) -> Result<bool, Miss> {
        Ok(self.described()?.features.iter().any(|f| f == feature))
    }
}

/// Name of a kind.
pub fn kind_name(kind: i32) -> &'static str {
    match kind {
        abi::KIND_TEACHER => "teacher",
        abi::KIND_STUDENT => "student",
        abi::KIND_LOSS => "loss",
        abi::KIND_SCHEDULER => "scheduler",
        _ => "unknown",
    }
}

/// A status and the words that came with it.
pub fn told(status: abi::Status, slot: ErrorSlot) -> String {
    let report = slot.into_report();
    let name = crate::load::instance::meaning(status);
    if report.message.is_empty() {
        format!("status {status} ({name})")
    } else {
        format!("status {status} ({name}): {}", report.message)
    }
}

/// `dlopen`, never closed, and the entry symbol.
fn entry_of(path: &std::path::Path) -> Result<abi::Entry, Miss> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let name = CString::new(absolute.as_os_str().as_bytes())
        .map_err(|_| fail("a path", "a NUL byte in it"))?;
    // SAFETY: opening runs the library's constructors; checking it is what the user asked for. Never closed (R11).
    let handle = unsafe {
        libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL | libc::RTLD_NODELETE)
    };
    if handle.is_null() {
        return Err(fail("dlopen with RTLD_NOW to succeed", dl_error()));
    }
    // SAFETY: an open handle and a NUL-terminated name.
    let symbol = unsafe { libc::dlsym(handle, abi::ENTRY_SYMBOL.as_ptr().cast()) };
    if symbol.is_null() {
        return Err(fail("an exported symbol lmb_module_v1", dl_error()));
    }
    // SAFETY: the header gives this symbol this type.
    Ok(unsafe { std::mem::transmute::<*mut libc::c_void, abi::Entry>(symbol) })
}

fn dl_error() -> String {
    // SAFETY: the thread's own message, or NULL.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "no message".to_owned();
    }
    // SAFETY: NUL-terminated, alive until the next dl call of this thread.
    unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Turns a condition into an outcome step.
pub fn ensure(holds: bool, expected: &str, found: impl FnOnce() -> String) -> Result<(), Miss> {
    if holds { Ok(()) } else { Err(fail(expected, found())) }
}

/// An outcome with nothing to tell.
pub fn fine() -> Outcome {
    Ok(String::new())
}
