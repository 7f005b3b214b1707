//! Reads the datasets of a plan, each file once.
//!
//! Datasets with equal format and files form a unit; its files are read once for the requests of all members, and
//! units are read side by side. A problem spoils its unit only.

use super::change::Change;
use super::column::{Builder, Request, column_name};
use super::problem::Problems;
use super::table::{Encoded, NumberColumn, Stored, TOKEN_COLUMNS, Table};
use super::tokenize::TextEncoder;
use super::{
    Dataset, SOURCE_SHIFT, Tokenize, csv, files, filter, idx, jsonl, npy, parquet, raw, text,
    token_cache,
};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::plan::{Column, DatasetPlan, Format, Plan, TensorPlan};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Tokenizers that could be read, by the name under `tokenizers`; `""`: `tokenizer`.
type Encoders = BTreeMap<String, Arc<TextEncoder>>;

/// Datasets that read the same files.
struct Unit<'a> {
    format: Format,
    files: Vec<PathBuf>,
    requests: Vec<Request>,
    members: Vec<Member<'a>>,
}

struct Member<'a> {
    plan: &'a DatasetPlan,
    first_id: i64,
    numbers: Vec<(String, usize, &'a TensorPlan)>,
    label: Option<usize>,
    texts: Vec<Text>,
}

/// A text of a dataset: name of the tokenizer (`""`: the pipeline's), requests of text and pair.
pub(super) type Text = (String, usize, Option<usize>);

/// What all units share.
struct Around<'a> {
    base: &'a Path,
    encoders: &'a Encoders,
    tokenize: Tokenize<'a>,
}

/// Datasets by id, and what is wrong.
pub(super) fn open(
    plan: &Plan,
    ids: &BTreeSet<String>,
    tokenize: Tokenize<'_>,
) -> (BTreeMap<String, Arc<Dataset>>, Diagnostics) {
    let mut problems = Vec::new();
    let wanted: Vec<&DatasetPlan> = ids.iter().filter_map(|id| plan.datasets.get(id)).collect();
    let encoders = encoders(plan, &wanted, &mut problems);
    let sources = source_ids(plan);
    let mut units: Vec<Unit> = Vec::new();
    for dataset in wanted {
        match check(dataset, plan) {
            Ok(files) => {
                let first_id = sources.get(&dataset.id).copied().unwrap_or(0);
                join(&mut units, dataset, files, first_id);
            }
            Err(found) => problems.extend(found),
        }
    }
    let around = Around { base: &plan.base_dir, encoders: &encoders, tokenize };
    let results: Vec<(Vec<Dataset>, Diagnostics)> =
        units.into_par_iter().map(|unit| unit.read(&around)).collect();
    let mut datasets = BTreeMap::new();
    for (read, found) in results {
        datasets.extend(read.into_iter().map(|d| (d.id.clone(), Arc::new(d))));
        problems.extend(found);
    }
    (datasets, problems)
}

/// The tokenizers that the datasets need.
fn encoders(plan: &Plan, datasets: &[&DatasetPlan], problems: &mut Diagnostics) -> Encoders {
    let own = plan.tokenizer.iter().map(|t| (String::new(), t));
    let named = plan.tokenizers.iter().map(|(name, t)| (name.clone(), t));
    let needed = |name: &str| {
        datasets.iter().any(|d| match name {
            "" => has_main_text(d),
            name => d.texts.contains_key(name),
        })
    };
    let mut encoders = Encoders::new();
    for (name, tokenizer) in own.chain(named).filter(|(name, _)| needed(name)) {
        match TextEncoder::open(tokenizer) {
            Ok(encoder) => drop(encoders.insert(name, Arc::new(encoder))),
            Err(problem) => problems.push(problem),
        }
    }
    encoders
}

/// Whether `tokenizer` has work here.
fn has_main_text(dataset: &DatasetPlan) -> bool {
    dataset.text.is_some() || dataset.format == Format::Text && dataset.texts.is_empty()
}

fn needs_tokens(dataset: &DatasetPlan) -> bool {
    has_main_text(dataset) || !dataset.texts.is_empty()
}

/// Name of the tokenizer and columns of every text of a dataset.
fn texts(dataset: &DatasetPlan) -> Vec<(String, Column, Option<Column>)> {
    let lines = has_main_text(dataset) && dataset.format == Format::Text;
    let own = match &dataset.text {
        _ if lines => Some((String::new(), Column::Index(0), None)),
        Some(text) => Some((String::new(), text.column.clone(), text.pair.clone())),
        None => None,
    };
    let named = dataset.texts.iter().map(|(n, t)| (n.clone(), t.column.clone(), t.pair.clone()));
    own.into_iter().chain(named).collect()
}

/// `""` or `big_`.
fn prefix(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!("{name}_") }
}

/// First row id of each dataset. Equal files and columns give equal ids; nothing but the plan decides.
fn source_ids(plan: &Plan) -> BTreeMap<String, i64> {
    let same = |a: &DatasetPlan, b: &DatasetPlan| {
        (a.format, &a.paths, &a.text, &a.texts, &a.label, a.ignore_label)
            == (b.format, &b.paths, &b.text, &b.texts, &b.label, b.ignore_label)
            && a.tensors.len() == b.tensors.len()
            && a.tensors.iter().zip(&b.tensors).all(|((n, t), (m, u))| {
                n == m
                    && (&t.columns, &t.shape, t.dtype, t.scale, t.transform)
                        == (&u.columns, &u.shape, u.dtype, u.scale, u.transform)
            })
    };
    let mut sources: Vec<&DatasetPlan> = Vec::new();
    let mut ids = BTreeMap::new();
    for dataset in plan.datasets.values() {
        let index = sources.iter().position(|s| same(s, dataset)).unwrap_or_else(|| {
            sources.push(dataset);
            sources.len() - 1
        });
        ids.insert(dataset.id.clone(), (index as i64) << SOURCE_SHIFT);
    }
    ids
}

/// Problems that the plan could not see; the files otherwise.
fn check(dataset: &DatasetPlan, plan: &Plan) -> Result<Vec<PathBuf>, Diagnostics> {
    let place = |problem: Diagnostic| {
        problem.at(dataset.span.clone()).within(format!("dataset `{}`", dataset.id))
    };
    let mut problems = Vec::new();
    if has_main_text(dataset) && plan.tokenizer.is_none() {
        problems.push(place(
            Diagnostic::error("LMB0515", "text needs a `tokenizer`")
                .help("add `tokenizer: {path: DIRECTORY}` at the top level"),
        ));
    }
    for name in dataset.texts.keys().filter(|name| !plan.tokenizers.contains_key(*name)) {
        problems.push(place(
            Diagnostic::error("LMB0515", format!("the text for `{name}` needs that tokenizer"))
                .help(format!(
                    "add `tokenizers: {{{name}: {{path: DIRECTORY}}}}` at the top level"
                )),
        ));
    }
    let mut taken: BTreeSet<String> = BTreeSet::from(["row_ids".to_owned()]);
    if dataset.label.is_some() {
        taken.insert("labels".into());
    }
    for (name, ..) in texts(dataset) {
        taken.extend(TOKEN_COLUMNS.map(|column| format!("{}{column}", prefix(&name))));
    }
    for name in dataset.tensors.keys().filter(|name| taken.contains(name.as_str())) {
        problems.push(place(Diagnostic::error(
            "LMB0517",
            format!("tensor `{name}` has the name of a column that this dataset already has"),
        )));
    }
    if matches!(dataset.format, Format::Idx | Format::Npy) && needs_tokens(dataset) {
        problems.push(place(Diagnostic::error("LMB0517", "arrays hold numbers, no `text`")));
    }
    match files::expand(&dataset.paths) {
        Ok(files) if problems.is_empty() => Ok(files),
        Ok(_) => Err(problems),
        Err(found) => {
            problems.extend(found.into_iter().map(place));
            Err(problems)
        }
    }
}

/// Adds a dataset to the unit of its files.
fn join<'a>(units: &mut Vec<Unit<'a>>, plan: &'a DatasetPlan, files: Vec<PathBuf>, first_id: i64) {
    let found = units.iter().position(|u| u.format == plan.format && u.files == files);
    let index = found.unwrap_or_else(|| {
        units.push(Unit { format: plan.format, files, requests: Vec::new(), members: Vec::new() });
        units.len() - 1
    });
    let unit = &mut units[index];
    let mut request = |request: Request| {
        unit.requests.iter().position(|r| *r == request).unwrap_or_else(|| {
            unit.requests.push(request);
            unit.requests.len() - 1
        })
    };
    let numbers = plan
        .tensors
        .iter()
        .map(|(name, tensor)| {
            // Neither the place nor what happens after matters for what is read.
            let read = TensorPlan { span: None, transform: None, ..tensor.clone() };
            (name.clone(), request(Request::Numbers { name: name.clone(), tensor: read }), tensor)
        })
        .collect();
    let label = plan.label.as_ref().map(|column| {
        request(Request::Label { column: column.clone(), ignore: plan.ignore_label })
    });
    let texts = texts(plan)
        .into_iter()
        .map(|(name, column, pair)| {
            let text = request(Request::Text { column });
            (name, text, pair.map(|column| request(Request::Text { column })))
        })
        .collect();
    unit.members.push(Member { plan, first_id, numbers, label, texts });
}

impl Unit<'_> {
    fn read(self, around: &Around<'_>) -> (Vec<Dataset>, Diagnostics) {
        let ids: Vec<&str> = self.members.iter().map(|m| m.plan.id.as_str()).collect();
        let span = self.members.first().and_then(|m| m.plan.span.as_ref());
        let mut problems = Problems::new(&ids, span);
        let (columns, hashes) = rayon::join(
            || self.columns(around.base, &mut problems),
            || {
                self.files.par_iter().map(|f| Ok((f.clone(), files::sha256(f)?))).collect::<Result<
                    Vec<_>,
                    Diagnostic,
                >>(
                )
            },
        );
        if problems.any() {
            return (Vec::new(), problems.into_list());
        }
        let (columns, others) = columns;
        let hashes = hashes.and_then(|mut hashes| {
            for file in others {
                if !hashes.iter().any(|(f, _)| *f == file) {
                    let hash = files::sha256(&file)?;
                    hashes.push((file, hash));
                }
            }
            Ok(Arc::new(hashes))
        });
        let hashes = match hashes {
            Ok(hashes) => hashes,
            Err(problem) => {
                problems.push(problem);
                return (Vec::new(), problems.into_list());
            }
        };
        self.datasets(columns, &hashes, around, problems)
    }

    /// Reads all columns; the second is the files that requests named themselves.
    fn columns(&self, base: &Path, problems: &mut Problems) -> (Vec<Stored>, Vec<PathBuf>) {
        let limit = self.members.iter().map(|m| filter::rows_needed(m.plan)).max().unwrap_or(0);
        let mut builders: Vec<Builder> = self.requests.iter().map(Request::builder).collect();
        let mut others = Vec::new();
        let arrays = match self.format {
            Format::Idx => Some(idx::header as raw::ReadHeader),
            Format::Npy => Some(npy::header as raw::ReadHeader),
            _ => None,
        };
        if let Some(header) = arrays {
            let (files, requests) = (&self.files, &self.requests);
            others = raw::read(files, base, header, requests, &mut builders, limit, problems);
        } else {
            let read = match self.format {
                Format::Jsonl => jsonl::read,
                Format::Parquet => parquet::read,
                Format::Text => text::read,
                _ => csv::read,
            };
            let mut left = limit;
            for file in &self.files {
                let before = builders.first().map_or(0, rows);
                if left > 0 && !self.requests.is_empty() {
                    read(file, &self.requests, &mut builders, left, problems);
                }
                left -= left.min((builders.first().map_or(0, rows) - before) as u64);
                if problems.any() {
                    break;
                }
            }
        }
        if self.requests.is_empty() {
            problems.push(
                Diagnostic::error("LMB0517", "no column is taken from the files")
                    .help("give `tensors`, `text` or `label`"),
            );
        }
        if !problems.any() {
            self.check_equal(&builders, problems);
        }
        let stored = builders.into_iter().map(|builder| match builder {
            Builder::Numbers(numbers) => Stored::Numbers(Arc::new(numbers)),
            Builder::Labels(labels) => Stored::Labels(Arc::new(labels)),
            Builder::Texts(texts) => Stored::Texts(Arc::new(texts)),
        });
        (stored.collect(), others)
    }

    /// Arrays of different files may differ in rows.
    fn check_equal(&self, builders: &[Builder], problems: &mut Problems) {
        let counts: Vec<usize> = builders.iter().map(rows).collect();
        if counts.windows(2).all(|w| w[0] == w[1]) {
            return;
        }
        let list: Vec<String> = self
            .requests
            .iter()
            .zip(&counts)
            .map(|(r, n)| {
                let from =
                    r.column().map_or(String::new(), |c| format!(" from {}", column_name(c)));
                format!("`{}`{from} has {n}", r.target())
            })
            .collect();
        problems.push(Diagnostic::error(
            "LMB0514",
            format!("columns differ in rows: {}", list.join(", ")),
        ));
    }

    fn datasets(
        &self,
        columns: Vec<Stored>,
        hashes: &Arc<Vec<(PathBuf, String)>>,
        around: &Around<'_>,
        problems: Problems,
    ) -> (Vec<Dataset>, Diagnostics) {
        let mut found = problems.into_list();
        let count = columns.first().map_or(0, stored_rows);
        let mut selected = Vec::new();
        for member in &self.members {
            let labels = member.label.and_then(|i| match columns.get(i) {
                Some(Stored::Labels(labels)) => Some(labels),
                _ => None,
            });
            match filter::select(member.plan, count, labels.map(|l| l.values.as_slice())) {
                Ok(rows) => selected.push((member, rows, labels.cloned())),
                Err(problem) => found.push(problem),
            }
        }
        let mut encoded: BTreeMap<&Text, Encoded> = BTreeMap::new();
        let mut datasets = Vec::new();
        for (member, rows, labels) in &selected {
            let mut texts = Vec::new();
            for text in &member.texts {
                // A tokenizer that could not be read was told already.
                let Some(encoder) = around.encoders.get(&text.0) else { break };
                if let Entry::Vacant(new) = encoded.entry(text) {
                    let sharing = selected.iter().filter(|(m, ..)| m.texts.contains(text));
                    let wanted = sharing.flat_map(|(_, rows, _)| rows.iter().copied()).collect();
                    let key = token_cache::Key { files: hashes, columns: &self.requests, text };
                    match encode(&columns, &key, encoder, &wanted, around.tokenize) {
                        Ok(tokens) => drop(new.insert(tokens)),
                        Err(problem) => {
                            found.push(problem);
                            break;
                        }
                    }
                }
                texts.extend(encoded.get(text).cloned());
            }
            if texts.len() < member.texts.len() {
                continue;
            }
            let numbers = member.numbers.iter().filter_map(|(name, i, tensor)| {
                let Some(Stored::Numbers(numbers)) = columns.get(*i) else { return None };
                let change = Change::of(tensor, numbers).map_err(|why| {
                    let message = format!("tensor `{name}`: {why}");
                    let at = tensor.span.clone();
                    let within = format!("dataset `{}`", member.plan.id);
                    found.push(Diagnostic::error("LMB0517", message).at(at).within(within));
                });
                let (name, values) = (name.clone(), Arc::clone(numbers));
                Some(NumberColumn { name, values, change: change.unwrap_or_default() })
            });
            let table = Table {
                numbers: numbers.collect(),
                labels: labels.clone(),
                source: self.source(member, hashes, &texts),
                texts,
                hashes: Arc::clone(hashes),
                first_id: member.first_id,
            };
            let id = member.plan.id.clone();
            datasets.push(Dataset { id, table: Arc::new(table), rows: rows.clone() });
        }
        (datasets, found)
    }

    /// See [`Dataset::source`].
    fn source(
        &self,
        member: &Member<'_>,
        hashes: &[(PathBuf, String)],
        texts: &[Encoded],
    ) -> String {
        let files: Vec<&str> = hashes.iter().map(|(_, hash)| hash.as_str()).collect();
        let encoders: Vec<String> = texts.iter().map(|t| t.encoder.fingerprint()).collect();
        let requests = |places: &mut dyn Iterator<Item = usize>| {
            places.map(|i| format!("{:?}", self.requests.get(i))).collect::<Vec<_>>()
        };
        let numbers = requests(&mut member.numbers.iter().map(|(_, i, _)| *i));
        let changes: Vec<String> = member
            .numbers
            .iter()
            .filter_map(|(name, _, tensor)| Some(format!("{name} {:?}", tensor.transform?)))
            .collect();
        let of_texts = |(name, text, pair): &Text| {
            let columns = requests(&mut std::iter::once(*text).chain(*pair));
            format!("{name:?} {columns:?}")
        };
        let columns: Vec<String> = member.texts.iter().map(of_texts).collect();
        let mut all = format!("{:?} {files:?} {encoders:?} {numbers:?} {columns:?}", self.format);
        if !changes.is_empty() {
            all.push_str(&format!("{changes:?}"));
        }
        crate::run::checkpoint::sha256(all.as_bytes())
    }
}

fn encode(
    columns: &[Stored],
    key: &token_cache::Key<'_>,
    encoder: &Arc<TextEncoder>,
    wanted: &BTreeSet<usize>,
    tokenize: Tokenize<'_>,
) -> Result<Encoded, Diagnostic> {
    let texts = |index: usize| match columns.get(index) {
        Some(Stored::Texts(texts)) => Arc::clone(texts),
        _ => Arc::default(),
    };
    let (name, text, pair) = key.text;
    let make = || {
        let pairs = pair.map(texts);
        encoder.encode(&texts(*text), pairs.as_deref(), wanted)
    };
    let tokens = match tokenize {
        Tokenize::Never => None,
        Tokenize::Always => Some(make()?),
        Tokenize::Cached(dir) => {
            let rows = texts(*text).rows();
            Some(token_cache::read_or_make(
                dir,
                &key.file(encoder, wanted),
                rows,
                pair.is_some(),
                make,
            )?)
        }
    };
    Ok(Encoded {
        prefix: prefix(name),
        tokens: tokens.map(Arc::new),
        has_pair: pair.is_some(),
        encoder: Arc::clone(encoder),
    })
}

fn rows(builder: &Builder) -> usize {
    match builder {
        Builder::Numbers(numbers) => numbers.bytes.len() / numbers.row_bytes().max(1),
        Builder::Labels(labels) => labels.values.len(),
        Builder::Texts(texts) => texts.rows(),
    }
}

fn stored_rows(stored: &Stored) -> usize {
    match stored {
        Stored::Numbers(numbers) => numbers.bytes.len() / numbers.row_bytes().max(1),
        Stored::Labels(labels) => labels.values.len(),
        Stored::Texts(texts) => texts.rows(),
    }
}
