//! The command line: flags, environment variables and help from one declaration, then their meaning.
//!
//! Two steps. `LowArgs` is what was typed, clap's part; its doc comments are the help. `LowArgs::config` is what
//! was meant: a checked [`DeviceConfig`]. Values that need more than clap knows are read in the second step, so that
//! their errors are one sentence with a correct example. So are the files with keys: a [`DeviceConfig`] is complete.
//!
//! Three ways to describe a tunnel, of which one must be chosen:
//!
//! | typed | who configures |
//! |---|---|
//! | `--peer …` | the command line |
//! | `--config wg0.conf` | the file ([`super::config_file`]) |
//! | `NAME` | nobody yet; whoever started us will, over the configuration socket, as with `wireguard-go NAME` |

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{BoolishValueParser, PossibleValue};
use clap::error::ContextValue;
use clap::{Arg, Args, CommandFactory, Parser, Subcommand, ValueEnum};

use super::capture::client::Capture;
use super::config::{ConfigError, DeviceConfig, IoChoice, MTU_DEFAULT, PinChoice, QUEUES, parse_fwmark};
use super::config_file::{ConfigFile, world_readable};
use super::endpoint::{Listen, parse_address};
use super::environment::WgEnvironment;
use super::examples::{EXAMPLES, LOCAL_EXAMPLES, SERVER_EXAMPLES};
use super::expose::{ClientConfig, LocalArgs, ServerArgs, ServerConfig};
use super::logging::{LogArgs, LogSettings};
use super::name::TUN_DEFAULT;
use super::peer::{PeerConfig, PeerText};
use super::report::{Report, SECONDS_MAX};
use super::secret::{self, holds_key, holds_part, quote};
use super::show::Show;
use super::top::{self, Top};
use crate::proto::keys::KeyError;
use crate::stats::offloads::{Offload, OffloadInfo};
use crate::time::Span;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Invocation {
    /// Run a tunnel.
    Run {
        /// The tunnel, already checked.
        config: Box<DeviceConfig>,
        /// The file it comes from, to be read again on SIGHUP.
        file: Option<Box<ConfigFile>>,
        /// What is logged, as what and where to.
        log: LogSettings,
        /// What the operator should know though the tunnel can run.
        warnings: Vec<String>,
    },
    /// Print what this kernel offers.
    Probe,
    /// Print what running tunnels do.
    Show(Show),
    /// Watch a tunnel and draw what it did.
    Report(Report),
    /// Show what a running tunnel does, again and again.
    Top(Top),
    /// Write what goes through a running tunnel to a file.
    Capture(Capture),
    /// Make a local service public on a server.
    Local {
        /// What and where, for each of its ports.
        configs: Vec<ClientConfig>,
        /// What to log, and where to.
        log: LogSettings,
        /// What the operator should know though it can run.
        warnings: Vec<String>,
    },
    /// Be the server for those who do.
    Server {
        /// Where, and for whom.
        config: Box<ServerConfig>,
        /// What to log, and where to.
        log: LogSettings,
        /// What the operator should know though it can run.
        warnings: Vec<String>,
    },
    /// Print a new private key.
    GenerateKey,
    /// Print the public key to a private key.
    PublicKey,
    /// Print a new preshared key.
    GeneratePresharedKey,
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
    /// Exit code of the process: 0 for help and version, 2 for a command line that is wrong.
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
    let cli = Cli::try_parse_from(arguments).map_err(without_keys)?;
    match cli.command {
        Some(Command::Probe) => return Ok(Invocation::Probe),
        Some(Command::Show { name, json, check }) => {
            return Ok(Invocation::Show(Show { name, json, check }));
        }
        Some(Command::Report { name, seconds, output, against, from, json, hlog }) => {
            return Ok(Invocation::Report(Report { name, seconds, output, from, against, json, hlog }));
        }
        Some(Command::Top { name, interval, count, plain, ascii }) => {
            return Ok(Invocation::Top(Top { name, interval, count, plain, ascii }));
        }
        Some(Command::Capture(capture)) => return Ok(Invocation::Capture(capture)),
        Some(Command::Local(args)) => return local(&args),
        Some(Command::Server(args)) => return server(&args),
        Some(Command::Genkey) => return Ok(Invocation::GenerateKey),
        Some(Command::Pubkey) => return Ok(Invocation::PublicKey),
        Some(Command::Genpsk) => return Ok(Invocation::GeneratePresharedKey),
        None => {}
    }
    let environment = WgEnvironment::read(|name| std::env::var_os(name))?;
    let log = cli.args.log.settings(environment.log_level)?;
    let file = cli.args.file(core_count(), &environment)?;
    let (config, warnings) = match &file {
        Some(file) => file.read()?,
        None => {
            let mut warnings = Vec::new();
            (cli.args.config(core_count(), &environment, &mut warnings)?, warnings)
        }
    };
    let (config, file) = (Box::new(config), file.map(Box::new));
    Ok(Invocation::Run { config, file, log, warnings })
}

fn local(args: &LocalArgs) -> Result<Invocation, CliError> {
    let mut warnings = Vec::new();
    let configs = args.configs(&mut warnings)?;
    Ok(Invocation::Local { configs, log: args.common.log()?, warnings })
}

fn server(args: &ServerArgs) -> Result<Invocation, CliError> {
    let mut warnings = Vec::new();
    let config = Box::new(args.config(&mut warnings)?);
    Ok(Invocation::Server { config, log: args.common.log()?, warnings })
}

/// clap repeats what it does not understand, which must not be a key.
fn without_keys(error: clap::Error) -> CliError {
    let is_part = |value: &ContextValue| matches!(value, ContextValue::String(given) if holds_part(given));
    let repeats_key = holds_key(&error.to_string()) || error.context().any(|(_, value)| is_part(value));
    if error.use_stderr() && repeats_key {
        return ConfigError::MisplacedKey.into();
    }
    error.into()
}

/// Cores this process may run on (its CPU affinity), but at least 1 and at most the queues a device can have.
fn core_count() -> usize {
    let cores = core_affinity::get_core_ids().map_or(0, |ids| ids.len());
    cores.clamp(*QUEUES.start(), *QUEUES.end())
}

const ABOUT: &str = "A userspace tunnel for Linux: carries IP packets between a TUN interface and UDP.";

const MORE: &str = "--help has more, and examples.";

const LONG_ABOUT: &str = "\
A userspace tunnel for Linux: carries IP packets between a TUN interface and UDP.

It speaks WireGuard, so the other end may be any WireGuard, and `wg` shows and changes the tunnel. Every queue of the \
interface has a worker thread of its own with its own io_uring and its own UDP sockets. \
It needs root, or CAP_NET_ADMIN and read and write access to /dev/net/tun.

With NAME it makes an interface of that name, leaves it down, and waits for `wg` and `wg-quick` to configure it. \
WG_TUN_FD, WG_UAPI_FD, WG_PROCESS_FOREGROUND and LOG_LEVEL in the environment mean what they mean to wireguard-go. \
NOTIFY_SOCKET, in the foreground, is told when the tunnel is up, as systemd wants it of Type=notify.";

#[derive(Debug, Parser)]
#[command(
    name = "uringvpn",
    version,
    override_usage = "uringvpn [OPTIONS] --private-key <FILE> --peer <PEER>...\n       uringvpn [OPTIONS] --config <FILE>\n       uringvpn [OPTIONS] <NAME>\n       uringvpn [OPTIONS] --plaintext --peer <PEER>...\n       uringvpn genkey | pubkey | genpsk | probe | show | top | report | capture | local | server",
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_long_help = EXAMPLES,
    after_help = MORE,
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
    /// Print what running tunnels do, and programs that expose ports: times, counters, drops, peers, ports
    ///
    /// Of a tunnel latencies by stage, workers, drops and peers; of `uringvpn local` and `uringvpn server` visitors, connections,
    /// their times, why they ended, and ports. Only the user who runs them may look. Exit code 1 when there is nobody of that name,
    /// or with --check when a packet, a visitor or a connection is unaccounted for.
    Show {
        /// Interface of the tunnel, or name of the program, as server-7835 or local-8000; otherwise all
        name: Option<String>,
        /// As JSON, one line each; `schema` counts incompatible changes, `kind` is tunnel, server or local
        #[arg(long, conflicts_with = "check")]
        json: bool,
        /// Only whether all is accounted for: packets in = out + dropped + staged + in flight; visitors = joined + turned away +
        /// left + waiting, joined = open + ended
        #[arg(long)]
        check: bool,
    },
    /// Watch a running tunnel for some seconds and draw what it did into one page
    ///
    /// Throughput, latency by percentile and over time, drops, workers and peers, in one HTML file that needs no network.
    /// The page holds its data, so that a later report can stand beside it: --against.
    Report {
        /// Interface of the tunnel; not needed if only one runs
        #[arg(conflicts_with = "from")]
        name: Option<String>,
        /// How long to watch, 1 to 3600
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=i64::from(SECONDS_MAX)))]
        #[arg(conflicts_with = "from")]
        seconds: u32,
        /// The page to write; - is standard output
        #[arg(long, short, value_name = "FILE", default_value = "report.html")]
        output: PathBuf,
        /// Draw beside an earlier report or measurement, its page or its JSON, with the differences marked
        #[arg(long, value_name = "FILE")]
        against: Option<PathBuf>,
        /// Draw an earlier report again, its page or its JSON, or what perf/run.py measured, instead of watching
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// Write the data alone, too
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Write latencies as HdrHistogram logs, too: NAME-outbound.hlog and NAME-inbound.hlog, a line per second
        #[arg(long, value_name = "DIR")]
        hlog: Option<PathBuf>,
    },
    /// Watch a running tunnel, or a program that exposes ports: rates, times, workers, peers, drops; ports, connections
    ///
    /// Keys are explained on the screen. When standard input or output is no terminal it prints a block of lines instead, again
    /// and again. Colours are left out when NO_COLOR is set. Exit code 1 when there is nobody of that name, or
    /// when it ends.
    Top {
        /// Interface of the tunnel, or name of the program, as server-7835 or local-8000; may be left out when only one runs
        name: Option<String>,
        /// Time between two looks in seconds, 0.1 to 60
        #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = top::parse_interval)]
        interval: Duration,
        /// End after so many looks
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
        /// Lines, on a terminal too
        #[arg(long)]
        plain: bool,
        /// No characters but ASCII, as when the locale is not UTF-8
        #[arg(long)]
        ascii: bool,
    },
    Capture(Capture),
    /// Make a local TCP or UDP service public on a port of a server
    ///
    /// Speaks the protocol of bore, so that the server may be `bore server`. Prints the public address. When the connection to
    /// the server is lost it comes back by itself and asks for the same port. Needs no privileges, and no tunnel.
    #[command(override_usage = "uringvpn local [OPTIONS] --to <HOST> <PORT>...")]
    #[command(after_long_help = LOCAL_EXAMPLES, after_help = MORE)]
    #[command(mut_arg("log_peer", |arg| arg.hide(true)), mut_arg("log_to", in_the_foreground))]
    Local(LocalArgs),
    /// Give public ports to those who run `uringvpn local` or `bore local`
    ///
    /// Without a secret everybody who reaches the control port may open a port here. Ports below 1024 need privileges.
    #[command(after_long_help = SERVER_EXAMPLES, after_help = MORE)]
    #[command(mut_arg("log_peer", |arg| arg.hide(true)), mut_arg("log_to", in_the_foreground))]
    Server(ServerArgs),
    /// Print a new private key
    Genkey,
    /// Read a private key from standard input and print the public key that belongs to it
    Pubkey,
    /// Print a new preshared key
    Genpsk,
}

/// What an option says of the background is left out.
fn in_the_foreground(option: Arg) -> Arg {
    option.long_help(None::<&str>)
}

/// The options as they were typed.
#[derive(Debug, Args)]
struct LowArgs {
    /// Interface to make and to leave to `wg` and `wg-quick`
    #[arg(value_name = "NAME", conflicts_with_all = ["config", "peer", "private_key", "address", "listen", "fwmark", "tun"])]
    name: Option<String>,

    /// Other end of the tunnel; several may be given
    ///
    /// PUBLIC_KEY@[HOST:PORT][,allowed-ips=CIDR[+CIDR...]][,keepalive=SECONDS][,psk=FILE]
    ///
    /// HOST is an IPv4 address, an IPv6 address in brackets, or a name. Without it the peer has to begin. The allowed
    /// IPs are routed to the peer and are the only sources accepted from it; a single peer that names none gets
    /// everything, 0.0.0.0/0 and ::/0. FILE holds a preshared key. With --plaintext a peer has no PUBLIC_KEY@, and
    /// needs HOST:PORT. In the environment, spaces separate peers.
    #[arg(long, env = "URINGVPN_PEER", hide_env_values = true, value_name = "PEER", num_args = 1..)]
    #[arg(help_heading = "Tunnel")]
    peer: Vec<String>,

    /// File with our private key, as `uringvpn genkey` prints it; - reads standard input
    ///
    /// The key itself is never an argument or in the environment, where others could read it.
    #[arg(long, env = "URINGVPN_PRIVATE_KEY", hide_env_values = true, value_name = "FILE")]
    #[arg(help_heading = "Tunnel")]
    private_key: Option<PathBuf>,

    /// Configuration file of wg-quick, instead of the options that describe the tunnel
    ///
    /// wg0.conf gives the interface the name wg0 unless --tun gives another. DNS, PreUp, PostUp, PreDown, PostDown and
    /// SaveConfig are ignored with a warning, wg-quick does them; so it is with default routes.
    ///
    /// On SIGHUP the file is read again: keys, port, mark, peers and their routes follow it, sessions of peers whose keys
    /// stay live on. A file with a mistake changes nothing.
    #[arg(long, env = "URINGVPN_CONFIG", hide_env_values = true, value_name = "FILE")]
    #[arg(conflicts_with_all = ["peer", "private_key", "address", "listen", "fwmark", "mtu"], help_heading = "Tunnel")]
    config: Option<PathBuf>,

    /// Send packets without encryption or authentication
    ///
    /// Everybody on the way can read and change them. Datagrams are accepted from the peers' addresses only, which is
    /// no protection where addresses can be forged.
    #[arg(long, env = "URINGVPN_PLAINTEXT", hide_env_values = true, value_parser = BoolishValueParser::new())]
    #[arg(help_heading = "Tunnel")]
    plaintext: bool,

    /// UDP port to receive on, if need be on one address only
    ///
    /// An IPv6 address stands in brackets: [2001:db8::1]:51820. Port 0 lets the kernel choose one, not with --plaintext.
    #[arg(long, env = "URINGVPN_LISTEN", hide_env_values = true, value_name = "[ADDR:]PORT")]
    #[arg(default_value_t = Listen::default().to_string(), help_heading = "Tunnel")]
    listen: String,

    /// Mark of the tunnel's own datagrams for policy routing: a number, perhaps hexadecimal after 0x, or off
    #[arg(long, env = "URINGVPN_FWMARK", hide_env_values = true, value_name = "MARK")]
    #[arg(default_value = "off", help_heading = "Tunnel")]
    fwmark: String,

    /// Name of the TUN interface, at most 15 bytes [default: uringvpn0]
    ///
    /// Created, or taken over if a persistent one of that name exists. In a name like uring%d the kernel replaces %d
    /// by a free number.
    #[arg(long, env = "URINGVPN_TUN", hide_env_values = true, value_name = "NAME")]
    #[arg(help_heading = "Interface")]
    tun: Option<String>,

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

    /// What the kernel offers and we leave unused, separated by commas
    ///
    /// Without this all is used that the kernel has: `uringvpn probe` lists it, and `uringvpn show` says of a running tunnel
    /// what is on, off or downgraded, and why. io_uring as a whole is left unused with --io syscall.
    #[arg(long, env = "URINGVPN_DISABLE", hide_env_values = true, value_name = "LIST")]
    #[arg(value_enum, value_delimiter = ',', help_heading = "Speed")]
    disable: Vec<Offload>,

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

    /// Serve metrics to Prometheus: at http://ADDR:PORT/metrics, or with unix:PATH on a socket
    ///
    /// OpenMetrics with real histograms, or the older text, as is asked for. Whoever reaches the address can read it; keep it on
    /// 127.0.0.1 or a network of your own. The socket, whose path begins with /, is for its owner alone, and is gone when the
    /// tunnel is.
    #[arg(long, env = "URINGVPN_METRICS", hide_env_values = true, value_name = "ADDR:PORT|unix:PATH")]
    #[arg(help_heading = "Process")]
    metrics: Option<String>,

    /// Metrics of each peer, too, labelled with its public key
    ///
    /// Of the first 1000 peers; a gauge tells how many are left out.
    #[arg(long, env = "URINGVPN_METRICS_PEERS", hide_env_values = true, value_parser = BoolishValueParser::new())]
    #[arg(help_heading = "Process")]
    metrics_peers: bool,

    #[command(flatten)]
    log: LogArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LowIo {
    /// io_uring if the kernel allows it, else system calls
    Auto,
    /// io_uring; being refused is an error
    Uring,
    /// System calls: epoll, readv, writev, recvmsg, sendmsg
    Syscall,
}

impl LowIo {
    pub(super) fn choice(self) -> IoChoice {
        match self {
            LowIo::Auto => IoChoice::Auto,
            LowIo::Uring => IoChoice::Uring,
            LowIo::Syscall => IoChoice::Syscall,
        }
    }
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

/// The words of `--disable`. io_uring as a whole has a switch of its own: `--io syscall`.
impl ValueEnum for Offload {
    fn value_variants<'a>() -> &'a [Offload] {
        use Offload::{DeferTaskrun, Gro, Gso, MultishotRead, Steering, Tso, Uso};
        &[Tso, Uso, Gso, Gro, Steering, DeferTaskrun, MultishotRead]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let OffloadInfo { name, what, .. } = self.info();
        Some(PossibleValue::new(*name).help(*what))
    }
}

impl LowArgs {
    /// The file of `--config`.
    fn file(&self, queues: usize, environment: &WgEnvironment) -> Result<Option<ConfigFile>, ConfigError> {
        let Some(path) = self.config.as_ref().filter(|_| self.name.is_none()) else { return Ok(None) };
        let how = self.how_to_run(queues, environment)?;
        if self.plaintext {
            return Err(ConfigError::Excluding("--config", "--plaintext"));
        }
        Ok(Some(ConfigFile::new(path, how, self.tun.clone())))
    }

    /// What was meant without a file, checked; `queues` is used if none were asked for.
    fn config(
        &self,
        queues: usize,
        environment: &WgEnvironment,
        warnings: &mut Vec<String>,
    ) -> Result<DeviceConfig, ConfigError> {
        let how = self.how_to_run(queues, environment)?;
        match &self.name {
            Some(name) => self.for_name(name, how),
            None => self.for_options(how, warnings),
        }
    }

    /// Everything but what the tunnel is.
    fn how_to_run(&self, queues: usize, environment: &WgEnvironment) -> Result<DeviceConfig, ConfigError> {
        Ok(DeviceConfig {
            queues: match self.queues {
                // Only the interface's owner can open more of its queues.
                None if environment.tun_fd.is_some() => 1,
                None => queues,
                Some(given) => usize::try_from(given).map_err(|_| ConfigError::Queues { given })?,
            },
            io: self.io.choice(),
            disabled: self.disable.clone(),
            metrics: self.metrics.as_deref().map(str::parse).transpose()?,
            metrics_peers: match (self.metrics_peers, &self.metrics) {
                (true, None) => return Err(ConfigError::WithoutMetrics("--metrics-peers")),
                (wanted, _) => wanted,
            },
            stats_interval: match self.stats_interval {
                None => None,
                Some(seconds @ 1..=86400) => Some(Span::from_secs(seconds)),
                Some(given) => return Err(ConfigError::StatsInterval { given }),
            },
            pin: match self.pin {
                LowPin::Auto => PinChoice::Auto,
                LowPin::On => PinChoice::On,
                LowPin::Off => PinChoice::Off,
            },
            mtu: u16::try_from(self.mtu).map_err(|_| ConfigError::Mtu { given: self.mtu })?,
            routes: !self.no_routes,
            foreground: self.foreground || environment.foreground,
            tun_fd: environment.tun_fd,
            uapi_fd: environment.uapi_fd,
            ..DeviceConfig::default()
        })
    }

    /// `uringvpn NAME`: an interface without anything, not even up.
    fn for_name(&self, name: &str, how: DeviceConfig) -> Result<DeviceConfig, ConfigError> {
        if self.plaintext {
            return Err(ConfigError::Excluding(
                "NAME",
                "--plaintext (an interface has its name from --tun then)",
            ));
        }
        if Cli::command().find_subcommand(name).is_some() {
            return Err(ConfigError::CommandAsName { name: name.to_owned() });
        }
        let listen = Listen { address: None, port: 0 };
        DeviceConfig { tun: name.to_owned(), set_up: false, routes: false, listen, ..how }.check()
    }

    /// The tunnel that the options describe.
    fn for_options(
        &self,
        how: DeviceConfig,
        warnings: &mut Vec<String>,
    ) -> Result<DeviceConfig, ConfigError> {
        if self.plaintext && self.private_key.is_some() {
            return Err(ConfigError::PlaintextWithKey);
        }
        let config = DeviceConfig {
            tun: self.tun.clone().unwrap_or_else(|| TUN_DEFAULT.to_owned()),
            addresses: words(&self.address, true).map(parse_address).collect::<Result<_, _>>()?,
            listen: self.listen.parse()?,
            fwmark: parse_fwmark(&self.fwmark)
                .ok_or_else(|| ConfigError::Fwmark { given: quote(&self.fwmark) })?,
            plaintext: self.plaintext,
            uapi: !self.plaintext,
            ..how
        };
        let peers: Vec<PeerText> = words(&self.peer, false).map(str::parse).collect::<Result<_, _>>()?;
        // Files last: reading one may take a while, and what is wrong without them needs none.
        config.check_device()?;
        let private_key = match &self.private_key {
            None => None,
            Some(path) => Some(read_key(path, "--private-key", warnings)?),
        };
        let peers = peers
            .into_iter()
            .map(|text| self.with_preshared_key(text, warnings))
            .collect::<Result<_, _>>()?;
        DeviceConfig { private_key, peers, ..config }.check()?.complete_allowed_ips()
    }

    fn with_preshared_key(
        &self,
        text: PeerText,
        warnings: &mut Vec<String>,
    ) -> Result<PeerConfig, ConfigError> {
        let PeerText { peer, psk_file } = text;
        let Some(path) = psk_file else { return Ok(peer) };
        if self.plaintext {
            return Err(ConfigError::MeaninglessInPlaintext {
                peer: Box::new(peer),
                what: "a preshared key",
            });
        }
        Ok(PeerConfig { preshared_key: Some(read_key(&path, "psk", warnings)?), ..peer })
    }
}

/// The key in a file; a file that everybody can read is worth a warning.
fn read_key<K>(path: &Path, option: &'static str, warnings: &mut Vec<String>) -> Result<K, ConfigError>
where
    K: std::str::FromStr<Err = KeyError>,
{
    let (key, readable) = secret::read_key(path, option)?;
    warnings.extend(readable.then(|| world_readable(path)));
    Ok(key)
}

/// The words of a list option: an environment variable holds the whole list in one value.
fn words(values: &[String], commas: bool) -> impl Iterator<Item = &str> {
    values
        .iter()
        .flat_map(move |value| value.split(move |c: char| c.is_whitespace() || (commas && c == ',')))
        .filter(|word| !word.is_empty())
}
