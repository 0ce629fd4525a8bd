//! Opposite the real bore: our client with its server, its client with our server, with and without a secret.

use std::net::{Ipv4Addr, SocketAddr};

use aws_lc_rs::digest::{SHA256, digest};
use nix::sys::signal::Signal;

use crate::rig::{
    DRIVERS, Program, address, bore, client, echo, exchange, hash, random, server, service, wait_until,
};

const SECRETS: [&str; 2] = ["", "--secret abc"];

/// Bytes both ways, each way ending by itself; several visitors at once.
#[track_caller]
fn check(public: SocketAddr, echoes: bool) {
    std::thread::scope(|scope| {
        for number in 0..4 {
            scope.spawn(move || {
                let bytes = random(number, 1_000_000 * usize::from(number));
                let answer = exchange(public, &bytes);
                if echoes {
                    assert!(answer == bytes, "{} bytes of {}", answer.len(), bytes.len());
                } else {
                    assert_eq!(answer, digest(&SHA256, &bytes).as_ref());
                }
            });
        }
    });
}

fn bore_server(program: &std::path::Path, address: Ipv4Addr, secret: &str) -> Program {
    let server = Program::start(program.to_owned(), &format!("server --bind-addr {address} {secret}"));
    server.printed("server listening");
    server
}

fn bore_client(
    program: &std::path::Path,
    address: Ipv4Addr,
    local: SocketAddr,
    secret: &str,
) -> (Program, SocketAddr) {
    let (port, host) = (local.port(), local.ip());
    let arguments = format!("local {port} --local-host {host} --to {address} {secret}");
    let client = Program::start(program.to_owned(), &arguments);
    let public = client.printed("listening at ").trim().parse().unwrap();
    (client, public)
}

#[test]
fn our_client_and_bores_server_understand_each_other() {
    let Some(bore) = bore() else { return };
    for (driver, secret) in DRIVERS.iter().flat_map(|driver| SECRETS.map(|secret| (driver, secret))) {
        let address = address();
        let (echoing, hashing) = (service(address, echo), service(address, hash));
        let _server = bore_server(&bore, address, secret);
        for (local, echoes) in [(echoing, true), (hashing, false)] {
            let (_client, public) = client(address, local, &format!("{driver} {secret}"));
            check(public, echoes);
        }
    }
}

#[test]
fn bores_client_and_our_server_understand_each_other() {
    let Some(bore) = bore() else { return };
    for (driver, secret) in DRIVERS.iter().flat_map(|driver| SECRETS.map(|secret| (driver, secret))) {
        let address = address();
        let (echoing, hashing) = (service(address, echo), service(address, hash));
        let _server = server(address, &format!("{driver} {secret}"));
        for (local, echoes) in [(echoing, true), (hashing, false)] {
            let (_client, public) = bore_client(&bore, address, local, secret);
            check(public, echoes);
        }
    }
}

#[test]
fn secrets_that_differ_are_refused_in_words_both_ways() {
    let Some(bore) = bore() else { return };
    let address = address();
    let local = service(address, echo);
    let _server = server(address, "--secret abc");
    for (secret, words) in [
        ("--secret other", "invalid secret"),
        ("", "server requires authentication, but no client secret was provided"),
    ] {
        let arguments = format!("local {} --to {address} {secret}", local.port());
        let mut client = Program::start(bore.clone(), &arguments);
        client.printed(words);
        assert_eq!(client.ended(), Some(1));
    }

    let address = crate::rig::address();
    let _server = bore_server(&bore, address, "--secret abc");
    for (secret, words) in [("--secret other", "invalid secret"), ("", "the server asks for a secret")] {
        let arguments = format!("local {} --to {address} {secret}", local.port());
        let mut client = Program::start(crate::rig::ours(), &arguments);
        client.printed(words);
        assert_eq!(client.ended(), Some(1));
    }
}

#[test]
fn our_client_comes_back_when_bores_server_was_restarted() {
    let Some(bore) = bore() else { return };
    let address = address();
    let local = service(address, echo);
    let first = bore_server(&bore, address, "--secret abc");
    let (client, public) = client(address, local, "--secret abc");
    check(public, true);
    let before = client.output().len();
    drop(first);
    client.printed_after(before, "trying again");
    let _second = bore_server(&bore, address, "--secret abc");
    assert_eq!(client.printed_after(before, "listening at ").trim().parse(), Ok(public));
    check(public, true);
}

#[test]
fn a_bore_client_that_ends_leaves_nothing_behind_at_our_server() {
    let Some(bore) = bore() else { return };
    for driver in DRIVERS {
        let address = address();
        let server = server(address, driver);
        let before = server.descriptors();
        let (client, public) = bore_client(&bore, address, service(address, echo), "");
        check(public, true);
        client.signal(Signal::SIGKILL);
        wait_until("all is closed", || server.descriptors() <= before);
        assert!(std::net::TcpStream::connect(public).is_err(), "the port is closed");
    }
}
