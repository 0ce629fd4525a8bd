//! The PROXY protocol, version 2: tells the local service where a visitor comes from, in front of its first byte.
//!
//! Source: haproxy.org/download/2.8/doc/proxy-protocol.txt §2.2.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and what it is about: the connection itself, or one that is passed on.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
/// TCP over IPv4 and over IPv6.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// The header for a connection between two addresses, from the first to the second. Unknown, the service takes the connection
/// itself for the visitor's.
pub fn header(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let (command, family, block) = match addresses {
        None => (LOCAL, 0, Vec::new()),
        Some((from, to)) => {
            let (family, mut block) = match (from.ip(), to.ip()) {
                (IpAddr::V4(from), IpAddr::V4(to)) => (TCP4, [from.octets(), to.octets()].concat()),
                (from, to) => (TCP6, [v6(from).octets(), v6(to).octets()].concat()),
            };
            block.extend(from.port().to_be_bytes());
            block.extend(to.port().to_be_bytes());
            (PROXY, family, block)
        }
    };
    let mut header = SIGNATURE.to_vec();
    header.extend([command, family]);
    header.extend((block.len() as u16).to_be_bytes());
    header.extend(block);
    header
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_the_specification_draws_them() {
        let signature = "0d0a0d0a000d0a515549540a";
        let hex = |from: &str, to: &str| {
            let header = header(Some((from.parse().unwrap(), to.parse().unwrap())));
            base16ct::lower::encode_string(&header)
        };
        assert_eq!(
            hex("192.0.2.1:4660", "198.51.100.2:80"),
            format!("{signature}2111000cc0000201c633640212340050")
        );
        assert_eq!(
            hex("[2001:db8::1]:4660", "198.51.100.2:80"),
            format!(
                "{signature}2121002420010db800000000000000000000000100000000000000000000ffffc633640212340050"
            )
        );
        assert_eq!(base16ct::lower::encode_string(&header(None)), format!("{signature}20000000"));
    }
}
