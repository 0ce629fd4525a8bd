//! `uringvpn show`: asks running tunnels, and programs that expose ports, what they know and prints it.
//!
//! Each answers at its socket ([`super::observer`]) with a [`Snapshot`] or an [`ExposedSnapshot`] as JSON; that is passed on as it
//! came, or laid out for people.

pub(super) mod exposed;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::name::{NameProblem, check_name};
use super::observer::directories;
use crate::io::BUFFERS_PER_WORKER;
use crate::offload::coalesce::SEGMENTS_MAX;
use crate::stats::exposed::snapshot::ExposedSnapshot;
use crate::stats::snapshot::{
    Balance, Dropped, OffloadSnapshot, PeerSnapshot, Quantiles, SCHEMA, SettingsSnapshot, Snapshot, TUNNEL,
    WorkerSnapshot,
};

/// How long a tunnel may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Looks at the balance while packets move: one that shows all of them accounted for is enough.
const CHECK_LOOKS: usize = 20;
const CHECK_PAUSE: Duration = Duration::from_millis(50);
/// Packets that one worker can have under way: each buffer holds a train or a superpacket at most.
const IN_FLIGHT_PER_WORKER: i64 = BUFFERS_PER_WORKER as i64 * SEGMENTS_MAX as i64;

/// A worker that moves packets tells of a second that is younger than this. What is older is said to be old.
pub(super) const STALE_SECONDS: f64 = 3.0;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Show {
    /// Of this interface or program; otherwise of all.
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
    /// Nothing is called so.
    #[error("{0}: nothing of this name is running")]
    NotRunning(String),
    /// There is none at all.
    #[error("no tunnel is running")]
    NoneRunning,
    /// One has to be chosen.
    #[error("several are running, name one of them: {}", .0.join(", "))]
    Several(Vec<String>),
    /// It ran, and does no longer.
    #[error("{0}: the tunnel has ended")]
    Ended(String),
    /// It is somebody else's.
    #[error("{0}: only the user who runs the tunnel may look at it")]
    Permission(String),
    /// It exposes ports, and what is wanted is known of tunnels alone.
    #[error("{0}: it is no tunnel but a program that exposes ports (uringvpn {1}); name a tunnel")]
    NoTunnel(String, String),
    /// It did not answer as it should.
    #[error("{0}: {1}")]
    Answer(String, String),
    /// A packet is unaccounted for, or was counted twice.
    #[error("{0}: {1} packets do not add up: {2} in flight at the least")]
    Imbalance(String, String, i64),
    /// A visitor or a connection is unaccounted for, or was counted twice.
    #[error("{0}: {1} do not add up: {2} are missing")]
    Missing(String, &'static str, i64),
    /// The text could not be written.
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

/// Prints what is wanted to `out`. Of all that run, those that end before they have answered are left out, with a line in `notes`.
///
/// # Errors
/// [`ShowError`].
pub fn run(show: &Show, out: &mut dyn Write, notes: &mut dyn Write) -> Result<(), ShowError> {
    match &show.name {
        Some(name) => {
            out.write_all(page(show, checked(name)?)?.as_bytes())?;
        }
        None => {
            let mut gap = "";
            for name in running(&directories()) {
                match page(show, &name) {
                    Ok(page) => write!(out, "{gap}{page}")?,
                    // Whose process was killed, however long ago.
                    Err(ShowError::NotRunning(_)) if has_socket(&name) => continue,
                    Err(ShowError::NotRunning(_) | ShowError::Answer(..)) if has_ended(&name) => {
                        // The others are shown also where nobody can read this.
                        let _ = writeln!(notes, "uringvpn: {name}: it has ended meanwhile");
                        continue;
                    }
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
        Ok(match look_at_any(name)? {
            Shown::Tunnel(snapshot) => for_people(&snapshot),
            Shown::Exposed(snapshot) => exposed::for_people(&snapshot),
        })
    }
}

/// Whoever has a socket in one of `directories`, in the order of their names.
pub(super) fn running(directories: &[PathBuf]) -> Vec<String> {
    let entries =
        directories.iter().flat_map(|directory| fs::read_dir(directory).into_iter().flatten().flatten());
    let name = |path: PathBuf| Some(path.file_name()?.to_str()?.strip_suffix(".sock")?.to_owned());
    let mut names: Vec<_> =
        entries.filter_map(|entry| name(entry.path())).filter(|name| check_name(name).is_ok()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The tunnel that is meant by `name`, or by none.
pub(super) fn meant(name: Option<&str>) -> Result<String, ShowError> {
    meant_by(name, |name| look(name).is_ok())
}

/// The tunnel, or the program that exposes ports, that is meant by `name`, or by none.
pub(super) fn meant_of_any(name: Option<&str>) -> Result<String, ShowError> {
    meant_by(name, |name| look_at_any(name).is_ok())
}

fn meant_by(name: Option<&str>, fits: impl Fn(&str) -> bool) -> Result<String, ShowError> {
    match name {
        Some(name) => checked(name).map(str::to_owned),
        None => the_only_one(running(&directories()), fits),
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

/// A connection to whoever answers under `name`.
fn connect(name: &str) -> io::Result<UnixStream> {
    let mut failed = None;
    for directory in directories() {
        match UnixStream::connect(directory.join(format!("{name}.sock"))) {
            Ok(stream) => return Ok(stream),
            // What keeps us out says more than what is not there.
            Err(error) if is_absent(&error) => failed = failed.or(Some(error)),
            Err(error) => failed = Some(failed.filter(|error| !is_absent(error)).unwrap_or(error)),
        }
    }
    Err(failed.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// Whether there is a socket of that name, with or without somebody behind it.
fn has_socket(name: &str) -> bool {
    directories().iter().any(|directory| directory.join(format!("{name}.sock")).exists())
}

/// Whether nobody answers under `name` any more.
fn has_ended(name: &str) -> bool {
    connect(name).is_err_and(|error| is_absent(&error))
}

/// Whether nobody is there.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Why the tunnel `name` gave no answer.
pub(super) fn failed(name: &str, error: &io::Error) -> ShowError {
    let name = name.to_owned();
    match error.kind() {
        _ if is_absent(error) => ShowError::NotRunning(name),
        io::ErrorKind::PermissionDenied => ShowError::Permission(name),
        io::ErrorKind::WouldBlock => ShowError::Answer(name, "it does not answer".to_owned()),
        _ => ShowError::Answer(name, error.to_string()),
    }
}

/// Puts `question` to the tunnel; where its answer will come from, within [`PATIENCE`].
pub(super) fn put(name: &str, question: &str) -> io::Result<UnixStream> {
    let mut stream = connect(name)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{question}\n").as_bytes())?;
    Ok(stream)
}

/// What the tunnel answers to `question`, JSON with its line end.
pub(super) fn ask(name: &str, question: &str) -> Result<String, ShowError> {
    let mut answer = String::new();
    let read = put(name, question).and_then(|mut stream| stream.read_to_string(&mut answer));
    read.map_err(|error| failed(name, &error))?;
    whole(name, answer)
}

/// An answer that is one, and no refusal.
pub(super) fn whole(name: &str, answer: String) -> Result<String, ShowError> {
    if !answer.ends_with('\n') {
        return Err(ShowError::Answer(name.to_owned(), "it broke off; ask again".to_owned()));
    }
    // Not every answer is short enough to be read twice.
    if answer.starts_with("{\"error\"")
        && let Ok(Refusal { error }) = serde_json::from_str(&answer)
    {
        return Err(ShowError::Answer(name.to_owned(), error));
    }
    Ok(answer)
}

/// What a tunnel says that cannot answer.
#[derive(serde::Deserialize)]
struct Refusal {
    error: String,
}

/// What somebody told of himself.
#[derive(Clone, Debug)]
pub(super) enum Shown {
    /// A tunnel.
    Tunnel(Box<Snapshot>),
    /// A program that exposes ports.
    Exposed(Box<ExposedSnapshot>),
}

/// What a tunnel knows.
pub(super) fn look(name: &str) -> Result<Snapshot, ShowError> {
    match look_at_any(name)? {
        Shown::Tunnel(snapshot) => Ok(*snapshot),
        Shown::Exposed(snapshot) => Err(ShowError::NoTunnel(name.to_owned(), snapshot.kind)),
    }
}

/// What a tunnel, or a program that exposes ports, knows.
pub(super) fn look_at_any(name: &str) -> Result<Shown, ShowError> {
    understood(name, &ask(name, "show")?)
}

fn understood(name: &str, answer: &str) -> Result<Shown, ShowError> {
    if is_of_tunnel(answer) {
        let snapshot: Snapshot = read(name, answer)?;
        of_this_schema(name, snapshot.schema, &snapshot.version)?;
        Ok(Shown::Tunnel(Box::new(snapshot)))
    } else {
        let snapshot: ExposedSnapshot = read(name, answer)?;
        of_this_schema(name, snapshot.schema, &snapshot.version)?;
        Ok(Shown::Exposed(Box::new(snapshot)))
    }
}

/// Looks at the beginning alone, where all say what they are: an answer may be megabytes long.
fn is_of_tunnel(answer: &str) -> bool {
    let kind = answer.split('"').take(8).skip_while(|word| *word != "kind").nth(2);
    // Older tunnels do not say it.
    matches!(kind, None | Some(TUNNEL))
}

fn of_this_schema(name: &str, schema: u32, version: &str) -> Result<(), ShowError> {
    if schema == SCHEMA {
        return Ok(());
    }
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

/// Looks at the balance until it shows everything accounted for.
fn check(name: &str) -> Result<String, ShowError> {
    let mut looks = 1;
    loop {
        let checked = match look_at_any(name)? {
            Shown::Tunnel(snapshot) => check_packets(name, &snapshot),
            Shown::Exposed(snapshot) => check_connections(name, &snapshot),
        };
        if checked.is_ok() || looks == CHECK_LOOKS {
            return checked.map(|lines| lines.iter().map(|line| format!("{name}: {line}\n")).collect());
        }
        looks += 1;
        std::thread::sleep(CHECK_PAUSE);
    }
}

fn check_packets(name: &str, snapshot: &Snapshot) -> Result<Vec<String>, ShowError> {
    match imbalance(snapshot) {
        None => Ok(snapshot.balance.iter().map(line).collect()),
        Some(odd) => Err(ShowError::Imbalance(name.to_owned(), odd.direction.clone(), odd.in_flight)),
    }
}

fn check_connections(name: &str, snapshot: &ExposedSnapshot) -> Result<Vec<String>, ShowError> {
    let accounts = exposed::accounts(snapshot);
    match accounts.iter().find(|account| account.missing() != 0) {
        None => Ok(accounts.iter().map(exposed::Account::line).collect()),
        Some(odd) => Err(ShowError::Missing(name.to_owned(), odd.what, odd.missing())),
    }
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
    if !snapshot.settings.mode.is_empty() {
        let _ = writeln!(text, "  {}", settings_line(&snapshot.settings));
    }
    for account in &snapshot.balance {
        let _ = writeln!(text, "  {}", line(account));
    }
    offload_lines(&mut text, &snapshot.offloads);
    table(&mut text, "\nsince the start", &snapshot.distributions);
    for worker in workers {
        worker_lines(&mut text, worker);
    }
    drop_lines(&mut text, "dropped", &snapshot.drops);
    drop_lines(&mut text, "dropped by the kernel, and in no sum above", &snapshot.kernel_drops);
    for peer in &snapshot.peers {
        peer_lines(&mut text, peer);
    }
    text
}

fn settings_line(settings: &SettingsSnapshot) -> String {
    let SettingsSnapshot { pid, mode, mtu, listen_port, kernel, .. } = settings;
    let drivers = settings.drivers.join(" and ");
    format!("pid {pid}, {mode}, driver {drivers}, MTU {mtu}, UDP port {listen_port}, {kernel}")
}

fn offload_lines(text: &mut String, offloads: &[OffloadSnapshot]) {
    if !offloads.is_empty() {
        *text += "\noffloads\n";
    }
    for OffloadSnapshot { offload, state, reason, seconds_ago, .. } in offloads {
        let when = seconds_ago.map_or_else(String::new, |ago| format!("{} ago: ", duration(ago)));
        let _ = writeln!(text, "  {offload:<15} {state:<10}  {when}{reason}");
    }
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
    let age = worker.last_second_ago.filter(|age| *age >= STALE_SECONDS);
    let age = age.map_or_else(String::new, |age| format!(", {} ago", duration(age)));
    table(text, &format!("  its last second{age}"), &worker.last_second);
}

fn drop_lines(text: &mut String, title: &str, drops: &[Dropped]) {
    if !drops.is_empty() {
        let _ = writeln!(text, "\n{title}");
    }
    for Dropped { reason, packets, help, .. } in drops {
        let _ = writeln!(text, "  {reason:<19} {packets:>12}  {help}");
    }
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
    for fact in facts(peer) {
        let _ = writeln!(text, "  {fact}");
    }
    let _ = writeln!(
        text,
        "  allowed IPs {}",
        if peer.allowed_ips.is_empty() { "none".to_owned() } else { peer.allowed_ips.join(", ") }
    );
}

/// What was counted of a peer, a line each: traffic, and if there were any, handshakes and drops.
pub(super) fn facts(peer: &PeerSnapshot) -> Vec<String> {
    let [rx_bytes, tx_bytes] = [peer.rx_bytes, peer.tx_bytes].map(bytes);
    let [rx_packets, tx_packets] = [peer.rx_packets, peer.tx_packets].map(amount);
    let mut facts =
        vec![format!("received {rx_bytes} in {rx_packets} packets, sent {tx_bytes} in {tx_packets}")];
    if peer.handshakes > 0 {
        let [last, least] = [peer.handshake_ns_last, peer.handshake_ns_min].map(nanoseconds);
        let count = amount(peer.handshakes);
        let keys = peer.keypair_age_seconds.map(|age| format!("keys {} old", duration(age)));
        let keys = keys.unwrap_or_else(|| "no keys".to_owned());
        facts.push(format!("{keys}, newest of {count} handshakes took {last}, shortest {least}"));
    }
    if !peer.drops.is_empty() {
        let drops = peer.drops.iter().map(|(reason, packets)| format!("{reason} {}", amount(*packets)));
        facts.push(format!("dropped: {}", drops.collect::<Vec<_>>().join(", ")));
    }
    facts
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
    use crate::stats::counters::{Totals, WorkerCounters};
    use crate::stats::snapshot;

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
    fn what_the_kernel_dropped_is_told_by_itself_with_what_to_do() {
        let worker = WorkerCounters::default();
        let page = || {
            let totals = Totals::of([&worker]);
            let drops = snapshot::drops(&totals);
            for_people(&Snapshot {
                drops,
                kernel_drops: snapshot::kernel_drops(&totals),
                ..Snapshot::default()
            })
        };
        assert!(!page().contains("dropped"));
        worker.overflown.add(812);
        let title = "dropped by the kernel, and in no sum above\n  overflown                    812  Datagrams the kernel dropped ";
        assert!(page().contains(title) && page().ends_with("raise net.core.rmem_max.\n"), "{}", page());
        assert!(!page().contains("\ndropped\n"));
    }

    #[test]
    fn of_a_peer_that_much_is_told_as_happened() {
        let silent = PeerSnapshot { tx_bytes: 148, tx_packets: 1, ..PeerSnapshot::default() };
        assert_eq!(facts(&silent), ["received 0 B in 0 packets, sent 148 B in 1"]);
        let busy = PeerSnapshot {
            keypair_age_seconds: Some(13.7),
            handshakes: 3,
            handshake_ns_last: 1_200_000,
            handshake_ns_min: 900_000,
            drops: [("replayed".to_owned(), 3), ("stage_full".to_owned(), 100_000)].into(),
            ..silent
        };
        assert_eq!(
            facts(&busy)[1..],
            [
                "keys 13 s old, newest of 3 handshakes took 1.20 ms, shortest 900 us",
                "dropped: replayed 3, stage_full 100k"
            ]
        );
    }

    #[test]
    fn what_an_older_tunnel_does_not_tell_is_empty_and_another_schema_is_refused() {
        let older = understood("wg0", r#"{"schema":1,"interface":"wg0"}"#).expect("fields may be missing");
        assert!(matches!(older, Shown::Tunnel(older) if older.peers.is_empty()));
        let other = r#"{"schema":2,"kind":"tunnel","version":"9.0"}"#;
        let refused = understood("wg0", other).expect_err("it may mean something else");
        assert_eq!(
            refused.to_string(),
            "wg0: it is version \"9.0\" and tells schema 2, this version reads schema 1"
        );
    }

    #[test]
    fn what_an_answer_is_of_stands_at_its_beginning() {
        assert!(is_of_tunnel(r#"{"schema":1,"kind":"tunnel","version":"1"}"#));
        assert!(is_of_tunnel(r#"{"schema":1,"version":"1","interface":"kind","settings":{}}"#));
        for kind in ["server", "local", "something new"] {
            let answer = format!(r#"{{"schema":1,"kind":"{kind}","version":"1"}}"#);
            assert!(!is_of_tunnel(&answer), "{kind}");
        }
        assert!(is_of_tunnel("") && is_of_tunnel("\"kind\""));
    }

    #[test]
    fn without_a_name_the_only_tunnel_is_meant() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(matches!(the_only_one(names(&[]), |_| true), Err(ShowError::NoneRunning)));
        assert_eq!(the_only_one(names(&["wg0"]), |_| true).ok(), Some("wg0".to_owned()));
        let left_over = the_only_one(names(&["wg0", "wg1"]), |name| name == "wg1");
        assert_eq!(left_over.ok(), Some("wg1".to_owned()));
        let several = the_only_one(names(&["wg0", "wg1"]), |_| true).expect_err("one must be chosen");
        assert_eq!(several.to_string(), "several are running, name one of them: wg0, wg1");
    }

    #[test]
    fn tunnels_are_found_by_their_sockets() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        for file in ["wg1.sock", "wg0.sock", "other"] {
            fs::write(directory.path().join(file), "").expect("it can be written");
        }
        let directory = directory.path().to_owned();
        assert_eq!(running(&[directory.clone(), "/nowhere".into(), directory]), ["wg0", "wg1"]);
        assert!(running(&["/nowhere".into()]).is_empty());
    }
}
