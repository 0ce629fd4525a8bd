//! What `uringvpn local` and `uringvpn server` tell those who watch, and under which name.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::observer::{Source, directories, error};
use super::unix_socket::{Listener, SocketError, bind_in};
use crate::io::clock;
use crate::stats::exposed::Kind;
use crate::stats::exposed::minute::Minute;
use crate::stats::exposed::openmetrics::ExposedMetrics;
use crate::stats::exposed::recorder::Recorder;
use crate::stats::exposed::snapshot::{ExposedSettings, PortSnapshot, Sums};
use crate::time::{Time, WallTime};

/// Programs that would have the same name at most; each but the first has a number behind it.
const NAMESAKES_MAX: usize = 99;

/// The recorders of all relay threads; one that starts adds its own.
#[derive(Clone, Debug, Default)]
pub struct Recorders(Arc<Mutex<Vec<Arc<Recorder>>>>);

impl Recorders {
    /// A relay thread fills this one.
    pub fn add(&self, recorder: Arc<Recorder>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(recorder);
    }

    fn all(&self) -> Vec<Arc<Recorder>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Listens for `uringvpn show` under the name that was `given`, or else under the `usual` one, with a number behind it if
/// another program has that; the name it became.
///
/// # Errors
/// No socket can be made, or another program has the given name.
pub fn listen(given: Option<&str>, usual: &str) -> Result<(String, Listener), SocketError> {
    listen_in(&directories(), given, usual)
}

fn listen_in(
    directories: &[PathBuf],
    given: Option<&str>,
    usual: &str,
) -> Result<(String, Listener), SocketError> {
    let namesakes = (2..=NAMESAKES_MAX).map(|number| format!("{usual}-{number}"));
    let usual = std::iter::once(usual.to_owned()).chain(namesakes);
    let names: Vec<String> = given.map_or_else(|| usual.collect(), |name| vec![name.to_owned()]);
    let mut refused = None;
    for name in names {
        match bind_first(directories, &name) {
            Err(error @ SocketError::InUse(_)) => refused = Some(error),
            bound => return bound.map(|listener| (name, listener)),
        }
    }
    Err(refused.expect("there is a name to try"))
}

/// In the first directory where a socket can be made; otherwise why not in the first.
fn bind_first(directories: &[PathBuf], name: &str) -> Result<Listener, SocketError> {
    let mut refused = None;
    for directory in directories {
        match bind_in(directory, name) {
            Err(error @ (SocketError::Permission(_) | SocketError::System { .. })) => {
                refused.get_or_insert(error);
            }
            decided => return decided,
        }
    }
    Err(refused.expect("there is a directory to try"))
}

/// A running program, as its observer knows it.
#[derive(Debug)]
pub struct Program {
    kind: Kind,
    name: String,
    settings: ExposedSettings,
    recorders: Recorders,
    started: Time,
    started_wall: WallTime,
    minute: Minute,
}

impl Program {
    /// One that starts now.
    pub fn new(kind: Kind, name: String, settings: ExposedSettings, recorders: Recorders) -> Program {
        let started = clock::now();
        let minute = Minute::new(kind, started);
        Program { kind, name, settings, recorders, started, started_wall: clock::wall(), minute }
    }

    fn sums(&self) -> Sums {
        Sums::of(self.recorders.all().iter().map(Arc::as_ref))
    }

    /// In the order of their numbers.
    fn ports(&self) -> Vec<PortSnapshot> {
        let ports = self.recorders.all().into_iter().flat_map(|recorder| recorder.ports());
        let mut ports: Vec<_> = ports.map(|port| PortSnapshot::of(&port)).collect();
        ports.sort_by(|one, other| (one.port, &one.whose).cmp(&(other.port, &other.whose)));
        ports
    }

    fn uptime_seconds(&self, now: Time) -> f64 {
        now.since(self.started).as_secs_f64()
    }

    fn shown(&self) -> Vec<u8> {
        let now = clock::now();
        let mut snapshot = self.sums().snapshot(self.kind);
        snapshot.name.clone_from(&self.name);
        snapshot.uptime_seconds = self.uptime_seconds(now);
        snapshot.settings = self.settings.clone();
        snapshot.ports = self.ports();
        self.minute.tell(&mut snapshot, now);
        serde_json::to_vec(&snapshot).unwrap_or_else(|problem| error(&problem.to_string()))
    }
}

impl Source for Program {
    fn answer(&mut self, line: &[u8], _: Option<&UnixStream>) -> Option<Vec<u8>> {
        Some(match line {
            b"show" => self.shown(),
            b"histograms" => error("it exposes ports; reports are of tunnels"),
            line if line.starts_with(b"capture ") => error("it exposes ports; captures are of tunnels"),
            _ => error("unknown question; `show` is known"),
        })
    }

    fn metrics(&mut self) -> Option<String> {
        let metrics = ExposedMetrics {
            kind: self.kind,
            name: self.name.clone(),
            uptime_seconds: self.uptime_seconds(clock::now()),
            started: self.started_wall,
            sums: self.sums(),
            ports: self.ports(),
        };
        metrics.text().ok()
    }

    fn keep_up(&mut self, now: Time) -> Option<Time> {
        if now >= self.minute.next() {
            let sums = self.sums();
            self.minute.look(sums, now);
        }
        Some(self.minute.next())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::stats::exposed::public_port::PublicPort;

    #[test]
    fn who_comes_second_gets_a_number_unless_the_name_was_given() {
        let directory = tempfile::tempdir().unwrap();
        let places = [directory.path().to_owned()];
        let (first, _held) = listen_in(&places, None, "server-7835").unwrap();
        let (second, _too) = listen_in(&places, None, "server-7835").unwrap();
        assert_eq!((first.as_str(), second.as_str()), ("server-7835", "server-7835-2"));
        let refused = listen_in(&places, Some("server-7835"), "x").unwrap_err();
        assert!(matches!(refused, SocketError::InUse(_)), "{refused}");
        let (given, listener) = listen_in(&places, Some("mine"), "x").unwrap();
        assert_eq!(given, "mine");
        // As a process that is killed leaves it.
        std::mem::forget(listener.file);
        drop(listener.socket);
        assert!(directory.path().join("mine.sock").exists());
        assert!(listen_in(&places, Some("mine"), "x").is_ok());
    }

    #[test]
    fn who_may_not_write_to_the_first_directory_gets_a_socket_in_the_second() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = directory.path().join("no/such");
        let (_, listener) = listen_in(&[nowhere.clone(), directory.path().join("own")], None, "a").unwrap();
        assert!(directory.path().join("own/a.sock").exists());
        drop(listener);
        let refused = listen_in(std::slice::from_ref(&nowhere), None, "a").unwrap_err();
        assert!(refused.to_string().contains("no/such"), "{refused}");
        fs::write(directory.path().join("b.sock"), "").unwrap();
        let refused = listen_in(&[directory.path().to_owned()], None, "b").unwrap_err();
        assert!(matches!(refused, SocketError::NotASocket(_)), "{refused}");
    }

    #[test]
    fn a_program_answers_with_all_its_threads_and_has_no_packets_to_offer() {
        let recorders = Recorders::default();
        for number in [9000, 80] {
            let recorder = Arc::new(Recorder::default());
            recorder.port_opened(PublicPort::tcp(number), "localhost:8000".into());
            recorder.visitor_came(None);
            recorders.add(recorder);
        }
        let mut program =
            Program::new(Kind::Local, "local-8000".into(), ExposedSettings::default(), recorders);
        let mut ask = |line: &[u8]| -> serde_json::Value {
            serde_json::from_slice(&program.answer(line, None).unwrap()).unwrap()
        };
        let shown = ask(b"show");
        assert_eq!((&shown["kind"], &shown["name"]), (&"local".into(), &"local-8000".into()));
        assert_eq!(shown["counters"]["visitors"], 2);
        let ports: Vec<_> = shown["ports"].as_array().unwrap().iter().map(|port| &port["port"]).collect();
        assert_eq!(ports, [80, 9000]);
        for question in [&b"histograms"[..], b"capture {}", b"", b"\xff"] {
            assert!(ask(question)["error"].is_string());
        }
        assert!(program.metrics().unwrap().ends_with("# EOF\n"));
    }
}
