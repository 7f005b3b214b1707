//! The commands, one file each. Each asks the host for one thing and shows the answer.

mod completions;
mod eval;
mod export;
mod inputs;
mod plan;
mod plugin_check;
mod plugin_eval;
mod plugin_info;
mod plugin_list;
mod plugin_lock;
mod plugin_new;
mod resume;
mod run;
mod schema;
mod size;
mod validate;

use crate::args::{Command, Global, PluginCommand};
use crate::exit;
use crate::render::Renderer;
use limbeck_host::diagnostic::{Diagnostic, Diagnostics, did_you_mean, sort};
use limbeck_host::run::RunError;

/// Where and how loudly a command works.
pub struct Shell {
    /// Flags that every command has.
    pub global: Global,
    /// Prints.
    pub renderer: Renderer,
}

/// An argument that names something the pipeline does not have.
fn unknown<'n>(what: &str, name: &str, known: impl Iterator<Item = &'n str> + Clone) -> Stop {
    let problem = Diagnostic::error("LMB1001", format!("the pipeline has no {what} `{name}`"));
    let help = match did_you_mean(name, known.clone()) {
        Some(close) => format!("did you mean `{close}`?"),
        None => format!("it has: {}", known.collect::<Vec<_>>().join(", ")),
    };
    problem.help(help).into()
}

/// Why a command stopped.
#[derive(Debug)]
pub struct Stop {
    /// Exit code: that of the first problem.
    pub code: u8,
    /// What to tell.
    pub problems: Diagnostics,
}

impl From<Diagnostics> for Stop {
    fn from(mut problems: Diagnostics) -> Self {
        sort(&mut problems);
        Self { code: exit::of_problems(&problems), problems }
    }
}

impl From<Diagnostic> for Stop {
    fn from(problem: Diagnostic) -> Self {
        vec![problem].into()
    }
}

impl From<RunError> for Stop {
    fn from(error: RunError) -> Self {
        (*error.diagnostic).into()
    }
}

/// Exit code, or why not.
pub type Answer = Result<u8, Stop>;

/// Calls the command.
///
/// # Errors
/// What stopped it, not printed yet.
pub fn dispatch(command: Command, shell: &Shell) -> Answer {
    match command {
        Command::Run(args) => run::run(&args, shell),
        Command::Resume(args) => resume::resume(&args, shell),
        Command::Validate(args) => validate::validate(&args, shell),
        Command::Plan(args) => plan::plan(&args, shell),
        Command::Eval(args) => eval::eval(&args, shell),
        Command::Export(args) => export::export(&args, shell),
        Command::Plugin(PluginCommand::New(args)) => plugin_new::new(&args, shell),
        Command::Plugin(PluginCommand::Check(args)) => plugin_check::check(&args, shell),
        Command::Plugin(PluginCommand::Eval(args)) => plugin_eval::eval(&args, shell),
        Command::Plugin(PluginCommand::Lock { file }) => plugin_lock::lock(file.as_deref(), shell),
        Command::Plugin(PluginCommand::List) => plugin_list::list(shell),
        Command::Plugin(PluginCommand::Info { plugin }) => plugin_info::info(&plugin, shell),
        Command::Schema { file } => schema::schema(file.as_deref(), shell),
        Command::Completions { shell: kind } => completions::completions(kind, shell),
    }
}
