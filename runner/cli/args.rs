//! The command line, as typed. Decides nothing: commands do.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Runs knowledge distillation pipelines through plugins.
#[derive(Debug, Parser)]
#[command(name = "limbeck", version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 done, 65 data or checkpoint malformed, 66 input missing, 69 device \
    unavailable, 70 bug, 73 output busy, 74 I/O error, 75 stopped with a checkpoint (same command continues), \
    76 plugin broke its contract, 77 plugin not trusted, 78 pipeline error, 79 diverged or gate missed, \
    128+n signal n."
)]
pub struct Cli {
    /// What every command understands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command: where and how loudly, never what is computed.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Work in this directory
    #[arg(short = 'C', long = "directory", value_name = "DIR", global = true)]
    pub directory: Option<PathBuf>,
    /// Only errors and answers
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// More on stderr; twice for still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Answers and diagnostics as a JSON object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Form of log records on stderr
    #[arg(
        long,
        value_name = "FORM",
        global = true,
        env = "LIMBECK_LOG_FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,
    /// Color on the terminal
    #[arg(long, value_name = "WHEN", global = true, env = "LIMBECK_COLOR", default_value = "auto")]
    pub color: Color,
    /// Progress of a run: bars, a line per 10 s, or nothing
    #[arg(
        long,
        value_name = "FORM",
        global = true,
        env = "LIMBECK_PROGRESS",
        default_value = "auto"
    )]
    pub progress: Progress,
    /// Threads of the pool; default: every core
    #[arg(long, value_name = "N", global = true, env = "LIMBECK_THREADS",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Look for plugins here first (may be repeated)
    #[arg(long, value_name = "DIR", global = true)]
    pub plugin_dir: Vec<PathBuf>,
    /// Folder of run directories
    #[arg(long, value_name = "DIR", global = true, env = "LIMBECK_RUNS", default_value = "runs")]
    pub runs: PathBuf,
    /// Load plugins that limbeck.lock does not name; recorded in the run
    #[arg(long, global = true)]
    pub allow_unlocked: bool,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// `--color`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// `--progress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// Bars on a terminal, else plain.
    Auto,
    /// Bars.
    Bar,
    /// A line per 10 s.
    Plain,
    /// Nothing.
    None,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a pipeline; continue an unfinished run of the same one
    Run(RunArgs),
    /// Continue a run by directory, id or unique prefix
    Resume(ResumeArgs),
    /// Find what would fail later; write nothing
    Validate(ValidateArgs),
    /// Show what would be done: stages, steps, memory
    Plan(PlanArgs),
    /// Measure the student of a run's stage
    Eval(EvalArgs),
    /// Write the student of a run's stage as a Hugging Face directory
    Export(ExportArgs),
    /// Make, check, find and pin plugins
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Print the JSON Schema of pipeline files, for editors
    Schema {
        /// Only the plugins that this pipeline uses
        file: Option<PathBuf>,
    },
    /// Print a completion script
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
}

/// A pipeline and its overrides.
#[derive(Args, Debug, Clone)]
pub struct PipelineArgs {
    /// Pipeline file
    pub file: PathBuf,
    /// Override a value, e.g. stages.distill.epochs=1 (may be repeated)
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
}

/// `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Start anew although an unfinished run exists
    #[arg(long)]
    pub fresh: bool,
    /// How far.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Where a run stops early.
#[derive(Args, Debug, Clone)]
pub struct LimitArgs {
    /// Stop after this stage
    #[arg(long, value_name = "STAGE")]
    pub until: Option<String>,
    /// Stop with a checkpoint after N optimizer steps of this process (exit 75)
    #[arg(long, value_name = "N")]
    pub max_steps: Option<u64>,
    /// Stop with a checkpoint after this long, e.g. 4h, 90 min (exit 75)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub time_limit: Option<std::time::Duration>,
}

/// `resume`.
#[derive(Args, Debug)]
pub struct ResumeArgs {
    /// Run directory, id or unique prefix of an id
    pub run: String,
    /// Go on although a plugin or a data file changed
    #[arg(long)]
    pub accept_changes: bool,
    /// How far.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// `validate`.
#[derive(Args, Debug)]
pub struct ValidateArgs {
    /// Pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Warnings are errors
    #[arg(long)]
    pub strict: bool,
    /// Do not look at devices and disks
    #[arg(long)]
    pub no_environment: bool,
}

/// `plan`.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// Pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Print the resolved pipeline with the origin of each value
    #[arg(long, value_name = "WHAT")]
    pub show: Option<Show>,
}

/// `plan --show`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Show {
    /// Resolved YAML with origins.
    Config,
}

/// A stage of a run.
#[derive(Args, Debug)]
pub struct StageArgs {
    /// Run directory, id or unique prefix of an id
    pub run: String,
    /// Stage; default: the last that trains
    #[arg(long, value_name = "STAGE")]
    pub stage: Option<String>,
    /// Which of the stage's students
    #[arg(long, value_name = "WHICH", default_value = "last")]
    pub which: WhichArg,
}

/// `--which`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WhichArg {
    /// At the end of the stage.
    Last,
    /// With the best metric.
    Best,
    /// The EMA teacher that followed it.
    Ema,
}

/// `eval`.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// Stage.
    #[command(flatten)]
    pub stage: StageArgs,
    /// Dataset of the pipeline; default: what the stage evaluates on
    #[arg(long, value_name = "ID")]
    pub data: Option<String>,
}

/// `export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// Stage.
    #[command(flatten)]
    pub stage: StageArgs,
    /// Form of the result
    #[arg(long, value_name = "FORMAT", default_value = "hf")]
    pub format: ExportFormat,
    /// Directory to write: new, empty, or an earlier export of this pipeline, which it replaces
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// Hugging Face directory.
    Hf,
}

/// `plugin …`.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Write a crate or C file that builds and passes `check`
    New(PluginNewArgs),
    /// Check a library against the contract, a process per check
    Check(PluginCheckArgs),
    /// Run a loss once on tensors from a file; write value, metrics and gradients
    Eval(PluginEvalArgs),
    /// Show every plugin and where it was found
    List,
    /// Show a plugin's ports, settings, ABI and hash
    Info {
        /// Plugin id or library file
        plugin: String,
    },
    /// Write limbeck.lock beside a pipeline
    Lock {
        /// Pipeline file; default: the only .yaml file here
        file: Option<PathBuf>,
    },
}

/// `plugin new`.
#[derive(Args, Debug)]
pub struct PluginNewArgs {
    /// Name of the plugin: lower-case letters, digits, dashes
    pub name: String,
    /// Kind
    #[arg(long)]
    pub kind: KindArg,
    /// Language
    #[arg(long, default_value = "rust")]
    pub lang: LangArg,
    /// Directory to make; default: NAME
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// Path of the limbeck-sdk crate; default: the sources this program was built from, if still there
    #[arg(long, value_name = "PATH")]
    pub sdk: Option<PathBuf>,
}

/// `--kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    /// Gives targets.
    Teacher,
    /// Is trained.
    Student,
    /// Value and gradients.
    Loss,
    /// Steers a stream of tasks.
    Scheduler,
}

/// `--lang`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LangArg {
    /// A crate on limbeck-sdk.
    Rust,
    /// One C file.
    C,
}

/// `plugin check`.
#[derive(Args, Debug)]
pub struct PluginCheckArgs {
    /// Library file
    pub file: PathBuf,
    /// Only this plugin of the library
    #[arg(long, value_name = "ID")]
    pub plugin: Option<String>,
    /// Device to check on
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: String,
    /// Only checks whose id matches
    #[arg(long, value_name = "RE")]
    pub include: Option<String>,
    /// Seed of random cases; a failure prints the one to replay
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Settings to create the plugin with, as JSON; default: what the schema allows
    #[arg(long, value_name = "JSON")]
    pub with: Option<String>,
    /// Seconds before a check counts as hung
    #[arg(long, value_name = "S", default_value_t = 60)]
    pub timeout: u64,
    /// Run the checks in this process (a crash ends it), for debuggers
    #[arg(long)]
    pub in_process: bool,
    /// Run one check and print its result; how the program calls itself
    #[arg(long, value_name = "CHECK", hide = true)]
    pub run_one: Option<String>,
}

/// `plugin eval`.
#[derive(Args, Debug)]
pub struct PluginEvalArgs {
    /// Plugin id of a loss
    pub id: String,
    /// Settings, as under `with` in a pipeline
    #[arg(long, value_name = "JSON", default_value = "{}")]
    pub with: String,
    /// Safetensors file whose names are ports (and parameters) of the loss
    #[arg(long, value_name = "FILE")]
    pub inputs: PathBuf,
    /// Safetensors file to write: `value`, `metric.NAME`, `grad.PORT`
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Convert float inputs to this type first
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<FloatArg>,
    /// Device to compute on
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: String,
    /// What the sum over rows is divided by; default: the counted rows
    #[arg(long, value_name = "X")]
    pub normalizer: Option<f64>,
    /// Factor of every gradient
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub grad_scale: f64,
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FloatArg {
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16.
    Bf16,
}

impl From<WhichArg> for limbeck_host::plan::Which {
    fn from(which: WhichArg) -> Self {
        match which {
            WhichArg::Last => Self::Last,
            WhichArg::Best => Self::Best,
            WhichArg::Ema => Self::Ema,
        }
    }
}

/// `4h`, `90 min`, `30s`: a number and a unit.
fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 =
        number.parse().map_err(|_| "expected a time such as `4h` or `90 min`".to_owned())?;
    let seconds = match unit.trim() {
        "s" | "sec" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        other => return Err(format!("unknown unit `{other}`; one of s, min, h, d")),
    };
    std::time::Duration::try_from_secs_f64(number * seconds)
        .map_err(|_| format!("`{text}` is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::time::Duration;

    #[test]
    fn command_line_has_no_conflicting_definitions() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_need_a_number_and_a_known_unit() {
        assert_eq!(parse_duration("4h"), Ok(Duration::from_secs(14400)));
        assert_eq!(parse_duration("1.5 min"), Ok(Duration::from_secs(90)));
        for bad in ["", "4", "4 parsecs", "h", "1e300h", "-1s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
