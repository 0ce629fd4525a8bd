//! Ten thousand visitors at once, and the descriptors that they take.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::rig::{DRIVERS, Program, address, client, connect, ours, server, wait_until, without_resources};

const VISITORS: usize = 10_000;
/// Each has so many of them; what they do one after the other is never much at once.
const VISITORS_PER_THREAD: usize = 500;
const THREADS: usize = VISITORS / VISITORS_PER_THREAD;
/// All programs together, while the visitors are silent.
const RESIDENT_BYTES_MAX: usize = 200 << 20;
/// What a program keeps for the next visitors when these have gone: freed memory that its allocator does not give back.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// Sends back what comes. In a process of its own: with the visitors it would have too many descriptors.
const ECHO: &str = "
import selectors, socket, sys
listener = socket.create_server((sys.argv[1], 0), backlog=4096)
print('echo at port', listener.getsockname()[1], flush=True)
listener.setblocking(False)
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        if key.fileobj is listener:
            selector.register(listener.accept()[0], selectors.EVENT_READ)
            continue
        data = key.fileobj.recv(65536)
        if data:
            key.fileobj.sendall(data)
        else:
            selector.unregister(key.fileobj)
            key.fileobj.close()
";

fn echo_service(address: Ipv4Addr) -> (Program, SocketAddr) {
    let mut command = Command::new("python3");
    command.args(["-c", ECHO, &address.to_string()]);
    let service = Program::spawn(command);
    let port: u16 = service.printed("echo at port ").parse().unwrap();
    (service, (address, port).into())
}

/// Gives this process and those that it starts all the descriptors that they may have; how many that are.
fn all_descriptors() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    hard as usize
}

/// Where all threads of visitors and the one that looks on wait for each other.
#[derive(Default)]
struct Lookout {
    came: AtomicUsize,
    failed: AtomicBool,
}

impl Lookout {
    /// Waits until all have come, for as long as none of them has failed.
    fn wait(&self) {
        let all = THREADS + 1;
        let expected = (self.came.fetch_add(1, Ordering::Relaxed) / all + 1) * all;
        while self.came.load(Ordering::Relaxed) < expected {
            assert!(!self.failed.load(Ordering::Relaxed), "another one has failed");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// One of those; nobody waits for it if it panics.
struct Party<'l>(&'l Lookout);

impl Drop for Party<'_> {
    fn drop(&mut self) {
        self.0.failed.fetch_or(thread::panicking(), Ordering::Relaxed);
    }
}

/// Some of the visitors. All of them are there before the second round and until the `lookout` has seen that.
fn visit(public: SocketAddr, first: usize, lookout: &Lookout) {
    let _party = Party(lookout);
    let mut visitors: Vec<_> = (first..first + VISITORS_PER_THREAD)
        .map(|number| {
            let mut visitor = connect(public);
            let name = number.to_le_bytes();
            visitor.write_all(&name).unwrap();
            let mut back = name.map(|byte| !byte);
            visitor.read_exact(&mut back).unwrap();
            assert_eq!(back, name);
            visitor
        })
        .collect();
    lookout.wait();
    for (number, visitor) in (first..).zip(&mut visitors) {
        visitor.write_all(&(!number).to_le_bytes()).unwrap();
    }
    for (number, visitor) in (first..).zip(&mut visitors) {
        let mut back = [0; 8];
        visitor.read_exact(&mut back).unwrap();
        assert_eq!(usize::from_le_bytes(back), !number);
    }
    lookout.wait();
    lookout.wait();
    visitors.iter().for_each(|visitor| visitor.shutdown(Shutdown::Write).unwrap());
    for visitor in &mut visitors {
        assert_eq!(visitor.read(&mut [0]).unwrap(), 0, "an end, and nothing before it");
    }
}

#[test]
fn ten_thousand_visitors_at_once_get_their_own_bytes_back_and_leave_nothing() {
    let descriptors = all_descriptors();
    if descriptors < VISITORS + 1000 {
        assert!(
            std::env::var_os("CI").is_none(),
            "{descriptors} descriptors are too few for this test itself"
        );
        eprintln!("SKIPPED: {descriptors} descriptors are too few for this test itself");
        return;
    }
    // A server keeps a quarter for callers; each visitor takes two. Where one server may not have enough, there are more.
    // Each has as many visitors as the others.
    let pairs_min = VISITORS.div_ceil(descriptors * 3 / 8 - 100);
    let pairs = (pairs_min..=THREADS).find(|pairs| THREADS.is_multiple_of(*pairs)).unwrap();
    for driver in DRIVERS {
        let (_service, local) = echo_service(address());
        let (programs, public): (Vec<_>, Vec<_>) = (0..pairs)
            .map(|_| {
                let address = address();
                let server = server(address, &format!("{driver} --max-ports 1"));
                let (client, public) = client(address, local, driver);
                ([server, client], public)
            })
            .unzip();
        let programs: Vec<_> = programs.into_iter().flatten().collect();
        let before: Vec<_> =
            programs.iter().map(|program| (program.descriptors(), program.resident())).collect();
        let lookout = Lookout::default();
        thread::scope(|scope| {
            let _party = Party(&lookout);
            for (thread, public) in (0..THREADS).zip(public.iter().cycle()) {
                let lookout = &lookout;
                scope.spawn(move || visit(*public, thread * VISITORS_PER_THREAD, lookout));
            }
            lookout.wait();
            lookout.wait();
            for (program, (descriptors, _)) in programs.iter().zip(&before) {
                // It may have been printing before.
                assert!(program.descriptors() + 1 >= descriptors + 2 * VISITORS / pairs);
            }
            let resident: Vec<_> = programs.iter().map(Program::resident).collect();
            println!("{driver}: {resident:?} bytes for {VISITORS} silent visitors");
            assert!(resident.iter().sum::<usize>() <= RESIDENT_BYTES_MAX, "{resident:?}");
            lookout.wait();
        });
        for (program, (descriptors, resident)) in programs.iter().zip(before) {
            wait_until("all is closed", || program.descriptors() <= descriptors);
            println!("{driver}: {resident} bytes before, {} afterwards", program.resident());
            wait_until("memory is given back", || program.resident() <= resident + KEPT_BYTES_MAX);
        }
    }
}

/// Soft and hard limit of a program's descriptors.
fn limits(program: &Program) -> [String; 2] {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", program.pid())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut words = line.split_whitespace().map(str::to_owned);
    std::array::from_fn(|_| words.next().unwrap())
}

/// Whether this process may raise its own limits.
fn has_resources() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    // CAP_SYS_RESOURCE.
    u64::from_str_radix(capabilities.trim(), 16).unwrap() & (1 << 24) != 0
}

#[test]
fn whoever_may_raises_the_limit_of_descriptors_to_what_the_options_need_and_others_live_with_it() {
    let limited = |wrapper: &[&str], arguments: &str| {
        let mut command = Command::new("prlimit");
        command.arg("--nofile=50:100").args(wrapper).arg(ours()).args(arguments.split(' '));
        Program::spawn(command)
    };
    let mut cases = vec![(false, without_resources())];
    if has_resources() {
        cases.push((true, &[]));
    } else {
        eprintln!("NOT TESTED, for want of CAP_SYS_RESOURCE: that the limit is raised");
    }
    for (may, wrapper) in cases {
        let address = address();
        let server = limited(wrapper, &format!("server --bind-addr {address} --max-connections 50000"));
        server.printed("waiting for clients at");
        let client = limited(wrapper, &format!("local 1 2 --to {address}"));
        client.printed("listening at ");
        let expected = |needed: &str| [if may { needed } else { "100" }; 2].map(str::to_owned);
        // Two for each visitor and for each port, those of callers, and a few.
        assert_eq!(limits(&server), expected("124592"));
        assert_eq!(limits(&client), expected("65568"));
    }
}
