//! The `limbeck` program: parses a command line, calls a command, turns its result into an exit code.
//!
//! Decides nothing about pipelines and calls no plugin. Errors never panic; a panic is a bug and gives exit 70.

mod args;
mod commands;
mod exit;
mod logs;
mod render;
mod signals;
mod startup;

use clap::Parser;
use clap::error::ErrorKind;
use limbeck_host::diagnostic::Diagnostic;
use std::process::ExitCode;

fn main() -> ExitCode {
    startup::tune_allocator();
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout, mistakes to stderr; a closed pipe changes nothing.
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if asked { exit::DONE } else { exit::USAGE });
        }
    };
    startup::limit_pools(startup::threads(cli.global.threads));
    let renderer = render::Renderer::new(&cli.global);
    logs::start(&cli.global, renderer.colors_stderr());
    startup::report_fatal_signals();
    startup::install_panic_hook(std::env::args().collect::<Vec<_>>().join(" "));
    if let Some(directory) = &cli.global.directory
        && let Err(error) = std::env::set_current_dir(directory)
    {
        let message = format!("cannot work in {}: {error}", directory.display());
        renderer.problem(&Diagnostic::error("LMB1002", message));
        return ExitCode::from(exit::MISSING_INPUT);
    }
    let code = execute(cli, renderer);
    limbeck_host::load::library::shutdown();
    ExitCode::from(code)
}

/// Runs the command on a big stack and reports what stopped it.
fn execute(cli: args::Cli, renderer: render::Renderer) -> u8 {
    let shell = commands::Shell { global: cli.global, renderer };
    let result = startup::on_big_stack(|| commands::dispatch(cli.command, &shell));
    match result {
        Some(Ok(code)) => code,
        Some(Err(stop)) => {
            renderer.problems(&stop.problems);
            stop.code
        }
        None => exit::BUG,
    }
}
