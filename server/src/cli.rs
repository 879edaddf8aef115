//! The command line `causeway`: the server, and the commands that talk to one. In the library, so that what serves is
//! compiled once and the binary is a line.

use crate::{
    client::{self, Connection, ProjectsCommand, WorkersCommand},
    launch::{self, LaunchArgs},
    serve::{ServeArgs, serve},
};
use clap::{Args, Parser, Subcommand};

/// Fine-tune pretrained vision encoders and see accuracy against α.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server: API, scheduler and dashboard
    Serve(ServeArgs),
    /// Submit the runs of a spec file
    Submit(ClientArgs<client::SubmitArgs>),
    /// List runs, newest first
    Runs(ClientArgs<client::RunsArgs>),
    /// Wait for runs, showing their progress
    Watch(ClientArgs<client::WatchArgs>),
    /// Stop runs
    Cancel(ClientArgs<client::CancelArgs>),
    /// Set runs aside: their state is saved
    Pause(ClientArgs<client::RunIds>),
    /// Let paused runs go on
    Resume(ClientArgs<client::RunIds>),
    /// Move waiting runs before all others of their priority and project
    Front(ClientArgs<client::RunIds>),
    /// Submit the spec of a run again, changed or as it is
    Clone(ClientArgs<client::CloneArgs>),
    /// What waits, in its order, and why
    Queue(ClientArgs<Nothing>),
    /// List the workers, or take one out of service
    Workers(ClientArgs<Workers>),
    /// List the projects with their shares and limits, or change them
    Projects(ClientArgs<Projects>),
    /// Put checkpoints side by side
    Compare(ClientArgs<client::CompareArgs>),
    /// Workers from a batch system: Slurm, LSF, Kubernetes
    Launch(LaunchArgs),
    /// Print every point of an experiment as CSV
    Export(ClientArgs<client::ExportArgs>),
    /// Print every value that a run has logged as CSV
    Values(ClientArgs<client::ValuesArgs>),
    /// Search over hyper-parameters
    Search {
        #[command(subcommand)]
        command: SearchCommand,
    },
}

#[derive(Subcommand)]
enum SearchCommand {
    /// Submit the search of a file
    Submit(ClientArgs<client::SearchSubmitArgs>),
    /// List searches, newest first
    List(ClientArgs<client::SearchListArgs>),
    /// Show a search's trials, the best first
    Show(ClientArgs<client::SearchIdArgs>),
    /// Submit nothing new; what runs goes on
    Pause(ClientArgs<client::SearchIdArgs>),
    /// Go on with a paused search
    Resume(ClientArgs<client::SearchIdArgs>),
    /// More trials, or more steps; also for a search that has ended
    Extend(ClientArgs<client::SearchExtendArgs>),
    /// Stop a search with all its runs
    Cancel(ClientArgs<client::SearchIdArgs>),
}

/// A command's own options, and which server to ask.
#[derive(Args)]
struct ClientArgs<T: Args> {
    #[command(flatten)]
    own: T,
    #[command(flatten)]
    connection: Connection,
}

/// No options.
#[derive(Args)]
struct Nothing {}

#[derive(Args)]
struct Workers {
    #[command(subcommand)]
    command: Option<WorkersCommand>,
}

#[derive(Args)]
struct Projects {
    #[command(subcommand)]
    command: Option<ProjectsCommand>,
}

/// Does what the arguments say.
#[tokio::main]
pub async fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    if !matches!(cli.command, Command::Serve(_)) {
        end_with_the_reader();
    }
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("CAUSEWAY_LOG")
                .unwrap_or_else(|_| "info,sqlx=warn,tower_http=warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let done = match cli.command {
        Command::Serve(args) => serve(args).await,
        Command::Submit(args) => client::submit(&args.connection, args.own).await,
        Command::Runs(args) => client::runs(&args.connection, args.own).await,
        Command::Watch(args) => client::watch(&args.connection, args.own).await,
        Command::Cancel(args) => client::cancel(&args.connection, args.own).await,
        Command::Pause(args) => client::act(&args.connection, args.own, "pause").await,
        Command::Resume(args) => client::act(&args.connection, args.own, "resume").await,
        Command::Front(args) => client::act(&args.connection, args.own, "front").await,
        Command::Clone(args) => client::clone(&args.connection, args.own).await,
        Command::Queue(args) => client::queue(&args.connection).await,
        Command::Workers(args) => {
            client::workers(&args.connection, args.own.command.unwrap_or(WorkersCommand::List)).await
        }
        Command::Projects(args) => {
            client::projects(&args.connection, args.own.command.unwrap_or(ProjectsCommand::List)).await
        }
        Command::Compare(args) => client::compare(&args.connection, args.own).await,
        Command::Launch(args) => launch::launch(args).await,
        Command::Export(args) => client::export(&args.connection, args.own).await,
        Command::Search { command } => search(command).await,
        Command::Values(args) => client::values(&args.connection, args.own).await,
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("causeway: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// A reader that has seen enough, such as `head`, ends the command quietly. Not by SIGPIPE: a cut line to the server would
/// send that too, and a command is to wait it out.
fn end_with_the_reader() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str().is_some_and(|said| said.starts_with("failed printing to stdout")) {
            std::process::exit(141); // as a shell tells it of SIGPIPE
        }
        usual(panic);
    }));
}

async fn search(command: SearchCommand) -> anyhow::Result<()> {
    match command {
        SearchCommand::Submit(args) => client::submit_search(&args.connection, args.own).await,
        SearchCommand::List(args) => client::list_searches(&args.connection, args.own).await,
        SearchCommand::Show(args) => client::show_search(&args.connection, args.own).await,
        SearchCommand::Pause(args) => client::change_search(&args.connection, args.own, "pause").await,
        SearchCommand::Resume(args) => client::change_search(&args.connection, args.own, "resume").await,
        SearchCommand::Extend(args) => client::extend_search(&args.connection, args.own).await,
        SearchCommand::Cancel(args) => client::change_search(&args.connection, args.own, "cancel").await,
    }
}
