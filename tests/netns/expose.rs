//! `uringvpn local` and `uringvpn server` between two hosts: inside a tunnel that they must not leave, and cut off.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use crate::ends::ours;
use crate::filter;
use crate::rig::{Family, Host, PATIENCE, Rig, inner, outer, wait_until};
use crate::traffic::reaches;
use crate::tunnel::{DRIVERS, PROGRAM, Tunnel};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn run(host: &Host, words: &str) -> Tunnel {
    Tunnel::spawn(&mut host.command(format!("{PROGRAM} {words}").split_whitespace()))
}

/// What stands behind `text` in what it printed from byte `start` on, once it is there.
#[track_caller]
fn printed(program: &Tunnel, start: usize, text: &str) -> String {
    let mut found = String::new();
    wait_until(text, || {
        let output = program.output();
        let Some((_, behind)) = output.get(start..).and_then(|output| output.split_once(text)) else {
            return false;
        };
        found = behind.lines().next().unwrap_or_default().trim().to_owned();
        behind.contains('\n')
    });
    found
}

/// A service on `host` that sends back what it gets.
fn echo(host: &Host) -> u16 {
    let listener = host.inside(|| TcpListener::bind((LOCALHOST, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut writer = stream.try_clone().unwrap();
                // Breaks off when the visitor does.
                let _ = std::io::copy(&mut stream, &mut writer);
            });
        }
    });
    port
}

/// The same for datagrams.
fn echo_datagrams(host: &Host) -> u16 {
    let socket = host.inside(|| UdpSocket::bind((LOCALHOST, 0)).unwrap());
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = vec![0; 70_000];
        while let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..bytes], from);
        }
    });
    port
}

/// A visitor on `host` whose datagrams come back, also a long one.
#[track_caller]
fn visit_with_datagrams(host: &Host, address: SocketAddr) {
    let visitor = host.inside(|| UdpSocket::bind((LOCALHOST, 0)).unwrap());
    visitor.set_read_timeout(Some(PATIENCE)).unwrap();
    visitor.connect(address).unwrap();
    for payload in [vec![1; 5], vec![2; 40_000]] {
        visitor.send(&payload).unwrap();
        let mut back = vec![0; 70_000];
        let bytes = visitor.recv(&mut back).unwrap();
        assert!(back[..bytes] == payload, "{bytes} bytes of {}", payload.len());
    }
}

/// A visitor on `host`, served.
#[track_caller]
fn visit(host: &Host, address: SocketAddr) -> TcpStream {
    let mut stream = host.inside(|| TcpStream::connect(address).unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
    stream
}

#[test]
fn what_goes_through_a_tunnel_never_leaves_it() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, _keys) = ours(&rig, "--queues 1");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    let [at_near, at_far] = ends.each_ref().map(|end| &end.interface);
    let (local, datagrams) = (echo(far), echo_datagrams(far));
    for io in DRIVERS {
        let outside =
            format!("iifname != \"lo\" iifname != \"{at_near}\" meta l4proto tcp counter name beside");
        filter::load(
            near,
            &format!("counter beside {{ }}; chain i {{ type filter hook input priority 0; {outside}; }}"),
        );
        let address = inner(Family::V4, 0);
        let options =
            format!("--io {io} --bind-addr {address} --bind-tunnels {LOCALHOST} --through {at_near}");
        let server = run(near, &format!("server {options}"));
        printed(&server, 0, "waiting for clients at");
        let to = |address: IpAddr| format!("--io {io} --to {address} --through {at_far}");
        let client = run(far, &format!("local {local} {}", to(address)));
        let public: SocketAddr = printed(&client, 0, "listening at ").parse().unwrap();
        visit(near, (LOCALHOST, public.port()).into());
        let client = run(far, &format!("local {datagrams}/udp {}", to(address)));
        let public = printed(&client, 0, "listening at ");
        let public: SocketAddr = public.strip_suffix("/udp").unwrap().parse().unwrap();
        visit_with_datagrams(near, (LOCALHOST, public.port()).into());
        assert_eq!(filter::counted(near, "beside"), 0, "nothing went beside the tunnel");

        // The server's other address is on the wire beside the tunnel.
        for service in [local.to_string(), format!("{datagrams}/udp")] {
            let words = format!("local {service} {}", to(outer(Family::V4, 1, 1)));
            let (status, output) = run(far, &words).wait();
            assert_eq!(status.code(), Some(1), "{output}");
            assert_eq!(filter::counted(near, "beside"), 0, "nothing went beside the tunnel");
        }
        let (status, output) = run(far, &format!("local {local} --to {address} --through nowhere0")).wait();
        assert_eq!(status.code(), Some(1));
        assert!(output.contains("nowhere0"), "{output}");
    }
}

#[test]
fn a_client_that_is_cut_off_is_found_dead_and_comes_back_to_its_port() {
    let Some(rig) = Rig::pair() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let local = echo(far);
    let address = outer(Family::V4, 1, 1);
    for io in DRIVERS {
        let server = run(near, &format!("server --io {io} --bind-addr {address}"));
        printed(&server, 0, "waiting for clients at");
        let client = run(far, &format!("local {local} --io {io} --to {address}"));
        let public: SocketAddr = printed(&client, 0, "listening at ").parse().unwrap();
        let mut visitor = visit(near, public);
        let (seen_by_server, seen_by_client) = (server.output().len(), client.output().len());
        filter::load(
            far,
            "chain i { type filter hook input priority 0; policy drop; iifname \"lo\" accept; }",
        );
        assert!(visitor.read(&mut [0]).is_err(), "the visitor hears of a failure, not of an end");
        printed(&server, seen_by_server, "its client is away");
        printed(&client, seen_by_client, "trying again in");
        filter::load(far, "");
        assert_eq!(printed(&client, seen_by_client, "listening at ").parse(), Ok(public));
        printed(&server, seen_by_server, "is public again for");
        visit(near, public);
    }
}

#[test]
fn a_server_is_found_again_when_its_tunnel_was_removed_and_made_again() {
    let Some(rig) = Rig::pair() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let make = || {
        near.run(&format!("ip link add inside type veth peer name inside netns {}", far.name()));
        for (host, address) in [(near, "10.77.0.1"), (far, "10.77.0.2")] {
            host.run(&format!("ip address add {address}/24 dev inside"));
            host.run("ip link set inside up");
        }
    };
    let local = echo(far);
    for io in DRIVERS {
        make();
        let inside = format!("--io {io} --through inside");
        let server = run(near, &format!("server {inside} --bind-addr 10.77.0.1 --bind-tunnels {LOCALHOST}"));
        printed(&server, 0, "waiting for clients at");
        let client = run(far, &format!("local {local} {inside} --to 10.77.0.1"));
        let public: SocketAddr = printed(&client, 0, "listening at ").parse().unwrap();
        let public = SocketAddr::from((LOCALHOST, public.port()));
        visit(near, public);
        let (seen_by_server, seen_by_client) = (server.output().len(), client.output().len());
        near.run("ip link del inside");
        make();
        printed(&server, seen_by_server, "waiting for clients at");
        printed(&client, seen_by_client, "listening at ");
        visit(near, public);
        near.run("ip link del inside");
    }
}
