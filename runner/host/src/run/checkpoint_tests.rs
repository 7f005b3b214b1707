use super::super::random::{Purpose, Random, key};
use super::super::vfs::RealFs;
use super::super::vfs::faulty::FaultyFs;
use super::*;

fn header(step: u64) -> Header {
    Header { step, metrics_offset: step * 10, resolved: "r".into(), inputs: "i".into() }
}

fn files(step: u64) -> Files {
    Files::from([
        ("model.safetensors".into(), vec![step as u8; 300]),
        ("state.json".into(), format!("{{\"step\":{step}}}").into_bytes()),
        ("plugins/scheduler.bin".into(), vec![7; 50]),
    ])
}

fn keep(last: usize, best: &[u64]) -> Keep {
    Keep { last, best: best.to_vec() }
}

#[test]
fn what_is_written_is_read_and_rotation_spares_the_best() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(&RealFs, dir.path().join("ckpt"));
    for step in 1..=6 {
        store.write(&header(step), &files(step), &keep(2, &[2])).unwrap();
    }
    assert_eq!(store.steps().unwrap(), [6, 5, 2]);
    let mut warnings = Vec::new();
    let newest = store.newest(&mut warnings).unwrap().unwrap();
    assert!(warnings.is_empty());
    assert_eq!(newest.files, files(6));
    assert_eq!(newest.manifest.metrics_offset, 60);
    let read = |n: &str| std::fs::read_to_string(dir.path().join("ckpt").join(n)).unwrap();
    assert_eq!(read("LATEST"), "step-0000006\n");
    assert_eq!(read("BEST"), "step-0000002\n");
    // The same step again, at a later place of the run.
    let mut later = files(6);
    later.insert("state.json".into(), b"later".to_vec());
    store.write(&header(6), &later, &keep(2, &[2])).unwrap();
    assert_eq!(store.newest(&mut warnings).unwrap().unwrap().files, later);
    assert_eq!(store.steps().unwrap(), [6, 5, 2]);
}

#[test]
fn damage_at_any_offset_is_refused_and_the_previous_one_is_used() {
    let fs = FaultyFs::default();
    let store = Store::new(&fs, "/c");
    store.write(&header(1), &files(1), &keep(2, &[])).unwrap();
    store.write(&header(2), &files(2), &keep(2, &[])).unwrap();
    let mut random = Random::new(key(Purpose::Order, &[1]));
    let mut seen = 0;
    for name in ["model.safetensors", "state.json", "plugins/scheduler.bin", "manifest.json"] {
        let path = Path::new("/c/step-0000002").join(name);
        let whole = fs.read(&path).unwrap();
        for _ in 0..200 {
            let at = random.below(whole.len() as u64) as usize;
            if seen % 2 == 0 {
                fs.damage(&path, |b| b[at] ^= 1 << random.below(8));
            } else {
                fs.damage(&path, |b| b.truncate(at));
            }
            seen += 1;
            let mut warnings = Vec::new();
            let found = store.newest(&mut warnings).unwrap().unwrap();
            // A flipped bit in a manifest's white space changes nothing and may pass.
            if found.manifest.step == 2 {
                assert_eq!(name, "manifest.json");
                assert_eq!(found.files, files(2));
            } else {
                assert_eq!(found.files, files(1));
                assert_eq!(warnings.len(), 1);
            }
            fs.damage(&path, |b| *b = whole.clone());
        }
    }
    assert_eq!(seen, 800);
}

#[test]
fn without_a_whole_checkpoint_the_stage_is_refused() {
    let fs = FaultyFs::default();
    let store = Store::new(&fs, "/c");
    assert!(store.newest(&mut Vec::new()).unwrap().is_none());
    store.write(&header(1), &files(1), &keep(2, &[])).unwrap();
    fs.damage(Path::new("/c/step-0000001/state.json"), |b| b.clear());
    let error = store.newest(&mut Vec::new()).unwrap_err();
    assert_eq!(error.diagnostic.code, "LMB0705");
    assert_eq!(error.diagnostic.code, "LMB0705");
}

#[test]
fn a_manifest_cannot_point_outside() {
    let fs = FaultyFs::default();
    let store = Store::new(&fs, "/c");
    store.write(&header(1), &files(1), &keep(2, &[])).unwrap();
    fs.damage(Path::new("/c/step-0000001/manifest.json"), |b| {
        let text = String::from_utf8(b.clone()).unwrap();
        *b = text.replace("state.json", "../../../etc/passwd").into_bytes();
    });
    assert!(store.load(1).unwrap_err().contains("manifest.json names"));
}

#[test]
fn a_full_or_broken_disk_leaves_the_old_checkpoint_intact() {
    for errno in [libc::ENOSPC, libc::EIO] {
        let mut n = 0;
        loop {
            let fs = FaultyFs::default();
            let store = Store::new(&fs, "/c");
            store.write(&header(1), &files(1), &keep(1, &[])).unwrap();
            fs.fail_at(n, errno);
            let result = store.write(&header(2), &files(2), &keep(1, &[]));
            let operations = fs.operations();
            let newest = store.newest(&mut Vec::new()).unwrap().unwrap();
            let step = newest.manifest.step;
            assert_eq!(newest.files, files(step), "operation {n}");
            if let Err(error) = result {
                assert_eq!(crate::diagnostic::codes::exit(error.diagnostic.code), 74);
                if errno == libc::ENOSPC && step == 1 {
                    assert_eq!(error.diagnostic.code, "LMB0701");
                    assert!(error.diagnostic.message.contains("step-0000001 is intact"));
                    assert!(
                        error.diagnostic.message.contains("free"),
                        "{}",
                        error.diagnostic.message
                    );
                }
            } else {
                assert_eq!(step, 2);
            }
            if n > operations {
                break;
            }
            n += 1;
        }
        assert!(n > 12, "only {n} operations seen");
    }
}

#[test]
fn lost_writes_never_show_a_torn_checkpoint() {
    let mut random = Random::new(key(Purpose::Order, &[2]));
    let mut states = 0;
    for at in 0..40 {
        for _ in 0..250 {
            let fs = FaultyFs::default();
            let store = Store::new(&fs, "/c");
            store.write(&header(1), &files(1), &keep(2, &[1])).unwrap();
            store.write(&header(2), &files(2), &keep(2, &[1])).unwrap();
            fs.crash_at(at);
            let written = store.write(&header(3), &files(3), &keep(2, &[1])).is_ok();
            fs.recover(|| random.below(2) == 0);
            let newest = store.newest(&mut Vec::new()).unwrap().unwrap();
            let step = newest.manifest.step;
            assert_eq!(newest.files, files(step));
            assert!(step >= 2 && (step == 3 || !written), "operation {at}: {step}, {written}");
            store.clean().unwrap();
            assert!(fs.list(Path::new("/c")).unwrap().iter().all(|n| !n.starts_with(".tmp-step")));
            states += 1;
        }
    }
    assert_eq!(states, 10_000);
}

#[test]
fn sizes_are_readable() {
    for (bytes, text) in [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (803_000_000, "803 MB")] {
        assert_eq!(readable_bytes(bytes), text);
    }
}
