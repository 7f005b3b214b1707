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
    let (set, sets) = open_text(&folder, text_set(&folder, false), tokenizer(&folder, 16, true));
    let batch = set.gather(&[1, 2]);
    assert_eq!(batch.columns["input_ids"].shape(), [2, 5]);
    assert_eq!(i64s(&batch, "input_ids"), [0, 3, 2, 2, 1, 0, 4, 1, 9, 9]);
    assert_eq!(i64s(&batch, "attention_mask"), [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
    assert_eq!(set.gather(&[0]).columns["input_ids"].shape(), [1, 8], "6 words are not cut to 5");
    assert!(!batch.columns.contains_key("token_type_ids"));
    let spec = set.columns().into_iter().find(|c| c.name == "input_ids").unwrap();
    assert_eq!((spec.dtype, spec.row_shape), (DType::I64, vec![-1]));
    assert_eq!(sets.encoder().unwrap().vocab_size(), 8);
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
