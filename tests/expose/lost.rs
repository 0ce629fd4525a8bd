//! Ends that are killed, restarted and told to end.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::rig::{
    DRIVERS, Program, address, client, connect, echo, exchange, free_port, has_ipv6, ours, random, server,
    service, wait_until,
};

#[test]
fn visitors_of_a_client_that_is_killed_hear_it_and_nothing_is_left() {
    for driver in DRIVERS {
        let address = address();
        let server = server(address, &format!("{driver} --lease 0"));
        let before = server.descriptors();
        let (other, elsewhere) = client(address, service(address, echo), driver);
        let (client, public) = client(address, service(address, echo), driver);
        let mut visitors: Vec<_> = (0..10).map(|_| connect(public)).collect();
        for visitor in &mut visitors {
            visitor.write_all(b"hello").unwrap();
            visitor.read_exact(&mut [0; 5]).unwrap();
        }
        client.signal(Signal::SIGKILL);
        for mut visitor in visitors {
            assert!(!matches!(visitor.read(&mut [0; 10]), Ok(1..)));
        }
        let bytes = random(1, 10_000);
        assert!(exchange(elsewhere, &bytes) == bytes, "the other client is not disturbed");
        other.signal(Signal::SIGTERM);
        wait_until("all is closed", || server.descriptors() <= before);
    }
}

#[test]
fn a_client_comes_back_for_the_same_port_when_the_server_was_killed() {
    for driver in DRIVERS {
        let address = address();
        let local = service(address, echo);
        let first = server(address, driver);
        let (client, public) = client(address, local, driver);
        let before = client.output().len();
        first.signal(Signal::SIGKILL);
        client.printed_after(before, "trying again");
        let _second = server(address, driver);
        let again: SocketAddr = client.printed_after(before, "listening at ").trim().parse().unwrap();
        assert_eq!(again, public);
        let bytes = random(2, 10_000);
        assert!(exchange(public, &bytes) == bytes);
    }
}

#[test]
fn what_is_relayed_finishes_after_sigterm_and_nobody_else_comes_in() {
    for (driver, of_server) in DRIVERS.iter().flat_map(|driver| [(driver, true), (driver, false)]) {
        let address = address();
        // Nothing is cut off, however busy the machine is.
        let options = format!("{driver} --drain 600");
        let mut server = server(address, &options);
        let (mut client, public) = client(address, service(address, echo), &options);
        let mut visitor = connect(public);
        visitor.write_all(b"before").unwrap();
        visitor.read_exact(&mut [0; 6]).unwrap();
        let told = if of_server { &mut server } else { &mut client };
        told.signal(Signal::SIGTERM);
        told.printed("finishing what is relayed");
        wait_until("the port is closed", || TcpStream::connect(public).is_err());
        visitor.write_all(b"after").unwrap();
        let mut back = [0; 5];
        visitor.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"after");
        visitor.shutdown(Shutdown::Write).unwrap();
        assert_eq!(visitor.read(&mut back).unwrap(), 0);
        assert_eq!(told.ended(), Some(0));
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let address = address();
    let mut server = server(address, "--drain 1000000");
    let (_client, public) = client(address, service(address, echo), "");
    let mut visitor = connect(public);
    visitor.write_all(b"x").unwrap();
    visitor.read_exact(&mut [0]).unwrap();
    server.signal(Signal::SIGTERM);
    server.printed("finishing what is relayed");
    server.signal(Signal::SIGINT);
    assert_eq!(server.ended(), Some(0));
    assert!(!matches!(visitor.read(&mut [0]), Ok(1..)));
}

#[test]
fn programs_read_the_public_address_and_secrets_come_from_files_and_the_environment() {
    let address = address();
    let local = service(address, echo);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    std::fs::write(&file, "correct horse\n").unwrap();
    let _server = server(address, &format!("--secret-file {}", file.display()));

    let mut command = Command::new(ours());
    command.args(["local", &local.port().to_string(), "--to", &address.to_string(), "--json"]);
    command.args(["--local-host", &address.to_string()]);
    let mut command_with = Command::new("env");
    command_with.arg("BORE_SECRET=correct horse").arg(ours());
    command_with.args(command.get_args());
    let mut client = Program::spawn(command_with);
    let line = client.printed("{\"event\":\"public\",");
    let news: serde_json::Value = serde_json::from_str(&format!("{{{line}")).unwrap();
    let public: SocketAddr = news["address"].as_str().unwrap().parse().unwrap();
    assert_eq!(u64::from(public.port()), news["port"].as_u64().unwrap());
    let bytes = random(4, 10_000);
    assert!(exchange(public, &bytes) == bytes);
    client.signal(Signal::SIGTERM);
    assert_eq!(client.ended(), Some(0));
    assert!(!client.output().contains("everybody on this machine"), "{}", client.output());

    let shown = Program::start(ours(), &format!("local 1 --to {address} --secret visible"));
    shown.printed("everybody on this machine can read it in /proc");
    shown.printed("invalid secret");
}

#[test]
fn ipv6_is_served_where_it_is_asked_for() {
    if !has_ipv6() {
        return;
    }
    let free = free_port(Ipv6Addr::LOCALHOST);
    let local = service(std::net::Ipv4Addr::LOCALHOST, echo);
    for driver in DRIVERS {
        let server =
            Program::start(ours(), &format!("server --bind-addr ::1 --control-port {free} {driver}"));
        server.printed("waiting for clients at");
        let options =
            format!("local {} --to ::1 --control-port {free} --local-host localhost {driver}", local.port());
        let client = Program::start(ours(), &options);
        let public: SocketAddr = client.printed("listening at ").trim().parse().unwrap();
        assert!(public.is_ipv6());
        let bytes = random(5, 10_000);
        assert!(exchange(public, &bytes) == bytes);
    }
}

#[test]
fn one_client_makes_several_ports_public_and_ends_them_together() {
    let address = address();
    let server = server(address, "--lease 0");
    let before = server.descriptors();
    let services = [service(address, echo), service(address, echo)];
    let [one, other] = services.map(|service| service.port());
    let free = free_port(address);
    let arguments = format!("local {one} {other}:{free} --local-host {address} --to {address} --json");
    let mut client = Program::start(ours(), &arguments);
    let news = || {
        let lines = client.output();
        let news = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        news.filter(|news| news["event"] == "public").collect::<Vec<_>>()
    };
    wait_until("both are public", || news().len() == 2);
    for public in news() {
        let bytes = random(6, 10_000);
        assert!(exchange(public["address"].as_str().unwrap().parse().unwrap(), &bytes) == bytes);
    }
    assert!(news().iter().any(|news| news["port"] == free && news["local"] == format!("{address}:{other}")));
    client.signal(Signal::SIGTERM);
    assert_eq!(client.ended(), Some(0));
    wait_until("all is closed", || server.descriptors() <= before);
}

#[test]
fn one_address_serves_both_families_and_public_ports_are_where_they_were_asked_for() {
    let address = address();
    let free = free_port(Ipv6Addr::UNSPECIFIED);
    let local = service(address, echo);
    for driver in DRIVERS {
        let options =
            format!("server --bind-addr :: --bind-tunnels {address} --control-port {free} {driver}");
        let server = Program::start(ours(), &options);
        server.printed("waiting for clients at");
        for host in ["127.0.0.1", "::1"] {
            let arguments =
                format!("local {} --local-host {address} --to {host} --control-port {free}", local.port());
            let client = Program::start(ours(), &arguments);
            let public: SocketAddr = client.printed("listening at ").trim().parse().unwrap();
            let bytes = random(7, 10_000);
            assert!(exchange((address, public.port()).into(), &bytes) == bytes);
            assert!(TcpStream::connect(("127.0.0.1", public.port())).is_err(), "only at {address}");
            server.printed(&format!("is public for {}", if host == "::1" { "[::1]:" } else { "127.0.0.1:" }));
        }
    }
}

#[test]
fn a_port_that_cannot_be_had_ends_the_client_and_gives_its_other_ports_back() {
    for driver in DRIVERS {
        let address = address();
        let server = server(address, driver);
        let local = service(address, echo).port();
        let free = free_port(address);
        // The second is below --min-port.
        let words = format!("local {local}:{free} {local}:22 --local-host {address} --to {address} {driver}");
        let mut client = Program::start(ours(), &words);
        assert_eq!(client.ended(), Some(1), "{}", client.output());
        client.printed("not in allowed range");
        // If it got the first at all, it is not kept for it.
        let words = format!("local {local}:{free} --local-host {address} --to {address} {driver}");
        let again = Program::start(ours(), &words);
        assert_eq!(again.printed("listening at ").trim(), format!("{address}:{free}"));
        assert!(!server.output().contains("is kept for"), "{}", server.output());
    }
}

#[test]
fn what_a_second_signal_breaks_off_is_heard_as_a_failure_on_either_side() {
    for driver in DRIVERS {
        for at_server in [false, true] {
            let address = address();
            let server = server(address, driver);
            let (client, public) = client(address, service(address, echo), driver);
            let mut visitor = connect(public);
            visitor.write_all(b"hello").unwrap();
            visitor.read_exact(&mut [0; 5]).unwrap();
            let mut told = if at_server { server } else { client };
            told.signal(Signal::SIGTERM);
            told.printed("finishing what is relayed");
            told.signal(Signal::SIGTERM);
            assert!(visitor.read(&mut [0]).is_err(), "an end would look like the end of what it asked for");
            wait_until("it ends", || told.ended().is_some());
        }
    }
}
