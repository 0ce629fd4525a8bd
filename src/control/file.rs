//! The configuration file, in the format of `wg-quick`: bytes in, a [`FileConfig`] or the place of the mistake out.
//!
//! ```text
//! [Interface]
//! PrivateKey = …            key, as `uringvpn genkey` prints it
//! Address = 10.9.0.1/24     several: separated by commas, or several lines
//! ListenPort = 51820        MTU, FwMark, Table = off|auto likewise
//!
//! [Peer]
//! PublicKey = …             key; PresharedKey likewise
//! AllowedIPs = 10.9.0.2/32  several: as Address
//! Endpoint = host:51820     PersistentKeepalive = 25|off
//! ```
//!
//! Names of keys and sections have no case, `#` starts a comment. Stricter than `wg`: what is given twice or not known is
//! a mistake. Pure: [`super::cli`] reads the file. No message repeats a secret.
//!
//! Source: wireguard-tools src/config.c, wg-quick(8).

use std::collections::HashMap;
use std::str::FromStr;

use ipnet::IpNet;

use super::config::{MTU, MTU_IPV6_MIN, parse_fwmark};
use super::endpoint::{parse_address, parse_digits, parse_prefix};
use super::peer::{PeerConfig, truncate_prefixes};
use super::secret::{push, quote};
use crate::proto::keys::{PresharedKey, PrivateKey, PublicKey};

/// What a configuration file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileConfig {
    /// PrivateKey.
    pub private_key: Option<PrivateKey>,
    /// ListenPort; 0 or nothing lets the kernel choose.
    pub listen_port: Option<u16>,
    /// FwMark; 0 marks nothing.
    pub fwmark: Option<u32>,
    /// Address, in the file's order.
    pub addresses: Vec<IpNet>,
    /// MTU in bytes, within [`MTU`].
    pub mtu: Option<u16>,
    /// Table = off.
    pub table_off: bool,
    /// The peers in the file's order, each with a public key, no two with the same.
    pub peers: Vec<PeerConfig>,
    /// What is understood and not done, one sentence each, with its line.
    pub warnings: Vec<String>,
}

/// A mistake in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}, line {line}, column {column}: {problem}")]
pub struct FileError {
    /// The file's name.
    pub file: String,
    /// Line of the mistake, the first being 1.
    pub line: usize,
    /// Where in the line it starts, in characters, the first being 1.
    pub column: usize,
    /// What is wrong there.
    pub problem: FileProblem,
}

/// What is wrong at one place of the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileProblem {
    /// Bytes that are no UTF-8, or a control character.
    #[error("this is not text; is it the right file?")]
    NotText,
    /// No section in the file.
    #[error(
        "there is no [Interface] section; one with PrivateKey and Address makes a tunnel, a [Peer] each its other ends"
    )]
    NoInterface,
    /// The tunnel has no key.
    #[error("[Interface] has no PrivateKey; add \"PrivateKey = \" and what `uringvpn genkey` prints")]
    NoPrivateKey,
    /// A peer without key.
    #[error(
        "[Peer] has no PublicKey; add \"PublicKey = \" and the key of the other end, there `uringvpn pubkey` prints it"
    )]
    NoPublicKey,
    /// A section that does not exist.
    #[error("{0} is not a section; there are [Interface] and [Peer]")]
    Section(String),
    /// A second `[Interface]`.
    #[error("[Interface] is here a second time, the first is in line {0}; make them one")]
    SecondInterface(usize),
    /// Before any section.
    #[error("this stands before the first section; the first line is for example [Interface]")]
    NoSection,
    /// A line that is neither section nor setting.
    #[error("this is neither a section like [Peer] nor a setting like \"MTU = 1420\"")]
    NoSetting,
    /// A setting that does not exist.
    #[error("{name} is not a setting of [{section}]; there are {known}")]
    Unknown {
        /// Its name as given.
        name: String,
        /// The section.
        section: &'static str,
        /// Those that exist.
        known: String,
    },
    /// A setting of the other section.
    #[error("{name} belongs into a [{section}] section")]
    OtherSection {
        /// Its name.
        name: &'static str,
        /// Where it belongs.
        section: &'static str,
    },
    /// A setting that may be given once.
    #[error("{name} is given twice, first in line {line}; leave one of them")]
    Repeated {
        /// Its name.
        name: &'static str,
        /// Where it was.
        line: usize,
    },
    /// Two peers with one key.
    #[error(
        "this PublicKey is that of the [Peer] in line {0} too; make them one peer with the AllowedIPs of both"
    )]
    SecondPeer(usize),
    /// A peer with the key of the tunnel itself.
    #[error("this PublicKey belongs to the PrivateKey in [Interface]; it must be that of the other end")]
    OwnKey,
    /// Two peers with one allowed IP.
    #[error("AllowedIPs: {prefix} is given to the [Peer] in line {line} too; leave it with one of them")]
    SharedAllowedIp {
        /// The prefix.
        prefix: IpNet,
        /// Where the other peer starts.
        line: usize,
    },
    /// An MTU on which the kernel switches IPv6 off.
    #[error("MTU: {mtu} is too small for {address}; IPv6 needs at least {MTU_IPV6_MIN}")]
    MtuForIpv6 {
        /// In bytes.
        mtu: u16,
        /// The first IPv6 address.
        address: IpNet,
    },
    /// `name =` and nothing.
    #[error("{0} has no value")]
    NoValue(&'static str),
    /// A value that is none of this setting's.
    #[error("{name}: {given} is not {wanted}")]
    Value {
        /// The setting.
        name: &'static str,
        /// The value, or a word in its place if it may be secret.
        given: String,
        /// What it must be, with an example.
        wanted: String,
    },
}

/// Settings of [Interface], in the order in which they are shown.
const INTERFACE: &[&str] = &[
    "PrivateKey",
    "ListenPort",
    "FwMark",
    "Address",
    "MTU",
    "Table",
    "DNS",
    "PreUp",
    "PostUp",
    "PreDown",
    "PostDown",
    "SaveConfig",
];
/// Settings of [Peer].
const PEER: &[&str] = &["PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive"];
/// Those that several lines may have.
const SEVERAL: &[&str] = &["Address", "AllowedIPs", "DNS", "PreUp", "PostUp", "PreDown", "PostDown"];
const KEY_WANTED: &str = "a key; it has 44 characters of base64, the last one '='";

/// Reads the content of a configuration file; `file` is its name in messages.
///
/// # Errors
/// The first [`FileError`] from above.
pub fn parse(file: &str, content: &[u8]) -> Result<FileConfig, FileError> {
    let mut reader = Reader::default();
    let result = text_of(content).and_then(|text| {
        for (index, line) in text.lines().enumerate() {
            let line = Line { number: index + 1, text: line };
            reader.take_in(&line)?;
        }
        reader.end()
    });
    result.map_err(|Located { line, column, problem }| FileError {
        file: file.to_owned(),
        line,
        column,
        problem,
    })?;
    let Reader { mut config, .. } = reader;
    for peer in &mut config.peers {
        truncate_prefixes(&mut peer.allowed_ips);
    }
    config.warnings.iter_mut().for_each(|warning| *warning = format!("{file}, {warning}"));
    Ok(config)
}

/// Line and column.
type Place = (usize, usize);

/// A problem and its place.
#[derive(Debug)]
struct Located {
    line: usize,
    column: usize,
    problem: FileProblem,
}

/// The text without byte order mark.
fn text_of(content: &[u8]) -> Result<&str, Located> {
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let (text, valid) = match std::str::from_utf8(content) {
        Ok(text) => (text, true),
        Err(error) => (std::str::from_utf8(&content[..error.valid_up_to()]).unwrap_or_default(), false),
    };
    let strange = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    let end = match text.find(strange) {
        None if valid => return Ok(text),
        None => text.len(),
        Some(at) => at,
    };
    let before = &text[..end];
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    Err(Located {
        line: before.matches('\n').count() + 1,
        column: before[start..].chars().count() + 1,
        problem: FileProblem::NotText,
    })
}

struct Line<'a> {
    number: usize,
    text: &'a str,
}

impl Line<'_> {
    /// Where `part` is, which is a piece of this line.
    fn place(&self, part: &str) -> Place {
        let offset = (part.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        (self.number, self.text.get(..offset).map_or(1, |before| before.chars().count() + 1))
    }

    /// The problem, at `part`.
    fn error(&self, part: &str, problem: FileProblem) -> Located {
        let (line, column) = self.place(part);
        Located { line, column, problem }
    }

    fn value_error(&self, part: &str, name: &'static str, wanted: impl Into<String>) -> Located {
        self.error(part, FileProblem::Value { name, given: quote(part), wanted: wanted.into() })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Section {
    #[default]
    None,
    Interface,
    Peer,
}

/// What is known up to some line.
#[derive(Debug, Default)]
struct Reader {
    config: FileConfig,
    section: Section,
    /// Line in which the current section starts.
    section_line: usize,
    /// Line of [Interface]; 0 before it came.
    interface_line: usize,
    /// Settings of the current section, and their lines.
    given: HashMap<&'static str, usize>,
    /// Public keys, the lines in which their [Peer]s start, and where they stand themselves.
    peers: HashMap<PublicKey, (usize, Place)>,
    /// Allowed IPs, and the lines in which their [Peer]s start.
    allowed_ips: HashMap<IpNet, usize>,
    mtu_place: Place,
}

impl Reader {
    fn take_in(&mut self, line: &Line) -> Result<(), Located> {
        let text = line.text.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            return Ok(());
        }
        if text.starts_with('[') {
            return self.start_section(line, text);
        }
        let Some((name, value)) = text.split_once('=') else {
            return Err(line.error(text, FileProblem::NoSetting));
        };
        let (name, value) = (name.trim_end(), value.trim());
        let known = match self.section {
            Section::None => return Err(line.error(text, FileProblem::NoSection)),
            Section::Interface => {
                find(INTERFACE, name).ok_or_else(|| line.error(text, unknown(name, Section::Interface)))?
            }
            Section::Peer => {
                find(PEER, name).ok_or_else(|| line.error(text, unknown(name, Section::Peer)))?
            }
        };
        if let Some(first) = self.given.insert(known, line.number)
            && !SEVERAL.contains(&known)
        {
            return Err(line.error(text, FileProblem::Repeated { name: known, line: first }));
        }
        // As for wg, no allowed IPs at all are a list too.
        if value.is_empty() && known != "AllowedIPs" {
            return Err(line.error(text, FileProblem::NoValue(known)));
        }
        match self.section {
            Section::Peer => self.peer_setting(line, known, value),
            _ => self.interface_setting(line, known, value),
        }
    }

    fn start_section(&mut self, line: &Line, text: &str) -> Result<(), Located> {
        self.end_peer()?;
        self.given.clear();
        self.section_line = line.number;
        if text.eq_ignore_ascii_case("[Peer]") {
            self.section = Section::Peer;
            push(&mut self.config.peers, PeerConfig::default());
            return Ok(());
        }
        if !text.eq_ignore_ascii_case("[Interface]") {
            return Err(line.error(text, FileProblem::Section(quote(text))));
        }
        if self.interface_line > 0 {
            return Err(line.error(text, FileProblem::SecondInterface(self.interface_line)));
        }
        self.section = Section::Interface;
        self.interface_line = line.number;
        Ok(())
    }

    /// A [Peer] that ends here must have had its key.
    fn end_peer(&self) -> Result<(), Located> {
        if self.section == Section::Peer && !self.given.contains_key("PublicKey") {
            return Err(Located { line: self.section_line, column: 1, problem: FileProblem::NoPublicKey });
        }
        Ok(())
    }

    fn end(&self) -> Result<(), Located> {
        self.end_peer()?;
        let at = |(line, column), problem| Err(Located { line, column, problem });
        if self.interface_line == 0 {
            return at((1, 1), FileProblem::NoInterface);
        }
        let Some(private_key) = &self.config.private_key else {
            return at((self.interface_line, 1), FileProblem::NoPrivateKey);
        };
        let ours = private_key.public_key();
        if let Some((_, place)) = self.peers.get(&ours) {
            return at(*place, FileProblem::OwnKey);
        }
        let mut addresses = self.config.addresses.iter();
        match (self.config.mtu, addresses.find(|address| address.addr().is_ipv6())) {
            (Some(mtu), Some(&address)) if mtu < MTU_IPV6_MIN => {
                at(self.mtu_place, FileProblem::MtuForIpv6 { mtu, address })
            }
            _ => Ok(()),
        }
    }

    fn interface_setting(&mut self, line: &Line, name: &'static str, value: &str) -> Result<(), Located> {
        let config = &mut self.config;
        match name {
            "PrivateKey" => config.private_key = Some(key(line, name, value)?),
            "ListenPort" => {
                let wanted = "a port, a number from 0 to 65535, for example 51820; 0 lets the kernel choose";
                config.listen_port = Some(parse_digits(value).ok_or_else(|| line.value_error(value, name, wanted))?);
            }
            "FwMark" => {
                let wanted = "a number up to 0xffffffff, for example 51820 or 0xca6c, nor off";
                config.fwmark = Some(parse_fwmark(value).ok_or_else(|| line.value_error(value, name, wanted))?);
            }
            "Address" => {
                for item in items(value) {
                    let wanted = "the address of one host with its prefix length, for example 10.9.0.1/24";
                    config.addresses.push(parse_address(item).map_err(|_| line.value_error(item, name, wanted))?);
                }
            }
            "MTU" => {
                let wanted = || format!("a number of bytes from {} to {}, for example 1420", MTU.start(), MTU.end());
                let mtu = parse_digits(value).filter(|mtu| MTU.contains(mtu));
                config.mtu = Some(mtu.ok_or_else(|| line.value_error(value, name, wanted()))?);
                self.mtu_place = line.place(value);
            }
            "Table" if value.eq_ignore_ascii_case("off") => config.table_off = true,
            "Table" if value.eq_ignore_ascii_case("auto") => {}
            "Table" => {
                let wanted = "off or auto; routes in tables of their own are set by wg-quick: WG_QUICK_USERSPACE_IMPLEMENTATION=uringvpn wg-quick up FILE";
                return Err(line.value_error(value, name, wanted));
            }
            "SaveConfig" if value.eq_ignore_ascii_case("false") => {}
            _ => config.warnings.push(format!(
                "line {}: {name} is ignored; wg-quick does it: WG_QUICK_USERSPACE_IMPLEMENTATION=uringvpn wg-quick up FILE",
                line.number
            )),
        }
        Ok(())
    }

    fn peer_setting(&mut self, line: &Line, name: &'static str, value: &str) -> Result<(), Located> {
        let Some(peer) = self.config.peers.last_mut() else {
            return Err(line.error(value, FileProblem::NoSection));
        };
        match name {
            "PublicKey" => {
                let public_key: PublicKey = key(line, name, value)?;
                let places = (self.section_line, line.place(value));
                if let Some((first, _)) = self.peers.insert(public_key, places) {
                    return Err(line.error(value, FileProblem::SecondPeer(first)));
                }
                peer.public_key = Some(public_key);
            }
            "PresharedKey" => {
                peer.preshared_key =
                    Some(key::<PresharedKey>(line, name, value)?).filter(|key| !key.is_none())
            }
            "AllowedIPs" => {
                for item in items(value) {
                    let wanted = "an IP prefix, for example 10.9.0.0/24 or fd00::/64";
                    let prefix = parse_prefix(item).ok_or_else(|| line.value_error(item, name, wanted))?;
                    let prefix = prefix.trunc();
                    let here = self.section_line;
                    let first = *self.allowed_ips.entry(prefix).or_insert(here);
                    if first != here {
                        let problem = FileProblem::SharedAllowedIp { prefix, line: first };
                        return Err(line.error(item, problem));
                    }
                    peer.allowed_ips.push(prefix);
                }
            }
            "Endpoint" => {
                let wanted =
                    |problem| format!("a host and a port, for example vpn.example.org:51820: {problem}");
                peer.endpoint =
                    Some(value.parse().map_err(|problem| line.value_error(value, name, wanted(problem)))?);
            }
            _ if value.eq_ignore_ascii_case("off") => {}
            _ => {
                let wanted = "a number of seconds from 1 to 65535, for example 25, nor 0 or off";
                let seconds = parse_digits(value).ok_or_else(|| line.value_error(value, name, wanted))?;
                peer.keepalive = Some(seconds).filter(|&seconds| seconds > 0);
            }
        }
        Ok(())
    }
}

fn find(names: &[&'static str], name: &str) -> Option<&'static str> {
    names.iter().find(|known| known.eq_ignore_ascii_case(name)).copied()
}

fn unknown(name: &str, section: Section) -> FileProblem {
    let (section, known, other, others) = match section {
        Section::Peer => ("Peer", PEER, "Interface", INTERFACE),
        _ => ("Interface", INTERFACE, "Peer", PEER),
    };
    match find(others, name) {
        Some(name) => FileProblem::OtherSection { name, section: other },
        None => FileProblem::Unknown { name: quote(name), section, known: known.join(", ") },
    }
}

fn key<K: FromStr>(line: &Line, name: &'static str, value: &str) -> Result<K, Located> {
    let problem = || FileProblem::Value { name, given: "this".to_owned(), wanted: KEY_WANTED.to_owned() };
    value.parse().map_err(|_| line.error(value, problem()))
}

/// The items of a list; white space separates as well as commas do.
fn items(value: &str) -> impl Iterator<Item = &str> {
    value.split(|c: char| c == ',' || c.is_whitespace()).filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATE: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
    const PUBLIC: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    fn read(text: &str) -> Result<FileConfig, FileError> {
        parse("wg0.conf", text.as_bytes())
    }

    /// Line, column and text of the mistake; `@` stands for a private key, `$` for a public one.
    fn mistake(text: &str) -> (usize, usize, String) {
        let error = read(&text.replace('@', PRIVATE).replace('$', PUBLIC)).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with("wg0.conf, line "), "{message}");
        assert!(!message.contains(&PRIVATE[..12]) && message.lines().count() == 1, "{message}");
        (error.line, error.column, error.problem.to_string())
    }

    #[test]
    fn a_file_with_everything_is_understood() {
        let text = format!(
            "\u{feff}# office\r\n[interface]\r\nprivatekey={PRIVATE}\r\nListenPort = 51821 # udp\r\nFwMark = 0xca6c\r\n\
             Address = 10.9.0.1/24, fd00::1/64\r\naddress = 10.8.0.1\r\nMTU = 1380\r\nTable = OFF\r\n\r\n\
             [PEER]\r\nPublicKey = {PUBLIC}\r\nPresharedKey = {PRIVATE}\r\nAllowedIPs = 10.9.0.2/24,\r\n\
             AllowedIPs = fd00::2\r\nEndpoint = vpn.example.org:51820\r\nPersistentKeepalive = 25"
        );
        let config = read(&text).unwrap();
        assert_eq!(config.private_key, Some(PRIVATE.parse().unwrap()));
        assert_eq!((config.listen_port, config.fwmark, config.mtu), (Some(51821), Some(0xca6c), Some(1380)));
        assert!(config.table_off && config.warnings.is_empty());
        let nets = |text: &str| text.split(' ').map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        assert_eq!(config.addresses, nets("10.9.0.1/24 fd00::1/64 10.8.0.1/32"));
        let [peer] = config.peers.as_slice() else { panic!("{:?}", config.peers) };
        assert_eq!(peer.public_key, Some(PUBLIC.parse().unwrap()));
        assert_eq!(peer.preshared_key, Some(PRIVATE.parse().unwrap()));
        assert_eq!(peer.allowed_ips, nets("10.9.0.0/24 fd00::2/128"));
        assert_eq!(peer.endpoint, Some("vpn.example.org:51820".parse().unwrap()));
        assert_eq!(peer.keepalive, Some(25));
    }

    #[test]
    fn off_and_zero_mean_none() {
        let text = format!(
            "[Interface]\nPrivateKey={PRIVATE}\nFwMark=off\nTable=auto\nListenPort=0\nSaveConfig=false\n[Peer]\nPublicKey={PUBLIC}\n\
             PersistentKeepalive=off\nAllowedIPs=\nPresharedKey={}",
            PresharedKey::NONE.to_base64()
        );
        let config = read(&text).unwrap();
        assert_eq!((config.fwmark, config.listen_port, config.table_off), (Some(0), Some(0), false));
        let peer = &config.peers[0];
        assert_eq!((peer.keepalive, peer.preshared_key.clone(), peer.allowed_ips.len()), (None, None, 0));
        assert!(config.warnings.is_empty());
    }

    #[test]
    fn what_wg_quick_would_do_is_named_and_not_done() {
        let text = format!(
            "[Interface]\nPrivateKey={PRIVATE}\nDNS=9.9.9.9\nPostUp=iptables -A x\nPostUp=y\nPreDown=z = #\nSaveConfig=true"
        );
        let warnings = read(&text).unwrap().warnings;
        let named: Vec<_> = warnings.iter().filter_map(|text| text.split(" is ignored").next()).collect();
        assert_eq!(
            named,
            [3, 4, 5, 6, 7]
                .iter()
                .zip(["DNS", "PostUp", "PostUp", "PreDown", "SaveConfig"])
                .map(|(line, name)| format!("wg0.conf, line {line}: {name}"))
                .collect::<Vec<_>>()
        );
        assert!(
            warnings.iter().all(|warning| warning.contains("wg-quick up") && !warning.contains("iptables"))
        );
    }

    #[test]
    fn every_mistake_has_its_line_and_column_and_what_would_be_right() {
        let interface = "[Interface]\nPrivateKey = @\n";
        let peer = "[Interface]\nPrivateKey = @\n[Peer]\nPublicKey = $\n";
        for (start, rest, line, column, words) in [
            ("", "", 1, 1, "no [Interface] section"),
            ("", "\n# only\n", 1, 1, "no [Interface] section"),
            ("", "[Interface]\nMTU = 1420", 1, 1, "no PrivateKey; add"),
            ("", "PrivateKey = @", 1, 1, "before the first section"),
            ("", "\n  [Interfaces]", 2, 3, "\"[Interfaces]\" is not a section"),
            ("", "[Interface", 1, 1, "is not a section; there are [Interface] and [Peer]"),
            ("", "[Interface]\nPrivateKey = short", 2, 14, "PrivateKey: this is not a key; it has 44"),
            ("", "[Interface]\nPrivateKey = @@", 2, 14, "44 characters"),
            ("", "[Interface]\n@", 2, 1, "(not shown, it may be a key) is not a setting"),
            ("", "[Interface]\nPrivatekey: @", 2, 1, "(not shown, it may be a key) is not a setting"),
            (interface, "[interface]", 3, 1, "a second time, the first is in line 1"),
            (interface, "PrivateKey = @", 3, 1, "PrivateKey is given twice, first in line 2"),
            (interface, "nonsense", 3, 1, "neither a section"),
            (
                interface,
                "ü = 1",
                3,
                1,
                "\"ü\" is not a setting of [Interface]; there are PrivateKey, ListenPort",
            ),
            (interface, "Endpoint = h:1", 3, 1, "Endpoint belongs into a [Peer] section"),
            (interface, "MTU =", 3, 1, "MTU has no value"),
            (
                interface,
                "MTU = 67",
                3,
                7,
                "MTU: \"67\" is not a number of bytes from 68 to 65507, for example 1420",
            ),
            (interface, "MTU = @", 3, 7, "(not shown"),
            (interface, "\tListenPort\t=\t65536", 3, 15, "from 0 to 65535, for example 51820"),
            (interface, "FwMark = 0x1ffffffff", 3, 10, "up to 0xffffffff, for example"),
            (interface, "Address = 10.0.0.1/24, ten", 3, 24, "\"ten\" is not the address of one host"),
            (interface, "Address = @", 3, 11, "(not shown"),
            (interface, "Table = 51820", 3, 9, "off or auto"),
            (interface, "[Peer]\nAllowedIPs = ::/0", 3, 1, "[Peer] has no PublicKey"),
            (interface, "[Peer]\n[Peer]\nPublicKey = $", 3, 1, "[Peer] has no PublicKey"),
            (peer, "[Peer]\nPublicKey = $", 6, 13, "that of the [Peer] in line 3"),
            (peer, "Address = 10.0.0.1", 5, 1, "Address belongs into a [Interface] section"),
            (peer, "AllowedIPs = 10.0.0.0/8,10.0.0.0/33", 5, 25, "\"10.0.0.0/33\" is not an IP prefix"),
            (
                peer,
                "Endpoint = 2001:db8::7:51820",
                5,
                12,
                "vpn.example.org:51820: an IPv6 address stands in brackets",
            ),
            (peer, "Endpoint = h", 5, 12, "the port is missing"),
            (
                peer,
                "AllowedIPs = 10.0.0.9/8\n[Peer]\nAllowedIPs = 1.1.1.1, 10.0.0.0/8",
                7,
                23,
                "10.0.0.0/8 is given to the [Peer] in line 3 too",
            ),
            (
                interface,
                "MTU = 1279\nAddress = 10.0.0.1, fd00::1/64",
                3,
                7,
                "MTU: 1279 is too small for fd00::1/64",
            ),
            (peer, "PersistentKeepalive = 65536", 5, 23, "seconds from 1 to 65535"),
            (peer, "PresharedKey = x", 5, 16, "44 characters"),
        ] {
            let (at_line, at_column, message) = mistake(&format!("{start}{rest}"));
            assert_eq!((at_line, at_column), (line, column), "{rest:?}: {message}");
            assert!(message.contains(words), "{rest:?}: {message}");
        }
    }

    #[test]
    fn our_own_key_as_a_peer_is_found_wherever_it_stands() {
        let ours = PRIVATE.parse::<PrivateKey>().unwrap().public_key();
        let text = format!("[Peer]\nPublicKey = {ours}\n[Interface]\nPrivateKey = {PRIVATE}");
        let (line, column, message) = mistake(&text);
        assert_eq!((line, column), (2, 13), "{message}");
        assert!(message.contains("must be that of the other end"), "{message}");
    }

    #[test]
    fn what_is_not_text_is_refused_at_its_place() {
        for (bytes, line, column) in [
            (&b"\x7fELF\x02\x01"[..], 1, 1),
            (b"[Interface]\nMT\xff", 2, 3),
            ("[Interface]\r\nü\0".as_bytes(), 2, 2),
            (b"a\xe2\x82", 1, 2),
        ] {
            let error = parse("x", bytes).unwrap_err();
            assert_eq!((error.line, error.column, error.problem), (line, column, FileProblem::NotText));
        }
    }

    #[test]
    fn an_error_about_a_huge_line_is_short() {
        let (_, _, message) = mistake(&format!("[Interface]\n{} = 1", "x y".repeat(1 << 16)));
        assert!(message.len() < 400, "{message}");
    }
}
