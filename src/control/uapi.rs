//! The cross-platform configuration protocol of WireGuard: the text that `wg` and `wg-quick` speak.
//!
//! A request is `get=1` or `set=1`, lines `key=value`, and a blank line; [`RequestParser`] reads it in pieces of any size.
//! A set is understood as a whole before any of it can be applied. The answer to a get is written by [`emit`]. Pure: the
//! socket is [`super::uapi_socket`]'s, and what a set does to the device is its owner's.
//!
//! Every blank line gets exactly one answer. After a wrong line the rest of the request is read and ignored up to its
//! blank line, so the connection stays usable.
//!
//! Source: wireguard.com/xplatform, "Configuration Protocol".

use std::io::{self, Write};
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use ipnet::IpNet;
use nix::errno::Errno;
use zeroize::{Zeroize, Zeroizing};

use super::endpoint::parse_digits;
use super::secret::push;
use crate::proto::keys::{PresharedKey, PrivateKey, PublicKey};
use crate::time::WallTime;

/// Longest line in bytes, without its end. The longest one with a meaning, a `preshared_key`, has 78.
pub const LINE_BYTES_MAX: usize = 512;

/// What a client may ask for at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Bytes up to and including the blank line.
    pub bytes: usize,
    /// `public_key` lines.
    pub peers: usize,
    /// `allowed_ip` lines.
    pub allowed_ips: usize,
}

/// Enough to replace 1,048,576 peers (the kernel's limit), each with all its settings and a few allowed IPs, by as many
/// others. What is understood of such a request takes at most about three times as many bytes as its text.
impl Default for RequestLimits {
    fn default() -> RequestLimits {
        RequestLimits { bytes: 512 << 20, peers: 2 << 20, allowed_ips: 8 << 20 }
    }
}

/// What a client wants.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// The device's state; answered by [`emit`].
    Get,
    /// Changes; answered by an errno alone. In one place until it is wiped.
    Set(Box<SetRequest>),
}

/// Changes of a device, to be applied in the order of the fields.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SetRequest {
    /// `Some(None)` takes the private key away.
    pub private_key: Option<Option<PrivateKey>>,
    /// UDP port; 0 lets the kernel choose one.
    pub listen_port: Option<u16>,
    /// Firewall mark of what we send; 0 is none.
    pub fwmark: Option<u32>,
    /// Remove all peers before anything is done to them.
    pub replace_peers: bool,
    /// One entry per `public_key` line, to be applied in order. A key may come again and is then changed again.
    pub peers: Vec<PeerChange>,
}

/// Changes of one peer.
#[derive(Debug, PartialEq, Eq)]
pub struct PeerChange {
    /// Which peer.
    pub public_key: PublicKey,
    /// Do nothing if there is no such peer; otherwise it is created.
    pub update_only: bool,
    /// Remove it; the other fields then mean nothing.
    pub remove: bool,
    /// [`PresharedKey::NONE`] takes it away.
    pub preshared_key: Option<PresharedKey>,
    /// Where it is from now on, until it roams. Never port 0, never an IPv4-mapped IPv6 address.
    pub endpoint: Option<SocketAddr>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: Option<u16>,
    /// Take all its allowed IPs away before the changes below.
    pub replace_allowed_ips: bool,
    /// To be applied in order.
    pub allowed_ips: Vec<AllowedIpChange>,
}

// The shortest peer is a line of 76 bytes, the shortest allowed IP one of 16: what RequestLimits says of memory.
const _: () = assert!(size_of::<PeerChange>() <= 144 && size_of::<AllowedIpChange>() <= 20);

/// One allowed IP more or less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllowedIpChange {
    /// Host bits are zero.
    pub prefix: IpNet,
    /// Take it away, if this peer has it; otherwise it moves here from whichever peer has it.
    pub remove: bool,
}

/// All that a get tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// `None` until one is set.
    pub private_key: Option<PrivateKey>,
    /// The UDP port in use; 0 if none is.
    pub listen_port: u16,
    /// Firewall mark; 0 is none.
    pub fwmark: u32,
    /// In any order.
    pub peers: Vec<PeerState>,
}

/// All that a get tells about one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerState {
    /// Its name.
    pub public_key: PublicKey,
    /// Shown as zeros if there is none.
    pub preshared_key: PresharedKey,
    /// Where it was last heard of.
    pub endpoint: Option<SocketAddr>,
    /// End of the last handshake on the wall clock; 0 is never.
    pub last_handshake: WallTime,
    /// Bytes of UDP payload sent to it.
    pub tx_bytes: u64,
    /// Bytes of UDP payload received from it.
    pub rx_bytes: u64,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// In any order.
    pub allowed_ips: Vec<IpNet>,
}

/// A request that cannot be understood. Nothing of it may be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the request: {problem}")]
pub struct RequestError {
    /// Counted from 1 within the request.
    pub line: usize,
    /// What is wrong with it.
    pub problem: RequestProblem,
}

/// What is wrong with a line. Never says what the line was: it may be a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestProblem {
    /// The first line is no operation.
    #[error("a request begins with get=1 or set=1")]
    Operation,
    /// Something between `get=1` and the blank line.
    #[error("after get=1 comes a blank line")]
    AfterGet,
    /// No `=`, or a line that ends as on Windows where the blank line should be.
    #[error("a line has the form key=value and ends in a newline")]
    NoEquals,
    /// More than [`LINE_BYTES_MAX`].
    #[error("a line has at most {LINE_BYTES_MAX} bytes")]
    LineTooLong,
    /// A key that does not exist, or not in this place.
    #[error("there is no such key for a device before the first public_key, or for a peer after it")]
    UnknownKey,
    /// This key cannot have this value.
    #[error("{0} has a wrong value")]
    Value(&'static str),
    /// More of this key than [`RequestLimits`] allows.
    #[error("too many lines with {0}; send them in several requests")]
    TooMany(&'static str),
    /// Longer than [`RequestLimits`] allows. The end of the request is not waited for: close the connection.
    #[error("the request is too long; send it in several parts")]
    TooLarge,
}

impl RequestError {
    /// What the client is told.
    pub fn errno(&self) -> Errno {
        match self.problem {
            RequestProblem::NoEquals => Errno::EPROTO,
            RequestProblem::TooMany(_) | RequestProblem::TooLarge => Errno::E2BIG,
            _ => Errno::EINVAL,
        }
    }
}

/// Reads requests from a stream of bytes. Holds one line and what the lines before it meant.
pub struct RequestParser {
    limits: RequestLimits,
    /// Number of the network interface of this name, for the scope of an IPv6 endpoint.
    interface_index: fn(&str) -> Option<u32>,
    /// The line so far. Never grows past its first allocation, so no copy of a key stays behind.
    line: Zeroizing<Vec<u8>>,
    line_too_long: bool,
    line_number: usize,
    request_bytes: usize,
    allowed_ips: usize,
    progress: Progress,
}

/// What the lines so far mean.
#[derive(Default)]
enum Progress {
    #[default]
    Start,
    Get,
    Set(Box<SetRequest>),
    Failed(RequestError),
}

impl RequestParser {
    /// At the start of a request. `interface_index` gives the number of a network interface.
    pub fn new(limits: RequestLimits, interface_index: fn(&str) -> Option<u32>) -> RequestParser {
        RequestParser {
            limits,
            interface_index,
            line: Zeroizing::new(Vec::with_capacity(LINE_BYTES_MAX)),
            line_too_long: false,
            line_number: 0,
            request_bytes: 0,
            allowed_ips: 0,
            progress: Progress::Start,
        }
    }

    /// Takes bytes from the front of `bytes` up to the end of a request; `None` when they are used up before.
    ///
    /// # Errors
    /// [`RequestError`], at the blank line; only [`RequestProblem::TooLarge`] comes earlier.
    pub fn feed(&mut self, bytes: &mut &[u8]) -> Option<Result<Request, RequestError>> {
        while !bytes.is_empty() {
            let newline = bytes.iter().position(|&byte| byte == b'\n');
            let (part, rest) = match newline {
                Some(at) => (&bytes[..at], &bytes[at + 1..]),
                None => (*bytes, &[][..]),
            };
            self.request_bytes += bytes.len() - rest.len();
            *bytes = rest;
            self.append(part);
            if self.request_bytes > self.limits.bytes {
                self.fail(RequestProblem::TooLarge);
                return Some(self.finish());
            }
            if newline.is_some()
                && let Some(request) = self.end_line()
            {
                return Some(request);
            }
        }
        None
    }

    fn append(&mut self, part: &[u8]) {
        if part.len() <= LINE_BYTES_MAX - self.line.len() {
            self.line.extend_from_slice(part);
        } else {
            self.line_too_long = true;
        }
    }

    /// Understands the line; if it is the blank one, returns the request.
    fn end_line(&mut self) -> Option<Result<Request, RequestError>> {
        self.line_number += 1;
        let too_long = mem::take(&mut self.line_too_long);
        // A blank line with a carriage return ends the request too, or its sender would wait for the error for ever.
        let blank = !too_long && matches!(self.line.as_slice(), b"" | b"\r");
        let understood = match self.line.as_slice() {
            _ if too_long => Err(RequestProblem::LineTooLong),
            b"" if self.line_number == 1 => Err(RequestProblem::Operation),
            b"" => Ok(()),
            _ => self.understand_line(),
        };
        // What was written, not the whole allocation: the rest has been wiped with the lines before.
        self.line.as_mut_slice().zeroize();
        self.line.clear();
        if let Err(problem) = understood {
            self.fail(problem);
        }
        blank.then(|| self.finish())
    }

    /// The first error stays.
    fn fail(&mut self, problem: RequestProblem) {
        if !matches!(self.progress, Progress::Failed(_)) || problem == RequestProblem::TooLarge {
            self.progress = Progress::Failed(RequestError { line: self.line_number.max(1), problem });
        }
    }

    /// Ready for the next request.
    fn finish(&mut self) -> Result<Request, RequestError> {
        let start = RequestError { line: 1, problem: RequestProblem::Operation };
        (self.line_number, self.request_bytes, self.allowed_ips) = (0, 0, 0);
        match mem::take(&mut self.progress) {
            Progress::Start => Err(start),
            Progress::Get => Ok(Request::Get),
            Progress::Set(request) => Ok(Request::Set(request)),
            Progress::Failed(error) => Err(error),
        }
    }

    fn understand_line(&mut self) -> Result<(), RequestProblem> {
        if matches!(self.progress, Progress::Failed(_)) {
            return Ok(());
        }
        let equals = self.line.iter().position(|&byte| byte == b'=').ok_or(RequestProblem::NoEquals)?;
        let key = str::from_utf8(&self.line[..equals]).map_err(|_| RequestProblem::UnknownKey)?;
        // No value is empty, so this one is wrong wherever it stands.
        let value = str::from_utf8(&self.line[equals + 1..]).unwrap_or_default();
        match &mut self.progress {
            Progress::Start => {
                self.progress = match (key, value) {
                    ("get", "1") => Progress::Get,
                    ("set", "1") => Progress::Set(Box::default()),
                    _ => return Err(RequestProblem::Operation),
                };
                Ok(())
            }
            Progress::Get => Err(RequestProblem::AfterGet),
            Progress::Set(request) if key == "public_key" => {
                if request.peers.len() >= self.limits.peers {
                    return Err(RequestProblem::TooMany("public_key"));
                }
                let key = PublicKey::from_hex(value).map_err(|_| RequestProblem::Value("public_key"))?;
                push(&mut request.peers, PeerChange::new(key));
                Ok(())
            }
            Progress::Set(request) => match request.peers.last_mut() {
                None => device_line(request, key, value),
                Some(_) if key == "allowed_ip" && self.allowed_ips >= self.limits.allowed_ips => {
                    Err(RequestProblem::TooMany("allowed_ip"))
                }
                Some(peer) => {
                    self.allowed_ips += usize::from(key == "allowed_ip");
                    peer_line(peer, key, value, self.interface_index)
                }
            },
            Progress::Failed(_) => Ok(()),
        }
    }
}

impl PeerChange {
    /// No change yet, except that the peer is created if it does not exist.
    pub fn new(public_key: PublicKey) -> PeerChange {
        PeerChange {
            public_key,
            update_only: false,
            remove: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

fn device_line(request: &mut SetRequest, key: &str, value: &str) -> Result<(), RequestProblem> {
    match key {
        "private_key" => request.private_key = Some(required("private_key", parse_private_key(value))?),
        "listen_port" => request.listen_port = Some(required("listen_port", parse_digits(value))?),
        "fwmark" => request.fwmark = Some(required("fwmark", parse_mark(value))?),
        "replace_peers" => request.replace_peers = required("replace_peers", parse_true(value))?,
        _ => return Err(RequestProblem::UnknownKey),
    }
    Ok(())
}

fn peer_line(
    peer: &mut PeerChange,
    key: &str,
    value: &str,
    interface_index: fn(&str) -> Option<u32>,
) -> Result<(), RequestProblem> {
    match key {
        "update_only" => peer.update_only = required("update_only", parse_true(value))?,
        "remove" => peer.remove = required("remove", parse_true(value))?,
        "preshared_key" => {
            peer.preshared_key = Some(required("preshared_key", PresharedKey::from_hex(value).ok())?);
        }
        "endpoint" => peer.endpoint = Some(required("endpoint", parse_endpoint(value, interface_index))?),
        "persistent_keepalive_interval" => {
            let seconds = required("persistent_keepalive_interval", parse_digits(value))?;
            peer.persistent_keepalive = Some(seconds);
        }
        "replace_allowed_ips" => {
            peer.replace_allowed_ips = required("replace_allowed_ips", parse_true(value))?;
            // Lines mean what they mean in their order: those before this one are replaced too.
            peer.allowed_ips.clear();
        }
        "allowed_ip" => peer.allowed_ips.push(required("allowed_ip", parse_allowed_ip(value))?),
        "protocol_version" if value == "1" => {}
        "protocol_version" => return Err(RequestProblem::Value("protocol_version")),
        _ => return Err(RequestProblem::UnknownKey),
    }
    Ok(())
}

fn required<T>(key: &'static str, value: Option<T>) -> Result<T, RequestProblem> {
    value.ok_or(RequestProblem::Value(key))
}

fn parse_true(value: &str) -> Option<bool> {
    (value == "true").then_some(true)
}

/// Decimal digits only.
fn parse_mark(value: &str) -> Option<u32> {
    if value.bytes().all(|byte| byte.is_ascii_digit()) { value.parse().ok() } else { None }
}

/// 64 hexadecimal digits; zeros mean no key.
fn parse_private_key(value: &str) -> Option<Option<PrivateKey>> {
    // Read as bytes that are not clamped, else zeros would not be seen.
    let bytes = PresharedKey::from_hex(value).ok()?;
    Some((!bytes.is_none()).then(|| PrivateKey::from_bytes(*bytes.expose())))
}

/// `IPV4:PORT`, `[IPV6]:PORT` or `[IPV6%SCOPE]:PORT`; the port is not 0. No host names: the tools resolve them.
fn parse_endpoint(value: &str, interface_index: fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let (host, port) = value.rsplit_once(':')?;
    let port = parse_digits(port).filter(|&port| port != 0)?;
    let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) else {
        return Some((host.parse::<Ipv4Addr>().ok()?, port).into());
    };
    let (address, scope) = match inner.split_once('%') {
        None => (inner, 0),
        Some((address, scope)) => (address, parse_mark(scope).or_else(|| interface_index(scope))?),
    };
    let address: Ipv6Addr = address.parse().ok()?;
    Some(match address.to_ipv4_mapped() {
        Some(mapped) => (mapped, port).into(),
        None => SocketAddrV6::new(address, port, 0, scope).into(),
    })
}

/// `ADDRESS/BITS`, or `-ADDRESS/BITS` to take it away; host bits are cut off as the kernel does.
fn parse_allowed_ip(value: &str) -> Option<AllowedIpChange> {
    let (prefix, remove) = match value.strip_prefix('-') {
        Some(prefix) => (prefix, true),
        None => (value, false),
    };
    let (address, bits) = prefix.split_once('/')?;
    let bits = u8::try_from(parse_digits(bits)?).ok()?;
    let prefix = IpNet::new(address.parse().ok()?, bits).ok()?.trunc();
    Some(AllowedIpChange { prefix, remove })
}

/// Writes the answer to a get, in many small writes: keys of the device, keys of each peer, `errno=0`, blank line.
///
/// # Errors
/// Those of `out`.
pub fn emit(state: &DeviceState, out: &mut impl Write) -> io::Result<()> {
    if let Some(key) = &state.private_key {
        emit_secret("private_key", key.to_hex(), out)?;
    }
    writeln!(out, "listen_port={}\nfwmark={}", state.listen_port, state.fwmark)?;
    for peer in &state.peers {
        emit_peer(peer, out)?;
    }
    emit_errno(Ok(()), out)
}

fn emit_peer(peer: &PeerState, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "public_key={}", peer.public_key.to_hex())?;
    emit_secret("preshared_key", peer.preshared_key.to_hex(), out)?;
    writeln!(out, "protocol_version=1")?;
    if let Some(endpoint) = &peer.endpoint {
        writeln!(out, "endpoint={endpoint}")?;
    }
    writeln!(out, "last_handshake_time_sec={}", peer.last_handshake.secs())?;
    writeln!(out, "last_handshake_time_nsec={}", peer.last_handshake.nanos())?;
    writeln!(out, "tx_bytes={}\nrx_bytes={}", peer.tx_bytes, peer.rx_bytes)?;
    writeln!(out, "persistent_keepalive_interval={}", peer.persistent_keepalive)?;
    for prefix in &peer.allowed_ips {
        writeln!(out, "allowed_ip={prefix}")?;
    }
    Ok(())
}

fn emit_secret(key: &str, hex: String, out: &mut impl Write) -> io::Result<()> {
    let hex = Zeroizing::new(hex);
    writeln!(out, "{key}={}", *hex)
}

/// Writes how a request went: the end of every answer, and all of the answer to a set.
///
/// # Errors
/// Those of `out`.
pub fn emit_errno(result: Result<(), Errno>, out: &mut impl Write) -> io::Result<()> {
    // Negative as the kernel returns them; the tools negate once more.
    let number = result.err().map_or(0, |errno| -(errno as i32));
    write!(out, "errno={number}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parser() -> RequestParser {
        RequestParser::new(RequestLimits::default(), |name| (name == "eth7").then_some(7))
    }

    #[test]
    fn a_value_is_decimal_digits_and_nothing_else() {
        for wrong in ["", "+1", "-1", " 1", "1 ", "0x1", "4294967296", "1e3", "١"] {
            assert_eq!(parse_mark(wrong), None, "{wrong:?}");
        }
        assert_eq!(parse_mark("4294967295"), Some(u32::MAX));
    }

    #[test]
    fn an_endpoint_is_an_address_and_a_port() {
        let scope = |name: &str| (name == "eth7").then_some(7);
        let parse = |text: &str| parse_endpoint(text, scope).map(|endpoint| endpoint.to_string());
        for (text, expected) in [
            ("192.0.2.7:1", Some("192.0.2.7:1")),
            ("[2001:db8::7]:65535", Some("[2001:db8::7]:65535")),
            ("[fe80::1%3]:5", Some("[fe80::1%3]:5")),
            ("[fe80::1%eth7]:5", Some("[fe80::1%7]:5")),
            ("[fe80::1%eth8]:5", None),
            ("[fe80::1%]:5", None),
            ("[::ffff:192.0.2.7]:5", Some("192.0.2.7:5")),
            ("[192.0.2.7]:5", None),
            ("2001:db8::7:5", None),
            ("example.org:5", None),
            ("192.0.2.7:0", None),
            ("192.0.2.7:+5", None),
            ("192.0.2.7", None),
            ("192.0.2:5", None),
            ("", None),
        ] {
            assert_eq!(parse(text).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn an_allowed_ip_has_a_mask_and_loses_its_host_bits() {
        let parse = |text: &str| parse_allowed_ip(text).map(|ip| (ip.prefix.to_string(), ip.remove));
        let prefix = |text: &str, remove| Some((text.to_owned(), remove));
        assert_eq!(parse("10.1.2.3/8"), prefix("10.0.0.0/8", false));
        assert_eq!(parse("-10.1.2.3/32"), prefix("10.1.2.3/32", true));
        assert_eq!(parse("fd00::1/64"), prefix("fd00::/64", false));
        assert_eq!(parse("::ffff:1.2.3.4/120"), prefix("::ffff:1.2.3.0/120", false));
        for wrong in
            ["10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "::/129", "/8", "10/8", "--::/0", "::/+1", "::/256"]
        {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn junk_without_an_end_grows_nothing() {
        let mut parser = parser();
        for _ in 0..1000 {
            assert_eq!(parser.feed(&mut [b'x'; 1000].as_slice()), None);
        }
        assert!(parser.line.capacity() <= LINE_BYTES_MAX);
        assert_eq!(
            parser.feed(&mut b"\n\n".as_slice()),
            Some(Err(RequestError { line: 1, problem: RequestProblem::LineTooLong }))
        );
    }
}
