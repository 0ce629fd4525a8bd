//! Enemies and faults, against the programs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use crate::rig::{
    DRIVERS, PATIENCE, Program, address, client, connect, echo, exchange, ours, random, server, service,
    wait_until, without_resources,
};

/// Answers of the control port to `bytes`, up to the end of the connection.
fn answers(control: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(control);
    // It may have heard enough before it has heard all.
    let _ = stream.write_all(bytes);
    let mut answers = Vec::new();
    let _ = stream.read_to_end(&mut answers);
    String::from_utf8_lossy(&answers).into_owned()
}

#[test]
fn garbage_and_silence_at_the_control_port_leave_nothing_behind() {
    for driver in DRIVERS {
        let address = address();
        let mut server = server(address, &format!("{driver} --secret abc --lease 0"));
        let control = SocketAddr::from((address, 7835));
        let before = server.descriptors();
        let bad = [vec![b'x'; 257], vec![b'x'; 1 << 20], vec![0], b"\xff\0".to_vec(), b"[[[[\0".to_vec()];
        for bytes in &bad {
            let text = answers(control, bytes);
            assert!(text.starts_with("{\"Challenge\":"), "{text:?}");
        }
        let wrong = format!("{{\"Authenticate\":\"{}\"}}\0{{\"Hello\":0}}\0", "ab".repeat(32));
        assert!(answers(control, wrong.as_bytes()).ends_with("{\"Error\":\"invalid secret\"}\0"));
        let missing = answers(control, b"{\"Hello\":0}\0");
        let words = "{\"Error\":\"server requires secret, but no secret was provided\"}\0";
        assert!(missing.ends_with(words), "{missing:?}");

        // Half a frame and silence, and nothing at all, thousands of them; a client is served all the while.
        let mut enemies: Vec<_> = (0..3000).map(|_| TcpStream::connect(control).unwrap()).collect();
        enemies.iter_mut().step_by(2).for_each(|enemy| drop(enemy.write_all(b"{\"Authent")));
        let (visited, public) = client(address, service(address, echo), &format!("{driver} --secret abc"));
        let bytes = random(1, 100_000);
        assert!(exchange(public, &bytes) == bytes);
        drop(visited);
        for mut enemy in enemies {
            enemy.set_read_timeout(Some(PATIENCE)).unwrap();
            // All are dropped, by an end or a reset.
            while matches!(enemy.read(&mut [0; 100]), Ok(1..)) {}
        }
        wait_until("all is closed", || server.descriptors() <= before);
        assert!(server.is_running());
    }
}

#[test]
fn ports_that_cannot_be_had_end_the_client_with_the_servers_words() {
    let address = address();
    let _server = server(address, "--min-port 2000 --max-port 3000");
    let held = (2000..=3000).find_map(|port| TcpListener::bind((address, port)).ok()).unwrap();
    let taken = held.local_addr().unwrap().port();
    for (port, words) in [
        (22, "client port number not in allowed range"),
        (3001, "client port number not in allowed range"),
        (taken, "port already in use"),
    ] {
        let mut refused = Program::start(ours(), &format!("local 1 --to {address} --port {port}"));
        assert_eq!(refused.ended(), Some(1));
        refused.printed(&format!("{address}:7835: {words}"));
    }
    drop(held);
    let (_client, public) = client(address, service(address, echo), &format!("--port {taken}"));
    assert_eq!(public.port(), taken);
}

#[test]
fn a_server_that_runs_out_of_descriptors_recovers() {
    for driver in DRIVERS {
        let address = address();
        // It asks for no more than it may have, so half of that is taken already.
        let taken =
            "for n in {30..59}; do eval \"exec $n</dev/null\"; done; exec prlimit --nofile=64:64 \"$@\"";
        let mut command = Command::new("bash");
        command.args(["-c", taken, "bash"]).args(without_resources()).arg(ours());
        command.args(["server", "--bind-addr", &address.to_string()]);
        command.args(driver.split(' '));
        let mut server = Program::spawn(command);
        server.printed("waiting for clients at");
        let (_client, public) = client(address, service(address, echo), driver);
        let bytes = random(2, 100_000);
        let before = server.descriptors();
        let visitors: Vec<_> = (0..100).map(|_| TcpStream::connect(public).unwrap()).collect();
        server.printed("too many connections in all");
        drop(visitors);
        wait_until("there is room again", || exchange_if_served(public, &bytes));
        // Those who hold a port, and those who say nothing.
        let clients: Vec<_> = (0..30)
            .map(|number| {
                let mut client = TcpStream::connect((address, 7835)).unwrap();
                if number < 10 {
                    client.write_all(b"{\"Hello\":0}\0").unwrap();
                }
                client
            })
            .collect();
        server.printed("cannot accept connections for a moment");
        drop(clients);
        wait_until("there is room again", || server.descriptors() <= before);
        assert!(exchange(public, &bytes) == bytes);
        assert!(server.is_running());
    }
}

/// Whether a visitor gets its bytes back; it may be turned away.
fn exchange_if_served(public: SocketAddr, bytes: &[u8]) -> bool {
    let mut visitor = connect(public);
    let mut back = vec![0; 5];
    visitor.write_all(&bytes[..5]).is_ok() && visitor.read_exact(&mut back).is_ok() && back == bytes[..5]
}

#[test]
fn a_service_that_is_down_ends_its_visitors_and_is_found_when_it_is_up() {
    for driver in DRIVERS {
        let address = address();
        let server = server(address, driver);
        let listener = TcpListener::bind((address, 0)).unwrap();
        let local = listener.local_addr().unwrap();
        drop(listener);
        let (client, public) = client(address, local, driver);
        let before = server.descriptors();
        for _ in 0..20 {
            let mut visitor = connect(public);
            // An end, or a reset if it has sent something.
            assert!(!matches!(visitor.read(&mut [0; 10]), Ok(1..)));
        }
        client.printed("a visitor could not be served");
        wait_until("all is closed", || server.descriptors() <= before);
        let listener = TcpListener::bind(local).unwrap();
        let served = std::thread::spawn(move || echo(listener.accept().unwrap().0));
        let bytes = random(3, 10_000);
        assert!(exchange(public, &bytes) == bytes);
        served.join().unwrap();
    }
}

#[test]
fn options_that_cannot_work_are_named() {
    for (arguments, words) in [
        ("server --min-port 5000 --max-port 4999", "no port is left"),
        ("server --allow-visitors 10.0.0.0/33", "is not an IP address with a prefix length"),
        ("server --bind-addr nowhere", "nowhere"),
        ("local 0 --to 127.0.0.1", "give the port on which the local service listens"),
        ("local 80", "--to <HOST>"),
        ("local 80 --to 127.0.0.1 --secret-file /nonexistent", "/nonexistent: No such file or directory"),
    ] {
        let mut program = Program::start(ours(), arguments);
        assert_eq!(program.ended(), Some(2), "{arguments}");
        wait_until(words, || program.output().contains(words));
    }
    let address = address();
    let _held = TcpListener::bind((address, 7835)).unwrap();
    let mut server = Program::start(ours(), &format!("server --bind-addr {address}"));
    assert_eq!(server.ended(), Some(1));
    server.printed(&format!("control port {address}:7835: Address already in use"));
}
