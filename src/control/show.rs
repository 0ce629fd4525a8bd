//! `uringvpn show`: asks running tunnels what they know and prints it.
//!
//! The tunnel answers at its socket ([`super::observer`]) with a [`Snapshot`] as JSON; that is passed on as it came, or laid
//! out for people.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::name::{NameProblem, check_name};
use super::observer::DIRECTORY;
use crate::stats::snapshot::{Balance, PeerSnapshot, Quantiles, SCHEMA, Snapshot, WorkerSnapshot};

/// How long a tunnel may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Looks at the balance while packets move: one that shows all of them accounted for is enough.
const CHECK_LOOKS: usize = 20;
const CHECK_PAUSE: Duration = Duration::from_millis(50);
/// Packets that one worker can have under way: buffers times the segments of the longest train.
const IN_FLIGHT_PER_WORKER: i64 = 48 * 128;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Show {
    /// Of this interface; otherwise of all.
    pub name: Option<String>,
    /// As JSON, one line per tunnel.
    pub json: bool,
    /// Only whether every packet is accounted for.
    pub check: bool,
}

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// No interface can have this name.
    #[error("the interface name {0:?} {1}")]
    Name(String, NameProblem),
    /// There is no such tunnel.
    #[error("{0}: no such tunnel is running")]
    NotRunning(String),
    /// There is none at all.
    #[error("no tunnel is running")]
    NoneRunning,
    /// One has to be chosen.
    #[error("several tunnels are running, name one of them: {}", .0.join(", "))]
    Several(Vec<String>),
    /// It ran, and does no longer.
    #[error("{0}: the tunnel has ended")]
    Ended(String),
    /// It is somebody else's.
    #[error("{0}: only the user who runs the tunnel may look at it")]
    Permission(String),
    /// It did not answer as it should.
    #[error("{0}: {1}")]
    Answer(String, String),
    /// A packet is unaccounted for, or was counted twice.
    #[error("{0}: {1} packets do not add up: {2} in flight at the least")]
    Imbalance(String, String, i64),
    /// The text could not be written.
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

/// Prints what is wanted to `out`.
///
/// # Errors
/// [`ShowError`].
pub fn run(show: &Show, out: &mut dyn Write) -> Result<(), ShowError> {
    match &show.name {
        Some(name) => {
            out.write_all(page(show, checked(name)?)?.as_bytes())?;
        }
        None => {
            let mut gap = "";
            for name in running(Path::new(DIRECTORY)) {
                match page(show, &name) {
                    Ok(page) => write!(out, "{gap}{page}")?,
                    // A socket whose process was killed, or a tunnel that has just ended.
                    Err(ShowError::NotRunning(_)) => continue,
                    Err(error) => return Err(error),
                }
                gap = if show.json || show.check { "" } else { "\n" };
            }
        }
    }
    Ok(out.flush()?)
}

/// What is wanted of one tunnel.
fn page(show: &Show, name: &str) -> Result<String, ShowError> {
    if show.check {
        check(name)
    } else if show.json {
        ask(name, "show")
    } else {
        Ok(for_people(&look(name)?))
    }
}

/// Interfaces with a socket in `directory`, in the order of their names.
pub(super) fn running(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let name = |path: PathBuf| Some(path.file_name()?.to_str()?.strip_suffix(".sock")?.to_owned());
    let mut names: Vec<_> =
        entries.filter_map(|entry| name(entry.path())).filter(|name| check_name(name).is_ok()).collect();
    names.sort_unstable();
    names
}

/// The tunnel that is meant by `name`, or by none.
pub(super) fn meant(name: Option<&str>) -> Result<String, ShowError> {
    match name {
        Some(name) => checked(name).map(str::to_owned),
        None => the_only_one(running(Path::new(DIRECTORY)), |name| look(name).is_ok()),
    }
}

fn checked(name: &str) -> Result<&str, ShowError> {
    check_name(name).map_err(|problem| ShowError::Name(super::shorten(name), problem))?;
    Ok(name)
}

/// The tunnel that is meant when none is named. A killed process leaves a socket that nobody answers at.
fn the_only_one(names: Vec<String>, answers: impl Fn(&str) -> bool) -> Result<String, ShowError> {
    let mut names = names;
    if names.len() > 1 {
        names.retain(|name| answers(name));
    }
    match names.len() {
        0 => Err(ShowError::NoneRunning),
        1 => Ok(names.remove(0)),
        _ => Err(ShowError::Several(names)),
    }
}

/// Where a tunnel answers.
pub(super) fn socket(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{name}.sock"))
}

/// What the tunnel answers to `question`, JSON with its line end.
pub(super) fn ask(name: &str, question: &str) -> Result<String, ShowError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ShowError::NotRunning(name.to_owned()),
        io::ErrorKind::PermissionDenied => ShowError::Permission(name.to_owned()),
        io::ErrorKind::WouldBlock => ShowError::Answer(name.to_owned(), "it does not answer".to_owned()),
        _ => ShowError::Answer(name.to_owned(), error.to_string()),
    };
    let mut stream = UnixStream::connect(socket(name)).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.write_all(format!("{question}\n").as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed)?;
    if !answer.ends_with('\n') {
        return Err(ShowError::Answer(name.to_owned(), "it broke off; ask again".to_owned()));
    }
    if let Ok(Refusal { error }) = serde_json::from_str(&answer) {
        return Err(ShowError::Answer(name.to_owned(), error));
    }
    Ok(answer)
}

/// What a tunnel says that cannot answer.
#[derive(serde::Deserialize)]
struct Refusal {
    error: String,
}

pub(super) fn look(name: &str) -> Result<Snapshot, ShowError> {
    of_this_schema(name, read(name, &ask(name, "show")?)?)
}

fn of_this_schema(name: &str, snapshot: Snapshot) -> Result<Snapshot, ShowError> {
    if snapshot.schema == SCHEMA {
        return Ok(snapshot);
    }
    let Snapshot { schema, version, .. } = snapshot;
    let problem =
        format!("it is version {version:?} and tells schema {schema}, this version reads schema {SCHEMA}");
    Err(ShowError::Answer(name.to_owned(), problem))
}

/// What an answer says.
pub(super) fn read<T: DeserializeOwned>(name: &str, answer: &str) -> Result<T, ShowError> {
    serde_json::from_str(answer).map_err(|_| {
        let start: String = answer.chars().take(100).collect();
        ShowError::Answer(
            name.to_owned(),
            format!("it answers what this version does not understand: {start:?}"),
        )
    })
}

/// Looks at the balance until it shows every packet accounted for.
fn check(name: &str) -> Result<String, ShowError> {
    let mut worst = None;
    for _ in 0..CHECK_LOOKS {
        let snapshot = look(name)?;
        let Some(odd) = imbalance(&snapshot) else {
            let lines: Vec<_> =
                snapshot.balance.iter().map(|account| format!("{name}: {}\n", line(account))).collect();
            return Ok(lines.concat());
        };
        worst = Some(odd.clone());
        std::thread::sleep(CHECK_PAUSE);
    }
    let (direction, in_flight) = worst.map_or_else(Default::default, |odd| (odd.direction, odd.in_flight));
    Err(ShowError::Imbalance(name.to_owned(), direction, in_flight))
}

/// The direction whose packets do not add up. While packets move, a look or two may be off.
pub(super) fn imbalance(snapshot: &Snapshot) -> Option<&Balance> {
    let limit = IN_FLIGHT_PER_WORKER * snapshot.workers.len() as i64;
    snapshot.balance.iter().find(|account| !(0..=limit).contains(&account.in_flight))
}

fn line(account: &Balance) -> String {
    let Balance { direction, taken_in, passed_on, dropped, staged, in_flight } = account;
    format!(
        "{direction}: {taken_in} in = {passed_on} out + {dropped} dropped + {staged} staged + {in_flight} in flight"
    )
}

/// A page of text.
fn for_people(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    let Snapshot { interface, version, uptime_seconds, workers, .. } = snapshot;
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "interface {interface}: uringvpn {version}, up {}, {} worker{}",
        duration(*uptime_seconds),
        workers.len(),
        if workers.len() == 1 { "" } else { "s" }
    );
    for account in &snapshot.balance {
        let _ = writeln!(text, "  {}", line(account));
    }
    table(&mut text, "\nsince the start", &snapshot.distributions);
    for worker in workers {
        worker_lines(&mut text, worker);
    }
    if !snapshot.drops.is_empty() {
        text += "\ndropped\n";
    }
    for drop in &snapshot.drops {
        let _ = writeln!(text, "  {:<19} {:>12}  {}", drop.reason, drop.packets, drop.help);
    }
    for peer in &snapshot.peers {
        peer_lines(&mut text, peer);
    }
    text
}

/// The rows of what was recorded at all.
fn table(text: &mut String, title: &str, rows: &[Quantiles]) {
    if rows.iter().all(|row| row.count == 0) {
        return;
    }
    let _ = writeln!(
        text,
        "{title:<20} {:>9} {:>9} {:>9} {:>9} {:>9} {:>14}",
        "p50", "p90", "p99", "p99.9", "max", "of"
    );
    for row in rows.iter().filter(|row| row.count > 0) {
        let [p50, p90, p99, p999, max] =
            [row.p50, row.p90, row.p99, row.p999, row.max].map(|value| quantity(value, &row.unit));
        let _ = writeln!(
            text,
            "  {:<17} {p50:>9} {p90:>9} {p99:>9} {p999:>9} {max:>9} {:>14}",
            row.name,
            format!("{} {}", amount(row.count), row.per)
        );
    }
}

fn worker_lines(text: &mut String, worker: &WorkerSnapshot) {
    let count = |name: &str| worker.counters.get(name).copied().unwrap_or_default();
    let _ = writeln!(
        text,
        "\nworker {}: {} packets out, {} in, {} system calls",
        worker.worker,
        amount(count("sent_datagrams")),
        amount(count("written_packets")),
        amount(count("enters"))
    );
    table(text, "  its last second", &worker.last_second);
}

fn peer_lines(text: &mut String, peer: &PeerSnapshot) {
    let handshake = peer
        .handshake_age_seconds
        .map_or_else(|| "none yet".to_owned(), |age| format!("{} ago", duration(age)));
    let _ = writeln!(text, "\npeer {}", peer.public_key);
    let _ = writeln!(
        text,
        "  endpoint {}, handshake {handshake}",
        peer.endpoint.as_deref().unwrap_or("not known")
    );
    let _ = writeln!(text, "  received {}, sent {}", bytes(peer.rx_bytes), bytes(peer.tx_bytes));
    let _ = writeln!(
        text,
        "  allowed IPs {}",
        if peer.allowed_ips.is_empty() { "none".to_owned() } else { peer.allowed_ips.join(", ") }
    );
}

pub(super) fn quantity(value: u64, unit: &str) -> String {
    match unit {
        "ns" => nanoseconds(value),
        "bytes" => bytes(value),
        _ => amount(value),
    }
}

/// Three significant digits.
pub(super) fn nanoseconds(value: u64) -> String {
    scaled(value as f64, &[(1e9, " s"), (1e6, " ms"), (1e3, " us")], " ns")
}

pub(super) fn bytes(value: u64) -> String {
    scaled(value as f64, &[(1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB")], " B")
}

pub(super) fn amount(value: u64) -> String {
    if value < 100_000 {
        value.to_string()
    } else {
        scaled(value as f64, &[(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")], "")
    }
}

pub(super) fn scaled(value: f64, units: &[(f64, &str)], plain: &str) -> String {
    match units.iter().find(|(size, _)| value >= *size) {
        Some((size, unit)) => {
            let value = value / size;
            let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
            format!("{value:.digits$}{unit}")
        }
        None => format!("{value}{plain}"),
    }
}

pub(super) fn duration(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_three_digits_and_a_unit() {
        assert_eq!(
            [0, 999, 12_345, 1_500_000, 9_990_000_000].map(nanoseconds),
            ["0 ns", "999 ns", "12.3 us", "1.50 ms", "9.99 s"]
        );
        assert_eq!([5, 65_521, 123_456_789].map(bytes), ["5 B", "65.5 kB", "123 MB"]);
        assert_eq!([45, 99_999, 1_234_567].map(amount), ["45", "99999", "1.23M"]);
        assert_eq!(
            [3.9, 65.0, 7260.0, 200_000.0].map(duration),
            ["3 s", "1 min 5 s", "2 h 1 min", "2 d 7 h"]
        );
    }

    #[test]
    fn what_an_older_tunnel_does_not_tell_is_empty_and_another_schema_is_refused() {
        let older: Snapshot =
            read("wg0", r#"{"schema":1,"interface":"wg0"}"#).expect("fields may be missing");
        assert!(older.peers.is_empty() && of_this_schema("wg0", older.clone()).is_ok());
        let other = Snapshot { schema: 2, version: "9.0".into(), ..older };
        let refused = of_this_schema("wg0", other).expect_err("it may mean something else");
        assert_eq!(
            refused.to_string(),
            "wg0: it is version \"9.0\" and tells schema 2, this version reads schema 1"
        );
    }

    #[test]
    fn without_a_name_the_only_tunnel_is_meant() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(matches!(the_only_one(names(&[]), |_| true), Err(ShowError::NoneRunning)));
        assert_eq!(the_only_one(names(&["wg0"]), |_| true).ok(), Some("wg0".to_owned()));
        let left_over = the_only_one(names(&["wg0", "wg1"]), |name| name == "wg1");
        assert_eq!(left_over.ok(), Some("wg1".to_owned()));
        let several = the_only_one(names(&["wg0", "wg1"]), |_| true).expect_err("one must be chosen");
        assert_eq!(several.to_string(), "several tunnels are running, name one of them: wg0, wg1");
    }

    #[test]
    fn tunnels_are_found_by_their_sockets() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        for file in ["wg1.sock", "wg0.sock", "other"] {
            fs::write(directory.path().join(file), "").expect("it can be written");
        }
        assert_eq!(running(directory.path()), ["wg0", "wg1"]);
        assert!(running(Path::new("/nowhere")).is_empty());
    }
}
