//! What of the process a library may not change: signals, working directory, locale, environment, floating-point modes,
//! threads, descriptors, standard output (R11).

use std::collections::BTreeMap;
use std::ffi::CStr;

/// A picture of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    facts: BTreeMap<&'static str, String>,
}

impl Picture {
    /// Takes one.
    pub fn take() -> Self {
        let mut facts = BTreeMap::new();
        facts.insert("floating-point modes", float_modes());
        facts.insert("signal handlers", signals());
        facts.insert("working directory", format!("{:?}", std::env::current_dir().ok()));
        facts.insert("locale", locale());
        let mut env: Vec<_> = std::env::vars_os().collect();
        env.sort();
        facts.insert("environment", format!("{env:?}"));
        facts.insert("threads", entries("/proc/self/task").to_string());
        facts.insert("open files", entries("/proc/self/fd").to_string());
        facts.insert("umask", umask());
        facts.insert("output on stdout", stdout_bytes());
        Self { facts }
    }

    /// What differs, with both states where they are short.
    pub fn changes(&self, later: &Self) -> Vec<String> {
        let changed =
            self.facts.iter().filter(|(name, value)| later.facts.get(*name) != Some(value));
        changed
            .map(|(name, before)| match later.facts.get(name) {
                Some(after) if before.len() + after.len() < 80 => {
                    format!("{name} ({before} -> {after})")
                }
                _ => (*name).to_owned(),
            })
            .collect()
    }
}

#[cfg(target_arch = "x86_64")]
fn float_modes() -> String {
    let (mut mxcsr, mut x87) = (0u32, 0u16);
    // SAFETY: stores the two control words into the named variables.
    unsafe {
        std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack));
    }
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("fnstcw [{}]", in(reg) &raw mut x87, options(nostack));
    }
    // The low six bits are sticky exception flags, which any arithmetic sets.
    format!("{:#x} {x87:#x}", mxcsr & !0x3f)
}

#[cfg(not(target_arch = "x86_64"))]
fn float_modes() -> String {
    // Denormals flushed to zero are what a fast-math library would leave behind.
    let tiny = std::hint::black_box(f64::MIN_POSITIVE) / 2.0;
    format!("denormals {}", tiny > 0.0)
}

fn signals() -> String {
    let mut handlers = Vec::new();
    for signal in 1..32 {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a query: no new action, a struct of the right type for the old one.
        let known = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } == 0;
        if known {
            // SAFETY: filled by the successful call.
            handlers.push(unsafe { action.assume_init() }.sa_sigaction);
        }
    }
    format!("{handlers:?}")
}

fn locale() -> String {
    // SAFETY: a query; the result is a NUL-terminated string of the C library.
    let name = unsafe { libc::setlocale(libc::LC_ALL, std::ptr::null()) };
    if name.is_null() {
        return "unknown".to_owned();
    }
    // SAFETY: not NULL.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

fn umask() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find(|l| l.starts_with("Umask")).unwrap_or_default().to_owned()
}

fn entries(folder: &str) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

/// Size of the file that standard output was pointed at, if it is one (see the driver).
fn stdout_bytes() -> String {
    // SAFETY: pushes what C's stdio holds to the descriptor.
    unsafe { libc::fflush(std::ptr::null_mut()) };
    let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: a query on descriptor 1.
    if unsafe { libc::fstat(1, stat.as_mut_ptr()) } != 0 {
        return "unknown".to_owned();
    }
    // SAFETY: filled by the successful call.
    let stat = unsafe { stat.assume_init() };
    let is_file = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    if is_file { format!("{} bytes", stat.st_size) } else { "unknown".to_owned() }
}

/// Resident pages of this process.
pub fn resident_pages() -> Option<u64> {
    // `statm` is off by a batch of every processor's own counter: 32 pages and more.
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let size = text.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    let kib: u64 = size.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_descriptor_is_a_change_and_nothing_is_none() {
        let before = Picture::take();
        let file = std::fs::File::open("/proc/self/status").unwrap();
        let after = Picture::take();
        assert!(before.changes(&after).iter().any(|c| c.starts_with("open files")), "{before:?}");
        drop(file);
    }
}
