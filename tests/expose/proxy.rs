//! Where visitors come from, as real servers read it from the PROXY protocol.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::process::Command;

use tempfile::TempDir;

use crate::rig::{
    DRIVERS, Program, address, client, connect, free_port, has_ipv6, installed, ours, server, wait_until,
};

/// A server that answers with address and port of who comes and of where he came to, as its configuration makes it.
struct Reader {
    program: Program,
    at: SocketAddr,
    _directory: TempDir,
}

impl Reader {
    /// Starts `program` with the configuration that `content` gives for an address and a directory, and waits until it listens.
    fn start(
        program: &str,
        options: &[&str],
        content: impl Fn(SocketAddr, &str) -> String,
    ) -> Option<Reader> {
        let program = installed(program)?;
        let directory = tempfile::tempdir().unwrap();
        let address = address();
        let at = SocketAddr::from((address, free_port(address)));
        let file = directory.path().join("config");
        fs::write(&file, content(at, directory.path().to_str().unwrap())).unwrap();
        // Ends with the thread that runs the test, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).args(options).arg(file);
        let mut reader = Reader { program: Program::spawn(command), at, _directory: directory };
        wait_until("the server listens", || {
            assert!(reader.program.is_running(), "{}", reader.program.output());
            TcpStream::connect(at).is_ok()
        });
        Some(reader)
    }

    fn nginx() -> Option<Reader> {
        Reader::start("nginx", &["-c"], |at, directory| {
            let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|what| format!("{what}_temp_path {directory}/{what};"));
            format!(
                "daemon off; master_process off; error_log stderr; pid {directory}/pid; events {{}}
                 http {{
                   access_log off; {}
                   server {{
                     listen {at} proxy_protocol;
                     return 200 '$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port';
                   }}
                 }}",
                temporary.concat()
            )
        })
    }

    fn haproxy() -> Option<Reader> {
        Reader::start("haproxy", &["-db", "-f"], |at, _| {
            format!(
                "defaults\n mode http\n timeout client 60s\n timeout connect 60s\n timeout server 60s\n\
                 frontend f\n bind {at} accept-proxy\n \
                 http-request return status 200 content-type text/plain lf-string \"%[src] %[src_port] %[dst] %[dst_port]\"\n"
            )
        })
    }
}

/// What the service tells a visitor of `public`, and the visitor's own address.
#[track_caller]
fn told(public: SocketAddr) -> (String, SocketAddr) {
    let mut visitor = connect(public);
    let own = visitor.local_addr().unwrap();
    visitor.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    visitor.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(head.starts_with("HTTP/1."), "{answer}");
    (body.to_owned(), own)
}

#[track_caller]
fn assert_told(public: SocketAddr, case: &str) {
    // Two, so that they can be told apart.
    for _ in 0..2 {
        let (told, own) = told(public);
        let expected = [own, public].map(|address| format!("{} {}", address.ip(), address.port()));
        assert_eq!(told, expected.join(" "), "{case}");
    }
}

#[test]
fn nginx_and_haproxy_are_told_who_visits_over_ipv4_and_ipv6() {
    let readers = [("nginx", Reader::nginx()), ("HAProxy", Reader::haproxy())];
    for (name, reader) in readers.iter().filter_map(|(name, reader)| Some((name, reader.as_ref()?))) {
        for driver in DRIVERS {
            let case = format!("{name}, {driver}");
            let address = address();
            let _server = server(address, driver);
            let (_client, public) = client(address, reader.at, &format!("--proxy-protocol {driver}"));
            assert_told(public, &case);

            if !has_ipv6() {
                continue;
            }
            let control = free_port(Ipv6Addr::LOCALHOST);
            let options = format!("--bind-addr ::1 --control-port {control} {driver}");
            let server = Program::start(ours(), &format!("server {options}"));
            server.printed("waiting for clients at");
            let options = format!(
                "local {} --local-host {} --to ::1 --control-port {control} --proxy-protocol {driver}",
                reader.at.port(),
                reader.at.ip()
            );
            let client = Program::start(ours(), &options);
            let public = client.printed("listening at ").trim().parse().unwrap();
            assert_told(public, &case);
        }
    }
}
