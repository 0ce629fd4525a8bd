//! The command line: flags, environment variables and help from one declaration, then their meaning.
//!
//! Two steps. `LowArgs` is what was typed, clap's part; its doc comments are the help. `LowArgs::config` is what
//! was meant: a checked [`DeviceConfig`]. Values that need more than clap knows are read in the second step, so that
//! their errors are one sentence with a correct example.

use std::ffi::OsString;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::config::{ConfigError, DeviceConfig, IoChoice, MTU_DEFAULT, Offloads, PinChoice, QUEUES};
use super::endpoint::{Listen, parse_address};
use super::name::TUN_DEFAULT;
use super::peer::PeerText;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Invocation {
    /// Run a tunnel.
    Run {
        /// The tunnel, already checked.
        config: Box<DeviceConfig>,
        /// Least severe level to log.
        log_level: tracing::Level,
    },
    /// Print what this kernel offers.
    Probe,
}

/// Why there is nothing to do: help was asked for, or the command line is wrong.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// clap's own: help, version, unknown options. It knows its text, its stream and its exit code.
    #[error(transparent)]
    Clap(#[from] clap::Error),
    /// Understood, but it cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl CliError {
    /// Exit code of the process: 0 for help and version, 2 for a command line that is wrong, 1 for one that is right
    /// but beyond this version.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Clap(error) => u8::try_from(error.exit_code()).unwrap_or(2),
            CliError::Config(_) => 2,
        }
    }
}

/// Reads a command line, its first word being the program, and the environment variables `URINGVPN_…`.
///
/// # Errors
/// [`CliError`], also when help or the version was asked for.
pub fn parse<I, T>(arguments: I) -> Result<Invocation, CliError>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let cli = Cli::try_parse_from(arguments)?;
    if let Some(Command::Probe) = cli.command {
        return Ok(Invocation::Probe);
    }
    let log_level = cli.args.log_level.level();
    Ok(Invocation::Run { config: Box::new(cli.args.config(core_count())?), log_level })
}

/// Cores this process may run on (its CPU affinity), but at least 1 and at most the queues a device can have.
fn core_count() -> usize {
    let cores = core_affinity::get_core_ids().map_or(0, |ids| ids.len());
    cores.clamp(*QUEUES.start(), *QUEUES.end())
}

const ABOUT: &str = "A userspace tunnel for Linux: carries IP packets between a TUN interface and UDP.";

const LONG_ABOUT: &str = "\
A userspace tunnel for Linux: carries IP packets between a TUN interface and UDP.

Every queue of the interface has a worker thread of its own with its own io_uring and its own UDP sockets. \
This version carries packets in the clear, and only if told so with --plaintext. \
It needs root, or CAP_NET_ADMIN and read and write access to /dev/net/tun.";

const EXAMPLES: &str = "\
Examples:
  Two hosts that reach each other as 192.0.2.1 and 192.0.2.2, tunnelled without encryption,
  10.9.0.1 and 10.9.0.2 being their addresses inside the tunnel:

    on 192.0.2.1:  uringvpn --plaintext --address 10.9.0.1/24 --peer 192.0.2.2:51820
    on 192.0.2.2:  uringvpn --plaintext --address 10.9.0.2/24 --peer 192.0.2.1:51820
    then:          ping 10.9.0.2

  Two peers, each with what is behind it, in the foreground with statistics every 10 seconds:

    uringvpn -f --plaintext --address 10.9.0.1/24 --stats-interval 10 \\
      --peer 192.0.2.2:51820,allowed-ips=10.9.0.2+10.20.0.0/16 \\
      --peer '[2001:db8::3]:51820,allowed-ips=10.9.0.3+fd00:3::/64'

  What this kernel offers, and what is done without it:

    uringvpn probe

Exit codes:
  0  the tunnel ran and was stopped, or is running in the background
  1  something failed, the message says what
  2  the command line or an environment variable is wrong";

#[derive(Debug, Parser)]
#[command(
    name = "uringvpn",
    version,
    override_usage = "uringvpn [OPTIONS] --plaintext --peer <PEER>...\n       uringvpn probe",
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_long_help = EXAMPLES,
    after_help = "--help has more, and examples.",
    args_conflicts_with_subcommands = true,
    subcommand_precedence_over_arg = true,
    disable_help_subcommand = true,
    max_term_width = 110
)]
struct Cli {
    #[command(flatten)]
    args: LowArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print what this kernel offers: each offload, each ring feature, and what is done without it
    Probe,
}

/// The options as they were typed.
#[derive(Debug, Args)]
struct LowArgs {
    /// Other end of the tunnel; several may be given
    ///
    /// [PUBLIC_KEY@][HOST:PORT][,allowed-ips=CIDR[+CIDR...]][,keepalive=SECONDS][,psk=FILE]
    ///
    /// HOST is an IPv4 address, an IPv6 address in brackets, or a name. The allowed IPs are routed to the peer and
    /// are the only sources accepted from it; a single peer that names none gets everything, 0.0.0.0/0 and ::/0.
    /// With --plaintext a peer has no key, and needs HOST:PORT. In the environment, spaces separate peers.
    #[arg(long, env = "URINGVPN_PEER", hide_env_values = true, value_name = "PEER", num_args = 1..)]
    #[arg(help_heading = "Tunnel")]
    peer: Vec<String>,

    /// Send packets without encryption or authentication
    ///
    /// Everybody on the way can read and change them. Datagrams are accepted from the peers' addresses only, which is
    /// no protection where addresses can be forged.
    #[arg(long, env = "URINGVPN_PLAINTEXT", hide_env_values = true, value_parser = BoolishValueParser::new())]
    #[arg(help_heading = "Tunnel")]
    plaintext: bool,

    /// UDP port to receive on, if need be on one address only
    ///
    /// An IPv6 address stands in brackets: [2001:db8::1]:51820.
    #[arg(long, env = "URINGVPN_LISTEN", hide_env_values = true, value_name = "[ADDR:]PORT")]
    #[arg(default_value_t = Listen::default().to_string(), help_heading = "Tunnel")]
    listen: String,

    /// Name of the TUN interface, at most 15 bytes
    ///
    /// Created, or taken over if a persistent one of that name exists. In a name like uring%d the kernel replaces %d
    /// by a free number.
    #[arg(long, env = "URINGVPN_TUN", hide_env_values = true, value_name = "NAME")]
    #[arg(default_value = TUN_DEFAULT, help_heading = "Interface")]
    tun: String,

    /// Address of the interface with its prefix length; several may be given
    ///
    /// In the environment, spaces or commas separate them.
    #[arg(long, env = "URINGVPN_ADDRESS", hide_env_values = true, value_name = "CIDR", num_args = 1..)]
    #[arg(help_heading = "Interface")]
    address: Vec<String>,

    /// Largest packet in the tunnel, in bytes
    ///
    /// The default fits a path of 1500 bytes over IPv4 or IPv6. IPv6 inside the tunnel needs at least 1280.
    #[arg(long, env = "URINGVPN_MTU", hide_env_values = true, value_name = "BYTES")]
    #[arg(default_value_t = MTU_DEFAULT.into(), help_heading = "Interface")]
    mtu: u64,

    /// Do not add routes to the allowed IPs
    ///
    /// Default routes (0.0.0.0/0 and ::/0) and routes around a peer's HOST are never added: they would catch the
    /// tunnel's own datagrams.
    #[arg(long, env = "URINGVPN_NO_ROUTES", hide_env_values = true, value_parser = BoolishValueParser::new())]
    #[arg(help_heading = "Interface")]
    no_routes: bool,

    /// Queues of the interface, each with a worker thread; 1 to 256 [default: the cores this process may use]
    #[arg(long, env = "URINGVPN_QUEUES", hide_env_values = true, value_name = "N")]
    #[arg(help_heading = "Speed")]
    queues: Option<u64>,

    /// How to talk to the kernel
    #[arg(long, env = "URINGVPN_IO", hide_env_values = true, value_name = "DRIVER")]
    #[arg(value_enum, default_value_t = LowIo::Auto, help_heading = "Speed")]
    io: LowIo,

    /// Kernel offloads to leave unused, separated by commas
    ///
    /// Without this all are used that the kernel has; `uringvpn probe` lists them.
    #[arg(long, env = "URINGVPN_DISABLE", hide_env_values = true, value_name = "LIST")]
    #[arg(value_enum, value_delimiter = ',', help_heading = "Speed")]
    disable: Vec<LowOffload>,

    /// Whether worker N stays on the Nth core
    #[arg(long, env = "URINGVPN_PIN", hide_env_values = true, value_name = "WHETHER")]
    #[arg(value_enum, default_value_t = LowPin::Auto, help_heading = "Speed")]
    pin: LowPin,

    /// Stay in the foreground
    ///
    /// Otherwise the command returns as soon as the tunnel is up, or with the reason why it is not.
    #[arg(long, short, env = "URINGVPN_FOREGROUND", hide_env_values = true, value_parser = BoolishValueParser::new())]
    #[arg(help_heading = "Process")]
    foreground: bool,

    /// Print statistics every so many seconds, not only at the end
    #[arg(long, env = "URINGVPN_STATS_INTERVAL", hide_env_values = true, value_name = "SECONDS")]
    #[arg(help_heading = "Process")]
    stats_interval: Option<u64>,

    /// Least severe messages to log
    ///
    /// The log goes to standard error. In the background it is kept only if that is a file or a socket.
    #[arg(long, env = "URINGVPN_LOG_LEVEL", hide_env_values = true, value_name = "LEVEL")]
    #[arg(value_enum, default_value_t = LowLevel::Info, help_heading = "Process")]
    log_level: LowLevel,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LowIo {
    /// io_uring if the kernel allows it, else system calls
    Auto,
    /// io_uring; being refused is an error
    Uring,
    /// System calls: epoll, readv, writev, recvmsg, sendmsg
    Syscall,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LowPin {
    /// With several queues on four cores or more
    Auto,
    /// Always
    On,
    /// Never: the scheduler places the workers
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LowOffload {
    /// TCP superpackets on the interface
    Tso,
    /// UDP superpackets on the interface
    Uso,
    /// Many datagrams in one send (UDP_SEGMENT)
    Gso,
    /// Many datagrams in one receive (UDP_GRO)
    Gro,
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
    fn level(self) -> tracing::Level {
        match self {
            LowLevel::Error => tracing::Level::ERROR,
            LowLevel::Warn => tracing::Level::WARN,
            LowLevel::Info => tracing::Level::INFO,
            LowLevel::Debug => tracing::Level::DEBUG,
            LowLevel::Trace => tracing::Level::TRACE,
        }
    }
}

impl LowArgs {
    /// What was meant, checked; `queues` is used if none were asked for.
    fn config(&self, queues: usize) -> Result<DeviceConfig, ConfigError> {
        let on = |offload| !self.disable.contains(&offload);
        DeviceConfig {
            tun: self.tun.clone(),
            queues: match self.queues {
                None => queues,
                Some(given) => usize::try_from(given).map_err(|_| ConfigError::Queues { given })?,
            },
            addresses: words(&self.address, true).map(parse_address).collect::<Result<_, _>>()?,
            listen: self.listen.parse()?,
            peers: words(&self.peer, false)
                .map(|word| word.parse::<PeerText>().map(|text| text.peer))
                .collect::<Result<_, _>>()?,
            mtu: u16::try_from(self.mtu).map_err(|_| ConfigError::Mtu { given: self.mtu })?,
            io: match self.io {
                LowIo::Auto => IoChoice::Auto,
                LowIo::Uring => IoChoice::Uring,
                LowIo::Syscall => IoChoice::Syscall,
            },
            plaintext: self.plaintext,
            offloads: Offloads {
                tso: on(LowOffload::Tso),
                uso: on(LowOffload::Uso),
                udp_gso: on(LowOffload::Gso),
                udp_gro: on(LowOffload::Gro),
            },
            stats_interval: match self.stats_interval {
                None => None,
                Some(seconds @ 1..=86400) => Some(Duration::from_secs(seconds)),
                Some(given) => return Err(ConfigError::StatsInterval { given }),
            },
            pin: match self.pin {
                LowPin::Auto => PinChoice::Auto,
                LowPin::On => PinChoice::On,
                LowPin::Off => PinChoice::Off,
            },
            routes: !self.no_routes,
            foreground: self.foreground,
            uapi: !self.plaintext,
            ..DeviceConfig::default()
        }
        .check()?
        .complete_allowed_ips()
    }
}

/// The words of a list option: an environment variable holds the whole list in one value.
fn words(values: &[String], commas: bool) -> impl Iterator<Item = &str> {
    values
        .iter()
        .flat_map(move |value| value.split(move |c: char| c.is_whitespace() || (commas && c == ',')))
        .filter(|word| !word.is_empty())
}
