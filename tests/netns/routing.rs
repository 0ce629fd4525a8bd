//! Who gets a packet and from whom one is taken: allowed IPs; tunnels in tunnels; tunnels that lead to themselves.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use uringvpn::stats::drop::DropReason;

use crate::ends::{End, Keys, PORT, Program, far_endpoint, ours};
use crate::rig::{Family, Host, PATIENCE, Rig, inner, outer, wait_until};
use crate::traffic::{Iperf, Sample, answered, is_silent, ping, ping_with, reaches};

/// Sends one datagram from `from` to `socket` at `to`; whether it arrives soon.
fn arrives(from: &UdpSocket, socket: &UdpSocket, to: SocketAddr) -> bool {
    arrives_within(Duration::from_millis(500), from, socket, to)
}

fn arrives_within(patience: Duration, from: &UdpSocket, socket: &UdpSocket, to: SocketAddr) -> bool {
    socket.set_read_timeout(Some(patience)).unwrap();
    from.send_to(b"X", to).unwrap();
    socket.recv(&mut [0; 8]).is_ok()
}

fn listen(host: &Host, address: SocketAddr) -> UdpSocket {
    host.inside(|| UdpSocket::bind(address).unwrap())
}

#[test]
fn a_source_that_another_peer_owns_by_a_longer_prefix_is_dropped_and_counted() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, keys) = ours(&rig, "--queues 2");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    let to = SocketAddr::new(inner(Family::V4, 0), 1111);
    let receiver = listen(near, to);
    let sender = listen(far, SocketAddr::new(inner(Family::V4, 1), 0));
    ends[0].wg(near, &format!("peer {} allowed-ips 10.9.0.0/24", keys[1].public));
    assert!(arrives_within(PATIENCE, &sender, &receiver, to));
    let owner = Keys::new();
    ends[0].wg(near, &format!("peer {} allowed-ips {}/32", owner.public, inner(Family::V4, 1)));
    // The port changes too: the datagrams are authentic, so they still tell where the peer is.
    ends[1].wg(far, "listen-port 51997");
    let refused = (0..5).filter(|_| !arrives(&sender, &receiver, to)).count();
    assert_eq!(refused, 5);
    assert_eq!(ends[0].endpoint(near, &keys[1]), format!("{}:51997", outer(Family::V4, 1, 2)));
    ends[0].wg(near, &format!("peer {} remove", owner.public));
    wait_until("the source to be the peer's again", || arrives(&sender, &receiver, to));
    let [near_end, _] = ends;
    let report = near_end.process.stop();
    assert!((5..10).contains(&report.dropped(DropReason::SourceNotAllowed)), "{}", report.output);
}

/// Host 0 in the middle, with both others as peers.
fn star(rig: &Rig) -> ([End; 3], [Keys; 3]) {
    let keys = [Keys::new(), Keys::new(), Keys::new()];
    let start =
        |index: usize| End::start(Program::Ours, &rig.hosts[index], index as u8, &keys[index], "--queues 2");
    let ends = [start(0), start(1), start(2)];
    for spoke in [1u8, 2] {
        let index = usize::from(spoke);
        ends[0].meet(&rig.hosts[0], &keys[index], spoke, None, "");
        let hub = SocketAddr::new(outer(Family::V4, spoke, 1), PORT);
        let words = "persistent-keepalive 25";
        ends[index].meet(&rig.hosts[index], &keys[0], 0, Some(hub), words);
        wait_until("an answer", || reaches(&rig.hosts[index], inner(Family::V4, 0)));
    }
    (ends, keys)
}

#[test]
fn an_allowed_ip_that_moves_to_another_peer_takes_the_traffic_with_it() {
    let Some(rig) = Rig::three() else { return };
    let (ends, keys) = star(&rig);
    let shared: IpAddr = "10.9.0.99".parse().unwrap();
    let to = SocketAddr::new(shared, 1111);
    for (end, host) in ends.iter().zip(&rig.hosts).skip(1) {
        host.run(&format!("ip address add {shared}/32 dev {}", end.interface));
    }
    let receivers = [1, 2].map(|spoke| listen(&rig.hosts[spoke], to));
    let sender = listen(&rig.hosts[0], SocketAddr::new(inner(Family::V4, 0), 0));
    for round in 0..6 {
        let [owner, other] = if round % 2 == 0 { [1, 2] } else { [2, 1] };
        let [owner_hears, other_hears] = [owner, other].map(|spoke| &receivers[spoke - 1]);
        let prefixes = format!("{shared}/32,{}/32", inner(Family::V4, owner as u8));
        ends[0].wg(&rig.hosts[0], &format!("peer {} allowed-ips {prefixes}", keys[owner].public));
        assert!(!ends[0].show_peer(&rig.hosts[0], "allowed-ips", &keys[other]).contains("10.9.0.99"));
        wait_until("the new owner to have it", || arrives(&sender, owner_hears, to));
        other_hears.set_nonblocking(true).unwrap();
        while other_hears.recv(&mut [0; 8]).is_ok() {}
        for _ in 0..5 {
            assert!(arrives_within(PATIENCE, &sender, owner_hears, to));
        }
        assert!(other_hears.recv(&mut [0; 8]).is_err(), "round {round}");
        other_hears.set_nonblocking(false).unwrap();
        // Only from its owner is it taken, too.
        let hub = inner(Family::V4, 0);
        ping_with(&rig.hosts[owner], hub, 2, 84, &format!("-I {shared}"));
        assert_eq!(answered(&rig.hosts[other], hub, 2, &format!("-I {shared}")), 0);
    }
}

#[test]
fn two_peers_of_one_endpoint_do_not_disturb_each_other() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, keys) = ours(&rig, "--queues 2");
    let near = &rig.hosts[0];
    let stranger = Keys::new();
    let words =
        format!("peer {} endpoint {} persistent-keepalive 1", stranger.public, far_endpoint(Family::V4));
    ends[0].wg(near, &format!("{words} allowed-ips 10.99.0.0/24"));
    near.run(&format!("ip route add 10.99.0.0/24 dev {}", ends[0].interface));
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    assert!(is_silent(near, "10.99.0.1".parse().unwrap()));
    ping(near, inner(Family::V4, 1), 50, 1000);
    assert_eq!(ends[0].latest_handshake(near, &stranger), 0);
    assert_ne!(ends[0].latest_handshake(near, &keys[1]), 0);
}

#[test]
fn a_peer_at_our_own_address_makes_no_storm() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, _keys) = ours(&rig, "--queues 2");
    let near = &rig.hosts[0];
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    let began = Instant::now();
    let own = [SocketAddr::new(outer(Family::V4, 1, 1), PORT), SocketAddr::from(([127, 0, 0, 1], PORT))];
    for (index, address) in own.into_iter().enumerate() {
        let ourselves = Keys::new();
        let prefix = format!("10.99.{index}.0/24");
        let words = format!("endpoint {address} persistent-keepalive 1 allowed-ips {prefix}");
        ends[0].wg(near, &format!("peer {} {words}", ourselves.public));
        near.run(&format!("ip route add {prefix} dev {}", ends[0].interface));
        assert_eq!(answered(near, format!("10.99.{index}.1").parse().unwrap(), 20, ""), 0);
    }
    sleep(Duration::from_secs(2));
    ping(near, inner(Family::V4, 1), 10, 1000);
    let [near_end, _] = ends;
    let report = near_end.process.stop();
    // Each of the two sends one initiation in five seconds, and hears it itself.
    let most = 4 + 2 * began.elapsed().as_secs() / 5;
    assert!(report.total("handshakes") <= most.max(12), "{}", report.output);
}

/// A tunnel inside the tunnel of [`ours`], between the same hosts; its addresses are 10.8.0.1 and 10.8.0.2.
fn nested(rig: &Rig, family: Family) -> ([End; 2], [Keys; 2]) {
    let keys = [Keys::new(), Keys::new()];
    let start = |index: usize| {
        let host = &rig.hosts[index];
        let end = End::open(Program::Ours, host, &keys[index], "--queues 2", 51821);
        host.run(&format!("ip address add 10.8.0.{}/24 dev {}", index + 1, end.interface));
        host.run(&format!("ip link set {} mtu 1340 up", end.interface));
        end
    };
    let ends = [start(0), start(1)];
    for (index, end) in ends.iter().enumerate() {
        let other = 1 - index;
        let endpoint = SocketAddr::new(inner(family, other as u8), 51821);
        let words = format!("endpoint {endpoint} allowed-ips 10.8.0.{}/32", other + 1);
        end.wg(&rig.hosts[index], &format!("peer {} {words}", keys[other].public));
    }
    (ends, keys)
}

#[test]
fn a_tunnel_and_a_vxlan_inside_a_tunnel_carry_bytes_as_they_were() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, _keys) = ours(&rig, "--queues 2");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let sample = Sample::new(5_000_000);
    for family in [Family::V4, Family::V6] {
        let (inside, _inside_keys) = nested(&rig, family);
        let to: IpAddr = "10.8.0.2".parse().unwrap();
        wait_until("an answer", || reaches(near, to));
        ping(near, to, 5, 1340);
        sample.cross(near, far, to);
        sample.cross(far, near, "10.8.0.1".parse().unwrap());
        for end in inside {
            end.process.stop();
        }
    }
    for (index, (end, host)) in ends.iter().zip(&rig.hosts).enumerate() {
        let [local, remote] = [index as u8, 1 - index as u8].map(|index| inner(Family::V4, index));
        let words = format!("id 42 local {local} remote {remote} dstport 4789 dev {}", end.interface);
        host.run(&format!("ip link add vx type vxlan {words}"));
        host.run("ip link set vx mtu 1370 up");
        host.run(&format!("ip address add 10.7.0.{}/24 dev vx", index + 1));
    }
    let to: IpAddr = "10.7.0.2".parse().unwrap();
    wait_until("an answer through vxlan", || reaches(near, to));
    ping(near, to, 5, 1370);
    sample.cross(near, far, to);
    sample.cross(far, near, "10.7.0.1".parse().unwrap());
    Iperf::start(far).run(near, to, "--bytes 5M --parallel 4");
    for end in ends {
        end.process.stop();
    }
}

#[test]
fn a_tunnel_that_leads_into_itself_makes_no_storm() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, keys) = ours(&rig, "--queues 2");
    let near = &rig.hosts[0];
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    let before = ends[0].process.memory_bytes("VmRSS");
    let [_, sent_before] = ends[0].transfer(near, &keys[1]);
    // The peer is said to live at an address inside its own tunnel.
    let inside = SocketAddr::new(inner(Family::V4, 1), PORT);
    ends[0].wg(near, &format!("peer {} endpoint {inside}", keys[1].public));
    assert_eq!(answered(near, inner(Family::V4, 1), 10, "-s 1372"), 0);
    sleep(Duration::from_secs(1));
    let [_, sent] = ends[0].transfer(near, &keys[1]);
    let grown = ends[0].process.memory_bytes("VmRSS").saturating_sub(before);
    // Each ping is sealed once, and what the kernel cut off its datagram once more.
    assert!(sent - sent_before < 70_000, "{}", sent - sent_before);
    assert!(grown < 8 << 20, "{grown}");
    ends[0].wg(near, &format!("peer {} endpoint {}", keys[1].public, far_endpoint(Family::V4)));
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    let [near_end, _] = ends;
    let report = near_end.process.stop();
    assert!(report.dropped(DropReason::Looped) >= 20, "{}", report.output);
}

#[test]
fn two_tunnels_that_lead_into_each_other_take_no_memory_and_recover() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, keys) = ours(&rig, "--queues 2");
    let near = &rig.hosts[0];
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    let (inside, _inside_keys) = nested(&rig, Family::V4);
    let to: IpAddr = "10.8.0.2".parse().unwrap();
    wait_until("an answer", || reaches(near, to));
    let memory = || [&ends[0], &inside[0]].map(|end| end.process.memory_bytes("VmRSS"));
    let before = memory();
    ends[0].wg(near, &format!("peer {} endpoint 10.8.0.2:{PORT}", keys[1].public));
    assert_eq!(answered(near, to, 5, ""), 0);
    for (before, after) in before.into_iter().zip(memory()) {
        assert!(after.saturating_sub(before) < 8 << 20, "from {before} to {after} bytes");
    }
    ends[0].wg(near, &format!("peer {} endpoint {}", keys[1].public, far_endpoint(Family::V4)));
    wait_until("an answer", || reaches(near, to));
}
