//! One peer: its values, and the text form in which the operator gives it.
//!
//! [`super::cli`] parses `--peer` into a [`PeerText`] and reads the file it names; whether the [`PeerConfig`] fits the
//! device and the other peers is asked later, in [`super::config`]. Pure: a host name stays a name, a file stays a path.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;

use super::endpoint::{HostPort, HostPortProblem, parse_digits, parse_prefix};
use super::secret::show;
use super::shorten;
use crate::proto::keys::{PresharedKey, PublicKey};

/// A correct peer, shown by every error about a wrong one.
pub const PEER_EXAMPLE: &str = "192.0.2.7:51820,allowed-ips=10.9.0.2/32+fd00::2/128";

/// The other end of a tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its WireGuard key, by which it is known. `None` only with `plaintext`.
    pub public_key: Option<PublicKey>,
    /// Mixed into its handshakes; `None` is the same as [`PresharedKey::NONE`].
    pub preshared_key: Option<PresharedKey>,
    /// Where its datagrams go. `None`, not with `plaintext`: where its last authenticated datagram came from.
    pub endpoint: Option<HostPort>,
    /// Prefixes routed to this peer and accepted as inner source from it; host bits are zero, no repetitions.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds between persistent keepalives, from 1; `None` sends none.
    pub keepalive: Option<u16>,
}

/// A peer as the command line has it: its preshared key is still in a file.
///
/// In text: `[PUBLIC_KEY@][HOST:PORT][,allowed-ips=CIDR[+CIDR…]][,keepalive=SECONDS][,psk=FILE]`. Spaces have no
/// place in it: they separate peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerText {
    /// The peer, without preshared key. Printed and parsed again it is the same.
    pub peer: PeerConfig,
    /// File with the preshared key.
    pub psk_file: Option<PathBuf>,
}

/// A peer whose text is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("peer {text:?}, column {column}: {problem}; a correct one is for example {PEER_EXAMPLE}")]
pub struct PeerError {
    /// The text given, shortened if very long, without what may be a secret.
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

impl FromStr for PeerText {
    type Err = PeerError;

    /// Reads the form given at [`PeerText`].
    ///
    /// Host bits of allowed IPs are zeroed as `wg` does, a bare address means `/32` or `/128`, `keepalive=0` and
    /// `keepalive=off` mean none.
    fn from_str(text: &str) -> Result<Self, PeerError> {
        parse_peer(text).map_err(|(offset, problem)| PeerError {
            text: show_peer(text),
            column: text[..offset].chars().count() + 1,
            problem,
        })
    }
}

/// The text of a peer for a message: a public key may be seen, anything else that could be a key may not.
fn show_peer(text: &str) -> String {
    let is_public =
        |part: &str| part.split_once('@').is_some_and(|(key, _)| key.parse::<PublicKey>().is_ok());
    let parts = text.split(',').enumerate();
    let shown: Vec<_> = parts
        .map(|(index, part)| if index == 0 && is_public(part) { part.to_owned() } else { show(part) })
        .collect();
    shorten(&shown.join(","))
}

/// A problem and the byte where it starts.
type Located = (usize, PeerProblem);

fn parse_peer(text: &str) -> Result<PeerText, Located> {
    if text.is_empty() {
        return Err((0, PeerProblem::Empty));
    }
    if let Some((at, character)) = text.char_indices().find(|(_, c)| c.is_whitespace() || c.is_control()) {
        return Err((at, PeerProblem::Character(character)));
    }
    let head = text.split(',').next().unwrap_or(text);
    let mut peer = PeerText::default();
    let (key, endpoint) = match head.split_once('@') {
        None => (None, head),
        Some((key, endpoint)) => (Some(key), endpoint),
    };
    if let Some(key) = key {
        peer.peer.public_key = Some(key.parse().map_err(|_| (0, PeerProblem::PublicKey(show(key))))?);
    } else if head.parse::<PublicKey>().is_ok() {
        return Err((head.len(), PeerProblem::KeyWithoutAt));
    } else if head
        .split_once('=')
        .is_some_and(|(name, _)| matches!(name, "allowed-ips" | "keepalive" | "psk"))
    {
        // Options alone: say that the comma is missing by way of the endpoint that should be before it.
        return Err((0, PeerProblem::Endpoint(show(head), HostPortProblem::NoHost)));
    }
    if !endpoint.is_empty() {
        let at = head.len() - endpoint.len();
        let problem = |problem| (at, PeerProblem::Endpoint(show(endpoint), problem));
        peer.peer.endpoint = Some(endpoint.parse().map_err(problem)?);
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
    text: &mut PeerText,
) -> Result<(), Located> {
    let peer = &mut text.peer;
    let known = option.split_once('=').and_then(|(name, value)| {
        ["allowed-ips", "keepalive", "psk"]
            .into_iter()
            .find(|known| *known == name)
            .map(|known| (known, value))
    });
    let Some((name, value)) = known else {
        return Err((at, PeerProblem::UnknownOption(show(option))));
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
                let parsed = parse_prefix(prefix).ok_or_else(|| (at, PeerProblem::Prefix(show(prefix))))?;
                peer.allowed_ips.push(parsed);
                at += prefix.len() + 1;
            }
            truncate_prefixes(&mut peer.allowed_ips);
        }
        "keepalive" if value == "off" => {}
        "keepalive" => {
            let seconds = parse_digits(value).ok_or_else(|| (at, PeerProblem::Keepalive(show(value))))?;
            peer.keepalive = Some(seconds).filter(|&seconds| seconds > 0);
        }
        _ => text.psk_file = Some(PathBuf::from(value)),
    }
    Ok(())
}

/// Zeroes host bits as `wg` does, and drops what is then there twice.
pub(super) fn truncate_prefixes(prefixes: &mut Vec<IpNet>) {
    for prefix in prefixes.iter_mut() {
        *prefix = prefix.trunc();
    }
    drop_repetitions(prefixes);
}

pub(super) fn drop_repetitions(prefixes: &mut Vec<IpNet>) {
    let mut seen = HashSet::new();
    prefixes.retain(|prefix| seen.insert(*prefix));
}

/// The text form, but nothing of the preshared key.
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
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    fn peer(text: &str) -> PeerConfig {
        text.parse::<PeerText>().unwrap().peer
    }

    fn problem(text: &str) -> (usize, PeerProblem) {
        let error = text.parse::<PeerText>().unwrap_err();
        assert!(error.to_string().contains(PEER_EXAMPLE), "{error}");
        (error.column, error.problem)
    }

    fn nets(text: &str) -> Vec<IpNet> {
        text.split(' ').map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn a_peer_with_everything_is_understood() {
        let text =
            format!("{KEY}@[2001:db8::7]:51820,allowed-ips=10.9.0.0/24+fd00::/64,keepalive=25,psk=/etc/psk");
        let PeerText { peer: full, psk_file } = text.parse().unwrap();
        assert_eq!(full.public_key, Some(KEY.parse().unwrap()));
        assert_eq!(full.endpoint, Some(HostPort { host: "2001:db8::7".to_owned(), port: 51820 }));
        assert_eq!(full.allowed_ips, nets("10.9.0.0/24 fd00::/64"));
        assert_eq!(full.keepalive, Some(25));
        assert_eq!(psk_file, Some(PathBuf::from("/etc/psk")));
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
    fn a_key_where_no_key_belongs_is_not_repeated() {
        for text in [
            "h:1,preshared-key=K",
            "h:1,allowed-ips=K",
            "h:1,psk=K,psk=K",
            "h:1,keepalive=K",
            "K",
            "joe:K@h:1",
        ] {
            let error = text.replace('K', KEY).parse::<PeerText>().unwrap_err().to_string();
            assert!(!error.contains(&KEY[..20]), "{error}");
        }
        let error = format!("{KEY}@h").parse::<PeerText>().unwrap_err().to_string();
        assert!(error.contains(KEY), "a public key may be seen: {error}");
    }

    #[test]
    fn an_error_about_a_huge_peer_is_short() {
        let error = "x".repeat(1 << 20).parse::<PeerText>().unwrap_err();
        assert!(error.to_string().len() < 600);
    }

    #[test]
    fn a_key_has_exactly_the_base64_of_32_bytes() {
        let is_key = |key: &str| format!("{key}@").parse::<PeerText>().is_ok();
        assert!(is_key(KEY));
        assert!(!is_key(&KEY[1..]));
        assert!(!is_key(&KEY.replace('=', "A")));
        assert!(!is_key(&KEY.replace('x', "-")));
        // Spare bits set: another spelling of the same bytes, which no tool writes.
        assert!(!is_key(&KEY.replace("Dg=", "Dh=")));
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
            prop::option::of(any::<[u8; 32]>().prop_map(PublicKey::from_bytes)),
            prop::option::of((host, 1..=u16::MAX).prop_map(|(host, port)| HostPort { host, port })),
            prefixes,
            prop::option::of(1..=u16::MAX),
        )
            .prop_map(|(public_key, endpoint, mut allowed_ips, keepalive)| {
                truncate_prefixes(&mut allowed_ips);
                PeerConfig { public_key, preshared_key: None, endpoint, allowed_ips, keepalive }
            })
            .prop_filter("nothing at all has no text", |peer| *peer != PeerConfig::default())
    }

    proptest! {
        #[test]
        fn a_printed_peer_parses_to_itself(original in peers()) {
            let text = original.to_string();
            prop_assert_eq!(text.parse::<PeerText>().map(|parsed| parsed.peer), Ok(original), "{}", text);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in any::<String>()) {
            if let Err(error) = text.parse::<PeerText>() {
                prop_assert!(error.column <= text.chars().count() + 1);
            }
        }

        #[test]
        fn nor_does_a_text_made_of_a_peers_pieces(pieces in prop::collection::vec(prop::sample::select(vec![
            KEY, "@", "h", ":", "1", "[", "]", "::1", "%", ",", "allowed-ips=", "keepalive=", "psk=", "+",
            "10.0.0.0/8", "/", "off", "ü", " ", "=",
        ]), 0..12)) {
            let text = pieces.concat();
            match text.parse::<PeerText>() {
                Err(error) => prop_assert!(error.column <= text.chars().count() + 1),
                // Nothing, and a file alone, have no text.
                Ok(parsed) if parsed.peer == PeerConfig::default() => {}
                Ok(PeerText { peer, .. }) => {
                    prop_assert_eq!(peer.to_string().parse::<PeerText>().map(|parsed| parsed.peer), Ok(peer));
                }
            }
        }
    }
}
