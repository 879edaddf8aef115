//! The binary `causeway`: the server, and the commands that talk to one.

use causeway_server::{
    client::{self, Connection},
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
    /// Put checkpoints side by side
    Compare(ClientArgs<client::CompareArgs>),
    /// Print every point of an experiment as CSV
    Export(ClientArgs<client::ExportArgs>),
    /// Print every value that a run has logged as CSV
    Values(ClientArgs<client::ValuesArgs>),
}

/// A command's own options, and which server to ask.
#[derive(Args)]
struct ClientArgs<T: Args> {
    #[command(flatten)]
    own: T,
    #[command(flatten)]
    connection: Connection,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    if !matches!(cli.command, Command::Serve(_)) {
        // A reader that has seen enough, such as `head`, ends the command quietly. The server must outlive its readers.
        // SAFETY: nothing else has a handler for this signal.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
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
        Command::Compare(args) => client::compare(&args.connection, args.own).await,
        Command::Export(args) => client::export(&args.connection, args.own).await,
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
