//! Filters, row ids, datasets beside each other.

use super::*;

fn ten(folder: &Folder) -> DatasetPlan {
    let text: String = (0..10).map(|i| format!("{i},{}\n", i % 3)).collect();
    DatasetPlan {
        label: Some(Column::Index(1)),
        tensors: range(0, 0),
        ..set(Format::Csv, &folder.file("ten.csv", text))
    }
}

#[test]
fn filters_apply_in_order_rows_classes_limit() {
    let folder = Folder::new();
    let plan = DatasetPlan {
        rows: Some((2, 9)),
        classes: Some(vec![0, 2]),
        limit: Some(3),
        ..ten(&folder)
    };
    let set = folder.open(plan).unwrap();
    assert_eq!(f32s(&all(&set), "x"), [2.0, 3.0, 5.0]);
    let set =
        folder.open(DatasetPlan { rows: Some((2, 100)), limit: Some(2), ..ten(&folder) }).unwrap();
    assert_eq!(f32s(&all(&set), "x"), [2.0, 3.0]);
}

#[test]
fn a_limit_stops_reading_before_later_rows() {
    let folder = Folder::new();
    let path = folder.file("a.csv", "1,0\n2,1\nbad,1\n");
    let plan = DatasetPlan { tensors: range(0, 1), limit: Some(2), ..set(Format::Csv, &path) };
    assert_eq!(folder.open(plan).unwrap().rows(), 2);
}

#[test]
fn filters_that_leave_nothing_or_reach_past_the_end_are_refused() {
    let folder = Folder::new();
    for (plan, code) in [
        (DatasetPlan { rows: Some((2, 11)), ..ten(&folder) }, "LMB0512"),
        (DatasetPlan { rows: Some((20, 30)), limit: Some(1), ..ten(&folder) }, "LMB0512"),
        (DatasetPlan { classes: Some(vec![7]), ..ten(&folder) }, "LMB0513"),
        (DatasetPlan { rows: Some((3, 3)), ..ten(&folder) }, "LMB0513"),
        (DatasetPlan { classes: Some(vec![1]), label: None, ..ten(&folder) }, "LMB0517"),
    ] {
        let (problem, place) = one(folder.open(plan));
        assert_eq!((problem.code, place.as_str()), (code, "4:3+1"), "{problem:?}");
    }
}

#[test]
fn row_ids_survive_filters_and_find_their_rows_again() {
    let folder = Folder::new();
    let base = ten(&folder);
    let odd = DatasetPlan { id: "view".into(), classes: Some(vec![1]), ..base.clone() };
    let other = DatasetPlan { id: "other".into(), tensors: range(1, 1), ..base.clone() };
    let (sets, problems) = open_all(&folder.plan([base, odd, other]));
    assert_eq!(problems, []);
    let get = |id: &str| sets.get(id).unwrap();
    let ids = i64s(&all(get("view")), "row_ids");
    assert_eq!(ids, [1, 4, 7]);
    let other_ids = i64s(&all(get("other")), "row_ids");
    assert_eq!(other_ids[1], 1 + (1 << SOURCE_SHIFT), "other columns, other source");
    let found = sets.locate(&[7, other_ids[2]]).unwrap();
    assert_eq!(found[0].0.gather(&[found[0].1]).columns["x"].data::<f32>().unwrap(), [7.0]);
    assert_eq!((found[1].0.id(), found[1].1), ("other", 2));
    assert!(sets.locate(&[10]).is_none());
    assert!(sets.locate(&[-1]).is_none());
    assert_eq!(get("view").position(4), Some(1));
    assert_eq!(get("view").row_id(2), Some(7));
}

#[test]
fn a_bad_dataset_does_not_hide_another() {
    let folder = Folder::new();
    let bad = DatasetPlan {
        id: "bad".into(),
        paths: vec![folder.0.path().join("none.csv")],
        ..ten(&folder)
    };
    let worse = DatasetPlan {
        id: "worse".into(),
        tensors: range(0, 1),
        ..set(Format::Csv, &folder.file("w.csv", "1,a\n"))
    };
    let (sets, problems) = open_all(&folder.plan([ten(&folder), bad, worse]));
    assert!(sets.get("d").is_some() && sets.get("bad").is_none() && sets.get("worse").is_none());
    let mut codes: Vec<_> = problems.iter().map(|p| p.code).collect();
    codes.sort_unstable();
    // `w.csv` has a header by the rule, and no rows.
    assert_eq!(codes, ["LMB0501", "LMB0513"]);
}

#[test]
fn names_of_columns_may_not_collide() {
    let folder = Folder::new();
    let mut plan = ten(&folder);
    plan.tensors = BTreeMap::from([("labels".into(), range(0, 0)["x"].clone())]);
    assert_eq!(one(folder.open(plan)).0.code, "LMB0517");
}
