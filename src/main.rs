//! The `uringvpn` command: parse, go to the background, run, and turn the result into an exit code.
//!
//! 0: done, or running in the background. 1: failed at run time. 2: the command line, the environment or a file named
//! there is wrong.

use std::io::{Write, stderr, stdin, stdout};
use std::process::ExitCode;

use nix::sys::prctl::set_dumpable;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uringvpn::control::capture::client::{self, Capture, CaptureError};
use uringvpn::control::cli::{self, CliError, Invocation};
use uringvpn::control::config::DeviceConfig;
use uringvpn::control::config_file::ConfigFile;
use uringvpn::control::key_commands::{self, KeyCommandError};
use uringvpn::control::logging::{self, LogSettings};
use uringvpn::control::report::{self, Report, ReportError};
use uringvpn::control::show::{self, ShowError};
use uringvpn::control::top;
use uringvpn::expose;
use uringvpn::io::daemon::{self, Daemon, Detached, Keep, notify_started};
use uringvpn::io::features;
use uringvpn::worker;

fn main() -> ExitCode {
    // Keys must be in no core dump, and no other program of the same user may read them. Linux refuses nobody this.
    let _ = set_dumpable(false);
    match cli::parse(std::env::args_os()) {
        Ok(Invocation::Probe) => probe(),
        Ok(Invocation::Show(wanted)) => shown(show::run(&wanted, &mut stdout().lock(), &mut stderr())),
        Ok(Invocation::Top(wanted)) => shown(top::run(&wanted)),
        Ok(Invocation::Report(wanted)) => report(&wanted),
        Ok(Invocation::Capture(wanted)) => capture(&wanted),
        Ok(Invocation::GenerateKey) => generate(key_commands::generate_private),
        Ok(Invocation::GeneratePresharedKey) => generate(key_commands::generate_preshared),
        Ok(Invocation::PublicKey) => {
            key_result(key_commands::derive_public(&mut stdin().lock(), &mut stdout().lock()))
        }
        Ok(Invocation::Local { configs, log, warnings }) => {
            exposed(|| begin_log(&log, &warnings), || expose::run::expose(configs))
        }
        Ok(Invocation::Server { config, log, warnings }) => {
            exposed(|| begin_log(&log, &warnings), || expose::run::serve(*config))
        }
        Ok(Invocation::Run { config, file, log, warnings }) => {
            start(*config, file, || begin_log(&log, &warnings))
        }
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

/// Runs a client or a server of public ports to its end.
fn exposed(
    begin_log: impl FnOnce() -> Result<(), String>,
    run: impl FnOnce() -> anyhow::Result<()>,
) -> ExitCode {
    let result = begin_log().and_then(|()| run().map_err(|error| format!("{error:#}")));
    logging::finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => failure(&reason),
    }
}

/// Writes a new secret to standard output.
fn generate(write: impl FnOnce(&mut dyn Write) -> Result<(), KeyCommandError>) -> ExitCode {
    let mut out = stdout().lock();
    if let Some(warning) = key_commands::exposure(&out) {
        logging::print_error(warning);
    }
    key_result(write(&mut out))
}

fn key_result(result: Result<(), KeyCommandError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure(&error.to_string()),
    }
}

/// Starts logging, with what was noticed before there was a log.
fn begin_log(settings: &LogSettings, warnings: &[String]) -> Result<(), String> {
    logging::start(settings).map_err(|error| format!("cannot log to the journal: {error}"))?;
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(())
}

fn start(
    mut config: DeviceConfig,
    file: Option<Box<ConfigFile>>,
    begin_log: impl FnOnce() -> Result<(), String>,
) -> ExitCode {
    // In a container process 1 is the container: it must not end while the tunnel runs.
    config.foreground |= Pid::this() == Pid::from_raw(1);
    if config.foreground {
        return match run(config, file, begin_log, notify_started) {
            Ok(()) => ExitCode::SUCCESS,
            Err(reason) => failure(&reason),
        };
    }
    let handed_in: Vec<_> = config.tun_fd.into_iter().chain(config.uapi_fd).collect();
    let mut daemon = match daemon::detach(&handed_in) {
        Err(error) => return failure(&format!("cannot go to the background: {error}")),
        Ok(Detached::Parent(Ok(()))) => return ExitCode::SUCCESS,
        Ok(Detached::Parent(Err(reason))) => return failure(&reason),
        Ok(Detached::Child(daemon)) => Some(daemon),
    };
    let result = run(config, file, begin_log, || daemon.take().into_iter().for_each(release));
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

fn run(
    config: DeviceConfig,
    file: Option<Box<ConfigFile>>,
    begin_log: impl FnOnce() -> Result<(), String>,
    ready: impl FnOnce(),
) -> Result<(), String> {
    begin_log()?;
    if config.plaintext {
        tracing::warn!("plaintext mode: packets are neither encrypted nor authenticated");
    }
    let result = worker::run(config, file, ready).map_err(|error| format!("{error:#}"));
    logging::finish();
    result
}

/// Tells the parent. If it is gone, whoever started us has given up: then we end like on any SIGTERM.
fn release(daemon: Daemon) {
    if daemon.ready(Keep::Logs).is_err() {
        let _ = kill(Pid::this(), Signal::SIGTERM);
    }
    logging::detached();
}

/// How showing what tunnels do went.
fn shown(result: Result<(), ShowError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever stops reading has seen enough.
        Err(ShowError::Print(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => failure(&error.to_string()),
    }
}

/// Watches a tunnel and draws what it did.
fn report(wanted: &Report) -> ExitCode {
    match report::run(wanted, &mut stdout().lock(), &mut stderr()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever stops reading has seen enough.
        Err(ReportError::Write(_, error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => failure(&error.to_string()),
    }
}

/// Writes what goes through a tunnel to a file.
fn capture(wanted: &Capture) -> ExitCode {
    match client::run(wanted, &mut stderr()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever stops reading has seen enough.
        Err(CaptureError::Write(_, error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => failure(&error.to_string()),
    }
}

/// Prints what this kernel offers.
fn probe() -> ExitCode {
    match features::print(&features::probe(), &mut stdout().lock()) {
        // Whoever stops reading has seen enough.
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => failure(&format!("probe: {error}")),
    }
}
