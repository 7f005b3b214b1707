//! The model card (`README.md`) of an export.
//!
//! Text only, made of what the export knows; a number that is not known is a dash, never a guess.

use super::hf::ExportedModel;
use std::collections::BTreeSet;
use std::fmt::Write;

/// The card, front matter first.
pub(super) fn card(model: &ExportedModel) -> String {
    let mut out = front_matter(model);
    // Writing to a `String` cannot fail.
    let _ = write!(out, "# {}\n\n", model.pipeline_name);
    if let Some(description) = &model.description {
        let _ = write!(out, "{}\n\n", description.trim());
    }
    let _ = write!(
        out,
        "Student of stage `{}`, plugin `{}` {}, {} parameters. Trained and written by Limbeck {}, seed {}.\n\n",
        model.stage,
        model.plugin,
        model.version,
        grouped(model.num_parameters()),
        env!("CARGO_PKG_VERSION"),
        model.seed
    );
    out.push_str(&table(model));
    let _ = write!(
        out,
        "\n## Data\n\n{}\n## Use\n\n{} In a pipeline:\n\n\
         ```yaml\nteacher: {{uses: limbeck.hf, with: {{path: DIRECTORY}}}}\n```\n\n",
        model.data.iter().map(|line| format!("- {line}\n")).collect::<String>(),
        match &model.config {
            Some(_) =>
                "The directory is in the form of Hugging Face and loads with `transformers` as it is.",
            None =>
                "`config.json` holds the plugin's settings; `model.safetensors` its parameters by name.",
        }
    );
    let fence = fence(&model.pipeline_text);
    let _ =
        write!(out, "## Pipeline\n\n{fence}yaml\n{}\n{fence}\n", model.pipeline_text.trim_end());
    out
}

fn front_matter(model: &ExportedModel) -> String {
    let library = if model.config.is_some() { "transformers" } else { "limbeck" };
    let mut out = format!("---\nlibrary_name: {library}\ntags:\n- limbeck\n");
    if model.teacher.is_some() {
        out.push_str("- knowledge-distillation\n");
    }
    let _ = writeln!(out, "- {}", model.model_type());
    let names: BTreeSet<&str> =
        model.metrics.iter().flat_map(|(_, m)| m).map(|(name, _)| name.as_str()).collect();
    if !names.is_empty() {
        out.push_str("metrics:\n");
        for name in names {
            let _ = writeln!(out, "- {name}");
        }
    }
    out.push_str("---\n\n");
    out
}

/// Metrics of the task matrix.
const OF_A_STREAM: [&str; 6] =
    ["average_accuracy", "anytime_accuracy", "learning_accuracy", "bwt", "forgetting", "fwt"];

/// Student beside teacher: size and every metric on every dataset.
fn table(model: &ExportedModel) -> String {
    let teacher = model.teacher.as_ref();
    let mut out = String::from("## Results\n\n| | student |");
    out.push_str(if teacher.is_some() { " teacher |\n|---|---|---|\n" } else { "\n|---|---|\n" });
    let mut row = |name: &str, student: String, of_teacher: Option<String>| {
        let _ = write!(out, "| {name} | {student} |");
        if teacher.is_some() {
            let _ = write!(out, " {} |", of_teacher.unwrap_or_else(|| "–".into()));
        }
        out.push('\n');
    };
    row(
        "model",
        format!("`{}`", model.plugin),
        teacher.map(|t| format!("{}", Code(&t.description))),
    );
    row(
        "parameters",
        grouped(model.num_parameters()),
        teacher.and_then(|t| t.parameters).map(grouped),
    );
    for (data, metrics) in &model.metrics {
        for (name, value) in metrics {
            let of_teacher = teacher
                .and_then(|t| t.metrics.iter().find(|(d, _)| d == data))
                .and_then(|(_, m)| m.iter().find(|(n, _)| n == name))
                .map(|(_, value)| format!("{value:.4}"));
            let of = match OF_A_STREAM.contains(&name.as_str()) {
                true => format!("{name} over all tasks"),
                false => format!("{name} on `{data}`"),
            };
            row(&of, format!("{value:.4}"), of_teacher);
        }
    }
    out
}

/// Text as inline code that cannot break a table.
struct Code<'a>(&'a str);

impl std::fmt::Display for Code<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}`", self.0.replace(['`', '|', '\n'], " "))
    }
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A fence longer than every run of backticks in the text.
fn fence(text: &str) -> String {
    let (mut longest, mut run) = (0, 0);
    for c in text.chars() {
        run = if c == '`' { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    "`".repeat((longest + 1).max(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(66_955_010), "66,955,010");
    }

    #[test]
    fn a_pipeline_with_backticks_cannot_leave_its_fence() {
        assert_eq!(fence("plain"), "```");
        assert_eq!(fence("a ```` b"), "`````");
    }
}
