//! Nothing damaged is read, nothing whole is lost, and the oldest goes first.

use super::*;
use std::time::Duration;

fn key(dataset: &str) -> Key {
    let stamp = NumericsStamp {
        device: "cpu".into(),
        version: "0".into(),
        libtorch: "test".into(),
        threads: 1,
        batch_size: 2,
    };
    Key {
        backbone: "θ0".into(),
        checkpoint: None,
        alpha: Alpha::ZERO,
        dataset: dataset.into(),
        features: "direct28-cls-f32".into(),
        stamp,
        made_by: "a test".into(),
        from: 0,
        to: 5,
        dim: 3,
    }
}

/// Five rows of three: batches of two, two and one.
const ROWS: [f32; 15] = [0.5, -1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1.5, 2.5, 3.5, 4.5, -0.0];

fn batch(at: usize) -> Vec<u8> {
    let rows = &ROWS[at * 6..15.min(at * 6 + 6)];
    rows.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn store(folder: &Path, most_bytes: u64) -> Store {
    Store::open(&Place { folder: folder.to_owned(), most_bytes }).unwrap()
}

fn write(store: &Store, key: &Key) -> Features {
    let mut partial = store.begin(key).unwrap();
    (partial.done()..3).for_each(|at| partial.append(&batch(at)).unwrap());
    partial.finish().unwrap()
}

fn values(features: &Features) -> Vec<f32> {
    Vec::try_from(features.tensor().unwrap().reshape([-1])).unwrap()
}

#[test]
fn features_come_back_as_they_were_written_from_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), MOST_BYTES);
    assert!(store.find(&key("a")).unwrap().is_none());
    assert_eq!(values(&write(&store, &key("a"))), ROWS);
    let found = store.find(&key("a")).unwrap().unwrap();
    assert_eq!(found.tensor().unwrap().size(), [5, 3]);
    assert_eq!(values(&found), ROWS);
    for other in [
        key("b"),
        Key { checkpoint: Some("c".into()), ..key("a") },
        Key { made_by: "another program".into(), ..key("a") },
        Key { to: 4, ..key("a") },
    ] {
        assert!(store.find(&other).unwrap().is_none(), "{other:?}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn a_file_with_any_byte_changed_or_missing_is_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), MOST_BYTES);
    write(&store, &key("a"));
    let path = store.file(&key("a")).unwrap();
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(&path, &bad).unwrap();
        assert!(store.find(&key("a")).unwrap().is_none(), "byte {at}");
        assert!(!path.exists());
    }
    for length in [0, 1, 59, 60, good.len() - 1] {
        fs::write(&path, &good[..length]).unwrap();
        assert!(store.find(&key("a")).unwrap().is_none(), "{length} bytes");
    }
    fs::write(&path, &good).unwrap();
    assert!(store.find(&key("a")).unwrap().is_some());
}

#[test]
fn a_writer_goes_on_behind_the_last_whole_batch_of_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), MOST_BYTES);
    let mut partial = store.begin(&key("a")).unwrap();
    (0..2).for_each(|at| partial.append(&batch(at)).unwrap());
    let (data, checks) = (partial_path(folder.path(), "writing"), partial_path(folder.path(), "checks"));
    drop(partial);
    let (whole_data, whole_checks) = (fs::read(&data).unwrap(), fs::read(&checks).unwrap());
    let head = whole_checks.len() - 16;
    let cases: [(&str, usize, usize, usize); 5] = [
        ("whole", 48, head + 16, 2),
        ("torn data", 40, head + 16, 1),
        ("torn check", 48, head + 15, 1),
        ("no data", 0, head + 16, 0),
        ("torn key", 48, head - 1, 0),
    ];
    for (what, data_bytes, check_bytes, done) in cases {
        fs::write(&data, &whole_data[..data_bytes]).unwrap();
        fs::write(&checks, &whole_checks[..check_bytes]).unwrap();
        let partial = store.begin(&key("a")).unwrap();
        assert_eq!(partial.done(), done, "{what}");
        assert_eq!(fs::metadata(&data).unwrap().len(), 24 * done as u64, "{what}");
    }
    // After a power cut a file may be as long as it was, with zeros in it.
    fs::write(&data, [&whole_data[..24], [0; 24].as_slice()].concat()).unwrap();
    fs::write(&checks, &whole_checks).unwrap();
    assert_eq!(store.begin(&key("a")).unwrap().done(), 1);
    assert_eq!(values(&write(&store, &key("a"))), ROWS);
}

fn partial_path(folder: &Path, ending: &str) -> PathBuf {
    let mut entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.find(|path| path.extension().unwrap() == ending).unwrap()
}

#[test]
fn two_that_write_the_same_do_not_disturb_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), MOST_BYTES);
    let mut one = store.begin(&key("a")).unwrap();
    one.append(&batch(0)).unwrap();
    let mut other = store.begin(&key("a")).unwrap();
    assert_eq!(other.done(), 0, "the first one's file is its own");
    (0..3).for_each(|at| other.append(&batch(at)).unwrap());
    (1..3).for_each(|at| one.append(&batch(at)).unwrap());
    let (one, other) = (one.finish().unwrap(), other.finish().unwrap());
    assert_eq!((values(&one), values(&other)), (ROWS.to_vec(), ROWS.to_vec()));
    assert_eq!(values(&store.find(&key("a")).unwrap().unwrap()), ROWS);
}

#[test]
fn a_batch_of_another_size_or_one_too_many_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), MOST_BYTES);
    let mut partial = store.begin(&key("a")).unwrap();
    let error = partial.append(&batch(2)).unwrap_err().to_string();
    assert_eq!(error, "batch 1 of 3 has 12 bytes of features, not 24");
    (0..3).for_each(|at| partial.append(&batch(at)).unwrap());
    assert!(partial.append(&batch(2)).is_err());
    assert!(store.begin(&key("b")).unwrap().finish().unwrap_err().to_string().contains("0 of 3"));
}

#[test]
fn what_was_unused_longest_goes_and_what_is_being_written_stays() {
    let folder = tempfile::tempdir().unwrap();
    let roomy = store(folder.path(), MOST_BYTES);
    let names = ["a", "b", "c", "d"];
    for (age, name) in names.iter().enumerate() {
        write(&roomy, &key(name));
        let file = File::open(roomy.file(&key(name)).unwrap()).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(1000 - age as u64)).unwrap();
    }
    let open = roomy.begin(&key("e")).unwrap();
    let left_behind = roomy.begin(&key("f")).unwrap();
    drop(left_behind);
    // Used again, so no longer the oldest.
    let held = roomy.find(&key("a")).unwrap().unwrap();
    let size = fs::metadata(roomy.file(&key("a")).unwrap()).unwrap().len();
    let tight = store(folder.path(), 2 * size);
    tight.make_room(0);
    let kept = names.map(|name| tight.file(&key(name)).unwrap().exists());
    assert_eq!(kept, [true, false, false, true]);
    tight.make_room(u64::MAX);
    let left: Vec<PathBuf> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left.len(), 2, "what is being written, and its checks: {left:?}");
    assert_eq!(open.done(), 0);
    assert_eq!(values(&held), ROWS, "features that are in use outlive their name");
}
