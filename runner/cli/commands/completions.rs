//! `limbeck completions SHELL`.

use super::{Answer, Shell};
use crate::args::Cli;
use crate::exit;
use clap::CommandFactory;

/// Prints the script.
///
/// # Errors
/// None.
pub fn completions(kind: clap_complete::Shell, shell: &Shell) -> Answer {
    let mut script = Vec::new();
    clap_complete::generate(kind, &mut Cli::command(), "limbeck", &mut script);
    shell.renderer.document(&String::from_utf8_lossy(&script));
    Ok(exit::DONE)
}
