//! What an encrypted tunnel is told while it runs: keys, very many allowed IPs; and what it tells of its traffic.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use uringvpn::proto::keys::PublicKey;
use uringvpn::stats::drop::DropReason;

use crate::ends::{End, Keys, PORT, Program, join, ours};
use crate::rig::{Family, Host, Rig, inner, wait_equal, wait_until};
use crate::traffic::{answered, is_silent, ping, reaches};

const TO_FAR: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 2));
const TO_NEAR: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 1));

/// Sends `request` to the configuration socket; it must be granted.
#[track_caller]
fn configure(end: &End, request: &str) {
    let mut stream = UnixStream::connect(end.socket()).unwrap();
    stream.write_all(format!("set=1\n{request}\n").as_bytes()).unwrap();
    let mut answer = [0; 64];
    let bytes = stream.read(&mut answer).unwrap();
    assert_eq!(std::str::from_utf8(&answer[..bytes]), Ok("errno=0\n\n"), "{request}");
}

fn hex(keys: &Keys) -> String {
    keys.public.parse::<PublicKey>().unwrap().to_hex()
}

/// The interface loses its sessions.
fn forget_sessions(end: &End, host: &Host) {
    host.run(&format!("ip link set {} down", end.interface));
    host.run(&format!("ip link set {} up", end.interface));
}

#[test]
fn one_peer_may_have_130_560_allowed_ips_and_lose_some_of_them() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, keys) = ours(&rig, "--queues 2");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let peer = &keys[1].public;
    let mut config = format!("[Peer]\nPublicKey = {peer}\n");
    for high in 1..=255 {
        for low in 0..=255 {
            config += &format!("AllowedIPs = {high}.{low}.0.0/16, {high:x}::{low:x}/128\n");
        }
    }
    let file = keys[0].file("many.conf");
    fs::write(&file, config).unwrap();
    near.run(&format!("wg addconf {} {}", ends[0].interface, file.display()));
    let count = || ends[0].show_peer(near, "allowed-ips", &keys[1]).split_whitespace().count();
    // The two that were there are part of 10.9.0.0/16 and of nothing.
    assert_eq!(count(), 130_560);
    for network in ["10.77.0.0/16", "10.78.0.0/16"] {
        near.run(&format!("ip route add {network} dev {}", ends[0].interface));
        let address = network.replace("0.0/16", "1.1/32");
        far.run(&format!("ip address add {address} dev {}", ends[1].interface));
    }
    let [kept, lost] = ["10.78.1.1", "10.77.1.1"].map(|address| address.parse().unwrap());
    wait_until("an answer", || reaches(near, kept));
    ping(near, lost, 3, 1420);
    // One by one, many at once, one that is not there, one of nobody's.
    let head = format!("public_key={}\nupdate_only=true\n", hex(&keys[1]));
    for low in 70..80 {
        if low != 78 {
            configure(&ends[0], &format!("{head}allowed_ip=-10.{low}.0.0/16\n"));
        }
    }
    let many: String = (1..=188).map(|low| format!("allowed_ip=-{:x}::{low:x}/128\n", 0x20)).collect();
    configure(&ends[0], &format!("{head}{many}"));
    configure(&ends[0], &format!("{head}allowed_ip=-10.77.0.0/16\nallowed_ip=-10.78.0.0/17\n"));
    assert_eq!(count(), 130_560 - 9 - 188);
    ping(near, kept, 3, 1420);
    assert_eq!(answered(near, lost, 1, "-W 0.3"), 0);
}

#[test]
fn many_peers_with_many_allowed_ips_are_told_whole() {
    let Some(rig) = Rig::pair() else { return };
    let keys = Keys::new();
    let host = &rig.hosts[0];
    let end = End::open(Program::Ours, host, &keys, "--queues 1", PORT);
    let mut config = String::new();
    let key = |number: u8| PublicKey::from_bytes([number; 32]);
    for peer in 1..=40u8 {
        config += &format!("[Peer]\nPublicKey = {}\n", key(peer));
        (1..=52).for_each(|low| config += &format!("AllowedIPs = {peer}.{low}.0.0/16\n"));
    }
    let all: Vec<_> = (1..=197).map(|low| format!("abcd::{low:x}")).collect();
    config += &format!("[Peer]\nPublicKey = {}\n[Peer]\nPublicKey = {}\n", key(50), key(51));
    config += &format!("AllowedIPs = {}\n", all.join(","));
    let file = keys.file("peers.conf");
    fs::write(&file, config).unwrap();
    host.run(&format!("wg addconf {} {}", end.interface, file.display()));
    let text = end.show(host, "allowed-ips");
    let words: Vec<_> = text.lines().map(|line| line.split_whitespace().count() - 1).collect();
    assert_eq!(words.len(), 42);
    assert_eq!(words.iter().filter(|count| **count == 52).count(), 40);
    assert!(words.contains(&197) && text.contains("(none)"));
    // What is shown can be loaded again, and is then the same, perhaps in another order.
    let sections = || {
        let text = host.run(&format!("wg showconf {}", end.interface));
        let mut sections: Vec<_> = text.split("\n\n").map(|section| section.trim().to_owned()).collect();
        sections.sort_unstable();
        sections
    };
    let shown = sections();
    fs::write(&file, host.run(&format!("wg showconf {}", end.interface))).unwrap();
    host.run(&format!("wg setconf {} {}", end.interface, file.display()));
    assert!(sections() == shown, "{:?}", sections());
}

#[test]
fn a_preshared_key_counts_from_the_next_handshake_on() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, keys) = ours(&rig, "--queues 2");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    wait_until("an answer", || reaches(near, TO_FAR));
    let first = keys[0].file("psk");
    let second = keys[1].file("psk");
    let none = std::path::PathBuf::from("/dev/null");
    for (psk, shown) in [(&first, true), (&second, true), (&none, false)] {
        let set = |index: usize| {
            let words = format!("peer {} preshared-key {}", keys[1 - index].public, psk.display());
            ends[index].wg(&rig.hosts[index], &words);
        };
        // One end alone: the session lives, a new one does not come about.
        set(0);
        let known = ends[0].show_peer(near, "preshared-keys", &keys[1]);
        let expected = if shown { fs::read_to_string(psk).unwrap() } else { "(none)".into() };
        assert_eq!(known, expected.trim());
        ping(near, TO_FAR, 5, 1420);
        ping(far, TO_NEAR, 5, 1420);
        forget_sessions(&ends[0], near);
        // The news passes several threads.
        wait_until("the sessions to be gone", || is_silent(near, TO_FAR));
        assert!(is_silent(near, TO_FAR));
        // Both ends: the next handshake succeeds.
        set(1);
        forget_sessions(&ends[0], near);
        wait_until("an answer", || reaches(near, TO_FAR));
        ping(far, TO_NEAR, 5, 1420);
    }
}

#[test]
fn a_new_private_key_ends_all_sessions_and_begins_handshakes_at_once() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, keys) = ours(&rig, "--queues 2");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    wait_until("an answer", || reaches(near, TO_FAR));
    let new = Keys::new();
    let set_key = |keys: &Keys| ends[0].wg(near, &format!("private-key {}", keys.file("key").display()));
    // The other end knows the new key already: without a packet there is a session.
    ends[1].wg(far, &format!("peer {}", new.public));
    set_key(&new);
    wait_until("a handshake", || ends[1].latest_handshake(far, &new) != 0);
    ends[1].meet(far, &new, 0, None, "");
    ping(near, TO_FAR, 3, 1420);
    ping(far, TO_NEAR, 3, 1420);
    // The other end does not know of it: nothing of the old session is taken any more.
    set_key(&keys[0]);
    assert_eq!(answered(far, TO_NEAR, 5, "-W 0.3"), 0);
    assert!(is_silent(near, TO_FAR));
    ends[1].meet(far, &keys[0], 0, None, "");
    set_key(&new);
    set_key(&keys[0]);
    ping(near, TO_FAR, 1, 100);
    let [near_end, _] = ends;
    let report = near_end.process.stop();
    assert!(report.dropped(DropReason::UnknownIndex) >= 5, "{}", report.output);
}

#[test]
fn without_a_private_key_nobody_is_answered_until_there_is_one_again() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, keys) = ours(&rig, "--queues 2");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    wait_until("an answer", || reaches(near, TO_FAR));
    ends[1].wg(far, "private-key /dev/null");
    assert_eq!(ends[1].show(far, "private-key").trim(), "(none)");
    assert_eq!(answered(near, TO_FAR, 3, "-W 0.3"), 0);
    assert_eq!(answered(far, TO_NEAR, 3, "-W 0.3"), 0);
    let before = ends[0].latest_handshake(near, &keys[1]);
    forget_sessions(&ends[0], near);
    assert!(is_silent(near, TO_FAR));
    // It begins by itself: nothing is sent here.
    ends[1].wg(far, &format!("private-key {}", keys[1].file("key").display()));
    wait_until("a handshake", || ends[0].latest_handshake(near, &keys[1]) > before);
    ping(far, TO_NEAR, 3, 100);
    // A key that is read back is clamped: its first byte loses its low bits.
    let text = fs::read_to_string(keys[1].file("key")).unwrap();
    let file = keys[0].file("odd");
    fs::write(&file, format!("/{}", &text[1..])).unwrap();
    ends[1].wg(far, &format!("private-key {}", file.display()));
    assert_eq!(ends[1].show(far, "private-key").trim(), format!("+{}", text[1..].trim()));
}

/// Bytes and packets that `ip -s link` says were received and sent.
fn statistics(host: &Host, interface: &str) -> [(u64, u64); 2] {
    let read = |name: &str| -> u64 {
        let file = format!("/sys/class/net/{interface}/statistics/{name}");
        host.run(&format!("cat {file}")).trim().parse().unwrap()
    };
    [(read("rx_bytes"), read("rx_packets")), (read("tx_bytes"), read("tx_packets"))]
}

#[test]
fn ten_pings_are_counted_to_the_byte() {
    const MESSAGE: u64 = 16 + 96 + 16;
    let Some(rig) = Rig::pair() else { return };
    for io in crate::tunnel::DRIVERS {
        for beginner in [0, 1] {
            let keys = [Keys::new(), Keys::new()];
            let ends = [0, 1].map(|index: usize| {
                let host = &rig.hosts[index];
                let options = format!("--queues 2 --io {io}");
                let end = End::open(Program::Ours, host, &keys[index], &options, PORT);
                // The kernel would speak of its IPv6 groups.
                host.run(&format!("sysctl -qw net.ipv6.conf.{}.disable_ipv6=1", end.interface));
                host.run(&format!("ip address add 10.9.0.{}/24 dev {}", index + 1, end.interface));
                host.run(&format!("ip link set {} mtu 1420 up", end.interface));
                end
            });
            join(&rig, &ends, &keys, Family::V4, false);
            let other = 1 - beginner;
            if beginner == 1 {
                let near = std::net::SocketAddr::new(crate::rig::outer(Family::V4, 1, 1), PORT);
                ends[1].wg(&rig.hosts[1], &format!("peer {} endpoint {near}", keys[0].public));
                ends[0].wg(&rig.hosts[0], &format!("peer {} remove", keys[1].public));
                ends[0].meet(&rig.hosts[0], &keys[1], 1, None, "");
            }
            let to = inner(Family::V4, other as u8);
            ping(&rig.hosts[beginner], to, 10, 84);
            let [initiation, response] = [148, 92];
            let began = [response + 10 * MESSAGE, initiation + 10 * MESSAGE];
            // What was sent is counted when the kernel says so, which may be after it was answered.
            wait_equal("bytes of both ends", [began, [began[1], began[0]]], || {
                [beginner, other].map(|index| ends[index].transfer(&rig.hosts[index], &keys[1 - index]))
            });
            for (end, host) in ends.iter().zip(&rig.hosts) {
                assert_eq!(statistics(host, &end.interface), [(840, 10); 2], "{io}");
                assert_ne!(end.show(host, "latest-handshakes").trim().rsplit('\t').next(), Some("0"));
            }
        }
    }
}

#[test]
fn a_peer_whose_key_is_a_point_of_low_order_is_never_sent_anything() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, _keys) = ours(&rig, "--queues 2");
    let near = &rig.hosts[0];
    let listener = near.inside(|| std::net::UdpSocket::bind("127.0.0.1:1111").unwrap());
    listener.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
    for key in [
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=",
        "X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc=",
        "7P///////////////////////////////////////38=",
        "7f///////////////////////////////////////38=",
        "7v///////////////////////////////////////38=",
    ] {
        ends[0].wg(near, &format!("peer {key} persistent-keepalive 1 endpoint 127.0.0.1:1111"));
    }
    assert!(listener.recv(&mut [0; 200]).is_err());
    wait_until("an answer of the honest peer", || reaches(near, TO_FAR));
    assert_eq!(ends[0].show(near, "peers").lines().count(), 8);
}
