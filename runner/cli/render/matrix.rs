//! The task matrix as text: a row after each task, the summary below.

use super::events::number;
use super::table;
use limbeck_host::run::matrix::TaskMatrix;

fn cell(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), number)
}

fn summary(matrix: &TaskMatrix) -> String {
    let parts = matrix.summary().into_iter().map(|(name, value)| format!("{name} {}", cell(value)));
    parts.collect::<Vec<_>>().join("  ")
}

/// What masks the columns choose from, in words.
fn words(matrix: &TaskMatrix) -> &'static str {
    match (matrix.mask.as_str(), matrix.also.is_some()) {
        ("task", _) => "within the task",
        (_, true) => "over all classes",
        _ => "",
    }
}

/// All of it.
pub fn text(matrix: &TaskMatrix) -> String {
    let mut head = vec![format!("{} after", matrix.metric)];
    head.extend(matrix.tasks.iter().cloned());
    let mut lines = vec![head];
    let name = |k: usize| match k.checked_sub(1) {
        None => "(before)",
        Some(k) => matrix
            .trained
            .get(k)
            .and_then(|task| matrix.tasks.get(*task))
            .map_or("?", String::as_str),
    };
    for (k, row) in matrix.rows.iter().enumerate() {
        let mut line = vec![format!("  {}", name(k))];
        line.extend(row.iter().map(|value| cell(*value)));
        lines.push(line);
    }
    let mut text = format!("{}\n{}", table::columns(&lines), summary(matrix));
    if let Some(other) = matrix.other() {
        let (own, others) = (
            words(matrix),
            if other.mask == "task" { "within the task" } else { "over all classes" },
        );
        text = format!("{text}  ({own})\n{}  ({others})", summary(&other));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_host::run::matrix::MaskedRows;

    #[test]
    fn rows_are_named_by_what_was_trained_before_them() {
        let rows =
            vec![vec![Some(0.1), None], vec![Some(0.9), Some(0.2)], vec![Some(0.5), Some(0.8)]];
        let inside = vec![
            vec![Some(0.5), Some(0.5)],
            vec![Some(1.0), Some(0.5)],
            vec![Some(0.9), Some(1.0)],
        ];
        let matrix = TaskMatrix {
            tasks: vec!["a".into(), "b".into()],
            metric: "accuracy".into(),
            maximize: true,
            class_incremental: true,
            trained: vec![1, 0],
            rows,
            counts: vec![10, 10],
            mask: "all".into(),
            also: Some(MaskedRows { mask: "task".into(), rows: inside }),
            train_classes: "all".into(),
        };
        let text = text(&matrix);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].trim_start().starts_with("(before)") && lines[1].ends_with('-'), "{text}");
        assert!(lines[2].trim_start().starts_with('b') && lines[3].trim_start().starts_with('a'));
        assert!(lines[4].starts_with("average_accuracy 0.65") && lines[4].contains("fwt -"));
        assert!(
            lines[5].starts_with("average_accuracy 0.95")
                && lines[5].ends_with("(within the task)")
        );
    }
}
