//! Runs checks, each in a process of its own: a crash or a hang is a result, and says in which call it happened.
//!
//! The program that is started is the caller's business; it must answer with the [`Report`] as one line of JSON on
//! stdout, and may say `doing: …` on stderr before each risky step.

use super::{Check, Report, Subject, Verdict, checks, library, run_one};
use crate::load::catalogue::PluginKind;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What child processes say before a risky step.
pub const DOING: &str = "doing: ";
/// Text of a child that is kept.
const MAX_OUTPUT: u64 = 1 << 20;

/// Makes the command that runs one check on one plugin (`None`: on the library).
pub type CommandFor<'a> = dyn Fn(&Check, Option<&str>) -> Command + Sync + 'a;

/// Makes the subject of a check in this process.
pub type SubjectFor<'a> = dyn Fn(Option<&str>) -> Subject + 'a;

/// How checks are run.
pub struct Options<'a> {
    /// Makes the command that runs one check on one plugin (`None`: on the library).
    pub command: &'a CommandFor<'a>,
    /// Makes the subject for checks in this process; `None`: a process each.
    pub in_process: Option<&'a SubjectFor<'a>>,
    /// Which checks, by id.
    pub wanted: &'a (dyn Fn(&str) -> bool + Sync),
    /// Which plugin of the library; `None`: all.
    pub plugin: Option<&'a str>,
    /// Longest time of one check.
    pub timeout: Duration,
    /// Checks at the same time.
    pub jobs: usize,
}

/// Runs every wanted check; `sink` hears of each in order. Stops after the library's own checks if it cannot be opened.
pub fn run(options: &Options<'_>, sink: &mut dyn FnMut(&Report)) -> Vec<Report> {
    let mut reports = Vec::new();
    let mut tell = |report: Report, reports: &mut Vec<Report>| {
        sink(&report);
        reports.push(report);
    };
    let mut plugins = Vec::new();
    for check in checks().filter(|c| c.kinds.is_empty()) {
        let is_entry = check.id == library::ENTRY;
        let wanted = (options.wanted)(check.id);
        if !is_entry && !wanted {
            continue;
        }
        let report = one(options, check, None);
        let failed = report.verdict.is_bad();
        if is_entry {
            plugins.clone_from(&report.plugins);
        }
        if wanted || (is_entry && failed) {
            tell(report, &mut reports);
        }
        if is_entry && failed {
            return reports;
        }
    }
    let mut work: Vec<(&Check, &str)> = Vec::new();
    for (id, kind) in plugins.iter().filter(|(id, _)| options.plugin.is_none_or(|p| p == id)) {
        let kind = PluginKind::from_name(kind);
        let fits =
            |c: &&Check| kind.is_some_and(|k| c.kinds.contains(&k)) && (options.wanted)(c.id);
        work.extend(checks().filter(fits).map(|c| (c, id.as_str())));
    }
    for report in all(options, &work) {
        tell(report, &mut reports);
    }
    reports
}

/// Reports of all, in order, several at a time.
fn all(options: &Options<'_>, work: &[(&Check, &str)]) -> Vec<Report> {
    if options.in_process.is_some() || options.jobs <= 1 {
        return work.iter().map(|(check, id)| one(options, check, Some(id))).collect();
    }
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Report)>> = Mutex::new(Vec::new());
    let (command, timeout) = (options.command, options.timeout);
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some((check, id)) = work.get(index) else { return };
                    let report = in_child(command(check, Some(id)), check, Some(id), timeout);
                    done.lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push((index, report));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, report)| report).collect()
}

fn one(options: &Options<'_>, check: &Check, plugin: Option<&str>) -> Report {
    match options.in_process {
        Some(subject) => run_one(check, &mut subject(plugin)),
        None => in_child((options.command)(check, plugin), check, plugin, options.timeout),
    }
}

fn report(
    check: &Check,
    plugin: Option<&str>,
    verdict: Verdict,
    text: String,
    begin: Instant,
) -> Report {
    Report {
        check: check.id.to_owned(),
        plugin: plugin.map(str::to_owned),
        verdict,
        text,
        clause: check.clause.to_owned(),
        seconds: begin.elapsed().as_secs_f64(),
        plugins: Vec::new(),
    }
}

fn in_child(
    mut command: Command,
    check: &Check,
    plugin: Option<&str>,
    timeout: Duration,
) -> Report {
    let begin = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) => {
            let text = format!("the checking process does not start: {e}");
            return report(check, plugin, Verdict::Skip, text, begin);
        }
    };
    let readers = (reader(child.stdout.take()), reader(child.stderr.take()));
    let status = wait(&mut child, begin + timeout);
    let text = |handle: std::thread::JoinHandle<String>| handle.join().unwrap_or_default();
    let (out, err) = (text(readers.0), text(readers.1));
    let doing = err.lines().filter_map(|l| l.strip_prefix(DOING)).next_back().unwrap_or("start");
    let Some(status) = status else {
        let text = format!("no end after {} s, in: {doing}", timeout.as_secs());
        return report(check, plugin, Verdict::Hang, text, begin);
    };
    let answer = out.lines().rev().find_map(|l| serde_json::from_str::<Report>(l).ok());
    match answer {
        Some(answer) if status.success() || status.code().is_some() => answer,
        _ => {
            let last = err.lines().rfind(|l| !l.starts_with(DOING)).unwrap_or_default();
            let text = format!("{}, in: {doing}   {last}", death(status)).trim_end().to_owned();
            report(check, plugin, Verdict::Crash, text, begin)
        }
    }
}

/// Reads a pipe to its end, keeping a bounded part.
fn reader<R: Read + Send + 'static>(pipe: Option<R>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        if let Some(mut pipe) = pipe {
            // Errors end the text; the verdict comes from the exit status.
            let _ = pipe.by_ref().take(MAX_OUTPUT).read_to_end(&mut kept);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        String::from_utf8_lossy(&kept).into_owned()
    })
}

/// Waits until the deadline, then kills. `None`: it was killed.
fn wait(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn death(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(libc::SIGSEGV), _) => "SIGSEGV".to_owned(),
        (Some(libc::SIGABRT), _) => "SIGABRT".to_owned(),
        (Some(libc::SIGBUS), _) => "SIGBUS".to_owned(),
        (Some(libc::SIGFPE), _) => "SIGFPE".to_owned(),
        (Some(libc::SIGILL), _) => "SIGILL".to_owned(),
        (Some(signal), _) => format!("signal {signal}"),
        (_, Some(code)) => format!("exit with code {code} and no answer"),
        _ => "no exit status".to_owned(),
    }
}

/// Points standard output at an anonymous file while checks run, so that printing plugins are noticed and do not mix
/// with the answer. Core dumps are off: crashes are expected here.
pub struct Silence {
    saved: OwnedFd,
}

impl Silence {
    /// Begins. `None` if the system refuses; then output is simply not watched.
    pub fn begin() -> Option<Self> {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a plain limit.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
        // SAFETY: duplicates descriptor 1.
        let saved = unsafe { libc::fcntl(1, libc::F_DUPFD_CLOEXEC, 3) };
        if saved < 0 {
            return None;
        }
        // SAFETY: a fresh descriptor of ours.
        let saved = unsafe { OwnedFd::from_raw_fd(saved) };
        // SAFETY: a literal name.
        let file =
            unsafe { libc::memfd_create(c"stdout of the plugin".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return None;
        }
        // SAFETY: as above.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        // SAFETY: two open descriptors.
        unsafe { libc::dup2(file.as_raw_fd(), 1) };
        Some(Self { saved })
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // SAFETY: flushes C's stdio into the anonymous file, then restores the descriptor.
        unsafe {
            libc::fflush(std::ptr::null_mut());
            libc::dup2(self.saved.as_raw_fd(), 1);
        }
    }
}
