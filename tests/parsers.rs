//! Arbitrary and mutated bytes into every parser and into everything behind it: nothing panics.
#![allow(clippy::unwrap_used)]

mod packets;

use packets::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use uringvpn::control::file;
use uringvpn::control::uapi::{Request, RequestError, RequestLimits, RequestParser};
use uringvpn::offload::Part;
use uringvpn::offload::coalesce::{Coalescer, Merge};
use uringvpn::offload::split::Split;
use uringvpn::offload::stride::datagrams;
use uringvpn::time::Time;
use uringvpn::wire::icmp::IcmpError;
use uringvpn::wire::ip::IpView;
use uringvpn::wire::l4::{TcpView, UdpView};
use uringvpn::wire::vnet_hdr::{VNET_HDR_BYTES, VnetHdr};

/// Everything that ever sees bytes from outside.
fn swallow(read: &[u8], coalescer: &mut Coalescer) {
    let _ = TcpView::parse(read);
    let _ = UdpView::parse(read);
    let Ok((vnet, packet)) = VnetHdr::parse(read) else {
        return;
    };
    let Ok(ip) = IpView::parse(packet) else {
        return;
    };
    assert!(ip.header_bytes as u32 <= ip.total_bytes && ip.total_bytes as usize <= packet.len());
    if let Some(answer) = IcmpError::unreachable(packet) {
        assert!(u32::from(answer.quoted_bytes()) <= ip.total_bytes);
        // It is an ICMP error itself.
        let answer = [answer.headers(), &packet[..answer.quoted_bytes().into()]].concat();
        assert!(IpView::parse(&answer).is_ok() && IcmpError::unreachable(&answer).is_none());
    }
    let place = Part { slot: 0, start: 0, len: packet.len() as u32 };
    coalescer.push(packet, &ip, place, Time::default());
    let Ok(split) = Split::plan(&vnet, packet, &ip) else {
        return;
    };
    let mut total = 0;
    for index in 0..split.count() {
        let bytes = split.segment_bytes(index);
        assert!(bytes <= split.full_segment_bytes() && bytes <= ip.total_bytes as usize);
        let mut out = vec![0; bytes];
        split.emit(packet, index, &mut out);
        assert_eq!(IpView::parse(&out).unwrap().total_bytes as usize, bytes);
        total += bytes;
    }
    assert!(total >= ip.total_bytes as usize, "no payload is lost");
}

fn swallow_twice(read: &[u8]) {
    let mut coalescer = Coalescer::new(Merge { tcp: true, udp: true });
    swallow(read, &mut coalescer);
    swallow(read, &mut coalescer);
    assert!(coalescer.drain().count() <= 2);
}

/// What the configuration protocol's parser makes of `text` when it comes in pieces of these sizes.
fn requests(text: &[u8], pieces: impl Iterator<Item = usize>) -> Vec<Result<Request, RequestError>> {
    let mut parser = RequestParser::new(RequestLimits::default(), |_| Some(1));
    let (mut rest, mut found) = (text, Vec::new());
    for piece in pieces {
        let (mut now, later) = rest.split_at(piece.min(rest.len()));
        rest = later;
        while let Some(request) = parser.feed(&mut now) {
            found.push(request);
        }
        assert!(now.is_empty(), "what is not the end of a request is taken");
    }
    found
}

fn check_requests(text: &[u8], piece: usize) -> Result<(), TestCaseError> {
    let whole = requests(text, std::iter::once(text.len()));
    let pieces = requests(text, std::iter::repeat_n(piece, text.len()));
    prop_assert_eq!(&whole, &pieces);
    let ended = text.split_inclusive(|&byte| byte == b'\n');
    let blank = ended.filter(|&line| line == b"\n" || line == b"\r\n").count();
    prop_assert_eq!(whole.len(), blank, "one answer per blank line");
    Ok(())
}

const FILE_KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";

/// What files are made of, right and wrong.
const FILE_PIECES: &[&str] = &[
    "\n",
    "\r\n",
    "[Interface]\n",
    "[peer]\n",
    "[",
    "]",
    " = ",
    "=",
    "#",
    ",",
    "\u{feff}",
    "ü",
    "\t",
    FILE_KEY,
    "PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n",
    "PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\n",
    "PresharedKey = ",
    "AllowedIPs = 10.0.0.0/8,fd00::/64\n",
    "Address = 10.9.0.1/24\n",
    "Endpoint = h:1\n",
    "Endpoint = [::1]:7\n",
    "MTU = 1420\n",
    "FwMark = 0x1\n",
    "Table = off\n",
    "PersistentKeepalive = 25\n",
    "PostUp = x\n",
    "DNS = 9.9.9.9\n",
    "ListenPort = 70000\n",
];

fn read_file(bytes: &[u8]) {
    match file::parse("wg0.conf", bytes) {
        Ok(config) => {
            assert!(config.private_key.is_some() && config.peers.iter().all(|peer| peer.public_key.is_some()))
        }
        Err(error) => {
            let lines: Vec<_> = bytes.split(|&byte| byte == b'\n').collect();
            let place = format!("{error} in {:?}", String::from_utf8_lossy(bytes));
            assert!((1..=lines.len()).contains(&error.line), "{place}");
            assert!((1..=lines[error.line - 1].len() + 1).contains(&error.column), "{place}");
            assert!(!error.to_string().contains(&FILE_KEY[..20]), "{place}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn arbitrary_bytes_are_swallowed(read in vec(any::<u8>(), 0..200)) {
        swallow_twice(&read);
    }

    #[test]
    fn arbitrary_bytes_behind_a_version_are_swallowed(
        mut read in vec(any::<u8>(), 40..300), version in prop::sample::select(vec![0x45, 0x46, 0x4f, 0x60]),
        next in prop::sample::select(vec![0, 6, 17, 43, 44, 60]), gso_type in prop::sample::select(vec![0, 1, 4, 5, 0x81, 0x84]),
    ) {
        read[1] = gso_type;
        read[VNET_HDR_BYTES] = version;
        let total = read.len() - VNET_HDR_BYTES;
        if version == 0x60 {
            read[VNET_HDR_BYTES + 4..][..2].copy_from_slice(&(total.saturating_sub(40) as u16).to_be_bytes());
            read[VNET_HDR_BYTES + 6] = next;
        } else {
            read[VNET_HDR_BYTES + 2..][..2].copy_from_slice(&(total as u16).to_be_bytes());
            read[VNET_HDR_BYTES + 6..][..2].fill(0);
            read[VNET_HDR_BYTES + 9] = next;
        }
        swallow_twice(&read);
    }

    #[test]
    fn mutated_superpackets_are_swallowed(
        (v6, udp) in any::<(bool, bool)>(), len in 0usize..2_000, mss in 1u16..300,
        changes in vec((any::<Index>(), any::<u8>()), 0..4), header_changes in vec((0usize..100, any::<u8>()), 0..4),
        cut in prop::option::of(any::<Index>()),
    ) {
        let packet = Packet { udp, extensions: vec![(60, vec![0; 8])], ..Packet::tcp(v6, payload(len, 1)) };
        let mut read = packet.tun_read(mss);
        for (index, value) in changes {
            let at = index.index(read.len());
            read[at] = value;
        }
        for (at, value) in header_changes {
            if let Some(byte) = read.get_mut(at) {
                *byte = value;
            }
        }
        if let Some(cut) = cut {
            read.truncate(cut.index(read.len()));
        }
        swallow_twice(&read);
    }

    #[test]
    fn a_configuration_file_of_arbitrary_bytes_is_understood_or_its_place_told(bytes in vec(any::<u8>(), 0..400)) {
        read_file(&bytes);
    }

    #[test]
    fn a_configuration_file_of_mixed_up_lines_is_understood_or_its_place_told(
        pieces in vec(prop::sample::select(FILE_PIECES.to_vec()), 0..24), cut in any::<Index>(), junk in any::<u8>(),
    ) {
        let mut bytes = pieces.concat().into_bytes();
        read_file(&bytes);
        if !bytes.is_empty() {
            let at = cut.index(bytes.len());
            bytes[at] = junk;
            read_file(&bytes);
        }
    }

    #[test]
    fn datagrams_of_a_stride_cover_what_was_received(bytes in 0usize..70_000, stride in 0usize..70_000) {
        let mut at = 0;
        for range in datagrams(bytes, stride) {
            prop_assert_eq!(range.start, at);
            prop_assert!(stride == 0 || range.len() <= stride);
            at = range.end;
        }
        prop_assert_eq!(at, bytes);
    }

    #[test]
    fn arbitrary_configuration_requests_are_answered_once_each(
        text in vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b'='), Just(b'\r')], 0..300), piece in 1usize..20,
    ) {
        check_requests(&text, piece)?;
    }

    #[test]
    fn so_are_those_made_of_a_requests_pieces(
        pieces in vec(prop::sample::select(vec![
            "set=1\n", "get=1\n", "\n", "\r\n", "=", "public_key=", "allowed_ip=", "endpoint=", "remove=true\n", "-", "/",
            "replace_peers=true\n", "private_key=", "0000000000000000000000000000000000000000000000000000000000000000",
            "10.0.0.0/8\n", "[fe80::1%x]:1\n", "::/0", "fwmark=", "7", "listen_port=", "\0", "ü", "%",
        ]), 0..30),
        piece in 1usize..20,
    ) {
        check_requests(pieces.concat().as_bytes(), piece)?;
    }
}
