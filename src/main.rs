//! The `uringvpn` command: parse, go to the background, run, and turn the result into an exit code.
//!
//! 0: done, or running in the background. 1: failed at run time. 2: the command line or the environment is wrong.

use std::process::ExitCode;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uringvpn::control::cli::{self, CliError, Invocation};
use uringvpn::control::config::DeviceConfig;
use uringvpn::control::logging;
use uringvpn::io::daemon::{self, Daemon, Detached, Keep};
use uringvpn::io::features;
use uringvpn::worker;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(Invocation::Probe) => probe(),
        Ok(Invocation::Run { config, log_level }) => start(*config, log_level),
        Err(error) => {
            match &error {
                // Fails only if nobody is left to read it.
                CliError::Clap(clap) => drop(clap.print()),
                CliError::Config(config) => logging::print_error(&config.to_string()),
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn failure(reason: &str) -> ExitCode {
    logging::print_error(reason);
    ExitCode::FAILURE
}

fn start(mut config: DeviceConfig, log_level: tracing::Level) -> ExitCode {
    // In a container process 1 is the container: it must not end while the tunnel runs.
    config.foreground |= Pid::this() == Pid::from_raw(1);
    if config.foreground {
        return match run(config, log_level, || {}) {
            Ok(()) => ExitCode::SUCCESS,
            Err(reason) => failure(&reason),
        };
    }
    let mut daemon = match daemon::detach() {
        Err(error) => return failure(&format!("cannot go to the background: {error}")),
        Ok(Detached::Parent(Ok(()))) => return ExitCode::SUCCESS,
        Ok(Detached::Parent(Err(reason))) => return failure(&reason),
        Ok(Detached::Child(daemon)) => Some(daemon),
    };
    let result = run(config, log_level, || daemon.take().into_iter().for_each(release));
    match (result, daemon) {
        (Ok(()), _) => ExitCode::SUCCESS,
        // The parent prints it.
        (Err(reason), Some(daemon)) => {
            daemon.failed(&reason);
            ExitCode::FAILURE
        }
        (Err(reason), None) => failure(&reason),
    }
}

fn run(config: DeviceConfig, log_level: tracing::Level, ready: impl FnOnce()) -> Result<(), String> {
    logging::start(log_level);
    if config.plaintext {
        tracing::warn!("plaintext mode: packets are neither encrypted nor authenticated");
    }
    worker::run(config, ready).map_err(|error| format!("{error:#}"))
}

/// Tells the parent. If it is gone, whoever started us has given up: then we end like on any SIGTERM.
fn release(daemon: Daemon) {
    if daemon.ready(Keep::Logs).is_err() {
        let _ = kill(Pid::this(), Signal::SIGTERM);
    }
}

/// Prints what this kernel offers.
fn probe() -> ExitCode {
    match features::print(&features::probe(), &mut std::io::stdout().lock()) {
        // Whoever stops reading has seen enough.
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => failure(&format!("probe: {error}")),
    }
}
