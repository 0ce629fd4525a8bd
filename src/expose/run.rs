//! The threads that run clients or a server: which driver, signals, names, what is printed.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

use super::client::{Addresses, Client};
use super::news::News;
use super::output::Output;
use super::server::Server;
use super::watch::{observe_clients, observe_server};
use crate::control::config::IoChoice;
use crate::control::endpoint::HostPort;
use crate::control::expose::{ClientConfig, How, ServerConfig};
use crate::control::exposed::Recorders;
use crate::io::clock;
use crate::io::ring::{self, Features};
use crate::io::tcp::datagrams::Udp;
use crate::io::tcp::epoll::Syscall;
use crate::io::tcp::uring::Uring;
use crate::io::udp::BUSY_PATIENCE;
use crate::io::wake::Waker;
use crate::proto::rng::Rng;
use crate::stats::exposed::recorder::Recorder;
use crate::time::Time;
use crate::worker::choice::refusal;

/// Descriptors that a process may have at most, unless the machine is told otherwise: fs.nr_open.
const NR_OPEN: u64 = 1 << 20;

/// Runs a server until it is told to end.
///
/// # Errors
/// The control port cannot be had; nothing can go on.
pub fn serve(mut config: ServerConfig) -> anyhow::Result<()> {
    let (how, control) = (config.how.clone(), config.control);
    config.fit(raise_descriptor_limit(config.descriptors()));
    let start = |error: Errno| anyhow!("control port {control}: {}", how.reason(error));
    say_what_is_safe(&how, "clients");
    wait_for_port(control);
    let mailbox = Mailbox::new()?;
    watch_signals(vec![mailbox.sender()])?;
    let (driver, recorders) = (driver(how.io)?, Recorders::default());
    let _observer = observe_server(&config, driver, &recorders)?;
    match driver {
        Driver::Uring => run(&how, mailbox, &recorders, |waker, rng| {
            Server::new(Uring::new(waker)?, config, rng).map_err(start)
        }),
        Driver::Syscall => run(&how, mailbox, &recorders, |waker, rng| {
            Server::new(Syscall::new(waker)?, config, rng).map_err(start)
        }),
    }
}

/// Runs a client for each of `configs`, which are run in the same way, until they are told to end or one fails.
///
/// # Errors
/// The server refuses us or cannot be reached at the start; nothing can go on.
pub fn expose(configs: Vec<ClientConfig>) -> anyhow::Result<()> {
    let Some(first) = configs.first() else { return Ok(()) };
    raise_descriptor_limit(configs.iter().map(ClientConfig::descriptors).sum());
    say_what_is_safe(&first.how, &first.server.host);
    let (choice, first, recorders) = (driver(first.how.io)?, first.clone(), Recorders::default());
    let clients: Vec<_> =
        configs.into_iter().map(|config| Ok((config, Mailbox::new()?))).collect::<anyhow::Result<_>>()?;
    watch_signals(clients.iter().map(|(_, mailbox)| mailbox.sender()).collect())?;
    let _observer = observe_clients(&first, choice, &recorders)?;
    let everybody: Vec<_> = clients.iter().map(|(_, mailbox)| mailbox.sender()).collect();
    let (outbox, ends) = unbounded();
    for (config, mailbox) in clients {
        let (outbox, recorders) = (outbox.clone(), recorders.clone());
        // Fails only if another one has failed already.
        let client = move || drop(outbox.send(expose_one(config, mailbox, choice, &recorders)));
        thread::Builder::new().name("client".to_owned()).spawn(client).context("no thread for a port")?;
    }
    drop(outbox);
    let mut result = Ok(());
    for end in ends {
        if end.is_err() && result.is_ok() {
            // The others give their ports back.
            everybody.iter().for_each(|one| one.send(Message::Stop("another port cannot be had")));
            result = end;
        }
    }
    result
}

fn expose_one(
    config: ClientConfig,
    mailbox: Mailbox,
    choice: Driver,
    recorders: &Recorders,
) -> anyhow::Result<()> {
    let how = config.how.clone();
    match choice {
        Driver::Uring => {
            run(&how, mailbox, recorders, |waker, rng| Ok(Client::new(Uring::new(waker)?, config, rng)))
        }
        Driver::Syscall => {
            run(&how, mailbox, recorders, |waker, rng| Ok(Client::new(Syscall::new(waker)?, config, rng)))
        }
    }
}

/// Waits a moment for a control port that is taken: the ring of a process that was killed holds its sockets a little longer.
fn wait_for_port(control: SocketAddr) {
    let give_up = clock::now() + BUSY_PATIENCE;
    let busy = || TcpListener::bind(control).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    while clock::now() < give_up && busy() {
        thread::sleep(Duration::from_millis(20));
    }
}

fn say_what_is_safe(how: &How, whom: &str) {
    match &how.through {
        Some(tunnel) => tracing::info!("what is between here and {whom} stays inside {tunnel}"),
        None => tracing::warn!(
            "data travels in clear between here and {whom}: whoever is on the way can read and change it"
        ),
    }
}

#[derive(Clone, Copy)]
pub(super) enum Driver {
    Uring,
    Syscall,
}

impl Driver {
    /// As `--io` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Driver::Uring => "uring",
            Driver::Syscall => "syscall",
        }
    }
}

/// Tries a ring once.
fn driver(choice: IoChoice) -> anyhow::Result<Driver> {
    if choice == IoChoice::Syscall {
        return Ok(Driver::Syscall);
    }
    let Err(error) = ring::available(Features::default()) else { return Ok(Driver::Uring) };
    let refusal = refusal(&error);
    if choice == IoChoice::Uring {
        return Err(anyhow!(refusal));
    }
    tracing::warn!("{refusal}; using plain system calls");
    Ok(Driver::Syscall)
}

/// What reaches the thread from others.
enum Message {
    /// Why.
    Stop(&'static str),
    Found(Result<Addresses, String>),
}

/// Where messages arrive.
struct Mailbox {
    inbox: Receiver<Message>,
    sender: Messenger,
}

impl Mailbox {
    fn new() -> anyhow::Result<Mailbox> {
        let (outbox, inbox) = unbounded();
        let waker = Waker::new().context("no descriptor to be woken by")?;
        Ok(Mailbox { inbox, sender: Messenger { outbox, waker } })
    }

    fn sender(&self) -> Messenger {
        self.sender.clone()
    }
}

/// Puts messages there.
#[derive(Clone)]
struct Messenger {
    outbox: Sender<Message>,
    waker: Waker,
}

impl Messenger {
    fn send(&self, message: Message) {
        // Fails only if the receiver has ended.
        let _ = self.outbox.send(message);
        self.waker.wake();
    }
}

/// A client or a server.
trait Party {
    fn turn(&mut self, limit: Option<Time>) -> io::Result<()>;
    fn take_news(&mut self) -> Vec<News>;
    fn recorder(&self) -> Arc<Recorder>;
    fn drain(&mut self);
    fn is_idle(&self) -> bool;
    /// What is still relayed ends here: its ends hear of a failure, so that nobody takes what came for the whole.
    fn break_off(&mut self);
    /// Why it has ended by itself.
    fn failure(&self) -> Option<String>;
    /// Names to look up now: the server's and the local service's.
    fn look_up(&mut self) -> Option<[HostPort; 2]>;
    fn found(&mut self, found: Result<Addresses, String>);
}

impl<T: Udp> Party for Server<T> {
    fn turn(&mut self, limit: Option<Time>) -> io::Result<()> {
        Server::turn(self, limit)
    }

    fn take_news(&mut self) -> Vec<News> {
        Server::take_news(self)
    }

    fn recorder(&self) -> Arc<Recorder> {
        Server::recorder(self)
    }

    fn drain(&mut self) {
        Server::drain(self);
    }

    fn is_idle(&self) -> bool {
        Server::is_idle(self)
    }

    fn break_off(&mut self) {
        Server::break_off(self);
    }

    fn failure(&self) -> Option<String> {
        None
    }

    fn look_up(&mut self) -> Option<[HostPort; 2]> {
        None
    }

    fn found(&mut self, _: Result<Addresses, String>) {}
}

impl<T: Udp> Party for Client<T> {
    fn turn(&mut self, limit: Option<Time>) -> io::Result<()> {
        Client::turn(self, limit)
    }

    fn take_news(&mut self) -> Vec<News> {
        Client::take_news(self)
    }

    fn recorder(&self) -> Arc<Recorder> {
        Client::recorder(self)
    }

    fn drain(&mut self) {
        Client::drain(self);
    }

    fn is_idle(&self) -> bool {
        Client::is_idle(self)
    }

    fn break_off(&mut self) {
        Client::break_off(self);
    }

    fn failure(&self) -> Option<String> {
        let server = &self.config().server;
        Client::failure(self).map(|error| format!("{server}: {error}"))
    }

    fn look_up(&mut self) -> Option<[HostPort; 2]> {
        Client::look_up(self).then(|| [self.config().server.clone(), self.config().local.clone()])
    }

    fn found(&mut self, found: Result<Addresses, String>) {
        Client::found(self, found);
    }
}

fn run<P: Party>(
    how: &How,
    mailbox: Mailbox,
    recorders: &Recorders,
    start: impl FnOnce(Waker, Rng) -> anyhow::Result<P>,
) -> anyhow::Result<()> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| anyhow!("no random bytes: {error}"))?;
    let mut party = start(mailbox.sender.waker.clone(), Rng::from_seed(seed))?;
    recorders.add(party.recorder());
    let mut output = Output::new(how.json, how.several);
    let ended = run_party(&mut party, how, &mailbox, &mut output);
    output.finish();
    ended
}

fn run_party(
    party: &mut impl Party,
    how: &How,
    mailbox: &Mailbox,
    output: &mut Output,
) -> anyhow::Result<()> {
    let mut end = None;
    loop {
        output.tell(party.take_news(), clock::now());
        if let Some(reason) = party.failure() {
            return Err(anyhow!(reason));
        }
        if end.is_some_and(|end| party.is_idle() || clock::now() >= end) {
            party.break_off();
            return Ok(());
        }
        if let Some(names) = party.look_up() {
            look_up(names, mailbox.sender())?;
        }
        party.turn(end).context("cannot wait for connections")?;
        for message in mailbox.inbox.try_iter() {
            match message {
                Message::Found(found) => party.found(found),
                // Whoever says it twice does not want to wait.
                Message::Stop(_) if end.is_some() => end = Some(clock::now()),
                Message::Stop(reason) => {
                    tracing::info!("{reason}: finishing what is relayed");
                    party.drain();
                    end = Some(clock::now() + how.drain);
                }
            }
        }
    }
}

/// SIGTERM and SIGINT reach everybody as messages. Called before there are other threads, so that all block them.
fn watch_signals(everybody: Vec<Messenger>) -> anyhow::Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block().context("cannot block signals")?;
    let watch = move || {
        while let Ok(signal) = signals.wait() {
            everybody.iter().for_each(|one| one.send(Message::Stop(signal.as_str())));
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(watch).context("no thread for signals")?;
    Ok(())
}

/// Looks names up on a thread of its own: that may take half a minute.
fn look_up([server, local]: [HostPort; 2], asker: Messenger) -> anyhow::Result<()> {
    let ask = move || {
        let found = server.resolve().and_then(|server| Ok(Addresses { server, local: local.resolve()? }));
        asker.send(Message::Found(found.map_err(|error| error.to_string())));
    };
    thread::Builder::new().name("resolver".to_owned()).spawn(ask).context("no thread to look names up")?;
    Ok(())
}

/// Every connection is a descriptor, and the usual soft limit is 1024. The hard limit is a guard against those who are not
/// root; many systems give root the same, which is too low for thousands of visitors, so whoever may (CAP_SYS_RESOURCE)
/// raises it to what is `needed`. How many there may be now.
///
/// Source: getrlimit(2); linux fs/file.c sysctl_nr_open.
fn raise_descriptor_limit(needed: usize) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok();
    let most = most.and_then(|most| most.trim().parse().ok()).unwrap_or(NR_OPEN);
    let needed = (needed as u64).min(most);
    if needed > hard && setrlimit(Resource::RLIMIT_NOFILE, needed, needed).is_ok() {
        return needed as usize;
    }
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard as usize,
        Err(_) => soft as usize,
    }
}
