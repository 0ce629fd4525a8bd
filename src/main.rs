//! The `uringvpn` command.
use std::process::ExitCode;

use uringvpn::control::cli::{self, CliError};

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(invocation) => {
            println!("{invocation:#?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            match &error {
                CliError::Clap(clap) => drop(clap.print()),
                other => eprintln!("uringvpn: {other}"),
            }
            ExitCode::from(error.exit_code())
        }
    }
}
