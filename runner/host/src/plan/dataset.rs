//! One entry of `datasets`.
//!
//! Knows what can be said without the file: formats, columns, shapes, filters. Every column is named or numbered
//! from 0; ranges of columns include their end, ranges of rows do not.

use super::values::{check_name, integers, map_entries, out_of_range, resolve_path};
use super::{Column, DatasetPlan, Format, TensorColumns, TensorPlan, TextColumns, Transform};
use crate::diagnostic::Diagnostic;
use crate::document::{Bounds, Field, Fields, Node, Sink, Value, text_of, wrong_type};
use crate::tensor::DType;
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FORMATS: [(&str, Format); 6] = [
    ("csv", Format::Csv),
    ("jsonl", Format::Jsonl),
    ("idx", Format::Idx),
    ("parquet", Format::Parquet),
    ("npy", Format::Npy),
    ("text", Format::Text),
];

/// Batch columns of the runner, and the word for "no source".
const RESERVED: [&str; 7] =
    ["labels", "row_ids", "row_mask", "row_weights", "row_classes", "task_index", "none"];

/// Reads a dataset; `datasets` is the mapping it stands in.
pub fn read(datasets: &Fields, field: &Field, base: &Path) -> (DatasetPlan, Json) {
    let part = datasets.below(&field.node, &field.key, format!("dataset `{}`", field.key), false);
    if part.field("format").is_none() {
        part.missing("format", "one of `csv`, `jsonl`, `idx`, `parquet`, `npy`, `text`");
    }
    let format = part.choice("format", &FORMATS).unwrap_or(Format::Csv);
    let paths = paths(&part, base);
    let text = text(&part);
    let texts = texts(&part);
    let label = column(&part, "label");
    let tensors = tensors(&part, format);
    let rows = rows(&part);
    let classes = classes(&part, label.is_some());
    let limit = part.count("limit", 1);
    let ignore_label = ignore_label(&part);
    let has_content = text.is_some() || !texts.is_empty() || !tensors.is_empty();
    check_content(&part, format, has_content);
    let dataset = DatasetPlan {
        id: field.key.to_string(),
        span: Some(field.key_span.clone()),
        format,
        paths,
        text,
        texts,
        label,
        tensors,
        rows,
        classes,
        limit,
        ignore_label,
    };
    (dataset, part.finish())
}

fn check_content(part: &Fields, format: Format, has_content: bool) {
    if !has_content && format != Format::Text {
        part.sink.report(
            Diagnostic::error("LMB0102", format!("{} has neither `tensors` nor `text`", part.what))
                .at(part.span.clone())
                .help("`tensors: {pixel_values: {columns: [0, 63]}}` or `text: COLUMN`"),
        );
    }
}

fn paths(part: &Fields, base: &Path) -> Vec<PathBuf> {
    let Some(field) = part.field("path") else {
        part.missing("path", "a file, a list of files or a pattern, relative to the pipeline");
        return Vec::new();
    };
    let nodes: Vec<&Arc<Node>> = match &field.node.value {
        Value::List(items) if items.is_empty() => {
            out_of_range(part.sink, "path", "at least one file", &field.node);
            Vec::new()
        }
        Value::List(items) => items.iter().collect(),
        _ => vec![&field.node],
    };
    let written: Vec<String> = nodes.iter().filter_map(|n| text_of(part.sink, "path", n)).collect();
    let json = match &field.node.value {
        Value::List(_) => json!(written),
        _ => json!(written.first()),
    };
    part.keep("path", json, Some(field));
    written.iter().map(|p| resolve_path(base, p)).collect()
}

fn text(part: &Fields) -> Option<TextColumns> {
    let field = part.field("text")?;
    if !matches!(field.node.value, Value::Map(_)) {
        return column(part, "text").map(|column| TextColumns { column, pair: None });
    }
    let inner = part.part("text")?;
    let columns = text_columns(&inner);
    part.keep_part("text", inner.finish());
    columns
}

/// `texts.TOKENIZER`: a column, or `{column, pair}`.
fn texts(part: &Fields) -> BTreeMap<String, TextColumns> {
    let Some(field) = part.field("texts") else { return BTreeMap::new() };
    let mut out = BTreeMap::new();
    let mut json = Map::new();
    for entry in map_entries(part.sink, "texts", &field.node) {
        let name = entry.key.to_string();
        check_name(part.sink, "a tokenizer name", &name, &entry.key_span, false);
        let what = format!("text `{name}`");
        let (columns, resolved) = if matches!(entry.node.value, Value::Map(_)) {
            let inner = part.below(&entry.node, &format!("texts.{name}"), what, false);
            let columns = text_columns(&inner);
            (columns, inner.finish())
        } else {
            let column = column_of(part.sink, "texts", &entry.node);
            let resolved = column.as_ref().map_or(Json::Null, column_json);
            (column.map(|column| TextColumns { column, pair: None }), resolved)
        };
        json.insert(name.clone(), resolved);
        out.extend(columns.map(|columns| (name, columns)));
    }
    part.keep_part("texts", Json::Object(json));
    out
}

fn text_columns(inner: &Fields) -> Option<TextColumns> {
    if inner.field("column").is_none() {
        inner.missing("column", "the column of the (first) text");
    }
    let first = column(inner, "column");
    let pair = column(inner, "pair");
    first.map(|column| TextColumns { column, pair })
}

/// A column by name or number.
fn column(part: &Fields, key: &'static str) -> Option<Column> {
    let field = part.field(key)?;
    let column = column_of(part.sink, key, &field.node)?;
    part.keep(key, column_json(&column), Some(field));
    Some(column)
}

fn column_of(sink: &Sink, key: &str, node: &Node) -> Option<Column> {
    match &node.value {
        Value::Int(n, _) => match usize::try_from(*n) {
            Ok(index) => Some(Column::Index(index)),
            Err(_) => {
                out_of_range(sink, key, "a column name or a number from 0", node);
                None
            }
        },
        Value::Text(_) => text_of(sink, key, node).map(Column::Name),
        _ => {
            wrong_type(sink, key, "a column name or number", node);
            None
        }
    }
}

fn column_json(column: &Column) -> Json {
    match column {
        Column::Name(name) => json!(name),
        Column::Index(index) => json!(index),
    }
}

fn tensors(part: &Fields, format: Format) -> BTreeMap<String, TensorPlan> {
    let Some(field) = part.field("tensors") else { return BTreeMap::new() };
    let mut out = BTreeMap::new();
    let mut json = Map::new();
    for entry in map_entries(part.sink, "tensors", &field.node) {
        let name = entry.key.to_string();
        check_name(part.sink, "a batch column", &name, &entry.key_span, false);
        if RESERVED.contains(&name.as_str()) {
            part.sink.report(
                Diagnostic::error(
                    "LMB0114",
                    format!("the batch column `{name}` is filled by the runner"),
                )
                .at(entry.key_span.clone())
                .help("labels come from `label`; give the tensor another name"),
            );
        }
        let inner =
            part.below(&entry.node, &format!("tensors.{name}"), format!("tensor `{name}`"), false);
        out.insert(name.clone(), tensor(&inner, format));
        json.insert(name, inner.finish());
    }
    part.keep_part("tensors", Json::Object(json));
    out
}

fn tensor(part: &Fields, format: Format) -> TensorPlan {
    let columns = part.field("columns").and_then(|field| tensor_columns(part, field));
    if part.field("columns").is_none() && !matches!(format, Format::Idx | Format::Npy) {
        part.missing(
            "columns",
            "`columns: [first, last]`, counted from 0, or the name of a column",
        );
    }
    let shape = shape(part, columns.as_ref());
    let scale = part.number_or("scale", Bounds::FINITE, 1.0);
    let dtype = part.choice_or_first(
        "dtype",
        ("f32", DType::F32),
        &[("f64", DType::F64), ("i64", DType::I64), ("i32", DType::I32), ("u8", DType::U8)],
    );
    let transform = transform(part);
    TensorPlan { columns, shape, scale, dtype, transform, span: Some(part.span.clone()) }
}

fn transform(part: &Fields) -> Option<Transform> {
    let permute = part.count("permute", 0).map(Transform::Permute);
    let rotate = part.number("rotate", Bounds::FINITE).map(Transform::Rotate);
    if let (Some(_), Some(_), Some(field)) = (permute, rotate, part.field("rotate")) {
        part.sink.report(
            Diagnostic::error("LMB0105", "`permute` and `rotate` exclude each other")
                .at(field.key_span.clone())
                .help("a permuted image has no neighbours to rotate among; keep one"),
        );
    }
    permute.or(rotate)
}

fn tensor_columns(part: &Fields, field: &Field) -> Option<TensorColumns> {
    if !matches!(field.node.value, Value::List(_)) {
        let column = column_of(part.sink, "columns", &field.node)?;
        part.keep("columns", column_json(&column), Some(field));
        return Some(TensorColumns::Named(column));
    }
    let pair = integers(part.sink, "columns", &field.node, Some(2))?;
    let [first, last] = pair[..] else { return None };
    if first < 0 || last < first {
        out_of_range(part.sink, "columns", "[first, last] with 0 <= first <= last", &field.node);
        return None;
    }
    part.keep("columns", json!(pair), Some(field));
    Some(TensorColumns::Range(usize::try_from(first).ok()?, usize::try_from(last).ok()?))
}

fn shape(part: &Fields, columns: Option<&TensorColumns>) -> Option<Vec<usize>> {
    let field = part.field("shape")?;
    let sizes = integers(part.sink, "shape", &field.node, None)?;
    let shape: Option<Vec<usize>> =
        sizes.iter().map(|n| usize::try_from(*n).ok().filter(|n| *n > 0)).collect();
    let product = shape.as_ref().and_then(|s| s.iter().try_fold(1usize, |a, b| a.checked_mul(*b)));
    let Some(product) = product else {
        out_of_range(part.sink, "shape", "a list of sizes above 0", &field.node);
        return None;
    };
    if let Some(TensorColumns::Range(first, last)) = columns {
        let values = last - first + 1;
        if product != values {
            part.sink.report(
                Diagnostic::error(
                    "LMB0105",
                    format!("`shape` holds {product} values, `columns` gives {values}"),
                )
                .at(field.node.span.clone())
                .help("the product of the sizes is the number of columns"),
            );
        }
    }
    part.keep("shape", json!(shape), Some(field));
    shape
}

fn rows(part: &Fields) -> Option<(u64, u64)> {
    let field = part.field("rows")?;
    let pair = integers(part.sink, "rows", &field.node, Some(2))?;
    let [from, to] = pair[..] else { return None };
    if from < 0 || to <= from {
        out_of_range(part.sink, "rows", "[from, to] with 0 <= from < to", &field.node);
        return None;
    }
    part.keep("rows", json!(pair), Some(field));
    Some((u64::try_from(from).ok()?, u64::try_from(to).ok()?))
}

fn classes(part: &Fields, has_label: bool) -> Option<Vec<i64>> {
    let field = part.field("classes")?;
    let classes = integers(part.sink, "classes", &field.node, None)?;
    if classes.is_empty() || classes.iter().any(|c| *c < 0) {
        out_of_range(part.sink, "classes", "a list of class numbers, 0 or more", &field.node);
        return None;
    }
    if !has_label {
        part.sink.report(
            Diagnostic::error(
                "LMB0209",
                format!("{} filters by `classes` and has no `label`", part.what),
            )
            .at(field.key_span.clone())
            .help("name the column of the class: `label: COLUMN`"),
        );
    }
    part.keep("classes", json!(classes), Some(field));
    Some(classes)
}

fn ignore_label(part: &Fields) -> Option<i64> {
    let field = part.field("ignore_label")?;
    let Value::Int(n, _) = field.node.value else {
        part.wrong_type("ignore_label", "a whole number", &field.node);
        return None;
    };
    let label = i64::try_from(n).ok()?;
    part.keep("ignore_label", json!(label), Some(field));
    Some(label)
}
