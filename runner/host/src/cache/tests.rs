//! Caches on disk: what is written comes back, what is damaged or foreign is refused.

use super::*;
use crate::run::vfs::RealFs;
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

fn manifest(rows: impl IntoIterator<Item = usize>, version: &str) -> Manifest {
    let teacher = TeacherRecord {
        plugin: "test.teacher".into(),
        version: version.into(),
        settings: serde_json::json!({}),
        files: Vec::new(),
        parameters: None,
    };
    let output = |name: &str, shape: &str, by_token| OutputRecord {
        name: name.into(),
        shape: shape.into(),
        by_token,
    };
    let outputs = vec![output("hidden.1", "B,T,2", true), output("logits", "B,3", false)];
    let source = SourceRecord {
        datasets: vec!["train".into()],
        source: "s".into(),
        files: vec!["f".into()],
        rows: Ranges::new(rows),
    };
    Manifest::new(teacher, outputs, Some("input_ids".into()), None, vec![source])
}

/// Row r has r + 1 tokens; its numbers are made of r.
fn part(rows: &[i64]) -> Part {
    let logits: Vec<f32> =
        rows.iter().flat_map(|r| [0.1, 0.2, 0.3].map(|v| v + *r as f32)).collect();
    let lengths: Vec<i64> = rows.iter().map(|r| r + 1).collect();
    let hidden: Vec<f32> =
        rows.iter().flat_map(|r| (0..2 * (r + 1)).map(move |i| (100 * r + i) as f32)).collect();
    let tokens = hidden.len() as i64 / 2;
    let outputs = BTreeMap::from([
        ("logits".to_owned(), Tensor::from_slice(&logits, &[rows.len() as i64, 3])),
        ("hidden.1".to_owned(), Tensor::from_slice(&hidden, &[tokens, 2])),
    ]);
    Part { rows: rows.to_vec(), lengths: Some(lengths), outputs }
}

fn writer<'a>(dir: &Path, manifest: Manifest) -> Writer<'a> {
    match Writer::open(&RealFs, dir, manifest).unwrap() {
        Opened::Writer(writer) => *writer,
        Opened::Whole => panic!("nothing is left to be written"),
    }
}

fn whole(dir: &Path) {
    let mut writer = writer(dir, manifest(0..5, "1"));
    writer.add(0, part(&[3, 0])).unwrap();
    writer.flush().unwrap();
    writer.add(0, part(&[4, 2, 1])).unwrap();
    writer.finish().unwrap();
}

#[test]
fn rows_come_back_bit_for_bit_in_the_order_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path());
    let cache = Cache::open(dir.path()).unwrap();
    let rows = [(0, 2), (0, 3), (0, 2)];
    let logits = cache.gather("logits", &rows, Some(9)).unwrap();
    assert_eq!(logits.shape(), [3, 3]);
    let row = |r: f32| [0.1f32 + r, 0.2 + r, 0.3 + r];
    assert_eq!(logits.data::<f32>().unwrap(), [row(2.0), row(3.0), row(2.0)].as_flattened());
    let hidden = cache.gather("hidden.1", &rows, Some(5)).unwrap();
    assert_eq!(hidden.shape(), [3, 5, 2]);
    let values = hidden.data::<f32>().unwrap();
    assert_eq!(values[..10], [200.0, 201.0, 202.0, 203.0, 204.0, 205.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(cache.gather("hidden.1", &rows, None).unwrap().shape(), [3, 4, 2]);
    assert!(cache.gather("hidden.1", &rows, Some(3)).unwrap_err().contains("4 tokens"));
    assert!(cache.gather("logits", &[(0, 5)], None).unwrap_err().contains("no row 5 of `train`"));
    assert!(cache.gather("hidden.2", &rows, None).is_err());
}

#[test]
fn a_capture_goes_on_where_it_stopped_and_not_for_another_teacher() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = writer(dir.path(), manifest(0..5, "1"));
    first.add(0, part(&[3, 0])).unwrap();
    first.flush().unwrap();
    first.add(0, part(&[4])).unwrap();
    drop(first);
    assert!(read(dir.path()).is_err(), "without its manifest it is no cache");
    let second = writer(dir.path(), manifest(0..5, "1"));
    assert_eq!(second.missing(0).iter().collect::<Vec<_>>(), [1, 2, 4]);
    drop(second);
    let other = writer(dir.path(), manifest(0..5, "2"));
    assert_eq!(other.missing(0).len(), 5, "another version begins anew");
    drop(other);
    whole(dir.path());
    let again = Writer::open(&RealFs, dir.path(), manifest(0..5, "1")).unwrap();
    assert!(matches!(again, Opened::Whole));
    std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let error = Writer::open(&RealFs, dir.path(), manifest(0..5, "2")).err().unwrap();
    assert!(error.to_string().contains("notes.txt"), "{error}");
    assert!(read(dir.path()).is_ok(), "a directory with other files is left alone");
}

#[test]
fn damage_is_refused_with_the_file() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path());
    let shard = dir.path().join("shard-00001-of-source-0.safetensors");
    let good = std::fs::read(&shard).unwrap();
    let mut refused = 0;
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        std::fs::write(&shard, &bad).unwrap();
        let (file, _) = Cache::open(dir.path()).err().expect("a flipped bit");
        assert_eq!(file, shard);
        refused += 1;
    }
    assert!(refused > 30, "{refused}");
    // Headers are looked at without reading what is behind them.
    for length in [0, 7, 8, 40, good.len() - 1] {
        std::fs::write(&shard, &good[..length]).unwrap();
        assert_eq!(read(dir.path()).unwrap_err().0, shard, "{length}");
    }
    let mut huge = good.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&shard, &huge).unwrap();
    assert_eq!(read(dir.path()).unwrap_err().0, shard);
    std::fs::write(&shard, &good).unwrap();
    assert!(read(dir.path()).is_ok());
    std::fs::remove_file(&shard).unwrap();
    assert_eq!(read(dir.path()).unwrap_err().0, shard);
}

#[test]
fn a_teacher_is_its_files_and_settings_wherever_they_lie() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str, weights: &str| {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("model.safetensors"), weights).unwrap();
        std::fs::write(folder.join("README.md"), name).unwrap();
        folder
    };
    let record = |folder: &Path| {
        let mut settings = serde_json::json!({"path": folder, "head": "classification"});
        let files = teacher_files(&mut settings).unwrap();
        TeacherRecord {
            plugin: "limbeck.hf".into(),
            version: "1".into(),
            settings,
            files,
            parameters: None,
        }
    };
    let (a, b, c) = (folder("a", "weights"), folder("b", "weights"), folder("c", "others"));
    assert_eq!(record(&a).identity(), record(&b).identity());
    assert_ne!(record(&a).identity(), record(&c).identity());
    let before = record(&a);
    assert_eq!(before.changed_file(), None);
    std::fs::write(a.join("model.safetensors"), "changed").unwrap();
    assert_eq!(before.changed_file(), Some(a.as_path()));
    std::fs::remove_dir_all(&a).unwrap();
    assert_eq!(before.changed_file(), None, "a teacher may be gone once it was captured");
}

#[test]
fn ranges_hold_what_they_were_made_of() {
    let ranges = Ranges::new([7, 1, 2, 2, 3, 9]);
    assert_eq!(serde_json::to_string(&ranges).unwrap(), "[[1,4],[7,8],[9,10]]");
    assert_eq!(ranges.iter().collect::<Vec<_>>(), [1, 2, 3, 7, 9]);
    assert_eq!(ranges.len(), 5);
    assert_eq!((0..11).filter(|r| ranges.contains(*r)).collect::<Vec<_>>(), [1, 2, 3, 7, 9]);
}
