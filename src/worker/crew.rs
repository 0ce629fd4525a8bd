//! The worker threads and those beside them: starting them, hearing of their end, stopping them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use anyhow::{Context, anyhow, bail};
use core_affinity::CoreId;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use nix::errno::Errno;

use super::capture::{self, Capturer};
use super::choice::{DriverKind, choose_driver, errno};
use super::data::{DataWorker, End, Flags, Parts};
use super::device::Device;
use super::handoff::{self, Inbox, Orders};
use super::protocol::{Notice, Protocol, Sources};
use super::reload::Followed;
use super::start;
use crate::control::capture::Captures;
use crate::control::config::{CORES_TO_PIN, DeviceConfig, PinChoice};
use crate::control::logging;
use crate::control::uapi_socket::Command;
use crate::io::clock;
use crate::io::driver::Driver;
use crate::io::features;
use crate::io::message::Devices;
use crate::io::syscall::Syscall;
use crate::io::uring::{Refused, Uring};
use crate::io::wake::Waker;
use crate::offload::coalesce::Merge;
use crate::proto::keys::PublicKey;
use crate::stats::counters::WorkerCounters;
use crate::stats::offloads::Refusal;
use crate::stats::recorder::{self, Handshakes, Reporter};
use crate::stats::settings::Settings;
use crate::stats::snapshot::SettingsSnapshot;
use crate::stats::thread::{self, Question, Report, Setup, StatsHandle};

/// Commands of the configuration socket that may wait for the protocol thread.
const COMMANDS_WAITING: usize = 64;

/// Questions that may wait for the stats thread.
const QUESTIONS_WAITING: usize = 8;

/// How a worker ended; an error in words.
pub type Ended = Result<End, String>;

/// The running threads.
pub struct Crew {
    flags: Arc<Flags>,
    settings: Arc<Settings>,
    wakers: Vec<Waker>,
    threads: Vec<JoinHandle<()>>,
    ends: Receiver<Ended>,
    /// Rings when a worker ended.
    bell: Waker,
    /// The protocol thread, in encrypted mode.
    protocol: Option<ProtocolHandle>,
    stats: StatsHandle,
    questions: Sender<Question>,
    capturer: Option<Capturer>,
    print_summary: bool,
}

struct ProtocolHandle {
    notices: Sender<Notice>,
    commands: Sender<Command>,
    thread: JoinHandle<()>,
}

/// Starts the stats thread, one worker per queue and in encrypted mode the protocol thread, and waits until every worker
/// is set up.
///
/// # Errors
/// io_uring is refused and was demanded; a worker cannot set up its ring; no thread to be had.
pub fn start(device: Device, config: &DeviceConfig) -> anyhow::Result<Crew> {
    let self_check = device.self_check;
    let kind = choose_driver(config, &self_check)?;
    let count = device.queues.len();
    let settings = Arc::new(settings(config, count, device.listen_port));
    let counters: Vec<_> = (0..count).map(|_| Arc::new(WorkerCounters::default())).collect();
    let (recorders, full_recorders) = recorder::channel(count);
    let report =
        config.stats_interval.map(|every| Report { every, now: clock::now, print: logging::print_lines });
    let (questions, questions_out) = bounded(QUESTIONS_WAITING);
    let interface = device.interface.name.clone();
    let handshakes = Handshakes::default();
    let setup = Setup {
        interface: interface.clone(),
        started: clock::now(),
        started_wall: clock::wall(),
        report,
        questions: questions_out,
        handshakes: handshakes.clone(),
        settings: settings.clone(),
        self_check: self_check.clone(),
    };
    let stats = thread::spawn(counters.clone(), full_recorders, setup).context("no stats thread")?;
    let flags = Arc::new(Flags::default());
    let view = device.view;
    let (outbox, inbox) = handoff::to_protocol();
    let merge = Merge { tcp: device.offloads.tso, udp: device.offloads.uso };
    let cores = cores_to_pin(config.pin, count);
    let bell = Waker::new().context("no doorbell for the main thread")?;
    // One per worker and the protocol thread's.
    let (ends_in, ends) = bounded(count + 1);
    let mut crew = Crew {
        flags: flags.clone(),
        settings: settings.clone(),
        wakers: Vec::new(),
        threads: Vec::new(),
        ends,
        bell,
        protocol: None,
        stats,
        questions,
        capturer: None,
        print_summary: config.foreground || config.stats_interval.is_some(),
    };
    let (started_in, started) = bounded(count);
    let mut orders_in = Vec::with_capacity(count);
    let jobs = device.queues.into_iter().zip(counters).enumerate().map(|(index, (devices, counters))| {
        let waker = Waker::new().context("no doorbell for a worker")?;
        let (giver, orders) = handoff::to_worker(Some(waker.clone()));
        orders_in.push(giver);
        let parts = Parts {
            view: view.clone(),
            orders,
            outbox: outbox.clone(),
            train_segments_max: device.train_segments_max,
            merge,
            counters,
            reporter: Reporter::new(index, recorders.clone(), clock::now()),
            self_check: self_check.clone(),
            flags: flags.clone(),
        };
        let farewell = Farewell { ended: None, ends: ends_in.clone(), bell: crew.bell.clone() };
        let core = (!cores.is_empty()).then(|| cores[index % cores.len()]);
        let started = started_in.clone();
        Ok(Job { index, kind, settings: settings.clone(), devices, waker, parts, core, started, farewell })
    });
    let jobs: Vec<anyhow::Result<Job>> = jobs.collect();
    drop(started_in);
    let hired = crew.hire(jobs).and_then(|()| wait_until_started(&started, count));
    let hired = hired.and_then(|()| crew.start_capturer(interface, orders_in.clone()));
    let outer = device.outer;
    let all = hired.and_then(|()| match outer {
        Some(outer) => {
            let protocol = start::protocol(config, outer, settings, orders_in, handshakes)?;
            crew.start_protocol(protocol, inbox, ends_in)
        }
        None => Ok(()),
    });
    match all {
        Ok(()) => Ok(crew),
        Err(error) => {
            crew.print_summary = false;
            let _ = crew.stop();
            Err(error)
        }
    }
}

/// The cores to pin workers to, worker N to the Nth; none to leave them to the scheduler.
fn cores_to_pin(choice: PinChoice, workers: usize) -> Vec<CoreId> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let pin = match choice {
        PinChoice::Auto => workers > 1 && cores.len() >= CORES_TO_PIN,
        PinChoice::On => true,
        PinChoice::Off => false,
    };
    if pin { cores } else { Vec::new() }
}

fn wait_until_started(started: &Receiver<Result<(), String>>, count: usize) -> anyhow::Result<()> {
    for _ in 0..count {
        match started.recv() {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => bail!(reason),
            Err(_) => bail!("a worker ended while it was being set up"),
        }
    }
    Ok(())
}

fn settings(config: &DeviceConfig, queues: usize, listen_port: u16) -> Settings {
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    Settings::new(SettingsSnapshot {
        pid: std::process::id(),
        pid_namespace: namespace.to_string_lossy().into_owned(),
        mode: if config.plaintext { "plaintext" } else { "encrypted" }.to_owned(),
        queues,
        drivers: Vec::new(),
        mtu: config.mtu,
        listen_port,
        kernel: features::kernel(),
    })
}

impl Crew {
    fn hire(&mut self, jobs: Vec<anyhow::Result<Job>>) -> anyhow::Result<()> {
        for (index, job) in jobs.into_iter().enumerate() {
            let job = job?;
            self.wakers.push(job.waker.clone());
            let spawned =
                std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || job.run());
            self.threads.push(spawned.with_context(|| format!("no thread for worker {index}"))?);
        }
        Ok(())
    }

    /// Becomes readable when a worker ended.
    pub fn bell(&self) -> &Waker {
        &self.bell
    }

    /// A worker's end, if there was one that nobody asked about yet.
    pub fn ended(&self) -> Option<Ended> {
        self.ends.try_recv().ok()
    }

    fn start_protocol(
        &mut self,
        (mut protocol, addresses): (Protocol, Receiver<(PublicKey, SocketAddr)>),
        inbox: Inbox,
        ends: Sender<Ended>,
    ) -> anyhow::Result<()> {
        let (commands, commands_out) = bounded(COMMANDS_WAITING);
        let (notices, notices_out) = unbounded();
        let sources = Sources { inbox, commands: commands_out, notices: notices_out, addresses };
        let farewell = Farewell { ended: None, ends, bell: self.bell.clone() };
        // Here and not there: whoever is told that the tunnel is up may send at once.
        protocol.speak();
        let work = move || {
            let mut farewell = farewell;
            protocol.run(&sources);
            farewell.ended = Some(Ok(End::Stopped));
        };
        let thread = std::thread::Builder::new().name("protocol".to_owned()).spawn(work);
        let thread = thread.context("no thread for the protocol")?;
        self.protocol = Some(ProtocolHandle { notices, commands, thread });
        Ok(())
    }

    fn start_capturer(&mut self, interface: String, workers: Vec<Orders>) -> anyhow::Result<()> {
        self.capturer = Some(capture::start(interface, workers).context("no capture thread")?);
        Ok(())
    }

    /// Where captures are asked for. To be dropped before the crew stops.
    pub fn captures(&self) -> Option<Captures> {
        self.capturer.as_ref().and_then(Capturer::captures)
    }

    /// Where the configuration socket sends its commands; `None` in plaintext mode.
    pub fn commands(&self) -> Option<Sender<Command>> {
        self.protocol.as_ref().map(|protocol| protocol.commands.clone())
    }

    /// Where questions to the stats thread go.
    pub fn questions(&self) -> Sender<Question> {
        self.questions.clone()
    }

    /// Tells all threads whether the interface is up, and its MTU.
    pub fn link_changed(&self, up: bool, mtu: u16) {
        self.flags.paused.store(!up, Ordering::Relaxed);
        self.settings.set_mtu(mtu);
        if let Some(protocol) = &self.protocol {
            // Fails only when it has ended, and that is noticed elsewhere.
            let _ = protocol.notices.send(Notice::Link { up, mtu });
        }
    }

    /// Makes the tunnel become what `config` says, wholly or not at all.
    ///
    /// # Errors
    /// The kernel's, for the port or the mark; EAGAIN if there is no thread for host names.
    pub fn follow(&self, config: DeviceConfig) -> Followed {
        let Some(protocol) = &self.protocol else { return Err(Errno::EOPNOTSUPP) };
        let (reply, answer) = bounded(1);
        let _ = protocol.notices.send(Notice::Follow(Box::new(config), reply));
        // Nobody answers when the thread has ended, and that is noticed elsewhere.
        answer.recv().unwrap_or(Err(Errno::ESRCH))
    }

    /// Stops and joins all threads; the stats thread last, so that its numbers are final.
    ///
    /// # Errors
    /// The first worker's that failed.
    pub fn stop(self) -> anyhow::Result<()> {
        self.flags.stop.store(true, Ordering::Relaxed);
        self.wakers.iter().for_each(Waker::wake);
        for thread in self.threads {
            // A panic was already reported by the worker's farewell.
            let _ = thread.join();
        }
        // Without workers a capture ends by itself, with their last packets.
        drop(self.capturer);
        if let Some(ProtocolHandle { notices, thread, .. }) = self.protocol {
            let _ = notices.send(Notice::Stop);
            let _ = thread.join();
        }
        let summary = self.stats.stop();
        if self.print_summary {
            logging::print_lines(&summary.to_string());
        }
        if let Err(imbalance) = summary.totals.check_drained() {
            tracing::warn!("packets unaccounted for: {imbalance}");
        }
        match self.ends.try_iter().find_map(Result::err) {
            Some(reason) => Err(anyhow!(reason)),
            None => Ok(()),
        }
    }
}

/// What a worker thread is given.
struct Job {
    index: usize,
    kind: DriverKind,
    settings: Arc<Settings>,
    devices: Devices,
    waker: Waker,
    parts: Parts,
    core: Option<CoreId>,
    started: Started,
    farewell: Farewell,
}

impl Job {
    fn run(self) {
        let Job { index, kind, settings, devices, waker, parts, core, started, mut farewell } = self;
        // With the last outbox the protocol thread ends, too: not before this worker's end is told.
        let _outbox = parts.outbox.clone();
        if let Some(core) = core
            && !core_affinity::set_for_current(core)
        {
            tracing::debug!("cannot pin a worker to core {}", core.id);
        }
        // A ring belongs to the thread that makes it.
        let ended = match kind {
            DriverKind::Uring { demanded, features } => match Uring::new(devices, waker, features) {
                Ok(driver) => {
                    settings.add_driver("uring");
                    work(driver, parts, started)
                }
                Err(refused) if demanded => driver_failed(refused.error, started),
                // One ring was to be had, but not one for each worker: locked memory or descriptors ran out.
                Err(Refused { error, devices, waker }) => {
                    let refusal = Refusal::Ring { worker: index };
                    parts.self_check.refused(refusal, errno(&error), clock::now(), None);
                    settings.add_driver("syscall");
                    work_with_system_calls(devices, waker, parts, started)
                }
            },
            DriverKind::Syscall => {
                settings.add_driver("syscall");
                work_with_system_calls(devices, waker, parts, started)
            }
        };
        farewell.ended = Some(ended);
        drop(farewell);
    }
}

type Started = Sender<Result<(), String>>;

fn driver_failed(error: io::Error, started: Started) -> Ended {
    let reason = format!("cannot set up a worker's driver: {error}; raise `ulimit -l` and `ulimit -n`");
    let _ = started.try_send(Err(reason.clone()));
    Err(reason)
}

fn work_with_system_calls(devices: Devices, waker: Waker, parts: Parts, started: Started) -> Ended {
    match Syscall::new(devices, waker) {
        Ok(driver) => work(driver, parts, started),
        Err(error) => driver_failed(error, started),
    }
}

/// Says that it started, then works. The crew waits for one message per worker and there is room for all; a worker that
/// panics before closes its end of the channel.
fn work<D: Driver>(driver: D, parts: Parts, started: Started) -> Ended {
    let mut worker = DataWorker::new(driver, parts);
    let _ = started.try_send(Ok(()));
    drop(started);
    worker.run().map_err(|error| format!("a worker failed: {error}"))
}

/// Reports a worker's end however it comes, a panic included.
struct Farewell {
    ended: Option<Ended>,
    ends: Sender<Ended>,
    bell: Waker,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let ended = self.ended.take().unwrap_or_else(|| Err("a worker panicked".to_owned()));
        let _ = self.ends.try_send(ended);
        self.bell.wake();
    }
}
