//! What the operator wants: one [`DeviceConfig`], its peers, and the text form of a peer.
//!
//! Everything here is values: parsing, printing and checking touch neither the kernel nor the network, except
//! [`HostPort::resolve`], which asks the system's resolver. The command line ([`crate::control::cli`]) fills a
//! [`DeviceConfig`], [`DeviceConfig::check`] says whether it can work, and only then is anything opened.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Queues, hence workers, a device may have. linux/if_tun.h: MAX_TAP_QUEUES is 256.
pub const QUEUES: RangeInclusive<usize> = 1..=256;
/// MTUs in bytes: from the smallest link IPv4 allows (RFC 791) to the largest IP packet.
pub const MTU: RangeInclusive<u16> = 68..=u16::MAX;
/// Smallest MTU in bytes on which the kernel runs IPv6. RFC 8200 §5.
pub const MTU_IPV6_MIN: u16 = 1280;
/// MTU in bytes if none is given: fits a 1500-byte path whatever the outer family, plain or WireGuard.
pub const MTU_DEFAULT: u16 = 1420;
/// UDP port if none is given: the one WireGuard users expect.
pub const PORT_DEFAULT: u16 = 51820;
/// Interface name if none is given. Fixed rather than `%d`, so that firewall rules can be written in advance.
pub const TUN_DEFAULT: &str = "uringvpn0";
/// Interface name length in bytes. linux/if.h: IFNAMSIZ is 16, one of them for the final zero.
pub const NAME_BYTES_MAX: usize = 15;
/// A correct peer, shown by every error about a wrong one.
pub const PEER_EXAMPLE: &str = "192.0.2.7:51820,allowed-ips=10.9.0.2/32+fd00::2/128";

/// A tunnel interface and how it is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Interface name, or a pattern like `uring%d` for which the kernel chooses the number.
    pub tun: String,
    /// TUN queues; each has a worker, a ring and UDP sockets of its own. Within [`QUEUES`].
    pub queues: usize,
    /// Addresses of the interface with their prefix lengths; the host bits count. Empty: the interface gets none.
    pub addresses: Vec<IpNet>,
    /// Where we receive.
    pub listen: Listen,
    /// The other ends. After [`check`](DeviceConfig::check): at least one, no two with the same allowed IP.
    pub peers: Vec<PeerConfig>,
    /// Largest IP packet in the tunnel, in bytes. Within [`MTU`].
    pub mtu: u16,
    /// Which driver talks to the kernel.
    pub io: IoChoice,
    /// Carry bare IP packets without encryption. Never assumed, must be asked for.
    pub plaintext: bool,
    /// Which kernel offloads may be used where the kernel has them.
    pub offloads: Offloads,
    /// Print statistics this often; `None` prints them only at exit.
    pub stats_interval: Option<Duration>,
    /// Whether worker N stays on the Nth core we may run on.
    pub pin: PinChoice,
    /// Add the routes of [`route_prefixes`](DeviceConfig::route_prefixes).
    pub routes: bool,
    /// Stay in the foreground instead of going to the background once the tunnel is up.
    pub foreground: bool,
}

/// One queue, no peers, every offload, default name, port and MTU.
impl Default for DeviceConfig {
    fn default() -> Self {
        DeviceConfig {
            tun: TUN_DEFAULT.to_owned(),
            queues: 1,
            addresses: Vec::new(),
            listen: Listen::default(),
            peers: Vec::new(),
            mtu: MTU_DEFAULT,
            io: IoChoice::Auto,
            plaintext: false,
            offloads: Offloads::default(),
            stats_interval: None,
            pin: PinChoice::Auto,
            routes: true,
            foreground: false,
        }
    }
}

/// Which driver moves packets between us and the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoChoice {
    /// io_uring if the kernel lets us, else system calls, said in one line.
    #[default]
    Auto,
    /// io_uring or nothing: being refused is an error.
    Uring,
    /// epoll, readv, writev, recvmsg, sendmsg.
    Syscall,
}

/// Whether each worker stays on a core of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PinChoice {
    /// Pinned with several workers on at least [`CORES_TO_PIN`] cores.
    #[default]
    Auto,
    /// Pinned.
    On,
    /// Placed by the scheduler.
    Off,
}

/// Cores from which on workers are pinned unasked. On fewer they share them with the programs whose packets they carry,
/// and the scheduler finds better places than we do: on two cores a pinned single flow lost a fifth of its throughput.
pub const CORES_TO_PIN: usize = 4;

/// Kernel offloads we may use. `true` means "if the kernel has it".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// TCP superpackets on the TUN device, both ways (TUN_F_TSO4, TUN_F_TSO6).
    pub tso: bool,
    /// UDP superpackets on the TUN device, both ways (TUN_F_USO4, TUN_F_USO6).
    pub uso: bool,
    /// Trains of datagrams in one send (UDP_SEGMENT).
    pub udp_gso: bool,
    /// Trains of datagrams in one receive (UDP_GRO).
    pub udp_gro: bool,
}

/// All of them on.
impl Default for Offloads {
    fn default() -> Self {
        Offloads { tso: true, uso: true, udp_gso: true, udp_gro: true }
    }
}

/// Where we receive datagrams: `[ADDR:]PORT` in text, an IPv6 address in brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// One address of this host; `None` means all of them, IPv4 and IPv6.
    pub address: Option<IpAddr>,
    /// UDP port, never 0 after parsing.
    pub port: u16,
}

/// Every address, port [`PORT_DEFAULT`].
impl Default for Listen {
    fn default() -> Self {
        Listen { address: None, port: PORT_DEFAULT }
    }
}

/// The other end of a tunnel.
///
/// In text: `[PUBLIC_KEY@][HOST:PORT][,allowed-ips=CIDR[+CIDR…]][,keepalive=SECONDS][,psk=FILE]`. Spaces have no
/// place in it: they separate peers. Printing and parsing again gives the same peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerConfig {
    /// WireGuard public key: 44 characters of base64 for 32 bytes.
    pub public_key: Option<String>,
    /// Where its datagrams go.
    pub endpoint: Option<HostPort>,
    /// Prefixes routed to this peer and accepted as inner source from it; host bits are zero, no repetitions.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds between persistent keepalives; `None` sends none.
    pub keepalive: Option<u16>,
    /// File with the preshared key.
    pub psk: Option<PathBuf>,
}

/// A UDP endpoint as the operator wrote it: an address or a host name, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// IPv4 address, IPv6 address (without brackets, perhaps with `%scope`), or host name.
    pub host: String,
    /// UDP port, never 0 after parsing.
    pub port: u16,
}

/// Why a configuration cannot work. Each says on which object and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The interface name is one the kernel would refuse.
    #[error("interface name {name:?}: {problem}; a correct name is for example {TUN_DEFAULT}")]
    Name {
        /// The name given.
        name: String,
        /// Which rule it breaks.
        problem: NameProblem,
    },
    /// Not within [`QUEUES`].
    #[error("queues {given}: must be from {} to {}; one per core is a good start", QUEUES.start(), QUEUES.end())]
    Queues {
        /// The number given.
        given: u64,
    },
    /// Not within [`MTU`].
    #[error(
        "mtu {given}: must be from {} to {} bytes; {MTU_DEFAULT} fits a 1500-byte path, IPv6 inside the tunnel needs at least {MTU_IPV6_MIN}",
        MTU.start(), MTU.end()
    )]
    Mtu {
        /// The number given, in bytes.
        given: u64,
    },
    /// An IPv6 interface address with an MTU on which the kernel switches IPv6 off.
    #[error(
        "mtu {mtu}: too small for the IPv6 address {address}; give at least {MTU_IPV6_MIN} or only IPv4 addresses"
    )]
    MtuForIpv6 {
        /// The MTU given, in bytes.
        mtu: u16,
        /// The first IPv6 address.
        address: IpNet,
    },
    /// An interface address that is none.
    #[error("address {given:?}: {problem}; a correct one is for example 10.9.0.1/24")]
    Address {
        /// The text given.
        given: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A listening address or port that is none.
    #[error(
        "listen {given:?}: {problem}; correct are for example {PORT_DEFAULT}, 192.0.2.1:{PORT_DEFAULT} and [2001:db8::1]:{PORT_DEFAULT}"
    )]
    Listen {
        /// The text given.
        given: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A statistics interval out of range.
    #[error("stats interval {given}: must be from 1 to 86400 seconds")]
    StatsInterval {
        /// The number given, in seconds.
        given: u64,
    },
    /// A peer that cannot be parsed.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// Nobody to talk to.
    #[error(
        "no peer given: add --peer HOST:PORT with --plaintext, for example --plaintext --peer 192.0.2.7:{PORT_DEFAULT}"
    )]
    NoPeers,
    /// Neither a key nor `--plaintext`.
    #[error(
        "peer \"{peer}\" has no public key: either give it one, PUBLIC_KEY@{}, for an encrypted tunnel, or add --plaintext to send its packets unencrypted",
        .peer.endpoint.as_ref().map_or("HOST:PORT".to_owned(), HostPort::to_string)
    )]
    NeitherKeyNorPlaintext {
        /// The peer.
        peer: Box<PeerConfig>,
    },
    /// A peer with a key, which this version cannot serve yet.
    #[error(
        "peer \"{peer}\": this version does not have encrypted (WireGuard) tunnels yet; on a network you trust use --plaintext and a peer without key, elsewhere the kernel's WireGuard"
    )]
    KeyedNotBuilt {
        /// The peer.
        peer: Box<PeerConfig>,
    },
    /// Plaintext mode does not learn endpoints.
    #[error(
        "peer \"{peer}\" has no endpoint: with --plaintext every peer needs one, for example {PEER_EXAMPLE}"
    )]
    NoEndpoint {
        /// The peer.
        peer: Box<PeerConfig>,
    },
    /// An option that only makes sense with encryption, together with `--plaintext`.
    #[error("peer \"{peer}\" has {what}, which --plaintext cannot honour: remove it, or remove --plaintext")]
    MeaninglessInPlaintext {
        /// The peer.
        peer: Box<PeerConfig>,
        /// "a public key", "a preshared key", "a keepalive".
        what: &'static str,
    },
    /// Several peers, and one of them does not say what is behind it.
    #[error(
        "peer \"{peer}\" has no allowed IPs: with several peers each must say what is behind it, for example {PEER_EXAMPLE}"
    )]
    NoAllowedIps {
        /// The peer.
        peer: Box<PeerConfig>,
    },
    /// Two peers claim the same prefix.
    #[error(
        "allowed IP {prefix} is claimed by two peers, \"{first}\" and \"{second}\": leave it with one of them"
    )]
    SharedAllowedIp {
        /// The prefix both claim.
        prefix: IpNet,
        /// The peer given first.
        first: Box<PeerConfig>,
        /// The peer given later.
        second: Box<PeerConfig>,
    },
    /// Two plaintext peers with one endpoint: their datagrams could not be told apart.
    #[error(
        "endpoint {endpoint} is given to two peers, \"{first}\" and \"{second}\": make them one peer with the allowed IPs of both"
    )]
    SharedEndpoint {
        /// The endpoint both have.
        endpoint: HostPort,
        /// The peer given first.
        first: Box<PeerConfig>,
        /// The peer given later.
        second: Box<PeerConfig>,
    },
}

/// Why the kernel would refuse an interface name.
///
/// Source: linux net/core/dev.c `dev_valid_name` and `__dev_alloc_name`, net/ipv4/devinet.c for the reserved names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameProblem {
    /// No characters at all.
    #[error("is empty")]
    Empty,
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("has {bytes} bytes, at most {NAME_BYTES_MAX} are possible")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// `.`, `..`, `all`, `default`: the kernel keeps them for itself.
    #[error("is reserved by the kernel")]
    Reserved,
    /// A space, a slash, a colon, a control character, anything beyond ASCII.
    #[error("contains {character:?}; use ASCII letters, digits, '-', '_' and '.'")]
    Character {
        /// The first such character.
        character: char,
    },
    /// A percent sign other than one final `%d`.
    #[error("contains '%'; only one \"%d\" at the end is possible, the kernel replaces it by a free number")]
    Percent,
}

/// A peer whose text is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("peer {text:?}, column {column}: {problem}; a correct one is for example {PEER_EXAMPLE}")]
pub struct PeerError {
    /// The text given, shortened if very long.
    pub text: String,
    /// Where the trouble starts, in characters, the first being 1.
    pub column: usize,
    /// What is wrong there.
    pub problem: PeerProblem,
}

/// What is wrong at one place of a peer's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerProblem {
    /// Nothing was written.
    #[error("is empty")]
    Empty,
    /// White space or a control character.
    #[error("contains {0:?}; a peer is one word")]
    Character(char),
    /// Before the `@`: not 44 characters of base64 that stand for 32 bytes.
    #[error("{0:?} is not a public key; it has 44 characters of base64, the last one '='")]
    PublicKey(String),
    /// A public key without the `@` that ends it.
    #[error("a public key ends in '@': KEY@HOST:PORT, or KEY@ without endpoint")]
    KeyWithoutAt,
    /// Not `HOST:PORT`.
    #[error("endpoint {0:?}: {1}")]
    Endpoint(String, HostPortProblem),
    /// Not `name=value` with a name we know.
    #[error("{0:?} is not an option; there are allowed-ips=CIDR+CIDR, keepalive=SECONDS and psk=FILE")]
    UnknownOption(String),
    /// An option a second time.
    #[error("{0} is given twice; several allowed IPs are joined by '+'")]
    Repeated(&'static str),
    /// `name=` and nothing.
    #[error("{0} has no value")]
    NoValue(&'static str),
    /// Not an address with a prefix length.
    #[error("{0:?} is not an IP prefix like 10.9.0.0/24 or fd00::/64")]
    Prefix(String),
    /// Not a number of seconds.
    #[error("{0:?} is not a number of seconds from 1 to 65535, nor 0 or off")]
    Keepalive(String),
}

/// What is wrong with a `HOST:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostPortProblem {
    /// No `:PORT` at the end.
    #[error("the port is missing, write HOST:PORT")]
    NoPort,
    /// Not a number from 1 to 65535.
    #[error("the port must be a number from 1 to 65535")]
    Port,
    /// Nothing before the port.
    #[error("the host is missing, write HOST:PORT")]
    NoHost,
    /// An IPv6 address that would be ambiguous with its port.
    #[error("an IPv6 address stands in brackets, [2001:db8::7]:51820")]
    Unbracketed,
    /// Brackets around something else.
    #[error("between the brackets must be an IPv6 address")]
    NotIpv6,
    /// Digits and dots that are no IPv4 address.
    #[error("this is neither an IPv4 address nor a host name")]
    NotIpv4,
    /// Characters or lengths no host name has.
    #[error("this is not a host name (ASCII letters, digits, '-', '_', '.'; at most 253 of them)")]
    NotAName,
    /// `0.0.0.0`, `::`, a multicast or broadcast address.
    #[error("this address is not that of one host")]
    NotOneHost,
}

/// A host name the system's resolver could not turn into an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "endpoint {endpoint}: the name cannot be resolved ({reason}); check the spelling and the name servers, or give the address"
)]
pub struct ResolveError {
    /// What was asked for.
    pub endpoint: HostPort,
    /// The resolver's answer.
    pub reason: String,
}

impl DeviceConfig {
    /// Says whether this configuration can work, and completes it: a single plaintext peer without allowed IPs gets
    /// `0.0.0.0/0` and `::/0`, repeated addresses are dropped.
    ///
    /// Looks only at the values: whether the port is free or a name resolves is found out by running.
    ///
    /// # Errors
    /// The first [`ConfigError`] found, in the order device, peers, conflicts between peers.
    pub fn check(mut self) -> Result<DeviceConfig, ConfigError> {
        check_name(&self.tun).map_err(|problem| ConfigError::Name { name: shorten(&self.tun), problem })?;
        if !QUEUES.contains(&self.queues) {
            return Err(ConfigError::Queues { given: self.queues as u64 });
        }
        if !MTU.contains(&self.mtu) {
            return Err(ConfigError::Mtu { given: self.mtu.into() });
        }
        drop_repetitions(&mut self.addresses);
        if self.mtu < MTU_IPV6_MIN
            && let Some(&address) = self.addresses.iter().find(|address| matches!(address, IpNet::V6(_)))
        {
            return Err(ConfigError::MtuForIpv6 { mtu: self.mtu, address });
        }
        if self.peers.is_empty() {
            return Err(ConfigError::NoPeers);
        }
        for peer in &self.peers {
            check_mode(peer, self.plaintext)?;
        }
        for peer in &mut self.peers {
            truncate_prefixes(&mut peer.allowed_ips);
        }
        match self.peers.as_mut_slice() {
            [only] if only.allowed_ips.is_empty() => only.allowed_ips = everything(),
            peers => {
                if let Some(peer) = peers.iter().find(|peer| peer.allowed_ips.is_empty()) {
                    return Err(ConfigError::NoAllowedIps { peer: Box::new(peer.clone()) });
                }
            }
        }
        check_conflicts(&self.peers)?;
        Ok(self)
    }

    /// Prefixes to route into the interface: every allowed IP but the default routes `0.0.0.0/0` and `::/0`.
    ///
    /// A default route through the tunnel would also catch the tunnel's own datagrams, so it is left to the operator.
    pub fn route_prefixes(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.peers.iter().flat_map(|peer| &peer.allowed_ips).copied().filter(|prefix| prefix.prefix_len() > 0)
    }
}

/// Two peers may not claim one prefix, nor, since a plaintext peer is known by nothing else, one endpoint.
fn check_conflicts(peers: &[PeerConfig]) -> Result<(), ConfigError> {
    let mut claims: HashMap<IpNet, &PeerConfig> = HashMap::new();
    let mut endpoints = HashMap::new();
    for peer in peers {
        for &prefix in &peer.allowed_ips {
            if let Some(first) = claims.insert(prefix, peer) {
                return Err(ConfigError::SharedAllowedIp {
                    prefix,
                    first: Box::new(first.clone()),
                    second: Box::new(peer.clone()),
                });
            }
        }
        let Some(endpoint) = &peer.endpoint else { continue };
        if let Some(first) = endpoints.insert(endpoint.identity(), peer) {
            return Err(ConfigError::SharedEndpoint {
                endpoint: endpoint.clone(),
                first: Box::new(first.clone()),
                second: Box::new(peer.clone()),
            });
        }
    }
    Ok(())
}

fn check_mode(peer: &PeerConfig, plaintext: bool) -> Result<(), ConfigError> {
    let boxed = || Box::new(peer.clone());
    if !plaintext {
        return Err(match peer.public_key {
            None => ConfigError::NeitherKeyNorPlaintext { peer: boxed() },
            Some(_) => ConfigError::KeyedNotBuilt { peer: boxed() },
        });
    }
    let meaningless = [
        (peer.public_key.is_some(), "a public key"),
        (peer.psk.is_some(), "a preshared key"),
        (peer.keepalive.is_some(), "a keepalive"),
    ];
    if let Some(&(_, what)) = meaningless.iter().find(|(given, _)| *given) {
        return Err(ConfigError::MeaninglessInPlaintext { peer: boxed(), what });
    }
    if peer.endpoint.is_none() {
        return Err(ConfigError::NoEndpoint { peer: boxed() });
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), NameProblem> {
    if name.is_empty() {
        return Err(NameProblem::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameProblem::TooLong { bytes: name.len() });
    }
    if matches!(name, "." | ".." | "all" | "default") {
        return Err(NameProblem::Reserved);
    }
    if let Some(character) = name.chars().find(|&c| !c.is_ascii_graphic() || matches!(c, '/' | ':')) {
        return Err(NameProblem::Character { character });
    }
    if name.strip_suffix("%d").unwrap_or(name).contains('%') {
        return Err(NameProblem::Percent);
    }
    Ok(())
}

/// Parses the prefix or bare address of an interface; a bare address is `/32` or `/128`, host bits stay.
///
/// # Errors
/// [`ConfigError::Address`] if it is no prefix, or its address is not that of one host.
pub fn parse_address(text: &str) -> Result<IpNet, ConfigError> {
    let error = |problem| ConfigError::Address { given: shorten(text), problem };
    let address = parse_prefix(text).ok_or_else(|| error("is not an IP address with a prefix length"))?;
    if !is_one_host(address.addr()) {
        return Err(error("is not the address of one host"));
    }
    Ok(address)
}

/// A prefix, or a bare address as `/32` or `/128`; host bits stay.
fn parse_prefix(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// Zeroes host bits as `wg` does, and drops what is then there twice.
fn truncate_prefixes(prefixes: &mut Vec<IpNet>) {
    for prefix in prefixes.iter_mut() {
        *prefix = prefix.trunc();
    }
    drop_repetitions(prefixes);
}

fn drop_repetitions(prefixes: &mut Vec<IpNet>) {
    let mut seen = HashSet::new();
    prefixes.retain(|prefix| seen.insert(*prefix));
}

fn everything() -> Vec<IpNet> {
    vec![
        Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into(),
        Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into(),
    ]
}

fn is_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_unspecified() && !v4.is_multicast() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast(),
    }
}

/// For error messages: the first 100 characters.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl FromStr for Listen {
    type Err = ConfigError;

    /// Reads `PORT`, `IPV4:PORT` or `[IPV6]:PORT`. The unspecified addresses mean what they say: one family only.
    ///
    /// # Errors
    /// [`ConfigError::Listen`].
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let error = |problem| ConfigError::Listen { given: shorten(text), problem };
        let (address, port) = match text.rsplit_once(':') {
            None => (None, text),
            Some((address, port)) => (Some(address), port),
        };
        let address = match address {
            None => None,
            Some(text) => match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
                Some(inner) => Some(IpAddr::V6(
                    inner.parse().map_err(|_| error("between the brackets must be an IPv6 address"))?,
                )),
                None if text.contains(':') => return Err(error("an IPv6 address stands in brackets")),
                None => Some(IpAddr::V4(
                    text.parse().map_err(|_| error("before the port must be an IP address of this host"))?,
                )),
            },
        };
        let port = parse_port(port).ok_or_else(|| error("the port must be a number from 1 to 65535"))?;
        Ok(Listen { address, port })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => write!(f, "{}", self.port),
            Some(address) => SocketAddr::new(address, self.port).fmt(f),
        }
    }
}

/// Digits only (`u16::from_str` would take a plus sign), and not 0: the other side has to know the port.
fn parse_port(text: &str) -> Option<u16> {
    parse_digits(text).filter(|&port| port != 0)
}

fn parse_digits(text: &str) -> Option<u16> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

impl HostPort {
    /// The socket addresses behind this endpoint, in the resolver's order; never empty. IPv4-mapped IPv6 addresses
    /// come out as IPv4.
    ///
    /// A host name blocks the caller for as long as the resolver takes, which may be half a minute; addresses do not.
    ///
    /// # Errors
    /// [`ResolveError`] if the resolver has no address for the name now. It may have one later.
    pub fn resolve(&self) -> Result<Vec<SocketAddr>, ResolveError> {
        let error = |reason: String| ResolveError { endpoint: self.clone(), reason };
        let found =
            (self.host.as_str(), self.port).to_socket_addrs().map_err(|cause| error(cause.to_string()))?;
        let addresses: Vec<SocketAddr> = found.map(canonical).collect();
        if addresses.is_empty() {
            return Err(error("no address".to_owned()));
        }
        Ok(addresses)
    }

    /// Equal for two spellings of one endpoint, as far as that can be told without resolving.
    fn identity(&self) -> (String, u16) {
        let host = match self.host.parse::<IpAddr>() {
            Ok(address) => address.to_canonical().to_string(),
            Err(_) => self.host.trim_end_matches('.').to_ascii_lowercase(),
        };
        (host, self.port)
    }
}

/// `::ffff:192.0.2.7` as `192.0.2.7`; a scope survives.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        v4 @ IpAddr::V4(_) => SocketAddr::new(v4, address.port()),
        IpAddr::V6(_) => address,
    }
}

impl FromStr for HostPort {
    type Err = HostPortProblem;

    /// Reads `IPV4:PORT`, `[IPV6]:PORT`, `[IPV6%SCOPE]:PORT` or `NAME:PORT`.
    fn from_str(text: &str) -> Result<Self, HostPortProblem> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (inner, after) = rest.split_once(']').ok_or(HostPortProblem::NotIpv6)?;
                check_ipv6(inner)?;
                (inner, after.strip_prefix(':').ok_or(HostPortProblem::NoPort)?)
            }
            None => {
                let Some((host, port)) = text.rsplit_once(':') else {
                    return Err(HostPortProblem::NoPort);
                };
                if host.contains(':') {
                    return Err(HostPortProblem::Unbracketed);
                }
                check_host(host)?;
                (host, port)
            }
        };
        let port = parse_port(port).ok_or(HostPortProblem::Port)?;
        Ok(HostPort { host: host.to_owned(), port })
    }
}

fn check_ipv6(text: &str) -> Result<(), HostPortProblem> {
    let (address, scope) = match text.split_once('%') {
        None => (text, None),
        Some((address, scope)) => (address, Some(scope)),
    };
    let address: Ipv6Addr = address.parse().map_err(|_| HostPortProblem::NotIpv6)?;
    if scope.is_some_and(|scope| check_name(scope).is_err() || scope.contains(['%', '@', ',', '[', ']'])) {
        return Err(HostPortProblem::NotIpv6);
    }
    if is_one_host(address.to_canonical()) { Ok(()) } else { Err(HostPortProblem::NotOneHost) }
}

fn check_host(text: &str) -> Result<(), HostPortProblem> {
    if text.is_empty() {
        return Err(HostPortProblem::NoHost);
    }
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return if is_one_host(address.into()) { Ok(()) } else { Err(HostPortProblem::NotOneHost) };
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let labels = || name.split('.');
    // The resolver would read "10.1" as 10.0.0.1 and "010.0.0.1" as 8.0.0.1; nobody means that.
    if labels()
        .next_back()
        .is_some_and(|label| !label.is_empty() && label.bytes().all(|b| b.is_ascii_digit()))
    {
        return Err(HostPortProblem::NotIpv4);
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
    };
    if name.len() <= 253 && labels().all(is_label) { Ok(()) } else { Err(HostPortProblem::NotAName) }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for PeerConfig {
    type Err = PeerError;

    /// Reads the form given at [`PeerConfig`].
    ///
    /// Host bits of allowed IPs are zeroed as `wg` does, a bare address means `/32` or `/128`, `keepalive=0` and
    /// `keepalive=off` mean none.
    fn from_str(text: &str) -> Result<Self, PeerError> {
        parse_peer(text).map_err(|(offset, problem)| PeerError {
            text: shorten(text),
            column: text[..offset].chars().count() + 1,
            problem,
        })
    }
}

/// A problem and the byte where it starts.
type Located = (usize, PeerProblem);

fn parse_peer(text: &str) -> Result<PeerConfig, Located> {
    if text.is_empty() {
        return Err((0, PeerProblem::Empty));
    }
    if let Some((at, character)) = text.char_indices().find(|(_, c)| c.is_whitespace() || c.is_control()) {
        return Err((at, PeerProblem::Character(character)));
    }
    let head = text.split(',').next().unwrap_or(text);
    let mut peer = PeerConfig::default();
    let (key, endpoint) = match head.split_once('@') {
        None => (None, head),
        Some((key, endpoint)) => (Some(key), endpoint),
    };
    if let Some(key) = key {
        if !is_public_key(key) {
            return Err((0, PeerProblem::PublicKey(shorten(key))));
        }
        peer.public_key = Some(key.to_owned());
    } else if is_public_key(head) {
        return Err((head.len(), PeerProblem::KeyWithoutAt));
    } else if head
        .split_once('=')
        .is_some_and(|(name, _)| matches!(name, "allowed-ips" | "keepalive" | "psk"))
    {
        // Options alone: say that the comma is missing by way of the endpoint that should be before it.
        return Err((0, PeerProblem::Endpoint(shorten(head), HostPortProblem::NoHost)));
    }
    if !endpoint.is_empty() {
        let at = head.len() - endpoint.len();
        let problem = |problem| (at, PeerProblem::Endpoint(shorten(endpoint), problem));
        peer.endpoint = Some(endpoint.parse().map_err(problem)?);
    }
    let mut at = head.len() + 1;
    let mut given = Vec::new();
    for option in text.split(',').skip(1) {
        parse_option(option, at, &mut given, &mut peer)?;
        at += option.len() + 1;
    }
    Ok(peer)
}

/// Reads one `name=value` that starts at byte `at` into `peer`; `given` holds the names before it.
fn parse_option(
    option: &str,
    at: usize,
    given: &mut Vec<&'static str>,
    peer: &mut PeerConfig,
) -> Result<(), Located> {
    let known = option.split_once('=').and_then(|(name, value)| {
        ["allowed-ips", "keepalive", "psk"]
            .into_iter()
            .find(|known| *known == name)
            .map(|known| (known, value))
    });
    let Some((name, value)) = known else {
        return Err((at, PeerProblem::UnknownOption(shorten(option))));
    };
    if given.contains(&name) {
        return Err((at, PeerProblem::Repeated(name)));
    }
    given.push(name);
    let at = at + name.len() + 1;
    if value.is_empty() {
        return Err((at, PeerProblem::NoValue(name)));
    }
    match name {
        "allowed-ips" => {
            let mut at = at;
            for prefix in value.split('+') {
                let parsed =
                    parse_prefix(prefix).ok_or_else(|| (at, PeerProblem::Prefix(shorten(prefix))))?;
                peer.allowed_ips.push(parsed);
                at += prefix.len() + 1;
            }
            truncate_prefixes(&mut peer.allowed_ips);
        }
        "keepalive" if value == "off" => {}
        "keepalive" => {
            let seconds = parse_digits(value).ok_or_else(|| (at, PeerProblem::Keepalive(shorten(value))))?;
            peer.keepalive = Some(seconds).filter(|&seconds| seconds > 0);
        }
        _ => peer.psk = Some(PathBuf::from(value)),
    }
    Ok(())
}

/// 32 bytes in base64: 43 characters and '=', the last character's two spare bits zero.
fn is_public_key(text: &str) -> bool {
    let Some((digits, b"=")) = text.as_bytes().split_at_checked(43) else {
        return false;
    };
    // The characters whose value is a multiple of four: A, E, I, … and so on.
    digits.iter().all(|&byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
        && b"AEIMQUYcgkosw048".contains(&digits[42])
}

/// The form that parses to the same peer again.
impl fmt::Display for PeerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(key) = &self.public_key {
            write!(f, "{key}@")?;
        }
        if let Some(endpoint) = &self.endpoint {
            write!(f, "{endpoint}")?;
        }
        for (index, prefix) in self.allowed_ips.iter().enumerate() {
            write!(f, "{}{prefix}", if index == 0 { ",allowed-ips=" } else { "+" })?;
        }
        if let Some(seconds) = self.keepalive {
            write!(f, ",keepalive={seconds}")?;
        }
        if let Some(file) = &self.psk {
            write!(f, ",psk={}", file.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    fn peer(text: &str) -> PeerConfig {
        text.parse().unwrap()
    }

    fn problem(text: &str) -> (usize, PeerProblem) {
        let error = text.parse::<PeerConfig>().unwrap_err();
        assert!(error.to_string().contains(PEER_EXAMPLE), "{error}");
        (error.column, error.problem)
    }

    fn plain(peers: &[&str]) -> DeviceConfig {
        DeviceConfig {
            plaintext: true,
            peers: peers.iter().map(|text| peer(text)).collect(),
            ..DeviceConfig::default()
        }
    }

    fn nets(text: &str) -> Vec<IpNet> {
        text.split(' ').map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn a_peer_with_everything_is_understood() {
        let full = peer(&format!(
            "{KEY}@[2001:db8::7]:51820,allowed-ips=10.9.0.0/24+fd00::/64,keepalive=25,psk=/etc/psk"
        ));
        assert_eq!(full.public_key.as_deref(), Some(KEY));
        assert_eq!(full.endpoint, Some(HostPort { host: "2001:db8::7".to_owned(), port: 51820 }));
        assert_eq!(full.allowed_ips, nets("10.9.0.0/24 fd00::/64"));
        assert_eq!(full.keepalive, Some(25));
        assert_eq!(full.psk, Some(PathBuf::from("/etc/psk")));
    }

    #[test]
    fn every_part_of_a_peer_may_be_missing() {
        assert_eq!(peer("vpn.example.org:51820").public_key, None);
        assert_eq!(peer(&format!("{KEY}@")).endpoint, None);
        assert_eq!(peer(",allowed-ips=10.0.0.0/8").allowed_ips, nets("10.0.0.0/8"));
        assert_eq!(peer("192.0.2.7:1").allowed_ips, []);
    }

    #[test]
    fn a_bare_address_is_one_host_and_host_bits_are_cut_off() {
        let prefixes = peer("h:1,allowed-ips=10.0.0.5/24+10.9.0.2+fd00::2+10.0.0.9/24").allowed_ips;
        assert_eq!(prefixes, nets("10.0.0.0/24 10.9.0.2/32 fd00::2/128"));
    }

    #[test]
    fn keepalive_zero_and_off_mean_none() {
        assert_eq!(peer("h:1,keepalive=0").keepalive, None);
        assert_eq!(peer("h:1,keepalive=off").keepalive, None);
        assert_eq!(peer("h:1,keepalive=65535").keepalive, Some(65535));
    }

    #[test]
    fn a_wrong_peer_names_the_place_and_the_problem() {
        use HostPortProblem as H;
        use PeerProblem as P;
        let endpoint = |text: &str, problem| P::Endpoint(text.to_owned(), problem);
        for (text, column, expected) in [
            ("", 1, P::Empty),
            ("h:1 ", 4, P::Character(' ')),
            ("ü\0:1", 2, P::Character('\0')),
            ("joe@h:1", 1, P::PublicKey("joe".to_owned())),
            (KEY, 45, P::KeyWithoutAt),
            ("h", 1, endpoint("h", H::NoPort)),
            ("h:", 1, endpoint("h:", H::Port)),
            ("h:0", 1, endpoint("h:0", H::Port)),
            ("h:+1", 1, endpoint("h:+1", H::Port)),
            ("h:65536", 1, endpoint("h:65536", H::Port)),
            (":1", 1, endpoint(":1", H::NoHost)),
            ("2001:db8::7:51820", 1, endpoint("2001:db8::7:51820", H::Unbracketed)),
            ("[2001:db8::7]", 1, endpoint("[2001:db8::7]", H::NoPort)),
            ("[2001:db8::7:51820", 1, endpoint("[2001:db8::7:51820", H::NotIpv6)),
            ("[192.0.2.7]:1", 1, endpoint("[192.0.2.7]:1", H::NotIpv6)),
            ("[fe80::1%]:1", 1, endpoint("[fe80::1%]:1", H::NotIpv6)),
            ("10.1:1", 1, endpoint("10.1:1", H::NotIpv4)),
            ("256.0.0.1:1", 1, endpoint("256.0.0.1:1", H::NotIpv4)),
            ("bücher.example:1", 1, endpoint("bücher.example:1", H::NotAName)),
            ("a..b:1", 1, endpoint("a..b:1", H::NotAName)),
            ("0.0.0.0:1", 1, endpoint("0.0.0.0:1", H::NotOneHost)),
            ("[::]:1", 1, endpoint("[::]:1", H::NotOneHost)),
            ("224.0.0.1:1", 1, endpoint("224.0.0.1:1", H::NotOneHost)),
            ("allowed-ips=10.0.0.0/8", 1, endpoint("allowed-ips=10.0.0.0/8", H::NoHost)),
            ("h:1,", 5, P::UnknownOption(String::new())),
            ("h:1,allowed_ips=::/0", 5, P::UnknownOption("allowed_ips=::/0".to_owned())),
            ("h:1,keepalive", 5, P::UnknownOption("keepalive".to_owned())),
            ("h:1,psk=a,psk=b", 11, P::Repeated("psk")),
            ("h:1,allowed-ips=", 17, P::NoValue("allowed-ips")),
            ("h:1,allowed-ips=1.2.3.4/33", 17, P::Prefix("1.2.3.4/33".to_owned())),
            ("h:1,allowed-ips=::/0+x", 22, P::Prefix("x".to_owned())),
            ("h:1,keepalive=65536", 15, P::Keepalive("65536".to_owned())),
            ("h:1,keepalive=-1", 15, P::Keepalive("-1".to_owned())),
        ] {
            assert_eq!(problem(text), (column, expected), "{text:?}");
        }
    }

    #[test]
    fn an_error_about_a_huge_peer_is_short() {
        let error = "x".repeat(1 << 20).parse::<PeerConfig>().unwrap_err();
        assert!(error.to_string().len() < 600);
    }

    #[test]
    fn a_key_has_exactly_the_base64_of_32_bytes() {
        assert!(is_public_key(KEY));
        assert!(!is_public_key(&KEY[1..]));
        assert!(!is_public_key(&KEY.replace('=', "A")));
        assert!(!is_public_key(&KEY.replace('x', "-")));
        // Spare bits set: another spelling of the same bytes, which no tool writes.
        assert!(!is_public_key(&KEY.replace("Dg=", "Dh=")));
    }

    #[test]
    fn listen_reads_a_port_or_an_address_and_a_port() {
        let listen = |text: &str| text.parse::<Listen>();
        assert_eq!(listen("51820"), Ok(Listen::default()));
        assert_eq!(
            listen("192.0.2.1:7"),
            Ok(Listen { address: Some(IpAddr::from([192, 0, 2, 1])), port: 7 })
        );
        assert_eq!(
            listen("[::]:7"),
            Ok(Listen { address: Some(IpAddr::from(Ipv6Addr::UNSPECIFIED)), port: 7 })
        );
        for wrong in ["", "0", "65536", "+7", ":7", "::1:7", "[::1]", "[::1]7", "localhost:7", "7:192.0.2.1"]
        {
            assert!(matches!(listen(wrong), Err(ConfigError::Listen { .. })), "{wrong:?}");
        }
    }

    #[test]
    fn addresses_resolve_to_themselves_and_mapped_ones_to_ipv4() {
        let resolve = |text: &str| text.parse::<HostPort>().unwrap().resolve().unwrap();
        assert_eq!(resolve("192.0.2.7:9"), ["192.0.2.7:9".parse().unwrap()]);
        assert_eq!(resolve("[::ffff:192.0.2.7]:9"), ["192.0.2.7:9".parse().unwrap()]);
        assert_eq!(resolve("[2001:db8::7]:9"), ["[2001:db8::7]:9".parse().unwrap()]);
    }

    #[test]
    fn a_name_that_does_not_resolve_is_named() {
        // RFC 2606: .invalid never exists.
        let endpoint: HostPort = "nowhere.invalid:9".parse().unwrap();
        let error = endpoint.resolve().unwrap_err();
        assert!(error.to_string().starts_with("endpoint nowhere.invalid:9: "), "{error}");
    }

    #[test]
    fn names_are_refused_where_the_kernel_would_refuse_them() {
        let good = ["a", "uringvpn0", "123456789012345", "uring%d", "wg-0_a.b", "..."];
        for name in good {
            assert_eq!(check_name(name), Ok(()), "{name:?}");
        }
        let character = |character| Err(NameProblem::Character { character });
        assert_eq!(check_name(""), Err(NameProblem::Empty));
        assert_eq!(check_name("1234567890123456"), Err(NameProblem::TooLong { bytes: 16 }));
        assert_eq!(check_name("../x"), character('/'));
        assert_eq!(check_name("a b"), character(' '));
        assert_eq!(check_name("a:1"), character(':'));
        assert_eq!(check_name("über"), character('ü'));
        assert_eq!(check_name(".."), Err(NameProblem::Reserved));
        assert_eq!(check_name("default"), Err(NameProblem::Reserved));
        for name in ["%", "a%", "%s", "%d%d", "a%d1"] {
            assert_eq!(check_name(name), Err(NameProblem::Percent), "{name:?}");
        }
    }

    #[test]
    fn queues_and_mtu_have_bounds() {
        for queues in [1, 256] {
            assert!(DeviceConfig { queues, ..plain(&["h:1"]) }.check().is_ok());
        }
        for queues in [0, 257, 1_000_000] {
            let given = queues as u64;
            let config = DeviceConfig { queues, ..plain(&["h:1"]) };
            assert_eq!(config.check(), Err(ConfigError::Queues { given }));
        }
        assert!(DeviceConfig { mtu: 68, ..plain(&["h:1"]) }.check().is_ok());
        assert_eq!(DeviceConfig { mtu: 67, ..plain(&["h:1"]) }.check(), Err(ConfigError::Mtu { given: 67 }));
        let ipv6 = DeviceConfig { mtu: 1279, addresses: nets("10.0.0.1/24 fd00::1/64"), ..plain(&["h:1"]) };
        let address = nets("fd00::1/64")[0];
        assert_eq!(ipv6.check(), Err(ConfigError::MtuForIpv6 { mtu: 1279, address }));
    }

    #[test]
    fn a_single_plaintext_peer_gets_everything_and_several_must_say() {
        let one = plain(&["192.0.2.7:1"]).check().unwrap();
        assert_eq!(one.peers[0].allowed_ips, nets("0.0.0.0/0 ::/0"));
        assert_eq!(one.route_prefixes().count(), 0);

        let two = plain(&["a:1,allowed-ips=10.0.0.0/8", "b:1"]);
        assert_eq!(two.check(), Err(ConfigError::NoAllowedIps { peer: Box::new(peer("b:1")) }));
    }

    #[test]
    fn without_plaintext_a_peer_needs_a_key_and_with_it_must_not_have_one() {
        let boxed = |text: &str| Box::new(peer(text));
        let keyed = format!("{KEY}@h:1");
        let secret = DeviceConfig { plaintext: false, ..plain(&["h:1"]) };
        assert_eq!(secret.check(), Err(ConfigError::NeitherKeyNorPlaintext { peer: boxed("h:1") }));
        let secret = DeviceConfig { plaintext: false, ..plain(&[&keyed]) };
        assert_eq!(secret.check(), Err(ConfigError::KeyedNotBuilt { peer: boxed(&keyed) }));
        for (text, what) in [
            (keyed.as_str(), "a public key"),
            ("h:1,psk=f", "a preshared key"),
            ("h:1,keepalive=5", "a keepalive"),
        ] {
            let expected = ConfigError::MeaninglessInPlaintext { peer: boxed(text), what };
            assert_eq!(plain(&[text]).check(), Err(expected));
        }
        let nowhere = ",allowed-ips=10.0.0.0/8";
        assert_eq!(plain(&[nowhere]).check(), Err(ConfigError::NoEndpoint { peer: boxed(nowhere) }));
        assert_eq!(plain(&[]).check(), Err(ConfigError::NoPeers));
    }

    #[test]
    fn two_peers_share_neither_an_allowed_ip_nor_an_endpoint() {
        let (a, b) = ("a:1,allowed-ips=10.0.0.0/8+fd00::/64", "b:1,allowed-ips=10.1.2.3/8");
        let error = plain(&[a, b]).check().unwrap_err();
        assert!(matches!(error, ConfigError::SharedAllowedIp { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("10.0.0.0/8") && text.contains(a) && text.contains("b:1"), "{text}");

        let (a, b) = ("A.example:1,allowed-ips=10.0.0.0/8", "a.example.:1,allowed-ips=11.0.0.0/8");
        assert!(matches!(plain(&[a, b]).check(), Err(ConfigError::SharedEndpoint { .. })));
        // A longer prefix inside another peer's is what longest-prefix match is for.
        assert!(plain(&["a:1,allowed-ips=10.0.0.0/8", "b:1,allowed-ips=10.1.0.0/16"]).check().is_ok());
    }

    /// Peers as parsing makes them: canonical prefixes, keepalive not 0.
    fn peers() -> impl Strategy<Value = PeerConfig> {
        let host = prop_oneof![
            "[a-z][a-z0-9_-]{0,20}(\\.[a-z]{1,10}){0,3}\\.?",
            (1..224u8, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| Ipv4Addr::new(a, b, c, d).to_string()),
            any::<[u8; 14]>().prop_map(|bytes| {
                let mut octets = [0x20; 16];
                octets[2..].copy_from_slice(&bytes);
                Ipv6Addr::from(octets).to_string()
            }),
            Just("fe80::1%eth0".to_owned()),
        ];
        let v4 = (any::<[u8; 4]>(), 0..=32u8).prop_map(|(a, len)| Ipv4Net::new_assert(a.into(), len).into());
        let v6 =
            (any::<[u8; 16]>(), 0..=128u8).prop_map(|(a, len)| Ipv6Net::new_assert(a.into(), len).into());
        let prefixes = prop::collection::vec(prop_oneof![v4, v6], 0..5);
        (
            prop::option::of("[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="),
            prop::option::of((host, 1..=u16::MAX).prop_map(|(host, port)| HostPort { host, port })),
            prefixes,
            prop::option::of(1..=u16::MAX),
            prop::option::of("[a-zA-Z0-9/._=+@ü-]{1,30}".prop_map(PathBuf::from)),
        )
            .prop_map(|(public_key, endpoint, mut allowed_ips, keepalive, psk)| {
                truncate_prefixes(&mut allowed_ips);
                PeerConfig { public_key, endpoint, allowed_ips, keepalive, psk }
            })
            .prop_filter("nothing at all has no text", |peer| *peer != PeerConfig::default())
    }

    proptest! {
        #[test]
        fn a_printed_peer_parses_to_itself(original in peers()) {
            let text = original.to_string();
            prop_assert_eq!(text.parse::<PeerConfig>(), Ok(original), "{}", text);
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in any::<String>()) {
            if let Err(error) = text.parse::<PeerConfig>() {
                prop_assert!(error.column <= text.chars().count() + 1);
            }
            let _ = text.parse::<Listen>();
            let _ = parse_address(&text);
            let _ = check_name(&text);
        }

        #[test]
        fn nor_does_a_text_made_of_a_peers_pieces(pieces in prop::collection::vec(prop::sample::select(vec![
            KEY, "@", "h", ":", "1", "[", "]", "::1", "%", ",", "allowed-ips=", "keepalive=", "psk=", "+",
            "10.0.0.0/8", "/", "off", "ü", " ", "=",
        ]), 0..12)) {
            let text = pieces.concat();
            match text.parse::<PeerConfig>() {
                Err(error) => prop_assert!(error.column <= text.chars().count() + 1),
                Ok(peer) => prop_assert_eq!(peer.to_string().parse::<PeerConfig>(), Ok(peer)),
            }
        }
    }
}
