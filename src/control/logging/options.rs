//! What is logged, as what and where to: the options, and what they mean.

use clap::{Args, ValueEnum};
use tracing::level_filters::LevelFilter;

use crate::control::config_error::ConfigError;
use crate::proto::keys::PublicKey;

/// What is logged, as what and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// The least severe level.
    pub level: LevelFilter,
    /// Of these peers everything up to debug.
    pub peers: Vec<PublicKey>,
    /// How lines on standard error look.
    pub format: Format,
    /// Where lines go.
    pub target: Target,
}

impl Default for LogSettings {
    fn default() -> LogSettings {
        LogSettings {
            level: LevelFilter::INFO,
            peers: Vec::new(),
            format: Format::Text,
            target: Target::Auto,
        }
    }
}

/// How lines on standard error look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// An object per line: time, level, message; interface and peer where there is one
    Json,
}

/// Where lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// The journal if systemd connected standard error to it, else standard error
    Auto,
    /// Standard error
    Stderr,
    /// The journal of systemd; fields URINGVPN_INTERFACE and URINGVPN_PEER where there is one
    Journald,
}

/// The options as they were typed.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Least severe messages to log [default: info]
    #[arg(long, env = "URINGVPN_LOG_LEVEL", hide_env_values = true, value_name = "LEVEL")]
    #[arg(value_enum, help_heading = "Log")]
    log_level: Option<LowLevel>,

    /// Peers whose handshakes and other affairs are logged in detail (debug), whatever --log-level says
    ///
    /// Public keys, separated by commas.
    #[arg(long, env = "URINGVPN_LOG_PEER", hide_env_values = true, value_name = "KEY")]
    #[arg(value_delimiter = ',', help_heading = "Log")]
    log_peer: Vec<String>,

    /// How log lines on standard error look
    #[arg(long, env = "URINGVPN_LOG_FORMAT", hide_env_values = true, value_name = "FORMAT")]
    #[arg(value_enum, default_value_t = Format::Text, help_heading = "Log")]
    log_format: Format,

    /// Where the log goes
    ///
    /// In the background a log on standard error goes on if that is a file or a socket. A terminal or a pipe is let go; what
    /// follows goes to the journal with `auto`, if there is one, and is lost with `stderr`.
    #[arg(long, env = "URINGVPN_LOG_TO", hide_env_values = true, value_name = "WHERE")]
    #[arg(value_enum, default_value_t = Target::Auto, help_heading = "Log")]
    log_to: Target,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LowLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LowLevel {
    fn filter(self) -> LevelFilter {
        match self {
            LowLevel::Error => LevelFilter::ERROR,
            LowLevel::Warn => LevelFilter::WARN,
            LowLevel::Info => LevelFilter::INFO,
            LowLevel::Debug => LevelFilter::DEBUG,
            LowLevel::Trace => LevelFilter::TRACE,
        }
    }
}

impl LogArgs {
    /// What was meant; `level` unless another was given.
    ///
    /// # Errors
    /// [`ConfigError::LogPeer`].
    pub fn settings(&self, level: LevelFilter) -> Result<LogSettings, ConfigError> {
        let words = self.log_peer.iter().map(|word| word.trim()).filter(|word| !word.is_empty());
        // What is no public key may be a secret: it is not repeated.
        let peers = words.map(str::parse).collect::<Result<_, _>>().map_err(ConfigError::LogPeer)?;
        let level = self.log_level.map_or(level, LowLevel::filter);
        Ok(LogSettings { level, peers, format: self.log_format, target: self.log_to })
    }
}
