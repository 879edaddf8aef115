//! The datasets that are known by name: their manifests, which are also the examples in `configs/assets/`, where their
//! owners serve them, and the md5 they publish (checked against torchvision 0.29.2 and torchgeo, which fetch the same
//! files).

/// A dataset whose files can be fetched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownSet {
    /// Name of the asset, and of its folder.
    pub name: String,
    /// Its manifest, without the digests of files.
    pub manifest: String,
    /// The files; none where they are those of another set.
    pub files: Vec<Remote>,
    /// The set whose folder holds the files.
    pub base: Option<&'static str>,
    /// Images of the bank and of the query part.
    pub images: (usize, usize),
    /// About what the files take to fetch, million bytes.
    pub fetched_mb: u64,
    /// About what they take beside that once unpacked, million bytes.
    pub unpacked_mb: u64,
}

/// A file of an owner's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remote {
    /// Where the owner, or who keeps it for the owner, serves it. Its last part is the file's name.
    pub url: String,
    /// As published.
    pub md5: String,
    /// The folder that a tar.gz holds and that is unpacked; none where the file is read as it is.
    pub unpack: Option<&'static str>,
}

impl Remote {
    /// Name of the file.
    pub fn file(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or(&self.url)
    }
}

const TORONTO: &str = "https://www.cs.toronto.edu/~kriz/";
const STANFORD: &str = "http://ufldl.stanford.edu/housenumbers/";
const TORCHGEO: &str = "https://huggingface.co/datasets/torchgeo/eurosat/resolve/";
const OXFORD: &str = "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/";
const FAST_AI: &str = "https://s3.amazonaws.com/fast-ai-imageclas/";
const MNIST: &str = "https://ossci-datasets.s3.amazonaws.com/mnist/";
const FASHION_MNIST: &str = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/";

macro_rules! manifest {
    ($name:literal) => {
        include_str!(concat!("../../../../configs/assets/", $name, ".toml"))
    };
}

/// Every dataset that is known.
pub fn catalogue() -> Vec<KnownSet> {
    let mut sets = vec![
        KnownSet {
            files: vec![tar(
                TORONTO,
                "cifar-10-python.tar.gz",
                "c58f30108f718f92721af3b95e74349a",
                "cifar-10-batches-py",
            )],
            images: (50_000, 10_000),
            fetched_mb: 171,
            unpacked_mb: 187,
            ..set("cifar10", manifest!("cifar10"))
        },
        KnownSet {
            files: vec![tar(
                TORONTO,
                "cifar-100-python.tar.gz",
                "eb9058c3a382ffc7106e4002c42a8d85",
                "cifar-100-python",
            )],
            images: (50_000, 10_000),
            fetched_mb: 170,
            unpacked_mb: 187,
            ..set("cifar100", manifest!("cifar100"))
        },
        KnownSet {
            base: Some("cifar100"),
            images: (50_000, 10_000),
            ..set("cifar100-coarse", manifest!("cifar100-coarse"))
        },
        KnownSet {
            files: vec![
                file(STANFORD, "train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
                file(STANFORD, "test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
            ],
            images: (73_257, 26_032),
            fetched_mb: 247,
            ..set("svhn", manifest!("svhn"))
        },
        KnownSet {
            files: vec![
                file(
                    TORCHGEO,
                    "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                    "c8fa014336c82ac7804f0398fcb19387",
                ),
                list("train", "908f142e73d6acdf3f482c5e80d851b1"),
                list("val", "95de90f2aa998f70a3b2416bfe0687b4"),
                list("test", "7ae5ab94471417b6e315763121e67c5f"),
            ],
            images: (16_200, 5_400),
            fetched_mb: 95,
            ..set("eurosat", manifest!("eurosat"))
        },
        KnownSet {
            base: Some("eurosat"),
            images: (16_200, 5_400),
            ..set("eurosat-seeded", manifest!("eurosat-seeded"))
        },
        KnownSet {
            files: vec![tar(OXFORD, "dtd-r1.0.1.tar.gz", "fff73e5086ae6bdbea199a49dfb8a4c1", "dtd")],
            images: (3_760, 1_880),
            fetched_mb: 626,
            unpacked_mb: 650,
            ..set("dtd", manifest!("dtd"))
        },
    ];
    sets.extend((2..=10).map(dtd_partition));
    sets.extend([
        KnownSet {
            files: vec![tar(
                FAST_AI,
                "imagenette2-320.tgz",
                "3df6f0d01a2c9592104656642f5e78a3",
                "imagenette2-320",
            )],
            images: (9_469, 3_925),
            fetched_mb: 342,
            unpacked_mb: 360,
            ..set("imagenette", manifest!("imagenette"))
        },
        KnownSet {
            files: idx(
                MNIST,
                [
                    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                    "d53e105ee54ea40749a09fcbcd1e9432",
                    "9fb629c4189551a2d022fa330f9573f3",
                    "ec29112dd5afa0611ce80d1b7f02629c",
                ],
            ),
            images: (60_000, 10_000),
            fetched_mb: 12,
            ..set("mnist", manifest!("mnist"))
        },
        KnownSet {
            files: idx(
                FASHION_MNIST,
                [
                    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                    "25c81989df183df01b3e8a0aad5dffbe",
                    "bef4ecab320f06d8554ea6380940ec79",
                    "bb300cfdad3c16e7a12a480ee83cd310",
                ],
            ),
            images: (60_000, 10_000),
            fetched_mb: 31,
            ..set("fashion-mnist", manifest!("fashion-mnist"))
        },
    ]);
    sets
}

fn set(name: &str, manifest: &str) -> KnownSet {
    KnownSet {
        name: name.to_owned(),
        manifest: manifest.to_owned(),
        files: Vec::new(),
        base: None,
        images: (0, 0),
        fetched_mb: 0,
        unpacked_mb: 0,
    }
}

/// DTD's other partitions: the same images, other lists.
fn dtd_partition(number: u32) -> KnownSet {
    let manifest = manifest!("dtd")
        .replace("fetch dtd ", &format!("fetch dtd-{number} "))
        .replace("name = \"dtd\"", &format!("name = \"dtd-{number}\""))
        .replace("partition 1", &format!("partition {number}"))
        .replace("1.txt", &format!("{number}.txt"))
        .replace("\"dtd/", "\"../dtd/dtd/");
    KnownSet { base: Some("dtd"), images: (3_760, 1_880), ..set(&format!("dtd-{number}"), &manifest) }
}

fn file(folder: &str, name: &str, md5: &str) -> Remote {
    Remote { url: format!("{folder}{name}"), md5: md5.to_owned(), unpack: None }
}

fn tar(folder: &str, name: &str, md5: &str, unpack: &'static str) -> Remote {
    Remote { unpack: Some(unpack), ..file(folder, name, md5) }
}

fn list(split: &str, md5: &str) -> Remote {
    file(TORCHGEO, &format!("1ce6f1bfb56db63fd91b6ecc466ea67f2509774c/eurosat-{split}.txt"), md5)
}

fn idx(folder: &str, md5: [&str; 4]) -> Vec<Remote> {
    let names = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"];
    names.iter().zip(md5).map(|(name, md5)| file(folder, &format!("{name}-ubyte.gz"), md5)).collect()
}
