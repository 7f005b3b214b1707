use super::*;
use crate::plan::DeviceChoice;

fn plan(dir: &Path, seed: u64) -> Plan {
    Plan {
        file: dir.join("p.yaml"),
        base_dir: dir.to_owned(),
        name: "digits".into(),
        description: None,
        seed,
        seed_is_drawn: false,
        deterministic: false,
        device: DeviceChoice::Cpu,
        datasets: BTreeMap::new(),
        tokenizer: None,
        tokenizers: BTreeMap::new(),
        plugins: Vec::new(),
        tensorboard: false,
        tasks: Vec::new(),
        stages: Vec::new(),
        resolved: serde_json::json!({"name": "digits"}),
        origins: BTreeMap::new(),
        text: "version: 1\n".into(),
        warnings: Vec::new(),
    }
}

fn inputs(hash: &str) -> Inputs {
    let record = PluginRecord {
        version: "1.0.0".into(),
        sha256: hash.into(),
        library: PathBuf::from("/p.so"),
        unlocked: false,
    };
    Inputs {
        plugins: BTreeMap::from([("limbeck.kl".into(), record)]),
        data: BTreeMap::from([(PathBuf::from("d.csv"), "00".into())]),
    }
}

fn options(dir: &Path) -> RunOptions {
    RunOptions { runs_dir: dir.join("runs"), sets: vec!["a=1".into()], ..RunOptions::default() }
}

fn opened(result: RunResult<Opened>) -> Box<RunDir> {
    match result {
        Ok(Opened::Run(run)) => run,
        Ok(Opened::Done(dir)) => panic!("done: {dir:?}"),
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn an_unfinished_run_is_continued_and_a_finished_one_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, options) = (plan(dir.path(), 7), options(dir.path()));
    let run = opened(open(&plan, &inputs("aa"), &options));
    let path = run.dir.clone();
    assert!(!run.continued);
    assert!(path.join("config/resolved.yaml").is_file());
    // While it is owned, nobody else gets it.
    let error = open(&plan, &inputs("aa"), &options).err().unwrap();
    assert_eq!(error.diagnostic.code, "LMB0703");
    assert!(error.diagnostic.message.contains(&std::process::id().to_string()));
    // The owner dies without a word.
    drop(run);
    let mut run = opened(open(&plan, &inputs("aa"), &options));
    assert!(run.continued);
    assert_eq!(run.dir, path);
    run.set_status(Status::Done, None).unwrap();
    run.release();
    assert!(!path.join("owner").exists());
    assert!(matches!(open(&plan, &inputs("aa"), &options), Ok(Opened::Done(d)) if d == path));
    let fresh = RunOptions { fresh: true, ..options.clone() };
    assert_ne!(opened(open(&plan, &inputs("aa"), &fresh)).dir, path);
}

#[test]
fn another_seed_is_another_run() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let first = opened(open(&plan(dir.path(), 7), &inputs("aa"), &options));
    let second = opened(open(&plan(dir.path(), 8), &inputs("aa"), &options));
    assert_ne!(first.dir, second.dir);
    let resume = RunOptions { resume: Some(first.dir.clone()), ..options };
    let error = open(&plan(dir.path(), 8), &inputs("aa"), &resume).err().unwrap();
    assert_eq!(error.diagnostic.code, "LMB0708");
}

#[test]
fn changed_plugins_and_data_are_named_and_refused_unless_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, mut options) = (plan(dir.path(), 7), options(dir.path()));
    drop(opened(open(&plan, &inputs("aa"), &options)));
    let error = open(&plan, &inputs("bb"), &options).err().unwrap();
    assert_eq!(error.diagnostic.code, "LMB0707");
    assert!(error.diagnostic.notes[0].contains("limbeck.kl"), "{:?}", error.diagnostic.notes);
    let mut other = inputs("aa");
    other.data.insert(PathBuf::from("d.csv"), "11".into());
    let error = open(&plan, &other, &options).err().unwrap();
    assert_eq!(error.diagnostic.code, "LMB0707");
    options.accept_changes = true;
    let run = opened(open(&plan, &other, &options));
    assert!(run.record.reason.as_deref().unwrap().contains("d.csv"));
}

#[test]
fn runs_are_found_by_directory_id_and_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let first = opened(open(&plan(dir.path(), 7), &inputs("aa"), &options));
    let second = opened(open(&plan(dir.path(), 8), &inputs("aa"), &options));
    let runs = &options.runs_dir;
    let hex = first.record.id.rsplit('-').next().unwrap();
    for reference in [first.dir.to_str().unwrap(), &first.record.id, hex, &hex[..5]] {
        assert_eq!(find(runs, reference).unwrap(), first.dir, "{reference}");
    }
    let both = &first.record.id[..4];
    assert!(find(runs, both).unwrap_err().message.contains("2 runs"));
    assert!(find(runs, "zzz").unwrap_err().notes[0].contains(&second.record.name));
    let described = describe(&first.dir).unwrap();
    assert_eq!(described.sets, ["a=1", "seed=7"]);
    assert_eq!(std::fs::read_to_string(described.pipeline).unwrap(), "version: 1\n");
}

#[test]
fn timestamps_are_civil() {
    assert_eq!(timestamp(0), "19700101T000000Z");
    assert_eq!(timestamp(951_782_400), "20000229T000000Z");
    assert_eq!(timestamp(1_795_449_852), "20261123T160412Z");
}

#[test]
fn a_start_killed_before_its_record_is_taken_over_unless_it_lives() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, options) = (plan(dir.path(), 7), options(dir.path()));
    let hash = resolved_hash(&plan);
    let left = options.runs_dir.join("digits").join(format!("20260101T000000Z-{hash:.8}"));
    std::fs::create_dir_all(&left).unwrap();
    std::fs::create_dir(left.join("config")).unwrap();
    let half = left.join("config/.tmp-resolved.yaml-1");
    std::fs::write(&half, "vers").unwrap();
    let living = Owner::acquire(&left).unwrap();
    let beside = opened(open(&plan, &inputs("aa"), &RunOptions { fresh: true, ..options.clone() }));
    assert_ne!(beside.dir, left);
    drop(living);
    let run = opened(open(&plan, &inputs("aa"), &RunOptions { fresh: true, ..options }));
    assert_eq!(run.dir, left);
    assert!(!run.continued && left.join("run.json").is_file() && !half.exists());
}
