//! Addresses as the operator writes them: where we listen, where a peer is, what the interface has, where metrics are.
//!
//! Text in, values out. [`super::peer`] reads a peer's `HOST:PORT` here, [`super::cli`] `--listen`, `--address` and `--metrics`.
//! Pure, except [`HostPort::resolve`], which asks the system's resolver.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;

use super::name::check_name;
use super::secret::quote;

/// UDP port if none is given: the one WireGuard users expect.
pub const PORT_DEFAULT: u16 = 51820;

/// Where we receive datagrams: `[ADDR:]PORT` in text, an IPv6 address in brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// One address of this host; `None` means all of them, IPv4 and IPv6.
    pub address: Option<IpAddr>,
    /// UDP port; 0 lets the kernel choose a free one.
    pub port: u16,
}

/// Every address, port [`PORT_DEFAULT`].
impl Default for Listen {
    fn default() -> Self {
        Listen { address: None, port: PORT_DEFAULT }
    }
}

/// A UDP endpoint as the operator wrote it: an address or a host name, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// IPv4 address, IPv6 address (without brackets, perhaps with `%scope`), or host name.
    pub host: String,
    /// UDP port, never 0 after parsing.
    pub port: u16,
}

/// A listening address or port that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "listen {given}: {problem}; correct are for example {PORT_DEFAULT}, 192.0.2.1:{PORT_DEFAULT} and [2001:db8::1]:{PORT_DEFAULT}"
)]
pub struct ListenError {
    /// The text given, as a message may show it.
    pub given: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// Where metrics are served: `ADDR:PORT` or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// An address of this host, and a TCP port.
    Tcp(SocketAddr),
    /// The absolute path of a socket.
    Unix(PathBuf),
}

/// A place for metrics that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "metrics {given}: {problem}; correct are for example 127.0.0.1:9586, [::1]:9586 and unix:/run/wg0.metrics"
)]
pub struct MetricsAddressError {
    /// The text given, as a message may show it.
    pub given: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// An interface address that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address {given}: {problem}; a correct one is for example 10.9.0.1/24")]
pub struct AddressError {
    /// The text given, as a message may show it.
    pub given: String,
    /// What is wrong with it.
    pub problem: &'static str,
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

impl FromStr for MetricsAddress {
    type Err = MetricsAddressError;

    /// Reads `IPV4:PORT`, `[IPV6]:PORT` or `unix:` and an absolute path.
    ///
    /// # Errors
    /// [`MetricsAddressError`].
    fn from_str(text: &str) -> Result<Self, MetricsAddressError> {
        let error = |problem| MetricsAddressError { given: quote(text), problem };
        match text.strip_prefix("unix:").map(Path::new) {
            // In the background the working directory is another.
            Some(path) if !path.is_absolute() => Err(error("the path of a socket begins with /")),
            Some(path) => Ok(MetricsAddress::Unix(path.to_owned())),
            None => match text.parse() {
                Ok(address) => Ok(MetricsAddress::Tcp(address)),
                Err(_) => Err(error("must be an IP address and a port, or unix: and the path of a socket")),
            },
        }
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetricsAddress::Tcp(address) => address.fmt(out),
            MetricsAddress::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Listen {
    type Err = ListenError;

    /// Reads `PORT`, `IPV4:PORT` or `[IPV6]:PORT`. The unspecified addresses mean what they say: one family only.
    ///
    /// # Errors
    /// [`ListenError`].
    fn from_str(text: &str) -> Result<Self, ListenError> {
        let error = |problem| ListenError { given: quote(text), problem };
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
        let port = parse_digits(port)
            .ok_or_else(|| error("the port must be a number from 1 to 65535, or 0 for any that is free"))?;
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

impl HostPort {
    /// The socket address, if the host is an address and no name. Does not wait, no name server is asked.
    ///
    /// `None` too for an IPv6 address whose scope is an interface that is not there now.
    pub fn address(&self) -> Option<SocketAddr> {
        let is_address = self.host.contains(':') || self.host.parse::<Ipv4Addr>().is_ok();
        if is_address { self.resolve().ok()?.first().copied() } else { None }
    }

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
    pub(super) fn identity(&self) -> (String, u16) {
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

/// Digits only (`u16::from_str` would take a plus sign), and not 0: the other side has to know the port.
fn parse_port(text: &str) -> Option<u16> {
    parse_digits(text).filter(|&port| port != 0)
}

pub(super) fn parse_digits(text: &str) -> Option<u16> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Parses the prefix or bare address of an interface; a bare address is `/32` or `/128`, host bits stay.
///
/// # Errors
/// [`AddressError`] if it is no prefix, or its address is not that of one host.
pub fn parse_address(text: &str) -> Result<IpNet, AddressError> {
    let error = |problem| AddressError { given: quote(text), problem };
    let address = parse_prefix(text).ok_or_else(|| error("is not an IP address with a prefix length"))?;
    if !is_one_host(address.addr()) {
        return Err(error("is not the address of one host"));
    }
    Ok(address)
}

/// A prefix, or a bare address as `/32` or `/128`; host bits stay.
pub(super) fn parse_prefix(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn is_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_unspecified() && !v4.is_multicast() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
        assert_eq!(listen("0"), Ok(Listen { address: None, port: 0 }));
        for wrong in ["", "65536", "+7", ":7", "::1:7", "[::1]", "[::1]7", "localhost:7", "7:192.0.2.1"] {
            assert!(listen(wrong).is_err(), "{wrong:?}");
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
    fn only_what_is_an_address_has_one_without_resolving() {
        let address = |text: &str| text.parse::<HostPort>().unwrap().address();
        assert_eq!(address("192.0.2.7:9"), Some("192.0.2.7:9".parse().unwrap()));
        assert_eq!(address("[::ffff:192.0.2.7]:9"), Some("192.0.2.7:9".parse().unwrap()));
        assert_eq!(address("[fe80::1%lo]:9").map(|found| found.is_ipv6()), Some(true));
        assert_eq!(address("[fe80::1%nosuchif]:9"), None);
        assert_eq!(address("localhost:9"), None);
    }

    #[test]
    fn a_name_that_does_not_resolve_is_named() {
        // RFC 2606: .invalid never exists.
        let endpoint: HostPort = "nowhere.invalid:9".parse().unwrap();
        let error = endpoint.resolve().unwrap_err();
        assert!(error.to_string().starts_with("endpoint nowhere.invalid:9: "), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in any::<String>()) {
            let _ = text.parse::<Listen>();
            let _ = text.parse::<HostPort>();
            let _ = parse_address(&text);
        }
    }

    #[test]
    fn metrics_have_an_address_or_the_absolute_path_of_a_socket() {
        let read = |text: &str| text.parse::<MetricsAddress>();
        for text in ["127.0.0.1:9586", "[::1]:9586", "unix:/run/x", "unix:/a path/with:colons"] {
            assert_eq!(read(text).unwrap().to_string(), text);
        }
        for text in ["9586", "localhost:9586", "::1:9586", "/run/x", "127.0.0.1", "127.0.0.1:65536", ""] {
            let said = read(text).unwrap_err().to_string();
            assert!(
                said.contains("an IP address and a port, or unix:") && said.contains("unix:/run/"),
                "{said}"
            );
        }
        for text in ["unix:", "unix:run/x", "unix:./x"] {
            assert_eq!(read(text).unwrap_err().problem, "the path of a socket begins with /", "{text}");
        }
    }
}
