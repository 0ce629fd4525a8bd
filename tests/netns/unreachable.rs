//! Programs that send into the tunnel to nobody hear of it from the kernel, by the ICMP errors that we write.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Instant;

use nix::errno::Errno;
use uringvpn::stats::drop::DropReason;

use crate::modes::{Ends, MODES, Mode};
use crate::rig::{FAMILIES, Family, Host, PATIENCE, Rig, outer};
use crate::tunnel::{DRIVERS, Tunnel};

/// Addresses that are routed into the tunnel: of no peer, and of one whose endpoint nobody knows.
const NOBODY: [&str; 2] = ["10.9.0.77", "fd09::77"];
const SILENT: [&str; 2] = ["10.9.0.88", "fd09::88"];
/// A peer that has to begin, and does not.
const SILENT_PEER: &str =
    "--peer xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=@,allowed-ips=10.9.0.88/32+fd09::88/128";
const ALLOWED: [&str; 2] = ["10.9.0.2/32+fd09::2/128", "10.9.0.1/32+fd09::1/128"];

/// Whether ping(8) says that an answer from `to` itself calls it unreachable.
#[track_caller]
fn assert_unreachable(from: &Host, to: &str) {
    let output = from.command(["ping", "-n", "-c", "1", "-W", "60", to]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = if to.contains(':') {
        "Destination unreachable: Address unreachable"
    } else {
        "Destination Host Unreachable"
    };
    assert!(text.contains(&format!("From {to} icmp_seq=1 {said}")), "{text}");
}

/// Whether a connection there fails because its host is not there, not because nothing was heard.
#[track_caller]
fn assert_refuses(from: &Host, to: &str) {
    let to = SocketAddr::new(to.parse().unwrap(), 80);
    let error = from.inside(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::EHOSTUNREACH as i32), "{to}: {error}");
}

#[test]
fn programs_are_told_that_there_is_no_peer_or_no_endpoint() {
    let Some(rig) = Rig::pair() else { return };
    for (io, mode) in DRIVERS.into_iter().flat_map(|io| MODES.map(|mode| (io, mode))) {
        let silent = if mode == Mode::Sealed { SILENT_PEER } else { "" };
        let ends = Ends::start(&rig, mode, &format!("--io {io} --queues 2 {silent}"), ALLOWED);
        let near = &rig.hosts[0];
        let lost = if mode == Mode::Sealed { [NOBODY, SILENT].concat() } else { NOBODY.to_vec() };
        for to in lost {
            assert_unreachable(near, to);
            assert_refuses(near, to);
        }
        let [report, _] = ends.stop();
        let answers = report.total("icmp_errors");
        let drops = report.dropped(DropReason::NoRoute) + report.dropped(DropReason::NoEndpoint);
        let least = if mode == Mode::Sealed { 8 } else { 4 };
        assert!((least..=drops).contains(&answers), "{io}, {mode:?}: {}", report.output);
    }
}

#[test]
fn a_flood_gets_few_answers() {
    const DATAGRAMS: u64 = 20_000;
    let Some(rig) = Rig::pair() else { return };
    let near = &rig.hosts[0];
    let started = Instant::now();
    let ends = Ends::start(&rig, Mode::Sealed, "--queues 2", ALLOWED);
    let heard = || near.counted("Icmp", "InDestUnreachs");
    assert_eq!(heard(), 0);
    let to = SocketAddr::new(NOBODY[0].parse().unwrap(), 9);
    let sent = near.inside(|| {
        let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
        (0..DATAGRAMS).filter(|_| socket.send_to(&[7; 100], to).is_ok()).count() as u64
    });
    let not_read = near.statistic(&ends.links[0], "tx_dropped");
    let [report, _] = ends.stop();
    let (answers, seconds) = (report.total("icmp_errors"), started.elapsed().as_secs() + 1);
    let dropped = report.dropped(DropReason::NoRoute);
    assert!(
        dropped + not_read >= sent && dropped > 1000,
        "{sent} sent, {not_read} not read: {}",
        report.output
    );
    // Two workers, 50 at once each and 100 a second; the kernel took them all.
    assert!((50..=2 * (50 + 100 * seconds)).contains(&answers), "{seconds} s: {}", report.output);
    assert!(answers < dropped && heard() == answers, "{} heard: {}", heard(), report.output);
}

/// The gateway lets in only what comes from where it would send to.
#[test]
fn a_host_behind_a_gateway_is_told_too() {
    let Some(rig) = Rig::three() else { return };
    let [gateway, host] = [&rig.hosts[0], &rig.hosts[1]];
    gateway.inside(|| {
        for (name, value) in
            [("ipv4/conf/all/rp_filter", "1"), ("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")]
        {
            std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
        }
    });
    for (family, prefix) in FAMILIES.into_iter().zip(["10.9.0.0/24", "fd09::/64"]) {
        host.run(&format!("ip route add {prefix} via {}", outer(family, 1, 1)));
    }
    let peer = SocketAddr::new(outer(Family::V4, 2, 2), 51820);
    let options = format!(
        "--no-routes --address 10.9.0.1/24 --address fd09::1/64 --peer {peer},allowed-ips={}",
        ALLOWED[0]
    );
    let tunnel = Tunnel::start(gateway, &options);
    for to in NOBODY {
        assert_unreachable(host, to);
        assert_refuses(host, to);
    }
    let report = tunnel.stop();
    assert!(report.total("icmp_errors") >= 4, "{}", report.output);
}
