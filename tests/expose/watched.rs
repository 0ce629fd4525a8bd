//! A running client and a running server as `uringvpn show`, `top` and a scraper see them, with watchers of every kind.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use uringvpn::control::observer::DIRECTORY;

use crate::rig::{
    DRIVERS, Program, address, client, echo, exchange, ours, random, server, service, wait_until,
};

/// A name that no other test has.
fn name(letter: char) -> String {
    format!("t{letter}{}", std::process::id())
}

fn run(words: &str) -> Output {
    Command::new(ours()).args(words.split_whitespace()).env("NO_COLOR", "1").output().unwrap()
}

#[track_caller]
fn text(words: &str) -> String {
    let output = run(words);
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn shown(name: &str) -> Value {
    serde_json::from_str(&text(&format!("show {name} --json"))).unwrap()
}

/// Why `words` is refused.
#[track_caller]
fn refused(words: &str) -> String {
    let output = run(words);
    assert_eq!(output.status.code(), Some(1), "{words}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

/// Those who may make a socket where tunnels have theirs are root; elsewhere there is nothing to see.
fn may_be_shown() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: not root");
    }
    root
}

fn socket(name: &str) -> PathBuf {
    PathBuf::from(DIRECTORY).join(format!("{name}.sock"))
}

#[test]
fn both_sides_tell_the_same_of_what_went_through_them() {
    if !may_be_shown() {
        return;
    }
    for driver in DRIVERS {
        let address = address();
        let (of_server, of_client) = (name('s'), name('c'));
        let server = server(address, &format!("{driver} --name {of_server}"));
        let local = service(address, echo);
        let (client, public) = client(address, local, &format!("{driver} --name {of_client}"));
        let bytes = random(5, 300_000);
        for _ in 0..3 {
            assert!(exchange(public, &bytes) == bytes);
        }
        for (name, kind) in [(&of_server, "server"), (&of_client, "local")] {
            wait_until("all have ended", || shown(name)["ended"][0]["count"] == 3);
            let told = shown(name);
            assert_eq!(
                (&told["schema"], &told["kind"], &told["name"]),
                (&1.into(), &kind.into(), &name[..].into())
            );
            for (counter, value) in
                [("visitors", 3), ("joined", 3), ("in_bytes", 900_000), ("out_bytes", 900_000)]
            {
                assert_eq!(told["counters"][counter], value, "{told}");
            }
            assert_eq!((&told["present"]["open"], &told["present"]["ports_open"]), (&0.into(), &1.into()));
            assert_eq!(
                (&told["ports"][0]["port"], &told["ports"][0]["in_bytes"]),
                (&public.port().into(), &900_000.into())
            );
            let first_byte = |row: &Value| {
                row["name"] == "first_byte" && row["count"] == 3 && row["p50"].as_u64() > Some(0)
            };
            assert!(told["distributions"].as_array().unwrap().iter().any(first_byte), "{told}");
            wait_until("the last second is told", || shown(name)["last_second_ago"].is_number());
            assert!(!shown(name)["seconds"].as_array().unwrap().is_empty());
            assert!(text(&format!("show {name}")).starts_with(&format!("{kind} {name}: uringvpn ")));
            let checked = text(&format!("show {name} --check"));
            assert!(checked.contains("visitors: 3 in all = 3 joined + 0 turned away"), "{checked}");
            wait_until("it is listed", || {
                listed().is_some_and(|all| all.iter().any(|told| told["name"] == name[..]))
            });
            assert_eq!(std::fs::metadata(socket(name)).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(shown(&of_client)["ports"][0]["whose"], local.to_string());
        assert!(refused(&format!("report {of_server} -o -")).contains("no tunnel"));
        assert!(refused(&format!("capture {of_client} -w /dev/null")).contains("exposes ports"));
        for (mut program, name) in [(client, of_client), (server, of_server)] {
            program.signal(Signal::SIGTERM);
            assert_eq!(program.ended(), Some(0));
            assert!(!socket(&name).exists(), "its socket goes with it");
            assert!(refused(&format!("show {name}")).contains("is running"));
        }
    }
}

#[test]
fn several_clients_in_one_process_are_one_name() {
    if !may_be_shown() {
        return;
    }
    let address = address();
    let _server = server(address, "");
    let ports = [service(address, echo), service(address, echo)].map(|local| local.port());
    let name = name('m');
    let arguments =
        format!("local {} {} --local-host {address} --to {address} --name {name}", ports[0], ports[1]);
    let client = Program::start(ours(), &arguments);
    wait_until("both are public", || shown_if(&name).is_some_and(|told| told["present"]["ports_open"] == 2));
    let told = shown(&name);
    for port in told["ports"].as_array().unwrap() {
        let public = SocketAddr::from((address, port["port"].as_u64().unwrap() as u16));
        assert_eq!(exchange(public, b"hello"), b"hello");
    }
    wait_until("both are counted", || shown(&name)["counters"]["visitors"] == 2);
    assert!(shown(&name)["ports"].as_array().unwrap().iter().all(|port| port["visitors"] == 1));
    drop(client);
}

fn shown_if(name: &str) -> Option<Value> {
    serde_json::from_slice(&run(&format!("show {name} --json")).stdout).ok()
}

#[test]
fn a_name_that_is_taken_is_refused_and_one_that_was_left_behind_is_taken_over() {
    if !may_be_shown() {
        return;
    }
    let name = name('d');
    let first = server(address(), &format!("--name {name}"));
    let elsewhere = address();
    let mut second = Program::start(ours(), &format!("server --bind-addr {elsewhere} --name {name}"));
    assert_eq!(second.ended(), Some(1));
    wait_until("it says why", || second.output().contains("in use by another process"));
    assert_eq!(shown(&name)["settings"]["pid"], first.pid(), "the first is not disturbed");
    // Killed, it leaves its socket.
    drop(first);
    assert!(socket(&name).exists() && refused(&format!("show {name}")).contains("is running"));
    wait_until("a list", || listed().is_some_and(|all| all.iter().all(|told| told["name"] != name[..])));
    let third = server(elsewhere, &format!("--name {name}"));
    assert_eq!(shown(&name)["settings"]["pid"], third.pid());
}

#[test]
fn programs_with_the_same_usual_name_are_told_apart() {
    if !may_be_shown() {
        return;
    }
    let servers = [(); 2].map(|()| server(address(), ""));
    let pids = || -> Vec<u64> {
        let all = listed().unwrap_or_default();
        let usual = |told: &&Value| told["name"].as_str().is_some_and(|name| name.starts_with("server-7835"));
        all.iter().filter(usual).map(|told| told["settings"]["pid"].as_u64().unwrap()).collect()
    };
    wait_until("both are told of", || servers.iter().all(|server| pids().contains(&server.pid().into())));
    let output = run("server --name 0123456789abcdef");
    assert_eq!(output.status.code(), Some(2), "too long for a name");
}

/// Everybody who runs here, if all of them answer: another test may keep one too busy.
fn listed() -> Option<Vec<Value>> {
    let output = run("show --json");
    let lines = || String::from_utf8(output.stdout).unwrap();
    output.status.success().then(|| lines().lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// Answers as a server of this name.
fn answer(mut stream: UnixStream, name: &str) {
    let _ = stream.read(&mut [0; 100]);
    let _ =
        stream.write_all(format!("{{\"schema\":1,\"kind\":\"server\",\"name\":\"{name}\"}}\n").as_bytes());
}

#[test]
fn one_that_ends_while_it_is_asked_is_left_out_and_the_others_are_shown() {
    let runtime = tempfile::tempdir().unwrap();
    let place = |name: &str| runtime.path().join(format!("uringvpn/{name}.sock"));
    std::fs::create_dir(runtime.path().join("uringvpn")).unwrap();
    // They come first, before programs of other tests.
    let listen = |name: &str| UnixListener::bind(place(name)).unwrap();
    drop(listen("0killed"));
    let (ending, other) = (listen("1ending"), listen("2other"));
    let its_socket = place("1ending");
    let threads = [
        thread::spawn(move || {
            let (mut stream, _) = ending.accept().unwrap();
            let _ = stream.read(&mut [0; 100]);
            std::fs::remove_file(its_socket).unwrap();
        }),
        thread::spawn(move || answer(other.accept().unwrap().0, "2other")),
    ];
    let mut command = Command::new(ours());
    let output = command.args(["show", "--json"]).env("XDG_RUNTIME_DIR", runtime.path()).output().unwrap();
    let [shown, said] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(shown.contains(r#""name":"2other""#) && !shown.contains("1ending"), "{shown}{said}");
    assert!(said.starts_with("uringvpn: 1ending: it has ended meanwhile\n"), "{said}");
}

#[test]
fn datagrams_that_came_while_a_server_stood_still_are_shown_as_lost() {
    if !may_be_shown() {
        return;
    }
    for driver in DRIVERS {
        let address = address();
        let name = name('o');
        let server = server(address, &format!("{driver} --name {name}"));
        let deaf = UdpSocket::bind((address, 0)).unwrap();
        let options = format!("{driver} --local-host {address} --to {address}");
        let client =
            Program::start(ours(), &format!("local {}/udp {options}", deaf.local_addr().unwrap().port()));
        let public = client.printed("listening at ");
        let visitor = UdpSocket::bind("127.0.0.1:0").unwrap();
        visitor.connect(public.strip_suffix("/udp").unwrap()).unwrap();
        server.signal(Signal::SIGSTOP);
        (0..100).for_each(|_| assert!(visitor.send(&[7; 60_000]).is_ok()));
        server.signal(Signal::SIGCONT);
        wait_until("they are counted", || {
            visitor.send(b"more").unwrap();
            let lost = shown(&name)["lost_datagrams"].as_array().unwrap().clone();
            lost.iter().any(|one| one["reason"] == "overflown" && one["count"].as_u64() > Some(10))
        });
        assert!(text(&format!("show {name}")).contains("overflown"));
    }
}

/// A scrape of `address`, in the format that `accept` names.
fn scrape(address: &str, accept: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[test]
fn metrics_hold_what_happened_and_promtool_finds_nothing_amiss() {
    let address = address();
    let metrics = "--metrics 127.0.0.1:0";
    let server = server(address, metrics);
    let (client, public) = client(address, service(address, echo), metrics);
    let bytes = random(6, 100_000);
    assert!(exchange(public, &bytes) == bytes);
    for program in [&server, &client] {
        let place = program.printed("metrics at http://");
        let place = place.split('/').next().unwrap();
        wait_until("it is over", || {
            scrape(place, "*/*").contains("exposed_ended_total{how=\"finished\"} 1\n")
        });
        let text = scrape(place, "text/plain");
        for line in [
            "uringvpn_exposed_visitors_total 1\n".to_owned(),
            "uringvpn_exposed_in_bytes_total 100000\n".to_owned(),
            format!(
                "uringvpn_exposed_port_out_bytes_total{{port=\"{}\",protocol=\"tcp\"}} 100000\n",
                public.port()
            ),
            "uringvpn_exposed_first_byte_seconds_count 1\n".to_owned(),
            "uringvpn_exposed_join_seconds_bucket{le=\"+Inf\"} 1\n".to_owned(),
        ] {
            assert!(text.contains(&line), "{line}{text}");
        }
        assert!(scrape(place, "application/openmetrics-text").ends_with("# EOF\n"));
        promtool(&text);
    }
}

/// `promtool` must be content.
fn promtool(metrics: &str) {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        assert!(std::env::var_os("CI").is_none(), "promtool is missing, scripts/test installs it");
        return eprintln!("SKIPPED: no promtool");
    };
    child.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "promtool: {}", String::from_utf8_lossy(&said));
}

#[test]
fn metrics_that_cannot_be_served_are_refused_at_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = taken.local_addr().unwrap();
    let said = refused(&format!("server --bind-addr {} --metrics {place}", address()));
    assert!(said.contains("cannot serve metrics"), "{said}");
    assert_eq!(run("server --metrics nowhere").status.code(), Some(2));
}

#[test]
fn top_prints_lines_where_there_is_no_terminal_and_ends_with_the_program() {
    if !may_be_shown() {
        return;
    }
    let address = address();
    let name = name('p');
    let mut server = server(address, &format!("--name {name}"));
    let (_client, public) = client(address, service(address, echo), "");
    assert_eq!(exchange(public, b"hello"), b"hello");
    wait_until("it is over", || shown(&name)["ended"][0]["count"] == 1);
    let lines = text(&format!("top {name} --count 2 --interval 0.1"));
    for part in [
        format!("{name}  sums ok  up "),
        "visitors/s".to_owned(),
        "now  0 connections open".to_owned(),
        "1 times".to_owned(),
        "first_byte".to_owned(),
        "2 counted".to_owned(),
        public.port().to_string(),
        "ended finished".to_owned(),
    ] {
        assert!(lines.contains(&part), "no {part:?} in\n{lines}");
    }
    let mut command = Command::new(ours());
    command.args(["top", &name, "--interval", "0.1"]);
    let mut top = Program::spawn(command);
    top.printed("sums ok");
    server.signal(Signal::SIGKILL);
    server.ended();
    assert_eq!(top.ended(), Some(1));
}

#[test]
fn watchers_of_every_kind_cost_the_relay_nothing() {
    if !may_be_shown() {
        return;
    }
    let address = address();
    let name = name('h');
    let server = server(address, &format!("--name {name} --metrics 127.0.0.1:0"));
    let (_client, public) = client(address, service(address, echo), "");
    let metrics = server.printed("metrics at http://").split('/').next().unwrap().to_owned();
    let before = server.descriptors();
    // Who asks and never reads, who never asks, who asks half, who sends garbage: a crowd of each.
    let mut crowd = Vec::new();
    let mut strangers = Vec::new();
    for _ in 0..100 {
        for question in [&b"show\n"[..], b"", b"sho", &[0xff; 4096]] {
            let mut watcher = UnixStream::connect(socket(&name)).unwrap();
            // Some are sent away before they have asked.
            let _ = watcher.write_all(question);
            crowd.push(watcher);
        }
        let mut stranger = TcpStream::connect(&metrics).unwrap();
        let _ = stranger.write_all(b"GET /metrics HTTP/1.1\r\n");
        strangers.push(stranger);
    }
    let bytes = random(7, 500_000);
    for _ in 0..5 {
        assert!(exchange(public, &bytes) == bytes);
    }
    wait_until("the owner to be answered, too", || {
        shown_if(&name).is_some_and(|told| told["counters"]["joined"] == 5)
    });
    drop((crowd, strangers));
    wait_until("nothing is left of them", || server.descriptors() <= before);
}
