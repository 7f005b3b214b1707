//! Texts and their tokens.

use super::*;

fn text_set(folder: &Folder, pair: bool) -> DatasetPlan {
    let path = folder
        .file("t.csv", "text,pair,label\na b c d a b,d,0\n\"a, z\",c d,1\nb,a a a a a a a,0\n");
    let text = TextColumns { column: name("text"), pair: pair.then(|| name("pair")) };
    DatasetPlan { text: Some(text), label: Some(name("label")), ..set(Format::Csv, &path) }
}

fn open_text(
    folder: &Folder,
    dataset: DatasetPlan,
    tokenizer: TokenizerPlan,
) -> (Arc<Dataset>, Datasets) {
    let mut plan = folder.plan([dataset]);
    plan.tokenizer = Some(tokenizer);
    let (sets, problems) = open_all(&plan);
    assert_eq!(problems, []);
    (Arc::clone(sets.get("d").unwrap()), sets)
}

#[test]
fn stored_padding_and_truncation_are_not_used() {
    let folder = Folder::new();
    let (set, _) = open_text(&folder, text_set(&folder, false), tokenizer(&folder, 16, true));
    let batch = set.gather(&[1, 2]);
    assert_eq!(batch.columns["input_ids"].shape(), [2, 5]);
    assert_eq!(i64s(&batch, "input_ids"), [0, 3, 2, 2, 1, 0, 4, 1, 9, 9]);
    assert_eq!(i64s(&batch, "attention_mask"), [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
    assert_eq!(set.gather(&[0]).columns["input_ids"].shape(), [1, 8], "6 words are not cut to 5");
    assert!(!batch.columns.contains_key("token_type_ids"));
    let spec = set.columns().into_iter().find(|c| c.name == "input_ids").unwrap();
    assert_eq!((spec.dtype, spec.row_shape), (DType::I64, vec![-1]));
    assert_eq!(set.encoder("input_ids").unwrap().num_ids(), 10, "ids have gaps");
    assert_eq!((set.length(0), set.length_in("attention_mask", 2)), (8, Some(3)));
}

#[test]
fn long_texts_are_cut_and_fixed_padding_fills_up() {
    let folder = Folder::new();
    let (set, _) = open_text(&folder, text_set(&folder, false), tokenizer(&folder, 4, false));
    let batch = all(&set);
    assert_eq!(i64s(&batch, "input_ids"), [0, 3, 4, 1, 0, 3, 2, 1, 0, 4, 1, 9]);
    let spec = set.columns().into_iter().find(|c| c.name == "attention_mask").unwrap();
    assert_eq!(spec.row_shape, [4]);
}

#[test]
fn pairs_have_segments() {
    let folder = Folder::new();
    let (set, _) = open_text(&folder, text_set(&folder, true), tokenizer(&folder, 7, true));
    let batch = set.gather(&[2, 1]);
    assert_eq!(i64s(&batch, "input_ids"), [0, 4, 1, 3, 3, 3, 1, 0, 3, 2, 1, 5, 6, 1]);
    assert_eq!(i64s(&batch, "token_type_ids"), [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1]);
}

#[test]
fn tokens_do_not_depend_on_filters() {
    let folder = Folder::new();
    let plan = DatasetPlan { classes: Some(vec![1]), ..text_set(&folder, false) };
    let (set, _) = open_text(&folder, plan, tokenizer(&folder, 16, true));
    assert_eq!(i64s(&all(&set), "input_ids"), [0, 3, 2, 2, 1]);
}

#[test]
fn a_second_tokenizer_reads_its_own_column_into_its_own_batch_columns() {
    let folder = Folder::new();
    let texts = BTreeMap::from([(
        "big".to_owned(),
        TextColumns { column: name("pair"), pair: Some(name("text")) },
    )]);
    let mut plan = folder.plan([DatasetPlan { texts, ..text_set(&folder, false) }]);
    plan.tokenizer = Some(tokenizer(&folder, 4, true));
    plan.tokenizers = BTreeMap::from([("big".to_owned(), tokenizer(&folder, 7, true))]);
    let (sets, problems) = open_all(&plan);
    assert_eq!(problems, []);
    let set = sets.get("d").unwrap();
    let batch = set.gather(&[1]);
    assert_eq!(i64s(&batch, "input_ids"), [0, 3, 2, 1]);
    assert_eq!(i64s(&batch, "big_input_ids"), [0, 5, 6, 1, 3, 2, 1]);
    assert_eq!(i64s(&batch, "big_token_type_ids"), [0, 0, 0, 0, 1, 1, 1]);
    assert_eq!((set.length(1), set.length_in("big_input_ids", 1)), (7, Some(7)));
    let spec = |name: &str| set.columns().into_iter().find(|c| c.name == name).unwrap();
    assert_ne!(spec("input_ids").tokenizer, spec("big_input_ids").tokenizer);

    plan.tokenizers.clear();
    assert_eq!(open_all(&plan).1[0].code, "LMB0515");
}

#[test]
fn kept_tokens_are_used_for_equal_texts_and_made_anew_for_others() {
    let folder = Folder::new();
    let kept = folder.0.path().join("kept");
    let mut plan = folder.plan([text_set(&folder, true)]);
    plan.tokenizer = Some(tokenizer(&folder, 7, true));
    let ids = |plan: &Plan| {
        let all_ids = plan.datasets.keys().cloned().collect();
        let (sets, problems) = Datasets::open_only(plan, &all_ids, Tokenize::Cached(&kept));
        assert_eq!(problems, []);
        let batch = all(sets.get("d").unwrap());
        (i64s(&batch, "input_ids"), i64s(&batch, "token_type_ids"))
    };
    let files = || {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(&kept).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    };
    let first = ids(&plan);
    let [file] = &files()[..] else { panic!("{:?}", files()) };
    // Another token in the file shows that it is read.
    let good = std::fs::read(file).unwrap();
    let mut named = crate::run::safetensors::from_bytes(&good).unwrap();
    let mut changed = named["ids"].data::<u32>().unwrap().to_vec();
    changed[1] = 6;
    named.insert("ids".into(), Tensor::from_slice(&changed, &[changed.len() as i64]));
    std::fs::write(file, crate::run::safetensors::to_bytes(&named).unwrap()).unwrap();
    assert_eq!(ids(&plan).0[1], 6);
    // A damaged one is made again.
    std::fs::write(file, &good[..good.len() / 2]).unwrap();
    assert_eq!(ids(&plan), first);
    assert_eq!(std::fs::read(file).unwrap(), good);
    // Other settings, other rows and other files have files of their own.
    plan.tokenizer = Some(tokenizer(&folder, 6, true));
    assert_ne!(ids(&plan), first);
    plan.datasets.get_mut("d").unwrap().limit = Some(2);
    ids(&plan);
    folder.file("t.csv", "text,pair,label\na,d,0\nb,d,1\n");
    ids(&plan);
    assert_eq!(files().len(), 4);
}

#[test]
fn a_survey_knows_columns_and_makes_no_tokens() {
    let folder = Folder::new();
    let mut plan = folder.plan([text_set(&folder, true)]);
    plan.tokenizer = Some(tokenizer(&folder, 7, true));
    let ids = plan.datasets.keys().cloned().collect();
    let (survey, _) = Datasets::open_only(&plan, &ids, Tokenize::Never);
    let (whole, _) = open_all(&plan);
    let (survey, whole) = (survey.get("d").unwrap(), whole.get("d").unwrap());
    assert_eq!(survey.columns(), whole.columns());
    assert_eq!(survey.source(), whole.source());
    assert!(!survey.gather(&[0]).columns.contains_key("input_ids"));
}

#[test]
fn the_source_of_rows_is_their_files_columns_and_tokenizer() {
    let folder = Folder::new();
    let base = text_set(&folder, true);
    let source = |dataset: DatasetPlan, max_length: usize| {
        let tokenizer = tokenizer(&folder, max_length, true);
        open_text(&folder, dataset, tokenizer).0.source().to_owned()
    };
    let first = source(base.clone(), 7);
    assert_eq!(first, source(DatasetPlan { limit: Some(1), label: None, ..base.clone() }, 7));
    assert_ne!(first, source(base.clone(), 6));
    assert_ne!(first, source(text_set(&folder, false), 7));
    folder.file("t.csv", "text,pair,label\na,d,0\n");
    assert_ne!(first, source(base, 7));
}

#[test]
fn bad_tokenizers_are_refused() {
    let folder = Folder::new();
    let good = tokenizer(&folder, 16, true);
    let fails = |plan: TokenizerPlan| {
        let mut whole = folder.plan([text_set(&folder, true)]);
        whole.tokenizer = Some(plan);
        open_all(&whole).1.into_iter().map(|p| p.code).collect::<Vec<_>>()
    };
    assert_eq!(fails(TokenizerPlan { max_length: 3, ..good.clone() }), ["LMB0516"]);
    assert_eq!(
        fails(TokenizerPlan { path: folder.0.path().join("none"), ..good.clone() }),
        ["LMB0501"]
    );
    let other = folder.file("other.json", "{\"model\": 3}");
    assert_eq!(fails(TokenizerPlan { path: other, ..good.clone() }), ["LMB0516"]);
    let (_, problems) = open_all(&folder.plan([text_set(&folder, false)]));
    assert_eq!(problems[0].code, "LMB0515");
}

#[test]
fn a_text_a_line_skips_blank_lines_and_refuses_bad_bytes() {
    let folder = Folder::new();
    let path = folder.file("t.txt", "a b\n\n  \r\nc\r\n");
    let (set, _) = open_text(&folder, set(Format::Text, &path), tokenizer(&folder, 16, true));
    assert_eq!(i64s(&all(&set), "input_ids"), [0, 3, 4, 1, 0, 5, 1, 9]);
    let path = folder.file("t.txt", b"a b\nc\xc3\xa9 \xff\n");
    let mut plan = folder.plan([super::tests::set(Format::Text, &path)]);
    plan.tokenizer = Some(tokenizer(&folder, 16, true));
    let (_, problems) = open_all(&plan);
    assert_eq!(problems[0].code, "LMB0504");
    let span = problems[0].span.as_ref().unwrap();
    assert_eq!((span.line, span.column), (2, 4));
}
