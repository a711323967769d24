//! The executable. Only here the process ends.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    symphony::cli::Cli::parse().run()
}
