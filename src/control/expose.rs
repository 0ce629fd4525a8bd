//! The options of `uringvpn local` and `uringvpn server`, and what they mean.
//!
//! bore's options, short forms and environment variables mean what they mean to bore; the others are ours.
//!
//! Source: bore 0.6.0, src/main.rs.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use clap::Args;
use ipnet::IpNet;
use nix::errno::Errno;
use tracing::level_filters::LevelFilter;
use zeroize::Zeroizing;

use super::cli::LowIo;
use super::config::{ConfigError, IoChoice};
use super::config_file::world_readable;
use super::endpoint::{HostPort, HostPortProblem, MetricsAddress, parse_digits, parse_prefix};
use super::logging::{LogArgs, LogSettings};
use super::name::{NameProblem, check_name};
use super::secret::{self, KEY_FILE_BYTES_MAX};
use crate::io::tcp::pipe::PIPES_MAX;
use crate::stats::exposed::public_port::{Protocol, PublicPort};
use crate::time::Span;

/// The control port of bore, which has no option for it.
pub const CONTROL_PORT: u16 = 7835;

/// Connections at the control port at once of which nobody knows yet what they want. Clients bring many when many visitors
/// come at once.
const CALLERS_MAX: usize = 16_384;
/// Ports in one range: each has a thread.
const LOCAL_PORTS_MAX: usize = 64;
/// Where descriptors are scarce callers have one in so many of them, and ports with their clients two.
const CALLERS_SHARE: usize = 4;
const PORTS_SHARE: usize = 8;
/// The same of pipes.
const PIPES_SHARE: usize = 16;
/// Descriptors for everything but callers and visitors.
const DESCRIPTORS_KEPT: usize = 16;
/// Visitors of one client that a server of ours lets in unless told otherwise.
const VISITORS_PER_CLIENT: usize = 16_384;

/// What both ends know and nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedSecret(Zeroizing<Vec<u8>>);

impl SharedSecret {
    /// From its bytes; none at all is a secret too.
    pub fn new(bytes: impl Into<Vec<u8>>) -> SharedSecret {
        SharedSecret(Zeroizing::new(bytes.into()))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(hidden)")
    }
}

/// How to run, whichever side it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct How {
    /// Which driver.
    pub io: IoChoice,
    /// JSON lines on standard output instead of text.
    pub json: bool,
    /// How long what is relayed may go on after SIGTERM.
    pub drain: Span,
    /// The tunnel that what is between client and server must not leave.
    pub through: Option<String>,
    /// What `uringvpn show` calls it; otherwise it is named after its port.
    pub name: Option<String>,
    /// Where Prometheus finds metrics.
    pub metrics: Option<MetricsAddress>,
    /// There is more than one local port: lines say which one they are about.
    pub several: bool,
}

impl How {
    /// Why there is no socket between client and server.
    pub fn reason(&self, error: Errno) -> String {
        match &self.through {
            Some(tunnel) if error == Errno::ENODEV => format!("there is no interface {tunnel}"),
            _ => error.desc().to_owned(),
        }
    }
}

/// A client: `uringvpn local`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// The service to make public.
    pub local: HostPort,
    /// What it speaks.
    pub protocol: Protocol,
    /// The server's control port.
    pub server: HostPort,
    /// The public port to ask for; 0 for any.
    pub port: u16,
    /// Whether the local service is told where visitors come from.
    pub proxy_protocol: bool,
    /// Whether visitors share one connection to the server.
    pub mux: bool,
    /// Shared with the server.
    pub secret: Option<SharedSecret>,
    /// Longest silence of a connection.
    pub idle: Option<Span>,
    /// The same when one direction has ended.
    pub half_open: Option<Span>,
    /// How to run.
    pub how: How,
}

impl ClientConfig {
    /// How many descriptors it needs: for each visitor a connection to the server and one to the local service.
    pub fn descriptors(&self) -> usize {
        2 * VISITORS_PER_CLIENT + DESCRIPTORS_KEPT
    }

    /// The address visitors use.
    pub fn public(&self, port: u16) -> String {
        HostPort { host: self.server.host.clone(), port }.to_string()
    }
}

/// A server: `uringvpn server`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Where clients come to.
    pub control: SocketAddr,
    /// The address of public ports.
    pub tunnels: IpAddr,
    /// Ports clients may have.
    pub ports: RangeInclusive<u16>,
    /// Whether they may have UDP ports too.
    pub udp: bool,
    /// Shared with the clients.
    pub secret: Option<SharedSecret>,
    /// Networks clients may come from; empty for all.
    pub allow_clients: Vec<IpNet>,
    /// Networks visitors may come from; empty for all.
    pub allow_visitors: Vec<IpNet>,
    /// Public ports at once, those that are kept for lost clients among them; of these the oldest makes room for a new one.
    pub ports_max: usize,
    /// Visitors at once.
    pub connections_max: usize,
    /// Visitors of one client at once.
    pub connections_per_client_max: usize,
    /// Connections at the control port at once of which nobody knows yet what they want; of more the oldest goes.
    pub callers_max: usize,
    /// How long a lost client's port is kept for it.
    pub lease: Span,
    /// Longest silence of a connection.
    pub idle: Option<Span>,
    /// The same when one direction has ended.
    pub half_open: Option<Span>,
    /// How to run.
    pub how: How,
}

impl ServerConfig {
    /// How many descriptors it needs for all that it may have at once: with these [`ServerConfig::fit`] changes nothing.
    pub fn descriptors(&self) -> usize {
        let all = self
            .connections_max
            .saturating_mul(2)
            .saturating_add(self.others())
            .saturating_add(2 * PIPES_MAX);
        all.max(2 * PIPES_MAX * PIPES_SHARE)
            .max(self.callers_max * CALLERS_SHARE)
            .max(self.ports_max.saturating_mul(PORTS_SHARE))
    }

    /// Descriptors for everything but visitors and pipes: a port takes its listener and the connection of the client it belongs to.
    fn others(&self) -> usize {
        self.ports_max.saturating_mul(2).saturating_add(self.callers_max + DESCRIPTORS_KEPT)
    }

    /// Asks for no more ports and connections than so many descriptors allow: who comes above that is better turned away than left
    /// waiting, and keeps nobody else from being served.
    pub fn fit(&mut self, descriptors: usize) {
        self.callers_max = self.callers_max.min(descriptors / CALLERS_SHARE);
        self.ports_max = self.ports_max.min(descriptors / PORTS_SHARE);
        // A visitor's connection, and that of the client to which it is joined.
        let pipes = (2 * PIPES_MAX).min(descriptors / PIPES_SHARE);
        let pairs = descriptors.saturating_sub(self.others() + pipes) / 2;
        self.connections_max = self.connections_max.min(pairs);
    }
}

/// Why the options cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExposeError {
    /// No port at all.
    #[error("--min-port {min} is above --max-port {max}: no port is left")]
    EmptyRange {
        /// The lowest.
        min: u16,
        /// The highest.
        max: u16,
    },
    /// Not a port.
    #[error(
        "local port {given}: give the port on which the local service listens, for example 8000, 8000:80 for a public port of 80, or 8000-8003 (at most {LOCAL_PORTS_MAX}); /udp behind it for a UDP service"
    )]
    LocalPort {
        /// The text given, as a message may show it.
        given: String,
    },
    /// Whose public port it is meant to be is not clear.
    #[error("--port: can be given for a single local port only; write PORT:PUBLIC for each")]
    PortOfSeveral,
    /// Datagrams have no place for it.
    #[error(
        "--proxy-protocol: stands in front of a connection's first byte, which UDP has not; leave it out, or run a client of its own for {given}"
    )]
    ProxyProtocolForUdp {
        /// The local port, as a message may show it.
        given: String,
    },
    /// Not a network.
    #[error(
        "network {given}: is not an IP address with a prefix length; correct is for example 192.0.2.0/24"
    )]
    Network {
        /// The text given, as a message may show it.
        given: String,
    },
    /// A host and more.
    #[error("{option} {given}: takes a host without a port; --control-port and the local PORT say which")]
    HostWithPort {
        /// Which option.
        option: &'static str,
        /// The text given, as a message may show it.
        given: String,
    },
    /// Two services cannot have one public port.
    #[error("public port {0} is asked for twice")]
    PublicTwice(PublicPort),
    /// Not a host.
    #[error("{option} {given}: {problem}")]
    Host {
        /// Which option.
        option: &'static str,
        /// The text given, as a message may show it.
        given: String,
        /// What is wrong.
        problem: HostPortProblem,
    },
}

/// What both sides may be told.
#[derive(Debug, Args)]
pub(super) struct CommonArgs {
    /// Secret that both sides share; everybody on this machine can read it here, --secret-file keeps it
    #[arg(short, long, env = "BORE_SECRET", hide_env_values = true, conflicts_with = "secret_file", value_parser = shared_secret)]
    secret: Option<SharedSecret>,
    /// File with the secret, its last line end not counted; - reads standard input
    #[arg(long, env = "URINGVPN_SECRET_FILE", hide_env_values = true, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// End a connection that was silent for so many seconds; over UDP otherwise 60, and 10 before a visitor has gone on after an answer
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    idle_timeout: Option<u32>,
    /// End a connection of which one direction has ended and the other was silent for so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    half_open_timeout: Option<u32>,
    /// On SIGTERM let connections go on for so many seconds; a second signal ends them at once
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    drain: u32,
    /// Interface of a tunnel that everything between client and server must go through; without it nothing goes
    #[arg(long, env = "URINGVPN_THROUGH", value_name = "NAME", value_parser = interface)]
    through: Option<String>,
    /// What `uringvpn show` and `top` call it; otherwise server-PORT or local-PORT after its control port or first local port,
    /// with a number behind it if that is taken
    #[arg(long, value_name = "NAME", value_parser = interface)]
    name: Option<String>,
    /// Serve metrics to Prometheus: at http://ADDR:PORT/metrics, or with unix:PATH on a socket
    ///
    /// Whoever reaches the address can read them; keep it on 127.0.0.1. Port 0 is chosen by the kernel and logged.
    #[arg(long, value_name = "ADDR:PORT|unix:PATH")]
    metrics: Option<String>,
    /// One JSON object per line on standard output: what happened, as `event` says
    #[arg(long)]
    json: bool,
    /// How to ask the kernel
    #[arg(long, env = "URINGVPN_IO", value_enum, default_value_t = LowIo::Auto)]
    io: LowIo,
    #[command(flatten)]
    log: LogArgs,
}

impl CommonArgs {
    pub(super) fn log(&self) -> Result<LogSettings, ConfigError> {
        self.log.settings(LevelFilter::INFO)
    }

    fn how(&self) -> Result<How, ConfigError> {
        Ok(How {
            io: self.io.choice(),
            json: self.json,
            drain: seconds(self.drain),
            through: self.through.clone(),
            name: self.name.clone(),
            metrics: self.metrics.as_deref().map(str::parse).transpose()?,
            several: false,
        })
    }

    fn secret(&self, warnings: &mut Vec<String>) -> Result<Option<SharedSecret>, ConfigError> {
        if let Some(path) = &self.secret_file {
            return Ok(Some(read_secret(path, warnings)?));
        }
        let given = std::env::var("BORE_SECRET").ok().map(SharedSecret::new);
        if self.secret.is_some() && self.secret != given {
            let warning = "--secret: everybody on this machine can read it in /proc; --secret-file keeps it";
            warnings.push(warning.to_owned());
        }
        Ok(self.secret.clone())
    }
}

fn read_secret(path: &Path, warnings: &mut Vec<String>) -> Result<SharedSecret, ConfigError> {
    let secret = secret::read(path, "--secret-file", KEY_FILE_BYTES_MAX)?;
    warnings.extend(secret.world_readable.then(|| world_readable(path)));
    let line = secret.bytes.strip_suffix(b"\n").unwrap_or(&secret.bytes);
    Ok(SharedSecret::new(line.strip_suffix(b"\r").unwrap_or(line)))
}

/// What `uringvpn local` takes.
#[derive(Debug, Args)]
pub(super) struct LocalArgs {
    /// Port of the local service: PORT, PORT:PUBLIC, or a range FIRST-LAST, with /udp behind it for UDP; several may be given
    ///
    /// PUBLIC is the public port to ask for, as with --port, which can be given for a single PORT only. UDP, as in 53/udp or
    /// 5000-5003/udp, needs a server of ours.
    #[arg(env = "BORE_LOCAL_PORT", value_name = "PORT", required = true, num_args = 1..)]
    local_port: Vec<String>,
    /// Host of the local service
    #[arg(short, long, value_name = "HOST", default_value = "localhost")]
    local_host: String,
    /// Host of the server, without a port
    #[arg(short, long, env = "BORE_SERVER", value_name = "HOST")]
    to: String,
    /// Public port to ask for; 0 for any
    #[arg(short, long, default_value_t = 0)]
    port: u16,
    /// Tell the local service where a visitor comes from, by the PROXY protocol, version 2
    #[arg(long)]
    proxy_protocol: bool,
    /// Bring all visitors of a TCP port by one connection to the server: quicker for many short messages, and over long
    /// distances; slower for great streams
    ///
    /// A visitor needs no new connection between client and server, and a message among many no system call of its own. No
    /// visitor waits for one who is slow, but all of them for a segment that is lost on the way. With bore's server each has
    /// a connection.
    #[arg(long)]
    mux: bool,
    /// Port on which the server waits for clients; bore's is always 7835
    #[arg(long, env = "URINGVPN_CONTROL_PORT", value_name = "PORT", default_value_t = CONTROL_PORT)]
    control_port: u16,
    #[command(flatten)]
    pub(super) common: CommonArgs,
}

impl LocalArgs {
    /// What was meant, one for each port; what the operator should know goes to `warnings`.
    pub(super) fn configs(&self, warnings: &mut Vec<String>) -> Result<Vec<ClientConfig>, ConfigError> {
        let mut ports = Vec::new();
        for given in self.local_port.iter().flat_map(|given| given.split_whitespace()) {
            let found =
                local_ports(given).ok_or_else(|| ExposeError::LocalPort { given: secret::quote(given) })?;
            if self.proxy_protocol && found.iter().any(|port| port.protocol == Protocol::Udp) {
                return Err(ExposeError::ProxyProtocolForUdp { given: secret::quote(given) }.into());
            }
            ports.extend(found);
        }
        if self.port != 0 {
            match &mut ports[..] {
                [only] if only.public == 0 => only.public = self.port,
                _ => return Err(ExposeError::PortOfSeveral.into()),
            }
        }
        let mut asked = BTreeSet::new();
        for LocalPort { public, protocol, .. } in ports.iter().filter(|port| port.public != 0) {
            let public = PublicPort { number: *public, protocol: *protocol };
            if !asked.insert(public) {
                return Err(ExposeError::PublicTwice(public).into());
            }
        }
        if self.mux && ports.iter().any(|port| port.protocol == Protocol::Udp) {
            warnings.push("--mux: is for TCP; visitors of a UDP port have a connection each".to_owned());
        }
        let secret = self.common.secret(warnings)?;
        let how = How { several: ports.len() > 1, ..self.common.how()? };
        let config = |LocalPort { local, public, protocol }| {
            Ok(ClientConfig {
                local: host("--local-host", &self.local_host, local)?,
                protocol,
                server: host("--to", &self.to, self.control_port)?,
                port: public,
                proxy_protocol: self.proxy_protocol,
                mux: self.mux,
                secret: secret.clone(),
                idle: self.common.idle_timeout.map(seconds),
                half_open: self.common.half_open_timeout.map(seconds),
                how: how.clone(),
            })
        };
        ports.into_iter().map(config).collect()
    }
}

/// The port of a local service, and the public one to ask for, 0 being any.
#[derive(Debug, PartialEq, Eq)]
struct LocalPort {
    local: u16,
    public: u16,
    protocol: Protocol,
}

/// `PORT`, `PORT:PUBLIC` or `FIRST-LAST`, and perhaps `/tcp` or `/udp` behind it.
fn local_ports(given: &str) -> Option<Vec<LocalPort>> {
    let (ports, protocol) = match given.split_once('/') {
        None => (given, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return None,
    };
    let port = |text| parse_digits(text).filter(|port| *port != 0);
    if let Some((local, public)) = ports.split_once(':') {
        return Some(vec![LocalPort { local: port(local)?, public: port(public)?, protocol }]);
    }
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last) = (port(first)?, port(last)?);
    let count = usize::from(last).checked_sub(usize::from(first))? + 1;
    let local_port = |local| LocalPort { local, public: 0, protocol };
    (count <= LOCAL_PORTS_MAX).then(|| (first..=last).map(local_port).collect())
}

/// What `uringvpn server` takes.
#[derive(Debug, Args)]
pub(super) struct ServerArgs {
    /// Lowest port that clients may have
    #[arg(long, env = "BORE_MIN_PORT", default_value_t = 1024, value_name = "PORT")]
    min_port: u16,
    /// Highest port that clients may have
    #[arg(long, env = "BORE_MAX_PORT", default_value_t = 65535, value_name = "PORT")]
    max_port: u16,
    /// Address at which clients come; :: is every address of both families
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED), value_name = "ADDR")]
    bind_addr: IpAddr,
    /// Address of the public ports; otherwise that of --bind-addr
    #[arg(long, value_name = "ADDR")]
    bind_tunnels: Option<IpAddr>,
    /// Port at which clients come; bore knows no other than 7835
    #[arg(long, env = "URINGVPN_CONTROL_PORT", value_name = "PORT", default_value_t = CONTROL_PORT)]
    control_port: u16,
    /// Network from which clients may come; several may be given, none allows all
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    allow_clients: Vec<String>,
    /// Network from which visitors may come; several may be given, none allows all
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    allow_visitors: Vec<String>,
    /// Give nobody a UDP port
    #[arg(long)]
    no_udp: bool,
    /// Public ports at once; one that is kept for a lost client makes room for a new one, the oldest first
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_ports: usize,
    /// Visitors at once, in all
    #[arg(long, value_name = "N", default_value_t = 65536)]
    max_connections: usize,
    /// Visitors at once, of one client
    #[arg(long, value_name = "N", default_value_t = VISITORS_PER_CLIENT)]
    max_connections_per_client: usize,
    /// Keep the port of a client that was lost for so many seconds; 0 for not at all. bore's clients never have a lease
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    lease: u32,
    #[command(flatten)]
    pub(super) common: CommonArgs,
}

impl ServerArgs {
    /// What was meant; what the operator should know goes to `warnings`.
    pub(super) fn config(&self, warnings: &mut Vec<String>) -> Result<ServerConfig, ConfigError> {
        // 0 means any to a client, so it is no port that it may have.
        let (min, max) = (self.min_port.max(1), self.max_port);
        if min > max {
            return Err(ExposeError::EmptyRange { min: self.min_port, max }.into());
        }
        Ok(ServerConfig {
            control: SocketAddr::new(self.bind_addr, self.control_port),
            tunnels: self.bind_tunnels.unwrap_or(self.bind_addr),
            ports: min..=max,
            udp: !self.no_udp,
            allow_clients: networks(&self.allow_clients)?,
            allow_visitors: networks(&self.allow_visitors)?,
            ports_max: self.max_ports,
            connections_max: self.max_connections,
            connections_per_client_max: self.max_connections_per_client,
            callers_max: CALLERS_MAX,
            lease: seconds(self.lease),
            secret: self.common.secret(warnings)?,
            idle: self.common.idle_timeout.map(seconds),
            half_open: self.common.half_open_timeout.map(seconds),
            how: self.common.how()?,
        })
    }
}

/// Hidden from here on: the arguments can be printed for debugging.
fn shared_secret(given: &str) -> Result<SharedSecret, Infallible> {
    Ok(SharedSecret::new(given))
}

fn interface(given: &str) -> Result<String, NameProblem> {
    check_name(given).map(|()| given.to_owned())
}

fn networks(given: &[String]) -> Result<Vec<IpNet>, ExposeError> {
    let network = |text: &String| {
        let prefix = parse_prefix(text).map(|prefix| prefix.trunc());
        prefix.ok_or_else(|| ExposeError::Network { given: secret::quote(text) })
    };
    given.iter().map(network).collect()
}

fn seconds(count: u32) -> Span {
    Span::from_secs(u64::from(count))
}

/// `HOST`, which may be an IPv6 address with or without brackets.
fn host(option: &'static str, given: &str, port: u16) -> Result<HostPort, ConfigError> {
    let text = match given.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        _ => format!("{given}:{port}"),
    };
    if given.parse::<IpAddr>().is_err() && given.contains(':') {
        return Err(ExposeError::HostWithPort { option, given: secret::quote(given) }.into());
    }
    text.parse().map_err(|problem| ExposeError::Host { option, given: secret::quote(given), problem }.into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Local {
        #[command(flatten)]
        args: LocalArgs,
    }

    #[derive(Debug, Parser)]
    struct Server {
        #[command(flatten)]
        args: ServerArgs,
    }

    #[test]
    fn the_secret_is_in_no_debug_output() {
        let local = Local::parse_from(["local", "80", "--to", "host", "--secret", "hush-hush"]);
        let server = Server::parse_from(["server", "--secret", "hush-hush"]);
        let (client, service) = (local.args.configs(&mut Vec::new()), server.args.config(&mut Vec::new()));
        let shown = format!("{local:?} {server:?} {client:?} {service:?}");
        assert!(shown.contains("hidden") && !shown.contains("hush"), "{shown}");
        assert_eq!(service.unwrap().secret, Some(SharedSecret::new("hush-hush")));
    }

    #[test]
    fn what_is_allowed_at_once_fits_into_the_descriptors() {
        for descriptors in [0, 40, 1024, 4096, 1 << 20] {
            let mut config = Server::parse_from(["server"]).args.config(&mut Vec::new()).unwrap();
            config.fit(descriptors);
            let most = config.callers_max + 2 * config.ports_max + 2 * config.connections_max;
            assert!(most + DESCRIPTORS_KEPT <= descriptors.max(DESCRIPTORS_KEPT), "{most} of {descriptors}");
            assert!(descriptors == 0 || config.ports_max > 0 && config.connections_max > 0);
        }
        let most = usize::MAX.to_string();
        for (ports, connections) in [("4096", "65536"), ("1", "1"), ("100000", "1"), (&most, &most)] {
            let options = ["server", "--max-ports", ports, "--max-connections", connections];
            let mut config = Server::parse_from(options).args.config(&mut Vec::new()).unwrap();
            let (before, needed) = (config.clone(), config.descriptors());
            config.fit(needed);
            assert!(config == before || needed == usize::MAX, "{needed} for {options:?}");
        }
    }

    #[test]
    fn local_ports_are_single_mapped_or_a_range() {
        let found = |given, wanted: &[(u16, u16)], protocol| {
            let port = |&(local, public)| LocalPort { local, public, protocol };
            assert_eq!(local_ports(given), Some(wanted.iter().map(port).collect()), "{given}");
        };
        found("80", &[(80, 0)], Protocol::Tcp);
        found("80/tcp", &[(80, 0)], Protocol::Tcp);
        found("80:8080", &[(80, 8080)], Protocol::Tcp);
        found("80-82", &[(80, 0), (81, 0), (82, 0)], Protocol::Tcp);
        found("53/udp", &[(53, 0)], Protocol::Udp);
        found("53:5353/udp", &[(53, 5353)], Protocol::Udp);
        found("80-81/udp", &[(80, 0), (81, 0)], Protocol::Udp);
        for bad in ["", "0", "-", ":", "80:", "80:0", ":80", "82-80", "1-65535", "80-81:90", "+80", "70000"] {
            assert_eq!(local_ports(bad), None, "{bad}");
        }
        for bad in ["/udp", "53/", "53/UDP", "53/sctp", "53/udp:5353", "53/udp/udp", "53/udp-54", "53 /udp"] {
            assert_eq!(local_ports(bad), None, "{bad}");
        }
    }

    #[test]
    fn services_of_both_kinds_are_named_in_one_command() {
        let parse = |text: &str| {
            let words = ["local", "--to", "host"].into_iter().chain(text.split(' '));
            Local::parse_from(words).args.configs(&mut Vec::new())
        };
        let configs = parse("53/udp 80 53:5353").unwrap();
        let ports: Vec<_> = configs.iter().map(|one| (one.local.port, one.port, one.protocol)).collect();
        assert_eq!(ports, [(53, 0, Protocol::Udp), (80, 0, Protocol::Tcp), (53, 5353, Protocol::Tcp)]);
        assert_eq!(parse("53/udp --port 5353").unwrap()[0].port, 5353);
        let refused = parse("80 53/udp --proxy-protocol").unwrap_err().to_string();
        assert!(refused.contains("--proxy-protocol") && refused.contains("53/udp"), "{refused}");
        assert!(parse("80 --proxy-protocol").is_ok());
    }
}
