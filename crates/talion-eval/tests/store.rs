//! What the run store promises: what is added is there as a whole, comes back bit for bit, and damage is an error.

use std::{
    fs,
    ops::{ControlFlow, Range},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use diesel::{Connection, RunQueryDsl, SqliteConnection};
use proptest::prelude::*;
use talion_attacks::Passes;
use talion_core::{Budget, Error};
use talion_defenses::GradientMode;
use talion_eval::{
    CLEAN, Environment, Experiment, NewChunk, Outcome, Part, Player, RunConfig, RunFolder, RunHeader, Wait,
    diff, list_runs,
};
use tch::Tensor;
use tempfile::TempDir;

const CONTENDERS: [&str; 2] = ["base", "trn"];

fn experiment(attack: &str, samples: usize) -> Experiment {
    Experiment {
        victim: "trn".into(),
        view: GradientMode::Exact,
        attack: attack.parse().unwrap(),
        budget: Budget::linf_levels(8.0).unwrap(),
        samples,
        until_fooled: true,
        after: Vec::new(),
        part: Part::Main,
    }
}

/// A run of so many samples with two experiments, the second on half of them.
fn header(samples: usize) -> RunHeader {
    let player = |name: &str| Player {
        name: name.into(),
        description: "a test".into(),
        sha256: "00".into(),
        defended: name == "trn",
    };
    RunHeader {
        config: RunConfig {
            protocol: "test".into(),
            data: "made up".into(),
            data_sha256: "11".into(),
            class_names: (0..10).map(|class| format!("class {class}")).collect(),
            budget: Budget::linf_levels(8.0).unwrap(),
            samples,
            seed: u64::MAX,
            contenders: CONTENDERS.map(player).to_vec(),
            surrogates: Vec::new(),
            experiments: vec![experiment("pgd-20", samples), experiment("fgsm", samples.div_ceil(2))],
        },
        environment: Environment {
            talion: "0".into(),
            libtorch: "0".into(),
            device: "cpu".into(),
            processor: "a test's".into(),
            processors: 2,
            threads: 1,
            system: "here".into(),
            command: vec!["talion".into(), "evaluate".into()],
            begun: 1,
        },
    }
}

fn pgd(run: &RunFolder) -> String {
    run.header().config.experiments[0].key()
}

fn chunk(experiment: &str, rows: Range<usize>) -> NewChunk {
    NewChunk {
        experiment: experiment.into(),
        first: rows.start,
        rows: rows.len(),
        passes: Passes { forward: 40 * rows.len() as u64, backward: 20 * rows.len() as u64 },
        seconds: 0.1,
        adjustments: vec!["9 targets instead of 10".into()],
    }
}

/// Images of 2 x 2 x 3 values, different for each row and seed.
fn images(rows: &Range<usize>, seed: usize) -> Tensor {
    let values: Vec<f32> = rows
        .clone()
        .flat_map(|row| (0..12).map(move |place| ((row * 31 + place * 7 + seed * 13) % 101) as f32 / 100.0))
        .collect();
    Tensor::from_slice(&values).reshape([rows.len() as i64, 2, 2, 3])
}

/// One outcome of each contender and row, with numbers drawn in turn from `reals`.
fn outcomes(rows: Range<usize>, reals: &[f64]) -> Vec<Outcome> {
    let mut reals = reals.iter().copied().cycle();
    let mut next = move || reals.next().unwrap();
    let mut outcomes = Vec::new();
    for row in rows {
        for contender in CONTENDERS {
            let defended = contender == "trn";
            outcomes.push(Outcome {
                contender: contender.into(),
                row,
                id: u64::MAX - row as u64,
                label: (row % 10) as i64,
                predicted: ((row + usize::from(defended)) % 10) as i64,
                confidence: next(),
                margin: next(),
                distance: next(),
                attacked: row % 3 != 0,
                psnr: defended.then(&mut next),
                ssim: defended.then(&mut next),
            });
        }
    }
    outcomes
}

const REALS: [f64; 7] = [0.1, 0.7, -3.25, 1.0 / 3.0, 200.0, 1e-9, 0.0];

fn add(run: &mut RunFolder, experiment: &str, rows: Range<usize>) {
    let (pictures, results) = (images(&rows, 0), outcomes(rows.clone(), &REALS));
    run.add(&chunk(experiment, rows), &pictures, &results).unwrap();
}

/// As they come back: by contender, then by row.
fn ordered(mut outcomes: Vec<Outcome>) -> Vec<Outcome> {
    let place = |outcome: &Outcome| CONTENDERS.iter().position(|contender| *contender == outcome.contender);
    outcomes.sort_by_key(|outcome| (place(outcome), outcome.row));
    outcomes
}

/// Everything an outcome says, its numbers as bits.
type Bits = ((String, usize, u64, i64, i64, bool), [u64; 3], [Option<u64>; 2]);

fn bits(outcome: &Outcome) -> Bits {
    (
        (
            outcome.contender.clone(),
            outcome.row,
            outcome.id,
            outcome.label,
            outcome.predicted,
            outcome.attacked,
        ),
        [outcome.confidence, outcome.margin, outcome.distance].map(f64::to_bits),
        [outcome.psnr, outcome.ssim].map(|value| value.map(f64::to_bits)),
    )
}

/// The samples that an experiment lacks: starts and ends of ranges.
fn missing(run: &RunFolder, experiment: &str) -> Vec<(usize, usize)> {
    run.missing(experiment).unwrap().into_iter().map(|rows| (rows.start, rows.end)).collect()
}

fn image_bits(images: &Tensor) -> Vec<u32> {
    Vec::<f32>::try_from(images.flatten(0, -1)).unwrap().into_iter().map(f32::to_bits).collect()
}

fn temporary() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    (folder, path)
}

/// A run of 8 samples whose clean images and first experiment are there, in chunks of 4.
fn half_done(path: &Path) -> RunFolder {
    let mut run = RunFolder::create(path, &header(8), Wait::No).unwrap();
    let key = pgd(&run);
    for experiment in [CLEAN, &key] {
        add(&mut run, experiment, 0..4);
        add(&mut run, experiment, 4..8);
    }
    run
}

fn copy(from: &Path, to: &Path, leave_out: &[&str]) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if leave_out.iter().any(|ending| name.ends_with(ending)) {
            continue;
        }
        if entry.path().is_dir() {
            copy(&entry.path(), &to.join(name), leave_out);
        } else {
            fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}

fn sql(run: &Path, statement: &str) {
    let mut connection = SqliteConnection::establish(run.join("run.sqlite").to_str().unwrap()).unwrap();
    assert!(diesel::sql_query(statement).execute(&mut connection).unwrap() > 0);
}

#[track_caller]
fn says(error: &Error, parts: &[&str]) {
    let words = error.to_string();
    for part in parts {
        assert!(words.contains(part), "`{part}` is not in: {words}");
    }
}

#[test]
fn what_is_added_comes_back_bit_for_bit() {
    let (_folder, path) = temporary();
    let mut run = RunFolder::create(&path, &header(3), Wait::No).unwrap();
    let tiny = f64::from_bits(1);
    let extreme =
        [tiny, -tiny, f64::MIN_POSITIVE, f64::MAX, f64::MIN, 0.1 + 0.2, 1e300, 9_007_199_254_740_993.0, 5.0];
    let given = outcomes(0..3, &extreme);
    let values = [f32::from_bits(1), -0.0, f32::MIN_POSITIVE, 0.1, 1.0, f32::MAX];
    let pictures = Tensor::from_slice(&values).reshape([3, 1, 1, 2]);
    let key = pgd(&run);
    let new = chunk(&key, 0..3);
    run.add(&new, &pictures, &given).unwrap();
    drop(run);

    let run = RunFolder::read(&path).unwrap();
    assert_eq!(run.header(), &header(3));
    let back: Vec<_> = run.outcomes(&key).unwrap().iter().map(bits).collect();
    assert_eq!(back, ordered(given).iter().map(bits).collect::<Vec<_>>());
    let chunks = run.chunks(&key).unwrap();
    assert_eq!(chunks.len(), 1);
    let there = &chunks[0];
    assert_eq!((there.experiment.as_str(), there.first, there.rows), (key.as_str(), 0, 3));
    assert_eq!(
        (there.passes, there.seconds, &there.adjustments),
        (new.passes, new.seconds, &new.adjustments)
    );
    let images = run.images(there).unwrap();
    assert_eq!(images.size(), [3, 1, 1, 2]);
    assert_eq!(image_bits(&images), values.map(f32::to_bits));
}

#[test]
fn progress_counts_samples_and_finished_means_all() {
    let (_folder, path) = temporary();
    let mut run = half_done(&path);
    let second = run.header().config.experiments[1].key();
    assert!(run.finished(CLEAN).unwrap() && run.finished(&pgd(&run)).unwrap());
    assert!(!run.finished(&second).unwrap());
    assert_eq!(missing(&run, &second), [(0, 4)]);
    let progress = run.progress().unwrap();
    assert_eq!((progress.done, progress.total, progress.complete()), (16, 20, false));
    add(&mut run, &second, 0..3);
    assert_eq!(missing(&run, &second), [(3, 4)]);
    add(&mut run, &second, 3..4);
    assert!(run.progress().unwrap().complete());
    let alarms = ["one".to_owned(), "two".to_owned()];
    run.add_alarms(&alarms[..1]).unwrap();
    run.add_alarms(&alarms).unwrap();
    assert_eq!(run.alarms().unwrap(), alarms);
}

#[test]
fn what_is_no_number_is_refused() {
    let (_folder, path) = temporary();
    let mut run = RunFolder::create(&path, &header(2), Wait::No).unwrap();
    let changes: [fn(&mut Outcome, f64); 5] = [
        |outcome, value| outcome.confidence = value,
        |outcome, value| outcome.margin = value,
        |outcome, value| outcome.distance = value,
        |outcome, value| outcome.psnr = Some(value),
        |outcome, value| outcome.ssim = Some(value),
    ];
    let pictures = images(&(0..2), 0);
    for change in changes {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut results = outcomes(0..2, &REALS);
            change(&mut results[3], value);
            says(
                &run.add(&chunk(CLEAN, 0..2), &pictures, &results).unwrap_err(),
                &["trn", "sample 1", "finite"],
            );
        }
    }
    let results = outcomes(0..2, &REALS);
    let slow = NewChunk { seconds: f64::NAN, ..chunk(CLEAN, 0..2) };
    says(&run.add(&slow, &pictures, &results).unwrap_err(), &["seconds"]);
    let holes = &pictures * f64::NAN;
    says(&run.add(&chunk(CLEAN, 0..2), &holes, &results).unwrap_err(), &["finite"]);
    assert!(run.chunks(CLEAN).unwrap().is_empty() && run.outcomes(CLEAN).unwrap().is_empty());
    run.add(&chunk(CLEAN, 0..2), &pictures, &results).unwrap();
}

#[test]
fn negative_zero_is_kept_as_zero() {
    let (_folder, path) = temporary();
    let mut run = RunFolder::create(&path, &header(1), Wait::No).unwrap();
    run.add(&chunk(CLEAN, 0..1), &images(&(0..1), 0), &outcomes(0..1, &[-0.0])).unwrap();
    let back = run.outcomes(CLEAN).unwrap();
    assert_eq!(
        back.iter().map(bits).collect::<Vec<_>>(),
        outcomes(0..1, &[0.0]).iter().map(bits).collect::<Vec<_>>()
    );
}

#[test]
fn rows_have_to_follow_each_other_inside_the_configuration() {
    let (_folder, path) = temporary();
    let mut run = RunFolder::create(&path, &header(8), Wait::No).unwrap();
    add(&mut run, CLEAN, 0..3);
    // overlapping, before, after a gap, too long, empty
    let wrong = [2..5, 0..3, 1..2, 4..6, 3..9, 3..3];
    for rows in wrong {
        let (pictures, results) = (images(&rows, 0), outcomes(rows.clone(), &REALS));
        assert!(run.add(&chunk(CLEAN, rows.clone()), &pictures, &results).is_err(), "{rows:?}");
    }
    assert_eq!(missing(&run, CLEAN), [(3, 8)]);
    add(&mut run, CLEAN, 3..8);
    says(&run.add(&chunk(CLEAN, 8..9), &images(&(8..9), 0), &[]).unwrap_err(), &["finished"]);
    // the second experiment has half of the samples
    let second = run.header().config.experiments[1].key();
    let (pictures, results) = (images(&(0..5), 0), outcomes(0..5, &REALS));
    says(&run.add(&chunk(&second, 0..5), &pictures, &results).unwrap_err(), &["1 to 4"]);
}

#[test]
fn every_contender_has_one_outcome_a_sample() {
    let (_folder, path) = temporary();
    let mut run = RunFolder::create(&path, &header(2), Wait::No).unwrap();
    let pictures = images(&(0..2), 0);
    let whole = outcomes(0..2, &REALS);
    let wrong = |change: fn(&mut Vec<Outcome>)| {
        let mut results = whole.clone();
        change(&mut results);
        results
    };
    let tries = [
        (wrong(|results| drop(results.pop())), "outcomes"),
        (wrong(|results| results[1] = results[0].clone()), "two outcomes"),
        (wrong(|results| results[0].contender = "nobody".into()), "nobody"),
        (wrong(|results| results[0].row = 2), "0 to 1"),
        (wrong(|results| results[0].label = 10), "10 classes"),
        (wrong(|results| results[0].label = -1), "10 classes"),
        (wrong(|results| results[0].predicted = -1), "at least 0"),
        (wrong(|results| results[0].id = 3), "number 3"),
        (wrong(|results| results[0].label = 7), "class 7"),
    ];
    for (results, words) in tries {
        says(&run.add(&chunk(CLEAN, 0..2), &pictures, &results).unwrap_err(), &[words]);
    }
    says(&run.add(&chunk("nothing", 0..2), &pictures, &whole).unwrap_err(), &["experiment", "nothing"]);
    for misshapen in [images(&(0..1), 0), pictures.flatten(1, -1)] {
        assert!(matches!(run.add(&chunk(CLEAN, 0..2), &misshapen, &whole), Err(Error::Shape { .. })));
    }
    let doubles = pictures.to_kind(tch::Kind::Double);
    says(&run.add(&chunk(CLEAN, 0..2), &doubles, &whole).unwrap_err(), &["f32"]);
    assert!(run.outcomes("nothing").is_err() && run.missing("nothing").is_err());
    let backwards: Vec<Outcome> = whole.iter().rev().cloned().collect();
    run.add(&chunk(CLEAN, 0..2), &pictures, &backwards).unwrap();
    assert_eq!(run.outcomes(CLEAN).unwrap(), ordered(whole));
}

#[test]
fn configurations_that_cannot_be_told_apart_are_refused() {
    let (_folder, path) = temporary();
    type Change = fn(&mut RunConfig);
    let changes: [(Change, &str); 5] = [
        (|config| config.experiments[1] = config.experiments[0].clone(), "experiments"),
        (|config| config.contenders[1] = config.contenders[0].clone(), "contenders"),
        (|config| config.contenders.clear(), "contenders"),
        (|config| config.experiments[0].samples = 9, "1 to 8"),
        (|config| config.experiments[0].samples = 0, "1 to 8"),
    ];
    for (change, words) in changes {
        let mut header = header(8);
        change(&mut header.config);
        says(&RunFolder::create(&path, &header, Wait::No).unwrap_err(), &[words]);
        assert!(!path.exists());
    }
}

#[test]
fn a_folder_holds_one_run() {
    let (_folder, path) = temporary();
    says(&RunFolder::open(&path, Wait::No).unwrap_err(), &["run", "holds no run"]);
    says(&RunFolder::read(&path).unwrap_err(), &["holds no run"]);
    assert!(!path.exists(), "looking makes nothing");
    drop(RunFolder::create(&path, &header(8), Wait::No).unwrap());
    assert!(RunFolder::exists(&path));
    says(&RunFolder::create(&path, &header(8), Wait::No).unwrap_err(), &["holds a run already"]);
}

#[test]
fn a_run_killed_while_it_began_can_be_begun_again() {
    let (_folder, path) = temporary();
    fs::create_dir_all(path.join("chunks")).unwrap();
    for file in ["run.sqlite.new", "run.sqlite.new-wal", "run.sqlite.new-shm", "lock"] {
        fs::write(path.join(file), "half of something").unwrap();
    }
    says(&RunFolder::open(&path, Wait::No).unwrap_err(), &["begin it again"]);
    assert!(list_runs(path.parent().unwrap()).unwrap().is_empty());
    drop(half_done(&path));
    assert!(!path.join("run.sqlite.new").exists());
    assert_eq!(RunFolder::read(&path).unwrap().outcomes(CLEAN).unwrap().len(), 16);
}

#[test]
fn a_chunk_killed_before_its_record_is_written_again() {
    let (_folder, path) = temporary();
    let mut run = RunFolder::create(&path, &header(8), Wait::No).unwrap();
    add(&mut run, CLEAN, 0..4);
    add(&mut run, CLEAN, 4..8);
    let last = run.chunks(CLEAN).unwrap().remove(1);
    let file = path.join(&last.file);
    // as if killed between file and record, and once more in the middle of a file
    run.forget(&last).unwrap();
    drop(run);
    assert!(file.exists());
    fs::write(&file, "cut off").unwrap();
    let leftover = path.join("chunks/.tmpAbCdEf");
    fs::write(&leftover, "half").unwrap();

    let mut run = RunFolder::open(&path, Wait::No).unwrap();
    assert!(!leftover.exists());
    assert_eq!(missing(&run, CLEAN), [(4, 8)]);
    assert!(run.broken_chunks().unwrap().is_empty());
    add(&mut run, CLEAN, 4..8);
    assert_eq!(run.chunks(CLEAN).unwrap()[1], last);
    assert_eq!(image_bits(&run.images(&last).unwrap()), image_bits(&images(&(4..8), 0)));
}

#[test]
fn what_a_killed_writer_had_added_is_there() {
    let (folder, path) = temporary();
    let mut run = RunFolder::create(&path, &header(8), Wait::No).unwrap();
    add(&mut run, CLEAN, 0..4);
    add(&mut run, CLEAN, 4..8);
    // what the disk holds when the writer is killed: it never closed its journal
    let killed = folder.path().join("killed");
    copy(&path, &killed, &["-shm"]);
    let cut = folder.path().join("cut");
    copy(&path, &cut, &["-shm"]);
    let journal = cut.join("run.sqlite-wal");
    let bytes = fs::read(&journal).unwrap();
    fs::write(&journal, &bytes[..bytes.len() - 100]).unwrap();

    let reader = RunFolder::read(&killed).unwrap();
    assert_eq!(reader.outcomes(CLEAN).unwrap(), run.outcomes(CLEAN).unwrap());
    drop(reader);
    let resumed = RunFolder::open(&killed, Wait::No).unwrap();
    assert!(resumed.finished(CLEAN).unwrap() && resumed.broken_chunks().unwrap().is_empty());
    // killed in the middle of the last record
    let mut resumed = RunFolder::open(&cut, Wait::No).unwrap();
    assert_eq!(missing(&resumed, CLEAN), [(4, 8)]);
    add(&mut resumed, CLEAN, 4..8);
    assert!(diff(&run, &resumed).unwrap().agrees());
}

#[test]
fn a_damaged_chunk_is_found_and_computed_again() {
    type Harm = fn(&Path);
    let harms: [(Harm, &[&str]); 4] = [
        (
            |file| {
                let mut bytes = fs::read(file).unwrap();
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                fs::write(file, bytes).unwrap();
            },
            &["SHA-256", "expected", "samples 4 to 7", "delete it and resume"],
        ),
        (
            |file| {
                let bytes = fs::read(file).unwrap();
                fs::write(file, &bytes[..bytes.len() - 1]).unwrap();
            },
            &["SHA-256", "expected", "delete it and resume"],
        ),
        (|file| fs::write(file, "").unwrap(), &["0 bytes", "delete it and resume"]),
        (|file| fs::remove_file(file).unwrap(), &["is missing", "samples 4 to 7", "resume the run"]),
    ];
    for (harm, words) in harms {
        let (_folder, path) = temporary();
        let mut run = half_done(&path);
        let key = pgd(&run);
        let victim = run.chunks(&key).unwrap().remove(1);
        harm(&path.join(&victim.file));
        let error = run.images(&victim).unwrap_err();
        says(&error, words);
        says(&error, &[Path::new(&victim.file).file_name().unwrap().to_str().unwrap(), &key]);
        let broken = run.broken_chunks().unwrap();
        assert_eq!(broken.iter().map(|(chunk, _)| chunk).collect::<Vec<_>>(), [&victim]);
        run.forget(&victim).unwrap();
        assert_eq!(missing(&run, &key), [(4, 8)]);
        assert_eq!(run.outcomes(&key).unwrap().len(), 8);
        add(&mut run, &key, 4..8);
        assert!(run.broken_chunks().unwrap().is_empty());
        assert_eq!(run.chunks(&key).unwrap()[1], victim);
    }
}

#[test]
fn a_gap_is_filled_before_anything_else() {
    let (_folder, path) = temporary();
    let mut run = half_done(&path);
    let first = run.chunks(CLEAN).unwrap().remove(0);
    run.forget(&first).unwrap();
    assert_eq!(missing(&run, CLEAN), [(0, 4)]);
    assert!(!run.finished(CLEAN).unwrap());
    let (pictures, results) = (images(&(0..5), 0), outcomes(0..5, &REALS));
    says(&run.add(&chunk(CLEAN, 0..5), &pictures, &results).unwrap_err(), &["1 to 4"]);
    add(&mut run, CLEAN, 0..1);
    add(&mut run, CLEAN, 1..4);
    assert!(run.finished(CLEAN).unwrap());
    assert_eq!(run.outcomes(CLEAN).unwrap(), ordered(outcomes_of_chunks(&[0..1, 1..4, 4..8])));
}

fn outcomes_of_chunks(chunks: &[Range<usize>]) -> Vec<Outcome> {
    chunks.iter().flat_map(|rows| outcomes(rows.clone(), &REALS)).collect()
}

#[test]
fn a_changed_number_is_an_error_and_can_be_computed_again() {
    for statement in [
        "UPDATE outcomes SET margin = margin + 1 WHERE experiment = 1 AND contender = 1 AND sample = 5",
        "UPDATE outcomes SET predicted = 9 WHERE experiment = 1 AND contender = 0 AND sample = 5",
        "DELETE FROM outcomes WHERE experiment = 1 AND contender = 0 AND sample = 5",
    ] {
        let (_folder, path) = temporary();
        drop(half_done(&path));
        sql(&path, statement);
        let mut run = RunFolder::open(&path, Wait::No).unwrap();
        let key = pgd(&run);
        says(&run.outcomes(&key).unwrap_err(), &["run.sqlite", "samples 4 to 7", "computed again"]);
        let broken = run.broken_chunks().unwrap();
        assert_eq!(broken.len(), 1);
        run.forget(&broken[0].0).unwrap();
        add(&mut run, &key, 4..8);
        assert_eq!(run.outcomes(&key).unwrap().len(), 16);
    }
    let (_folder, path) = temporary();
    drop(half_done(&path));
    sql(&path, "UPDATE chunks SET forward = 1 WHERE experiment = 1 AND first = 4");
    let mut run = RunFolder::open(&path, Wait::No).unwrap();
    let key = pgd(&run);
    says(&run.chunks(&key).unwrap_err(), &["the record of samples 4 to 7", "computed again"]);
    let broken = run.broken_chunks().unwrap();
    assert_eq!(broken.len(), 1);
    run.forget(&broken[0].0).unwrap();
    add(&mut run, &key, 4..8);
    assert!(run.finished(&key).unwrap());
}

#[test]
fn a_run_of_another_format_is_refused() {
    for (format, words) in [(2, "newer talion"), (99, "newer talion"), (0, "that wrote it")] {
        let (_folder, path) = temporary();
        drop(half_done(&path));
        sql(&path, &format!("UPDATE run SET format = {format}"));
        for error in [RunFolder::read(&path).unwrap_err(), RunFolder::open(&path, Wait::No).unwrap_err()] {
            says(&error, &["run.sqlite", &format!("format {format}"), "reads format 1", words]);
        }
    }
    let (_folder, path) = temporary();
    drop(half_done(&path));
    sql(&path, "UPDATE run SET header = replace(header, 'made up', 'made-up')");
    says(&RunFolder::read(&path).unwrap_err(), &["run.sqlite", "checksum"]);
}

#[test]
fn what_is_no_database_is_refused() {
    let (_folder, path) = temporary();
    drop(half_done(&path));
    let database = path.join("run.sqlite");
    for content in
        ["", "this is a text, and no database, though it is longer than a header of one would be: no, no, no"]
    {
        fs::write(&database, content).unwrap();
        for error in [RunFolder::read(&path).unwrap_err(), RunFolder::open(&path, Wait::No).unwrap_err()] {
            says(&error, &["run.sqlite", "damaged", "restore it from a copy"]);
        }
    }
}

/// Whatever byte of a database changes: it is read as it was, or not at all.
#[test]
fn no_flipped_byte_gives_a_wrong_number() {
    let (folder, path) = temporary();
    let run = half_done(&path);
    let key = pgd(&run);
    let (clean, attacked) = (run.outcomes(CLEAN).unwrap(), run.outcomes(&key).unwrap());
    drop(run);
    let whole = fs::read(path.join("run.sqlite")).unwrap();
    let other = folder.path().join("other");
    copy(&path, &other, &["-shm", "-wal", "lock"]);
    let mut refused = 0;
    for place in (0..whole.len()).step_by(151) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x55;
        for journal in ["run.sqlite-wal", "run.sqlite-shm"] {
            let _ = fs::remove_file(other.join(journal));
        }
        fs::write(other.join("run.sqlite"), bytes).unwrap();
        let read = RunFolder::read(&other).and_then(|run| {
            assert_eq!(run.header(), &header(8));
            Ok((run.outcomes(CLEAN)?, run.outcomes(&key)?))
        });
        match read {
            Ok(read) => assert_eq!(read, (clean.clone(), attacked.clone()), "byte {place}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 20, "{refused}");
}

#[test]
fn a_second_writer_is_refused_or_waits() {
    let (_folder, path) = temporary();
    let first = half_done(&path);
    says(
        &RunFolder::open(&path, Wait::No).unwrap_err(),
        &["another process is writing", path.to_str().unwrap()],
    );
    let mut give_up = || ControlFlow::Break(());
    assert!(matches!(RunFolder::open(&path, Wait::For(&mut give_up)), Err(Error::Interrupted)));
    let (tell, hear) = mpsc::channel();
    let same = path.clone();
    let second = thread::spawn(move || {
        let mut ask = || {
            let _ = tell.send(());
            ControlFlow::Continue(())
        };
        RunFolder::open(&same, Wait::For(&mut ask))
    });
    hear.recv().unwrap();
    drop(first);
    let second = second.join().unwrap().unwrap();
    assert!(second.finished(CLEAN).unwrap());
    assert!(RunFolder::open(&path, Wait::No).is_err());
}

#[test]
fn readers_see_what_a_writer_adds_and_change_nothing() {
    let (_folder, path) = temporary();
    let mut writer = RunFolder::create(&path, &header(8), Wait::No).unwrap();
    let mut reader = RunFolder::read(&path).unwrap();
    assert!(reader.chunks(CLEAN).unwrap().is_empty());
    add(&mut writer, CLEAN, 0..4);
    assert_eq!(reader.outcomes(CLEAN).unwrap(), writer.outcomes(CLEAN).unwrap());
    let there = reader.chunks(CLEAN).unwrap().remove(0);
    assert_eq!(image_bits(&reader.images(&there).unwrap()), image_bits(&images(&(0..4), 0)));
    assert_eq!(list_runs(path.parent().unwrap()).unwrap().len(), 1);
    let (pictures, results) = (images(&(4..8), 0), outcomes(4..8, &REALS));
    says(&reader.add(&chunk(CLEAN, 4..8), &pictures, &results).unwrap_err(), &["reading only"]);
    says(&reader.forget(&there).unwrap_err(), &["reading only"]);
    says(&reader.add_alarms(&["x".into()]).unwrap_err(), &["reading only"]);
    add(&mut writer, CLEAN, 4..8);
    drop(writer);
    assert!(reader.finished(CLEAN).unwrap());
    // a reader does not keep writers out
    drop(RunFolder::open(&path, Wait::No).unwrap());
}

#[test]
fn lists_show_damaged_runs_with_their_error() {
    let folder = tempfile::tempdir().unwrap();
    drop(half_done(&folder.path().join("a")));
    drop(half_done(&folder.path().join("b")));
    drop(half_done(&folder.path().join("c")));
    fs::write(folder.path().join("b/run.sqlite"), "x".repeat(5000)).unwrap();
    sql(&folder.path().join("c"), "UPDATE run SET format = 7");
    fs::create_dir(folder.path().join("something else")).unwrap();
    fs::write(folder.path().join("a file"), "").unwrap();
    let runs = list_runs(folder.path()).unwrap();
    let names: Vec<_> = runs.iter().map(|run| run.path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let sound = runs[0].state.as_ref().unwrap();
    assert_eq!(sound.header, header(8));
    assert_eq!((sound.progress.share(), sound.progress.complete()), (0.8, false));
    says(runs[1].state.as_ref().unwrap_err(), &["run.sqlite", "damaged"]);
    says(runs[2].state.as_ref().unwrap_err(), &["format 7"]);
    assert!(list_runs(&folder.path().join("nowhere")).is_err());
}

#[test]
fn diff_finds_one_changed_outcome_and_one_changed_image() {
    let folder = tempfile::tempdir().unwrap();
    let one = half_done(&folder.path().join("one"));
    // the same, but slower and in other chunks
    let mut other = RunFolder::create(&folder.path().join("other"), &header(8), Wait::No).unwrap();
    let key = pgd(&one);
    for experiment in [CLEAN, &key] {
        for rows in [0..3, 3..8] {
            let new = NewChunk { seconds: 9.0, ..chunk(experiment, rows.clone()) };
            let results = part_of_halves(rows.clone());
            other.add(&new, &images(&rows, 0), &results).unwrap();
        }
    }
    let same = diff(&one, &other).unwrap();
    assert!(same.agrees(), "{same:?}");
    assert_eq!((same.experiments[1].both, same.experiments[1].experiment.as_str()), (16, key.as_str()));

    let last = other.chunks(&key).unwrap().remove(1);
    other.forget(&last).unwrap();
    let mut results = part_of_halves(3..8);
    results[4].margin = f64::from_bits(results[4].margin.to_bits() + 1);
    let pictures = images(&(3..8), 0);
    let _ = pictures.get(2).flatten(0, -1).get(0).fill_(0.123);
    other.add(&chunk(&key, 3..8), &pictures, &results).unwrap();
    let changed = diff(&one, &other).unwrap();
    assert!(!changed.agrees() && changed.fields.is_empty());
    assert!(changed.experiments[0].agrees());
    let compared = &changed.experiments[1];
    assert_eq!((compared.different, compared.images, compared.alone), (1, 1, [0, 0]));
    let (ours, theirs) = &compared.shown[0];
    assert_eq!((ours.row, ours.contender.as_str()), (5, "base"));
    assert_eq!((theirs.row, theirs.contender.as_str()), (5, "base"));
    assert_ne!(ours.margin, theirs.margin);
}

/// The outcomes of [`half_done`], some rows of them.
fn part_of_halves(rows: Range<usize>) -> Vec<Outcome> {
    let halves = outcomes_of_chunks(&[0..4, 4..8]);
    halves.into_iter().filter(|outcome| rows.contains(&outcome.row)).collect()
}

#[test]
fn diff_names_fields_and_what_one_run_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let one = half_done(&folder.path().join("one"));
    let mut changed = header(8);
    changed.config.seed = 5;
    changed.config.contenders[1].sha256 = "33".into();
    changed.config.experiments[0].part = Part::Control;
    changed.config.experiments[1] = experiment("bim-20", 8);
    changed.environment.begun = 99;
    let mut other = RunFolder::create(&folder.path().join("other"), &changed, Wait::No).unwrap();
    add(&mut other, CLEAN, 0..4);
    other.add_alarms(&["smoke".into()]).unwrap();
    let difference = diff(&one, &other).unwrap();
    let key = pgd(&one);
    let names: Vec<&str> = difference.fields.iter().map(|field| field.field.as_str()).collect();
    let fgsm = format!("experiments[{}]", one.header().config.experiments[1].key());
    let bim = format!("experiments[{}]", changed.config.experiments[1].key());
    let part = format!("experiments[{key}].part");
    for name in ["seed", "contenders[1].sha256", &fgsm, &bim, &part] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    assert_eq!(names.len(), 5, "{names:?}");
    let seed = difference.fields.iter().find(|field| field.field == "seed").unwrap();
    assert_eq!((seed.first.as_deref(), seed.second.as_deref()), (Some("18446744073709551615"), Some("5")));
    let missing = difference.fields.iter().find(|field| field.field == bim).unwrap();
    assert!(missing.first.is_none() && missing.second.is_some());
    let clean = &difference.experiments[0];
    assert_eq!((clean.both, clean.alone, clean.different), (8, [8, 0], 0));
    assert_eq!(difference.alarms, [Vec::new(), vec!["smoke".to_owned()]]);
}

fn finite() -> impl Strategy<Value = f64> {
    use proptest::num::f64::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    NORMAL | SUBNORMAL | ZERO | POSITIVE | NEGATIVE
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_chunks_come_back(
        sizes in prop::collection::vec(1..7_usize, 1..5), reals in prop::collection::vec(finite(), 1..40),
        seed in 0..100_usize, reopen in any::<bool>()
    ) {
        let (_folder, path) = temporary();
        let samples = sizes.iter().sum();
        let mut run = RunFolder::create(&path, &header(samples), Wait::No).unwrap();
        let key = pgd(&run);
        let mut given = Vec::new();
        let mut next = 0;
        for size in &sizes {
            let rows = next..next + size;
            next = rows.end;
            let results = outcomes(rows.clone(), &reals);
            run.add(&chunk(&key, rows.clone()), &images(&rows, seed), &results).unwrap();
            given.extend(results);
            if reopen {
                drop(run);
                run = RunFolder::open(&path, Wait::No).unwrap();
            }
        }
        for outcome in &mut given {
            // there is one zero
            outcome.confidence += 0.0;
            outcome.margin += 0.0;
            outcome.distance += 0.0;
            outcome.psnr = outcome.psnr.map(|value| value + 0.0);
            outcome.ssim = outcome.ssim.map(|value| value + 0.0);
        }
        let back: Vec<_> = run.outcomes(&key).unwrap().iter().map(bits).collect();
        prop_assert_eq!(back, ordered(given).iter().map(bits).collect::<Vec<_>>());
        let chunks = run.chunks(&key).unwrap();
        prop_assert_eq!(chunks.iter().map(|chunk| chunk.rows).collect::<Vec<_>>(), sizes);
        for chunk in &chunks {
            let rows = chunk.first..chunk.first + chunk.rows;
            prop_assert_eq!(image_bits(&run.images(chunk).unwrap()), image_bits(&images(&rows, seed)));
        }
        prop_assert!(run.finished(&key).unwrap() && run.broken_chunks().unwrap().is_empty());
    }
}
