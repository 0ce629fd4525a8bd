//! The encrypted tunnel with real programs: wireguard-go, boringtun, `wg`, `wg-quick`, and itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::ends::{End, Keys, Program, assert_it_carries, installed, interface, join, ours};
use crate::rig::{Family, Rig, inner, outer, wait_equal, wait_until};
use crate::traffic::{Sample, ping, reaches, udp_trains_in_order};
use crate::tunnel::{DRIVERS, PROGRAM, Tunnel};

/// Our end with the other program, each side beginning once, with and without a preshared key, over both outer families.
fn interoperates_with(other: Program, queues: u32) {
    let Some(rig) = Rig::pair() else { return };
    for (we_begin, psk, family) in [
        (true, true, Family::V4),
        (false, true, Family::V6),
        (true, false, Family::V6),
        (false, false, Family::V4),
    ] {
        let keys = [Keys::new(), Keys::new()];
        let programs = if we_begin { [Program::Ours, other] } else { [other, Program::Ours] };
        let options = format!("--queues {queues}");
        let start = |index: usize| {
            End::start(programs[index], &rig.hosts[index], index as u8, &keys[index], &options)
        };
        let ends = [start(0), start(1)];
        join(&rig, &ends, &keys, family, psk);
        assert_it_carries(&rig, &ends);
    }
}

#[test]
fn it_interoperates_with_wireguard_go() {
    if installed("wireguard-go") {
        interoperates_with(Program::WireguardGo, 2);
    }
}

#[test]
fn it_interoperates_with_boringtun() {
    if installed("boringtun-cli") {
        interoperates_with(Program::Boringtun, 4);
    }
}

#[test]
fn it_interoperates_with_itself_with_any_number_of_queues_and_both_drivers() {
    let Some(rig) = Rig::pair() else { return };
    for (queues, io) in [(1, "uring"), (2, "syscall"), (4, "uring")] {
        let (ends, _keys) = ours(&rig, &format!("--queues {queues} --io {io}"));
        assert_it_carries(&rig, &ends);
        udp_trains_in_order(&rig.hosts[0], &rig.hosts[1], inner(Family::V4, 1), 1300);
        for end in ends {
            end.process.end(Signal::SIGTERM).0.assert_balanced();
        }
    }
}

#[test]
fn thirty_megabytes_arrive_as_they_were() {
    let Some(rig) = Rig::pair() else { return };
    let (_ends, _keys) = ours(&rig, "--queues 2");
    wait_until("an answer", || reaches(&rig.hosts[0], inner(Family::V4, 1)));
    let sample = Sample::new(30_000_000);
    sample.cross(&rig.hosts[0], &rig.hosts[1], inner(Family::V4, 1));
    sample.cross(&rig.hosts[1], &rig.hosts[0], inner(Family::V6, 0));
}

#[test]
fn one_line_on_each_side_makes_a_tunnel() {
    let Some(rig) = Rig::pair() else { return };
    let keys = [Keys::new(), Keys::new()];
    let start = |index: usize, endpoint: &str| {
        let (key, peer) = (keys[index].file("key"), &keys[1 - index].public);
        let (mine, other) = (inner(Family::V4, index as u8), inner(Family::V4, 1 - index as u8));
        let words = format!(
            "{PROGRAM} -f --tun {} --queues 2 --private-key {} --listen 51820 --address {mine}/24 --peer \
             {peer}@{endpoint},allowed-ips={other}",
            interface(),
            key.display()
        );
        let tunnel = Tunnel::spawn(&mut rig.hosts[index].command(words.split_whitespace()));
        tunnel.wait_up();
        tunnel
    };
    let _server = start(1, "");
    let _client = start(0, &format!("{}:51820", outer(Family::V4, 1, 2)));
    wait_until("an answer", || reaches(&rig.hosts[0], inner(Family::V4, 1)));
}

#[test]
fn the_peer_is_found_again_after_it_roamed_or_was_restarted() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, keys) = ours(&rig, "--queues 2");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    // The client moves: the server learns it from the next packet.
    near.run("ip address del 192.0.2.1/24 dev to-b");
    near.run("ip address add 192.0.2.77/24 dev to-b");
    wait_until("an answer from the new address", || reaches(near, inner(Family::V4, 1)));
    // Data that comes from elsewhere is answered at once; that the peer moved is then told by one thread to another.
    let seen = || ends[1].endpoint(far, &keys[0]);
    wait_equal("the endpoint", "192.0.2.77:51820".to_owned(), seen);
    ping(far, inner(Family::V4, 0), 1, 100);
    // The client starts anew and speaks first.
    let [client, server] = ends;
    client.process.end(Signal::SIGTERM);
    let client = End::start(Program::Ours, near, 0, &keys[0], "--queues 1");
    let ends = [client, server];
    join(&rig, &ends, &keys, Family::V4, false);
    wait_until("an answer after the restart", || reaches(near, inner(Family::V4, 1)));
}

#[test]
fn wg_shows_and_changes_everything_and_a_setting_survives_the_round_trip() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, keys) = ours(&rig, "--queues 2");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    let end = &ends[0];
    end.wg(near, &format!("fwmark 0x2a peer {} persistent-keepalive 25", keys[1].public));
    let file = keys[0].file("conf");
    let config = near.run(&format!("wg showconf {}", end.interface));
    fs::write(&file, &config).unwrap();
    for command in ["setconf", "syncconf", "addconf"] {
        near.run(&format!("wg {command} {} {}", end.interface, file.display()));
        assert_eq!(near.run(&format!("wg showconf {}", end.interface)), config, "after {command}");
        wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    }
    let sockets = near.run("ss -uane sport = :51820");
    assert_eq!(sockets.matches("fwmark:0x2a").count(), 4, "two workers, two families: {sockets}");
    // Another port: the peer follows. A port that somebody has: all stays as it was.
    end.wg(near, "listen-port 51999");
    wait_until("an answer from the new port", || reaches(near, inner(Family::V4, 1)));
    wait_equal("the endpoint", "192.0.2.1:51999".to_owned(), || ends[1].endpoint(far, &keys[0]));
    let _holder = near.inside(|| std::net::UdpSocket::bind("0.0.0.0:52000").unwrap());
    let refused = near.command(["wg", "set", &end.interface, "listen-port", "52000"]).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Address already in use"), "{refused:?}");
    ping(near, inner(Family::V4, 1), 1, 100);
    assert_eq!(end.show(near, "listen-port").trim(), "51999");
}

#[test]
fn wg_quick_brings_it_up_and_down() {
    let Some(rig) = Rig::pair() else { return };
    if !installed("wg-quick") {
        return;
    }
    let keys = [Keys::new(), Keys::new()];
    let far = End::start(Program::Ours, &rig.hosts[1], 1, &keys[1], "");
    let name = interface();
    let file = keys[0].file(&format!("{name}.conf"));
    let key = fs::read_to_string(keys[0].file("key")).unwrap();
    let (address, endpoint) = (inner(Family::V4, 0), outer(Family::V4, 1, 2));
    let config = format!(
        "[Interface]\nPrivateKey = {key}\nAddress = {address}/24\nMTU = 1400\n[Peer]\nPublicKey = {}\nAllowedIPs = \
         {}/32\nEndpoint = {endpoint}:51820\n",
        keys[1].public,
        inner(Family::V4, 1)
    );
    fs::write(&file, config).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    far.wg(&rig.hosts[1], &format!("peer {} allowed-ips {address}/32", keys[0].public));
    let wg_quick = |action: &str| {
        let mut command = rig.hosts[0].command(["wg-quick", action, file.to_str().unwrap()]);
        let output = command.env("WG_QUICK_USERSPACE_IMPLEMENTATION", PROGRAM).output().unwrap();
        assert!(output.status.success(), "{action}: {}", String::from_utf8_lossy(&output.stderr));
    };
    wg_quick("up");
    wait_until("an answer", || reaches(&rig.hosts[0], inner(Family::V4, 1)));
    assert!(rig.hosts[0].run(&format!("ip link show {name}")).contains("mtu 1400"));
    wg_quick("down");
    wait_until("nothing to be left", || {
        let socket = format!("/var/run/wireguard/{name}.sock");
        rig.hosts[0].processes().is_empty() && !rig.hosts[0].has_link(&name) && !Path::new(&socket).exists()
    });
}

#[test]
fn it_ends_when_its_interface_or_its_socket_goes_and_leaves_nothing() {
    let Some(rig) = Rig::pair() else { return };
    let keys = Keys::new();
    let host = &rig.hosts[0];
    for io in DRIVERS {
        let start = || End::start(Program::Ours, host, 0, &keys, &format!("--queues 2 --io {io}"));
        let end = start();
        host.run(&format!("ip link del {}", end.interface));
        let socket = end.socket();
        assert!(end.process.wait().0.success());
        assert!(!socket.exists());
        let end = start();
        fs::remove_file(end.socket()).unwrap();
        assert!(end.process.wait().0.success());
        assert!(!host.has_link(&end.interface));
    }
}

#[test]
fn a_second_one_of_the_same_name_is_refused_and_the_first_unharmed() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, _keys) = ours(&rig, "--queues 1");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    // Here the interface is in the way, on the other host the socket.
    for host in [near, far] {
        let output = host.command([PROGRAM, "-f", &ends[0].interface]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(!far.has_link(&ends[0].interface));
        ping(near, inner(Family::V4, 1), 2, 100);
        assert!(ends[0].show(near, "peers").len() > 40);
    }
}

#[test]
fn its_interface_may_move_to_another_namespace_while_its_sockets_stay() {
    let Some(rig) = Rig::three() else { return };
    let (ends, _keys) = ours(&rig, "--queues 2");
    let [near, far, third] = [&rig.hosts[0], &rig.hosts[1], &rig.hosts[2]];
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    let pid = third.command(["sh", "-c", "echo $$; exec sleep 1000"]);
    let holder = Tunnel::spawn(&mut { pid });
    wait_until("the third host's process", || !third.processes().is_empty());
    let name = &ends[0].interface;
    near.run(&format!("ip link set {name} netns {}", third.processes()[0]));
    third.run(&format!("ip address add {}/24 dev {name}", inner(Family::V4, 0)));
    third.run(&format!("ip link set {name} up"));
    wait_until("an answer in the other namespace", || reaches(third, inner(Family::V4, 1)));
    ping(far, inner(Family::V4, 0), 1, 100);
    drop(holder);
    third.run(&format!("ip link del {name}"));
    let [first, _] = ends;
    assert!(first.process.wait().0.success());
}

#[test]
fn an_encrypted_tunnel_sleeps_when_it_is_idle() {
    let Some(rig) = Rig::pair_alone() else { return };
    let (ends, _keys) = ours(&rig, "--queues 2");
    wait_until("an answer", || reaches(&rig.hosts[0], inner(Family::V4, 1)));
    thread::sleep(Duration::from_millis(2500));
    let ticks = || -> Vec<u64> { ends.iter().map(|end| cpu_ticks(&end.process)).collect() };
    let before = ticks();
    thread::sleep(Duration::from_secs(2));
    let after = ticks();
    // A thread that spins would have used 200 ticks.
    assert!(before.iter().zip(&after).all(|(before, after)| after - before <= 10), "{before:?} {after:?}");
}

/// Hundredths of seconds on a processor.
fn cpu_ticks(process: &Tunnel) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
