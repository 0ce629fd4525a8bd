//! Programs under test, a loopback address for each test, and services that visitors come to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uringvpn::proto::rng::Rng;

/// How long anything may take before we call it a hang.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls `ready`; the only place that waits for something to come true.
#[track_caller]
pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < give_up, "waited in vain for: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A loopback address that no other test has.
pub fn address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let pid = std::process::id();
    Ipv4Addr::new(127, 1 + (pid / 256 % 254) as u8, (pid % 256) as u8, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A port that is free at `address` and stays so: no other test of this process has it, and it lies below those that the kernel
/// gives to whoever asks for any.
pub fn free_port(address: impl Into<IpAddr>) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let (address, first) = (address.into(), 12_000 + (std::process::id() % 10_000) as u16);
    let mut ports = std::iter::from_fn(|| Some(first + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000));
    let is_free =
        |port: &u16| TcpListener::bind((address, *port)).is_ok() && UdpSocket::bind((address, *port)).is_ok();
    ports.find(is_free).unwrap()
}

/// The real bore, if it is here; see [`installed`].
pub fn bore() -> Option<PathBuf> {
    installed("bore")
}

/// A program that is not ours. Without it tests that need it are skipped, and fail where CI=true.
pub fn installed(program: &str) -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Servers lie in /usr/sbin, which is not on everybody's path.
    let more = [root.join("target/peers/bin"), PathBuf::from("/usr/sbin")];
    let mut places = std::env::split_paths(&path).chain(more).map(|place| place.join(program));
    let found = places.find(|program| program.exists());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "no {program}: scripts/test installs it");
        eprintln!("SKIPPED: no {program} here (scripts/test installs it)");
    }
    found
}

pub fn ours() -> PathBuf {
    env!("CARGO_BIN_EXE_uringvpn").into()
}

/// A program that runs; killed at the end.
pub struct Program {
    child: Child,
    output: Arc<Mutex<String>>,
}

impl Program {
    pub fn start(program: PathBuf, arguments: &str) -> Program {
        let mut command = Command::new(program);
        command.args(arguments.split_whitespace());
        Program::spawn(command)
    }

    pub fn spawn(mut command: Command) -> Program {
        for variable in ["BORE_SECRET", "BORE_SERVER", "BORE_MIN_PORT", "BORE_MAX_PORT", "BORE_LOCAL_PORT"] {
            command.env_remove(variable);
        }
        command.env("RUST_LOG", "info").env("NO_COLOR", "1").stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        follow(child.stdout.take().unwrap(), &output);
        follow(child.stderr.take().unwrap(), &output);
        Program { child, output }
    }

    /// Everything it printed so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Waits until it prints `text`, and gives what stands behind its first occurrence up to the end of the line.
    #[track_caller]
    pub fn printed(&self, text: &str) -> String {
        self.printed_after(0, text)
    }

    /// As [`Program::printed`], from byte `start` of its output on.
    #[track_caller]
    pub fn printed_after(&self, start: usize, text: &str) -> String {
        let found = || {
            let output = self.output();
            let (_, behind) = output[start..].split_once(text)?;
            Some(behind.split_once('\n')?.0.to_owned())
        };
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = found() {
                return found;
            }
            assert!(Instant::now() < give_up, "waited in vain for {text:?} in: {}", self.output());
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its open descriptors; one more while it prints.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Bytes of memory it has in RAM.
    pub fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).unwrap();
    }

    /// Waits for its end: its exit code, if it ended by itself.
    #[track_caller]
    pub fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("the program ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {}: {}", self.pid(), self.output());
        }
    }
}

fn follow(stream: impl Read + Send + 'static, output: &Arc<Mutex<String>>) {
    let output = output.clone();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            let mut output = output.lock().unwrap();
            output.push_str(&line);
            output.push('\n');
        }
    });
}

/// Our server at `address`, once it waits for clients.
#[track_caller]
pub fn server(address: Ipv4Addr, options: &str) -> Program {
    let server = Program::start(ours(), &format!("server --bind-addr {address} {options}"));
    server.printed("waiting for clients at");
    server
}

/// Our client of the server at `address` for the service at `local`, and the public address it got.
#[track_caller]
pub fn client(address: Ipv4Addr, local: SocketAddr, options: &str) -> (Program, SocketAddr) {
    let (port, host) = (local.port(), local.ip());
    let arguments = format!("local {port} --local-host {host} --to {address} {options}");
    let client = Program::start(ours(), &arguments);
    let public = client.printed("listening at ").trim().parse().unwrap();
    (client, public)
}

/// Serves every connection to a port of its own on a thread of its own, for as long as the test runs.
pub fn service(address: Ipv4Addr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let bound = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(stream), serve) = (stream, serve.clone()) else { return };
            thread::spawn(move || serve(stream));
        }
    });
    bound
}

/// Sends back what it gets.
pub fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// Answers the end of what it gets with its SHA-256.
pub fn hash(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    if stream.read_to_end(&mut bytes).is_ok() {
        let _ = stream.write_all(digest(&SHA256, &bytes).as_ref());
    }
}

/// `count` random bytes that follow from `seed`.
pub fn random(seed: u8, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    Rng::from_seed([seed; 32]).fill(&mut bytes);
    bytes
}

/// A connection that does not wait for ever.
pub fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What comes back for `bytes` when their end is told: everything up to the end of the other direction.
#[track_caller]
pub fn exchange(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(to);
    let mut writer = stream.try_clone().unwrap();
    let mut answer = Vec::new();
    thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        stream.read_to_end(&mut answer).unwrap();
    });
    answer
}

/// Whether this machine has IPv6 on loopback; a test that needs it says that it was skipped.
pub fn has_ipv6() -> bool {
    let none = TcpListener::bind("[::1]:0").is_err();
    if none {
        eprintln!("SKIPPED: no IPv6 here");
    }
    !none
}

/// What starts a program that may not raise its own limits; nothing where it may not anyway.
pub fn without_resources() -> &'static [&'static str] {
    const WORDS: &[&str] = &["setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource"];
    if nix::unistd::geteuid().is_root() { WORDS } else { &[] }
}

/// Both drivers, as options.
pub const DRIVERS: [&str; 2] = ["--io auto", "--io syscall"];
