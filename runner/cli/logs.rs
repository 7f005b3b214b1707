//! Log records on stderr and, during a run, in its `logs/` folder.
//!
//! Records never go to stdout. The run's files take `info` and above whatever the terminal shows.

use crate::args::{Global, LogFormat};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// The files of the run directory, once there is one.
struct RunFiles {
    text: Mutex<Option<File>>,
    json: Mutex<Option<File>>,
}

static FILES: OnceLock<RunFiles> = OnceLock::new();

/// Writes to one of the files, or nowhere while there is none.
struct Late(fn(&RunFiles) -> &Mutex<Option<File>>);

impl Write for &Late {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let files =
            FILES.get_or_init(|| RunFiles { text: Mutex::new(None), json: Mutex::new(None) });
        if let Some(file) = self.0(files).lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            // A full disk must not end a run through its log; checkpoints report it.
            let _ = file.write_all(buf);
        }
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Late {
    type Writer = &'a Late;
    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Starts logging. `LIMBECK_LOG` (tracing's filter syntax) wins over `-q` and `-v`.
pub fn start(global: &Global, color: bool) {
    let default = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (_, 0) => "warn",
        (_, 1) => "info",
        (_, 2) => "debug",
        _ => "trace",
    };
    let filter = std::env::var("LIMBECK_LOG")
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(default));
    let stderr = tracing_subscriber::fmt::layer().with_writer(crate::render::stderr_writer);
    let terminal = match global.log_format {
        LogFormat::Text => stderr.with_ansi(color).with_target(true).boxed(),
        LogFormat::Json => stderr.json().boxed(),
    };
    let text = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(Late(|f| &f.text));
    let json = tracing_subscriber::fmt::layer().json().with_writer(Late(|f| &f.json));
    // Fails only if a subscriber exists, which happens in tests alone.
    let _ = tracing_subscriber::registry()
        .with(terminal.with_filter(filter))
        .with(text.with_filter(LevelFilter::INFO))
        .with(json.with_filter(LevelFilter::INFO))
        .try_init();
}

/// Sends records also to `logs/console.log` and `logs/log.jsonl` of a run directory.
pub fn also_into(run_dir: &Path) {
    let folder = run_dir.join("logs");
    if std::fs::create_dir_all(&folder).is_err() {
        return;
    }
    let open = |name| File::options().create(true).append(true).open(folder.join(name)).ok();
    let files = FILES.get_or_init(|| RunFiles { text: Mutex::new(None), json: Mutex::new(None) });
    *files.text.lock().unwrap_or_else(PoisonError::into_inner) = open("console.log");
    *files.json.lock().unwrap_or_else(PoisonError::into_inner) = open("log.jsonl");
}
