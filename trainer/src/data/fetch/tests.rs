//! A server of our own with the faults of real ones: it cuts lines, ignores ranges, damages bytes, answers 404 and 500,
//! goes silent. The archives are the goldens', in the official layout.

use super::super::asset::{AssetKind, Library};
use super::*;
use causeway_protocol::hex;
use flate2::{Compression, write::GzEncoder};
use md5::{Digest, Md5};
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What goes wrong with one answer.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    /// The line is cut after so many bytes.
    Cut(usize),
    /// The range is ignored.
    Whole,
    /// One byte is another.
    Damaged,
    /// A status without a file.
    Status(u16),
    /// Nothing after so many bytes, and the line stays open.
    Silent(usize),
    /// It claims to be as long.
    Claims(u64),
}

/// Files, faults of the next answers, and what was asked for.
#[derive(Default)]
struct Server {
    files: HashMap<String, Vec<u8>>,
    faults: Vec<Fault>,
    asked: Vec<(String, Option<String>)>,
    open: Vec<TcpStream>,
}

type Shared = Arc<Mutex<Server>>;

fn serve(files: &[(&str, Vec<u8>)], faults: &[Fault]) -> (String, Shared) {
    let files = files.iter().map(|(path, bytes)| (format!("/{path}"), bytes.clone())).collect();
    let shared = Arc::new(Mutex::new(Server { files, faults: faults.to_vec(), ..Server::default() }));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = shared.clone();
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| answer(stream, &server)));
    (url, shared)
}

fn answer(mut stream: TcpStream, server: &Shared) {
    let lines: Vec<String> =
        BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)).map(str::to_owned) else { return };
    let range = lines.iter().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("range").then(|| value.to_owned())
    });
    let mut server = server.lock().unwrap();
    server.asked.push((path.clone(), range.clone()));
    let fault = if server.faults.is_empty() { None } else { Some(server.faults.remove(0)) };
    let Some(mut bytes) = server.files.get(&path).cloned() else {
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return;
    };
    let total = bytes.len();
    let begin =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let (status, begin) = match (fault, begin) {
        (Some(Fault::Status(status)), _) => {
            let head = format!("HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return drop(stream.write_all(head.as_bytes()));
        }
        (Some(Fault::Whole), _) | (_, None) => ("200 OK", 0),
        (_, Some(begin)) if begin >= total => {
            let head = format!(
                "HTTP/1.1 416 Range\r\nContent-Range: bytes */{total}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            return drop(stream.write_all(head.as_bytes()));
        }
        (_, Some(begin)) => ("206 Partial Content", begin),
    };
    if fault == Some(Fault::Damaged) {
        bytes[total / 2] ^= 0x40;
    }
    let length = match fault {
        Some(Fault::Claims(length)) => length,
        _ => (total - begin) as u64,
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nContent-Range: bytes {begin}-{}/{total}\r\n\
         Connection: close\r\n\r\n",
        total - 1
    );
    let end = match fault {
        Some(Fault::Cut(after) | Fault::Silent(after)) => (begin + after).min(total),
        _ => total,
    };
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes[begin..end]));
    if matches!(fault, Some(Fault::Silent(_))) {
        server.open.push(stream);
    }
}

const QUICK: Patience =
    Patience { tries: 3, pause: Duration::from_millis(1), silence: Duration::from_millis(500) };

fn golden(file: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/datasets").join(file)).unwrap()
}

/// The known set, with the goldens' checksums and numbers of images.
fn tiny(name: &str, images: (usize, usize)) -> KnownSet {
    let mut set = catalogue().into_iter().find(|set| set.name == name).unwrap();
    for file in &mut set.files {
        file.md5 = hex(&Md5::digest(golden(file.file())));
    }
    KnownSet { images, fetched_mb: 1, unpacked_mb: 1, ..set }
}

fn served(sets: &[KnownSet]) -> Vec<(String, Vec<u8>)> {
    let files =
        sets.iter().flat_map(|set| set.files.iter().map(|file| (set.name.clone(), file.file().to_owned())));
    files.map(|(set, file)| (format!("{set}/{file}"), golden(&file))).collect()
}

fn start(sets: &[KnownSet], faults: &[Fault]) -> (String, Shared) {
    let files = served(sets);
    let files: Vec<(&str, Vec<u8>)> =
        files.iter().map(|(path, bytes)| (path.as_str(), bytes.clone())).collect();
    serve(&files, faults)
}

fn fetch(sets: &[KnownSet], names: &[&str], to: &Path, url: &str) -> Result<()> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let mirror = Some(url.to_owned());
    Fetch { sets: sets.to_vec(), names, to: to.to_owned(), mirror, patience: QUICK }.run()
}

/// One file of one set, without the list of failures around its error.
fn fetch_error(set: &KnownSet, to: &Path, url: &str) -> String {
    let fetch = Fetch {
        sets: vec![set.clone()],
        names: Vec::new(),
        to: to.to_owned(),
        mirror: Some(url.to_owned()),
        patience: QUICK,
    };
    format!("{:#}", fetch.set(set).unwrap_err())
}

fn asked(server: &Shared) -> Vec<Option<String>> {
    server.lock().unwrap().asked.iter().map(|(_, range)| range.clone()).collect()
}

#[test]
fn every_official_set_becomes_an_asset_that_data_list_shows() {
    let sets = [
        tiny("cifar10", (10, 2)),
        tiny("cifar100", (100, 2)),
        tiny("cifar100-coarse", (100, 2)),
        tiny("svhn", (11, 2)),
        tiny("eurosat", (30, 10)),
        tiny("eurosat-seeded", (30, 10)),
        tiny("dtd", (9, 3)),
        tiny("dtd-3", (9, 3)),
        tiny("fashion-mnist", (10, 2)),
    ];
    let (url, server) = start(&sets, &[]);
    let data = tempfile::tempdir().unwrap();
    let names: Vec<&str> = sets.iter().map(|set| set.name.as_str()).collect();
    fetch(&sets, &names, data.path(), &url).unwrap();
    let requests = server.lock().unwrap().asked.len();
    assert_eq!(requests, 1 + 1 + 2 + 4 + 1 + 4, "files of another set are not fetched twice");

    let library = Library::find(&[data.path().to_owned()]);
    let (summaries, problems) = library.summaries();
    assert!(problems.is_empty(), "{problems:?}");
    let held: Vec<(&str, u64)> = summaries.iter().map(|asset| (asset.name.as_str(), asset.images)).collect();
    let mut expected: Vec<(&str, u64)> =
        sets.iter().map(|set| (set.name.as_str(), (set.images.0 + set.images.1) as u64)).collect();
    expected.sort_unstable();
    assert_eq!(held, expected);
    library.assets.values().try_for_each(Asset::verify).unwrap();

    // In the manifest: the owner's address and both digests of what was fetched; the archive itself is gone.
    let folder = data.path().join("cifar10");
    let text = fs::read_to_string(folder.join("asset.toml")).unwrap();
    let archive = golden("cifar-10-python.tar.gz");
    let line = format!(
        "# https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz: {} bytes, md5 {}, sha256 {}\n",
        archive.len(),
        hex(&Md5::digest(&archive)),
        sha256_hex(&archive)
    );
    assert!(text.contains(&line), "{text}");
    let left: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");

    // What is there is not fetched again; a damaged file is told.
    fetch(&sets, &names, data.path(), &url).unwrap();
    assert_eq!(server.lock().unwrap().asked.len(), requests);
    fs::write(data.path().join("svhn/test_32x32.mat"), "short").unwrap();
    let error = fetch_error(&sets[3], data.path(), &url);
    assert!(error.contains("test_32x32.mat has 5 bytes") && error.contains("fetch it again"), "{error}");
    let error = format!("{:#}", library.get("mnist", AssetKind::Dataset).unwrap_err());
    assert!(error.contains("; `causeway-trainer data fetch mnist --to DIR` fetches it"), "{error}");
    let error = fetch(&sets, &["imagenet"], data.path(), &url).unwrap_err().to_string();
    assert!(
        error.contains("`imagenet` is no dataset that can be fetched; those are cifar10, cifar100"),
        "{error}"
    );
}

#[test]
fn a_line_that_is_cut_goes_on_where_it_was_and_errors_of_the_server_are_waited_out() {
    let set = tiny("cifar10", (10, 2));
    let faults =
        [Fault::Cut(700), Fault::Status(500), Fault::Cut(300), Fault::Status(503), Fault::Silent(100)];
    let (url, server) = start(std::slice::from_ref(&set), &faults);
    let data = tempfile::tempdir().unwrap();
    fetch(std::slice::from_ref(&set), &["cifar10"], data.path(), &url).unwrap();
    let ranges = [
        None,
        Some("bytes=700-"),
        Some("bytes=700-"),
        Some("bytes=1000-"),
        Some("bytes=1000-"),
        Some("bytes=1100-"),
    ];
    assert_eq!(asked(&server), ranges.map(|range| range.map(str::to_owned)));
}

#[test]
fn an_interrupted_fetch_goes_on_with_the_next_command() {
    let set = tiny("cifar10", (10, 2));
    let (url, server) =
        start(std::slice::from_ref(&set), &[Fault::Cut(500), Fault::Status(500), Fault::Status(500)]);
    let data = tempfile::tempdir().unwrap();
    let error = fetch_error(&set, data.path(), &url);
    assert!(error.contains("500 bytes are kept: the same command goes on from there"), "{error}");
    assert_eq!(unfinished(&data.path().join("cifar10/cifar-10-python.tar.gz")), Some(500));
    fetch(std::slice::from_ref(&set), &["cifar10"], data.path(), &url).unwrap();
    assert_eq!(asked(&server).last().unwrap().as_deref(), Some("bytes=500-"));
}

#[test]
fn a_server_that_ignores_ranges_is_begun_again_and_a_whole_part_is_asked_for_nothing() {
    let set = tiny("cifar10", (10, 2));
    let (url, _) = start(std::slice::from_ref(&set), &[Fault::Cut(700), Fault::Whole]);
    let data = tempfile::tempdir().unwrap();
    fetch(std::slice::from_ref(&set), &["cifar10"], data.path(), &url).unwrap();

    // The whole file was there when the last command was killed.
    let (url, server) = start(std::slice::from_ref(&set), &[]);
    let data = tempfile::tempdir().unwrap();
    fs::create_dir_all(data.path().join("cifar10")).unwrap();
    let archive = golden("cifar-10-python.tar.gz");
    fs::write(data.path().join("cifar10/cifar-10-python.tar.gz.part"), &archive).unwrap();
    fetch(std::slice::from_ref(&set), &["cifar10"], data.path(), &url).unwrap();
    assert_eq!(asked(&server), [Some(format!("bytes={}-", archive.len()))]);
}

#[test]
fn damaged_bytes_are_fetched_once_more_and_never_used() {
    let set = tiny("cifar10", (10, 2));
    let (url, server) = start(std::slice::from_ref(&set), &[Fault::Damaged]);
    let data = tempfile::tempdir().unwrap();
    fetch(std::slice::from_ref(&set), &["cifar10"], data.path(), &url).unwrap();
    assert_eq!(asked(&server), [None, None]);

    let (url, _) = start(std::slice::from_ref(&set), &[Fault::Damaged, Fault::Damaged]);
    let data = tempfile::tempdir().unwrap();
    let error = fetch_error(&set, data.path(), &url);
    assert!(error.contains(&set.files[0].md5) && error.contains("twice"), "{error}");
    assert_eq!(fs::read_dir(data.path().join("cifar10")).unwrap().count(), 0, "nothing of it is left");
}

#[test]
fn a_file_that_is_not_there_is_an_error_at_once_and_the_other_sets_are_fetched() {
    let sets = [tiny("cifar10", (10, 2)), tiny("svhn", (11, 2))];
    let (url, server) = start(&sets[1..], &[]);
    let data = tempfile::tempdir().unwrap();
    let error = fetch(&sets, &["cifar10", "svhn"], data.path(), &url).unwrap_err().to_string();
    assert!(error.contains("not fetched: cifar10;"), "{error}");
    assert_eq!(server.lock().unwrap().asked.len(), 3);
    assert!(data.path().join("svhn/asset.toml").is_file());
    let error = fetch_error(&sets[0], data.path(), &url);
    assert!(error.contains("the file is not there; try another server with --mirror"), "{error}");
    assert!(error.contains("/cifar10/cifar-10-python.tar.gz: the server answers 404"), "{error}");
}

#[test]
fn a_file_that_does_not_fit_on_the_disk_is_not_begun() {
    let set = tiny("cifar10", (10, 2));
    let (url, _) = start(std::slice::from_ref(&set), &[Fault::Claims(1 << 60)]);
    let data = tempfile::tempdir().unwrap();
    let error = fetch_error(&set, data.path(), &url);
    assert!(error.contains("GB are needed; make room, or give another folder"), "{error}");
    let large = KnownSet { unpacked_mb: 1 << 40, ..set };
    let (url, server) = start(std::slice::from_ref(&large), &[]);
    let error = fetch_error(&large, data.path(), &url);
    assert!(error.contains("make room"), "{error}");
    assert!(asked(&server).is_empty(), "nothing is asked for before the disk is known to have room");
}

#[test]
fn other_files_than_the_published_are_told_and_make_no_asset() {
    let set = KnownSet { images: (50_000, 10_000), ..tiny("cifar10", (10, 2)) };
    let (url, _) = start(std::slice::from_ref(&set), &[]);
    let data = tempfile::tempdir().unwrap();
    let error = fetch_error(&set, data.path(), &url);
    assert!(error.contains("it has 10 + 2 images, where 50000 + 10000 are known"), "{error}");
    assert!(!data.path().join("cifar10/asset.toml").exists());
}

/// A tar.gz with one member of that name or kind.
fn hostile(name: &str, kind: tar::EntryType) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_size(0);
    header.set_entry_type(kind);
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    tar.append(&header, std::io::empty()).unwrap();
    tar.into_inner().unwrap().finish().unwrap()
}

#[test]
fn an_archive_cannot_write_outside_its_folder() {
    for (name, kind, part) in [
        ("cifar-10-batches-py/../../escaped", tar::EntryType::Regular, "would leave the folder"),
        ("/tmp/escaped", tar::EntryType::Regular, "would leave the folder"),
        ("cifar-10-batches-py/link", tar::EntryType::Symlink, "no plain file but Symlink"),
        ("cifar-10-batches-py/link", tar::EntryType::Link, "no plain file but Link"),
        ("elsewhere/file", tar::EntryType::Regular, "it holds no folder cifar-10-batches-py"),
    ] {
        let archive = hostile(name, kind);
        let mut set = tiny("cifar10", (10, 2));
        set.files[0].md5 = hex(&Md5::digest(&archive));
        let (url, _) = serve(&[("cifar10/cifar-10-python.tar.gz", archive)], &[]);
        let data = tempfile::tempdir().unwrap();
        let error = fetch_error(&set, &data.path().join("a/b"), &url);
        assert!(error.contains(part), "{name}: {error}");
        assert!(!data.path().join("escaped").exists() && !data.path().join("a/escaped").exists());
        assert!(!data.path().join("a/b/cifar10/asset.toml").exists());
    }
}

#[test]
fn the_catalogue_is_what_the_examples_say() {
    for set in catalogue() {
        let manifest: Manifest = toml::from_str(&set.manifest).unwrap();
        assert_eq!(manifest.name, set.name);
        manifest.dataset.as_ref().unwrap().check(manifest.format).unwrap();
        assert!(set.files.is_empty() == set.base.is_some(), "{}", set.name);
        for file in &set.files {
            assert!(
                file.md5.len() == 32 && file.md5.bytes().all(|digit| digit.is_ascii_hexdigit()),
                "{}",
                file.url
            );
        }
        // Each part reads what is fetched, or what is unpacked of it.
        for path in manifest.dataset.unwrap().files() {
            let path = path.strip_prefix(&format!("../{}/", set.base.unwrap_or("-"))).unwrap_or(&path);
            let base = catalogue().into_iter().find(|other| Some(other.name.as_str()) == set.base);
            let files = base.map_or(set.files.clone(), |base| base.files);
            let held = files.iter().any(|file| {
                file.file() == path
                    || file.unpack.is_some_and(|inner| path.starts_with(inner))
                    || path == "2750"
            });
            assert!(held, "{}: {path}", set.name);
        }
    }
}
