//! Which rows a term sees.

use super::TermRows;
use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::load::codes;
use crate::load::instance::Schedule;
use crate::plan::RowsChoice;

/// Rows of a pipeline's term.
pub(super) enum GroupChoice {
    Found(TermRows),
    Refused(Box<Diagnostic>),
}

/// Finds the row group that a pipeline's term names: `GROUP` or `SCHEDULER.GROUP`.
pub(super) fn choose(choice: &RowsChoice, schedulers: &[(&str, &Schedule)]) -> GroupChoice {
    let text = match choice {
        RowsChoice::FreshAndJoined => return GroupChoice::Found(TermRows::FreshAndJoined),
        RowsChoice::Fresh => return GroupChoice::Found(TermRows::Fresh),
        RowsChoice::All => return GroupChoice::Found(TermRows::All),
        RowsChoice::Group(text) => text,
    };
    let groups = || {
        schedulers.iter().enumerate().flat_map(|(i, (name, schedule))| {
            schedule.groups.iter().map(move |g| (i, format!("{name}.{}", g.name), g.name.as_str()))
        })
    };
    let fitting: Vec<(usize, String, &str)> =
        groups().filter(|(_, qualified, name)| text == name || text == qualified).collect();
    match fitting.as_slice() {
        [(scheduler, _, group)] => GroupChoice::Found(TermRows::Group {
            scheduler: *scheduler,
            group: (*group).to_owned(),
        }),
        [] => {
            let known: Vec<String> =
                groups().flat_map(|(_, qualified, name)| [name.to_owned(), qualified]).collect();
            let problem = Diagnostic::error(
                codes::NO_SUCH_GROUP,
                format!("no scheduler of the stage has row group `{text}`"),
            );
            let help = match did_you_mean(text, known.iter().map(String::as_str)) {
                Some(close) => format!("did you mean `{close}`?"),
                None if known.is_empty() => "its schedulers declare no row groups".to_owned(),
                None => format!(
                    "there are {}",
                    known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ")
                ),
            };
            GroupChoice::Refused(Box::new(problem.help(help)))
        }
        [(_, first, _), (_, second, _), ..] => {
            let text = format!("row group `{text}` belongs to more than one scheduler");
            let problem = Diagnostic::error(codes::NO_SUCH_GROUP, text);
            GroupChoice::Refused(Box::new(problem.help(format!("write `{first}` or `{second}`"))))
        }
    }
}

/// Rows of a scheduler's own term; the schedule was checked to declare the group.
pub(super) fn own(scheduler: usize, rows: &str) -> TermRows {
    match rows {
        "" => TermRows::Fresh,
        "*" => TermRows::All,
        group => TermRows::Group { scheduler, group: group.to_owned() },
    }
}
