//! The binary `causeway`.

fn main() -> std::process::ExitCode {
    causeway_server::cli::main()
}
