//! The binary `causeway-trainer`.

use anyhow::{Context, Result};
use causeway_protocol::{Alpha, Kind, SimilarityAnalysis};
use causeway_trainer::agent::{self, Work};
use causeway_trainer::analysis::command::{Compare, Spectrum};
use causeway_trainer::analysis::table;
use causeway_trainer::attempt::environment::cores;
use causeway_trainer::data::asset::Library;
use causeway_trainer::data::check::Check;
use causeway_trainer::data::fetch::{Fetch, Patience, catalogue, unfinished};
use causeway_trainer::evaluate::store::MOST_BYTES;
use causeway_trainer::local::Local;
use causeway_trainer::models::vit::Activation;
use causeway_trainer::plan::Plan;
use causeway_trainer::weights::convert::Convert;
use causeway_trainer::weights::soup::Soup;
use causeway_trainer::weights::source::Hints;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Fine-tunes pretrained vision encoders and measures them along the line to their fine-tuned selves.
#[derive(Parser)]
#[command(name = "causeway-trainer", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Work for a server: lease runs, start a process for each, ship what it writes.
    Work(WorkArgs),
    /// Fine-tune, keep the checkpoint, sweep α: a spec without any server.
    Train(LocalArgs),
    /// Sweep α between two sets of weights: a spec without any server.
    Evaluate {
        #[command(flatten)]
        local: LocalArgs,
        /// The fine-tuned weights, instead of the spec's: a Causeway checkpoint or a full set of weights.
        #[arg(long)]
        theta1: Option<PathBuf>,
    },
    /// What a spec would train: parameters by module, steps, memory and work, and every default.
    Plan {
        /// The spec, TOML.
        spec: PathBuf,
        #[command(flatten)]
        data: DataArgs,
        /// Which variant of a spec with `[[submit.variants]]`, from 1.
        #[arg(long, default_value_t = 1)]
        variant: usize,
        /// Instead of the spec's seed.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Make an asset of published weights: DINO's, DINOv2's, MAE's, CLIP's, timm's or Hugging Face's, as .safetensors,
    /// .pth, .pt or .bin.
    Convert(ConvertArgs),
    /// The mean of checkpoints of one backbone and method, as a checkpoint of its own: a uniform model soup.
    Soup(SoupArgs),
    /// The eigenvalues of each layer and the power law of the largest, as weightwatcher 0.7.7 fits it.
    Spectrum(SpectrumArgs),
    /// How similar two sets of weights are on a dataset: linear CKA by block, distance by layer, nearest neighbours.
    Similarity(SimilarityArgs),
    /// What is under the data folders.
    #[command(subcommand)]
    Data(DataCommand),
    /// One attempt in its folder: the training process that an agent starts.
    Attempt {
        /// The attempt's folder.
        folder: PathBuf,
    },
}

#[derive(Subcommand)]
enum DataCommand {
    /// List the assets, and what is wrong with those that cannot be used.
    List {
        #[command(flatten)]
        data: DataArgs,
    },
    /// Fetch official datasets from their owners' addresses, as ready assets. A fetch that was cut off goes on.
    Fetch {
        /// Names, such as cifar10 cifar100 svhn eurosat dtd; `data list` shows all that are missing.
        #[arg(required = true)]
        names: Vec<String>,
        /// The data folder; each dataset becomes a folder in it.
        #[arg(long)]
        to: PathBuf,
        /// Another server, which has each file as URL/DATASET/FILE.
        #[arg(long)]
        mirror: Option<String>,
    },
    /// Look into a folder or file of images: what it holds, what cannot be read, what is there twice.
    Check(CheckArgs),
}

#[derive(Args)]
struct CheckArgs {
    /// An asset, or a folder for each class, CIFAR's files, SVHN's, EuroSAT.zip, DTD, parquet, idx files, a list (jsonl, COCO's json, cc3m's tsv,
    /// ImageNet-Captions), tar shards.
    path: PathBuf,
    /// Folder of the images, where it is not beside the list.
    #[arg(long)]
    images: Option<PathBuf>,
    /// Look for images that are there too: those of training in an evaluation dataset. May be given several times.
    #[arg(long, num_args = 1..)]
    against: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Threads that decode; all cores if not given.
    #[arg(long, env = "CAUSEWAY_THREADS")]
    threads: Option<u32>,
}

#[derive(Args)]
struct DataArgs {
    /// Folder of assets; may be given several times. By default where set-up puts the demo's.
    #[arg(long, env = "CAUSEWAY_DATA", value_delimiter = ':', default_value = ".deps/data")]
    data: Vec<PathBuf>,
}

#[derive(Args)]
struct WorkArgs {
    /// URL of the server; of several that share a database give each, and any that answers is asked.
    #[arg(
        long = "server",
        env = "CAUSEWAY_SERVER",
        value_delimiter = ',',
        value_name = "URL",
        default_value = "http://127.0.0.1:7411"
    )]
    servers: Vec<String>,
    /// File with a worker token.
    #[arg(long, env = "CAUSEWAY_TOKEN_FILE")]
    token_file: PathBuf,
    /// Folder of the worker's id and its attempts.
    #[arg(long, env = "CAUSEWAY_STATE")]
    state: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// Name on pages; the host's if not given.
    #[arg(long, env = "CAUSEWAY_NAME")]
    name: Option<String>,
    /// Devices, each for one attempt at a time.
    #[arg(long, env = "CAUSEWAY_DEVICES", value_delimiter = ',', default_value = "cpu")]
    devices: Vec<String>,
    /// What runs may ask for by name (`resources.labels`), separated by commas.
    #[arg(long, env = "CAUSEWAY_LABELS", value_delimiter = ',', value_name = "LABEL")]
    labels: Vec<String>,
    /// Run commands: whoever may submit a run can then run any program as this user.
    #[arg(long, env = "CAUSEWAY_ALLOW_COMMANDS")]
    allow_commands: bool,
    /// Where the other workers of a run on several reach this one; the host's name if not given.
    #[arg(long, env = "CAUSEWAY_ADDRESS")]
    address: Option<String>,
    /// Threads of one attempt; the cores shared out among the devices if not given.
    #[arg(long, env = "CAUSEWAY_THREADS")]
    threads: Option<u32>,
    /// End after so many seconds without work: for a machine that is lent by a batch system.
    #[arg(long, env = "CAUSEWAY_IDLE_SECONDS", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    idle_seconds: Option<u64>,
    /// When told to end (SIGTERM), how many seconds an attempt gets to keep its state and ship it.
    #[arg(long, env = "CAUSEWAY_GRACE_SECONDS", value_name = "SECONDS", default_value_t = GRACE_SECONDS)]
    grace_seconds: u64,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Enough for a step and a state of the usual size.
const GRACE_SECONDS: u64 = 10;

impl WorkArgs {
    fn work(self) -> Work {
        let cache_bytes = self.cache.bytes();
        let idle = self.idle_seconds.map(Duration::from_secs);
        let grace = Duration::from_secs(self.grace_seconds);
        let WorkArgs {
            servers, token_file, state, data, name, devices, labels, allow_commands, address, ..
        } = self;
        let (data, threads) = (data.data, self.threads);
        Work {
            servers,
            token_file,
            state,
            data,
            name,
            devices,
            labels,
            allow_commands,
            address,
            threads,
            cache_bytes,
            idle,
            grace,
        }
    }
}

#[derive(Args)]
struct CacheArgs {
    /// Most gigabytes (2^30 bytes) of features that are kept for later evaluations; those unused longest go first.
    #[arg(long, env = "CAUSEWAY_CACHE_GB", value_name = "GB", default_value_t = MOST_BYTES >> 30)]
    cache_gb: u64,
}

impl CacheArgs {
    fn bytes(&self) -> u64 {
        self.cache_gb.saturating_mul(1 << 30)
    }
}

#[derive(Args)]
struct ConvertArgs {
    /// The file of weights.
    #[arg(value_name = "SOURCE")]
    file: PathBuf,
    /// Folder of the new asset; it must not exist yet.
    #[arg(long)]
    out: PathBuf,
    /// Name of the asset, as specs have it.
    #[arg(long)]
    name: String,
    /// Title in figures; the name if not given.
    #[arg(long)]
    title: Option<String>,
    /// Licence of the weights, SPDX where possible.
    #[arg(long)]
    licence: Option<String>,
    /// Where the weights come from; the file's name if not given.
    #[arg(long)]
    source: Option<String>,
    /// Key of the state dict in a checkpoint that holds several, such as `teacher` or `student`.
    #[arg(long)]
    key: Option<String>,
    /// Activation of CLIP's weights where nothing beside the file tells it: `quick_gelu` for OpenAI's, `gelu` for most
    /// others.
    #[arg(long, value_parser = Activation::parse)]
    activation: Option<Activation>,
}

impl ConvertArgs {
    fn convert(self) -> Convert {
        let ConvertArgs { file, out, name, title, licence, source, key, activation } = self;
        Convert { file, out, name, title, licence, source, hints: Hints { key, activation } }
    }
}

#[derive(Args)]
struct SoupArgs {
    /// Checkpoints that Causeway made.
    #[arg(value_name = "CHECKPOINT", required = true)]
    checkpoints: Vec<PathBuf>,
    /// The weights that they were made from.
    #[arg(long, value_name = "WEIGHTS")]
    theta0: PathBuf,
    /// The new checkpoint.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Args)]
struct SpectrumArgs {
    /// The weights: θ0, in any format that `convert` reads.
    weights: PathBuf,
    /// The other end of a line: a Causeway checkpoint or a full set of weights.
    #[arg(long, value_name = "FILE")]
    theta1: Option<PathBuf>,
    /// Where on the line, ascending: 0,0.5,1. Both ends if not given; layers equal at both are decomposed once.
    #[arg(long, value_parser = parse_alphas)]
    alphas: Option<Alphas>,
    /// Query, key and value as three matrices rather than one.
    #[arg(long)]
    split_qkv: bool,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Layers decomposed at a time; all cores if not given.
    #[arg(long, env = "CAUSEWAY_THREADS")]
    threads: Option<u32>,
}

impl SpectrumArgs {
    fn spectrum(self) -> Spectrum {
        let SpectrumArgs { weights, theta1, alphas, split_qkv, json, threads } = self;
        let threads = threads.unwrap_or_else(cores).max(1);
        Spectrum { weights, theta1, alphas: alphas.map(|alphas| alphas.0), split_qkv, json, threads }
    }
}

#[derive(Args)]
struct SimilarityArgs {
    /// The weights that are compared with: θ0.
    weights: PathBuf,
    /// The weights that are compared: a Causeway checkpoint or a full set of weights.
    theta1: PathBuf,
    /// Name of the dataset asset.
    #[arg(long)]
    dataset: String,
    #[command(flatten)]
    data: DataArgs,
    /// Scored images whose features are compared.
    #[arg(long, default_value_t = 512)]
    images: u32,
    /// Scored images whose neighbours are looked for.
    #[arg(long, default_value_t = 6)]
    queries: u32,
    /// Neighbours of each.
    #[arg(long, default_value_t = 5)]
    neighbours: u32,
    /// Search so many images of the bank; all if not given.
    #[arg(long)]
    bank: Option<u32>,
    /// Where on the line, ascending; 0 is always among them.
    #[arg(long, value_parser = parse_alphas, default_value = "0.5,1")]
    alphas: Alphas,
    /// Chooses the images.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Side of the encoder's input, pixels.
    #[arg(long, default_value_t = 224)]
    image_size: u32,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep queries and neighbours as small images in this folder.
    #[arg(long, value_name = "FOLDER")]
    keep_images: Option<PathBuf>,
    /// Threads of one forward pass; all cores if not given.
    #[arg(long, env = "CAUSEWAY_THREADS")]
    threads: Option<u32>,
}

impl SimilarityArgs {
    fn compare(self) -> Compare {
        let SimilarityArgs { dataset, images, queries, neighbours, bank, alphas, seed, .. } = self;
        let asked = SimilarityAnalysis { dataset, images, queries, neighbours, bank, alphas: alphas.0, seed };
        Compare {
            weights: self.weights,
            theta1: self.theta1,
            data: self.data.data,
            asked,
            image_size: self.image_size,
            json: self.json,
            images: self.keep_images,
            threads: self.threads.unwrap_or_else(cores).max(1),
        }
    }
}

/// A list in one argument, which clap would otherwise take for an argument that may come several times.
#[derive(Clone)]
struct Alphas(Vec<Alpha>);

fn parse_alphas(text: &str) -> Result<Alphas> {
    table::parse_alphas(text).map(Alphas)
}

#[derive(Args)]
struct LocalArgs {
    /// The spec, TOML.
    spec: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// Folder for journal, checkpoint and result; an earlier run of the same spec in it goes on.
    #[arg(long)]
    out: PathBuf,
    /// Which variant of a spec with `[[submit.variants]]`, from 1.
    #[arg(long, default_value_t = 1)]
    variant: usize,
    /// Instead of the spec's seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Where to compute: `cpu`, or `cuda:0` and so on.
    #[arg(long, env = "CAUSEWAY_DEVICE", default_value = "cpu")]
    device: String,
    /// Threads of one forward pass; all cores if not given. Part of what decides a number's last bits.
    #[arg(long, env = "CAUSEWAY_THREADS")]
    threads: Option<u32>,
    /// Folder of features, so that runs share what they compute of the same weights and images; inside --out if not given.
    #[arg(long, env = "CAUSEWAY_CACHE", value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    most: CacheArgs,
}

impl LocalArgs {
    fn local(self, kind: Kind, theta1: Option<PathBuf>) -> Local {
        let threads = self.threads.unwrap_or_else(cores).max(1);
        let cache_bytes = self.most.bytes();
        let LocalArgs { spec, data, out, variant, seed, device, cache, .. } = self;
        Local { spec, kind, data: data.data, out, theta1, variant, seed, threads, device, cache, cache_bytes }
    }
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if matches!(command, Command::Plan { .. } | Command::Data(_) | Command::Spectrum(_)) {
        // A reader that has seen enough, such as `head`, ends the command quietly.
        // SAFETY: nothing else has a handler for this signal.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    let done = match command {
        Command::Attempt { folder } => std::process::exit(causeway_trainer::attempt::run(&folder)),
        Command::Work(args) => {
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
            agent::work(args.work())
        }
        Command::Train(args) => args.local(Kind::Finetune, None).run(),
        Command::Evaluate { local, theta1 } => local.local(Kind::Evaluate, theta1).run(),
        Command::Plan { spec, data, variant, seed } => {
            Plan { spec, data: data.data, variant, seed }.text().map(|text| print!("{text}"))
        }
        Command::Convert(args) => args.convert().run(),
        Command::Spectrum(args) => args.spectrum().run(),
        Command::Similarity(args) => args.compare().run(),
        Command::Soup(SoupArgs { checkpoints, theta0, out }) => Soup { checkpoints, theta0, out }.run(),
        Command::Data(DataCommand::List { data }) => list(&data.data),
        Command::Data(DataCommand::Fetch { names, to, mirror }) => {
            Fetch { sets: catalogue(), names, to, mirror, patience: Patience::USUAL }.run()
        }
        Command::Data(DataCommand::Check(args)) => check(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(args: CheckArgs) -> Result<()> {
    let CheckArgs { path, images, against, json, threads } = args;
    let threads = threads.unwrap_or_else(cores).max(1) as usize;
    let good = Check { path, images, against, json, threads }.run()?;
    anyhow::ensure!(good, "not everything is as it should be: see above");
    Ok(())
}

fn list(folders: &[PathBuf]) -> Result<()> {
    let (assets, problems) = Library::find(folders).summaries();
    for asset in &assets {
        let images = if asset.images > 0 { format!("{:>7} images", asset.images) } else { String::new() };
        println!("{:<22} {:<13} {:<15} {}  {}", asset.name, asset.kind, images, asset.title, asset.licence);
    }
    let missing = catalogue();
    let missing = missing.iter().filter(|set| assets.iter().all(|asset| asset.name != set.name));
    for set in missing.filter(|set| set.base.is_none()) {
        let to = folders.first().map_or("DIR".to_owned(), |folder| folder.display().to_string());
        let begun = set.files.iter().any(|file| {
            folders.iter().any(|folder| unfinished(&folder.join(&set.name).join(file.file())).is_some())
        });
        let state = if begun { "begun" } else { "missing" };
        let command = format!("causeway-trainer data fetch {} --to {to}", set.name);
        println!("{:<22} {state:<13} {:>7} MB      {command}", set.name, set.fetched_mb);
    }
    for problem in &problems {
        eprintln!("problem: {problem}");
    }
    anyhow::ensure!(problems.is_empty(), "{} of the assets cannot be used", problems.len());
    assets.first().map(drop).context("there are no assets under these folders")
}
