//! The log: lines with a level and fields, to standard error or to the journal, without ever waiting for a reader.
//!
//! | step | file |
//! |---|---|
//! | what was asked for | `options` |
//! | a line: level, message, fields; as text, as JSON | `record` |
//! | so many lines of one place and no more | `limit` |
//! | standard error and standard output, without waiting | `stderr` |
//! | the journal of systemd, field by field | `journal` |
//!
//! A line about a peer has the field `peer`, its public key. Where a daemon's lines go: [`detached`].

mod journal;
mod limit;
mod options;
mod record;
mod stderr;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use nix::sys::stat::fstat;
use tracing::callsite::Identifier;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record as Values};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::io::{clock, daemon};
use journal::Journal;
pub use limit::{Limit, Line};
pub use options::{Format, LogArgs, LogSettings, Target};
use record::Record;
use stderr::Stderr;

static LOG: OnceLock<Arc<Log>> = OnceLock::new();
static INTERFACE: OnceLock<String> = OnceLock::new();

/// Starts logging as `settings` say. A second call changes nothing.
///
/// # Errors
/// The journal was asked for by name, and there is none.
pub fn start(settings: &LogSettings) -> io::Result<()> {
    let log = Arc::new(Log::new(settings, Output::choose(settings)?));
    if LOG.set(log.clone()).is_ok() {
        // An error means that a subscriber is there already.
        let _ = tracing::subscriber::set_global_default(log);
    }
    Ok(())
}

/// Says which interface all further lines are about.
pub fn name_interface(name: &str) {
    // A process has one.
    let _ = INTERFACE.set(name.to_owned());
}

/// The process has gone to the background. A log that went to standard error goes on there if that is a file or a socket; a
/// terminal or a pipe was let go, so the journal takes its place, or nothing if there is no journal.
pub fn detached() {
    let Some(log) = LOG.get() else { return };
    if log.target == Target::Auto
        && !daemon::is_log(io::stderr())
        && let Ok(journal) = Journal::open()
    {
        log.lock().output = Output::Journal(journal);
    }
}

/// Writes what is known of lines that were left out. Call it last.
pub fn finish() {
    let Some(log) = LOG.get() else { return };
    let mut lines = log.lock();
    let rest = lines.limit.finish();
    rest.iter().for_each(|record| lines.output.write(record));
}

/// Says why the process ends: a line `uringvpn: …` on standard error, and an entry where the log is not such lines.
///
/// Also for errors before logging has started and after everything has ended.
pub fn print_error(text: &str) {
    let log = LOG.get();
    let told = log.is_some_and(|log| log.tell_structured(Level::ERROR, text));
    if !(told && log.is_some_and(|log| log.lock().output.owns_stderr())) {
        stderr::print_last(&format!("uringvpn: {text}\n"));
    }
}

/// Writes the lines of `text` to standard error as they are, or into a log that is not plain text there.
pub fn print_lines(text: &str) {
    if !LOG.get().is_some_and(|log| log.tell_structured(Level::INFO, text)) {
        stderr::print(text);
    }
}

/// Writes one line to standard output, without waiting for a reader that does not read: what finds no room is lost, and the next
/// line that gets through has in front of it what `notice` says of so many.
pub fn print_out(line: &str, notice: impl FnOnce(u64) -> String) {
    stderr::print_out(line, notice);
}

/// Takes every event of the process.
struct Log {
    level: LevelFilter,
    /// Of these also what is less severe, up to debug. As text, which is how they come.
    peers: BTreeSet<String>,
    target: Target,
    lines: Mutex<Lines>,
}

/// What one line at a time may use.
struct Lines {
    limit: Limit<Identifier, Record>,
    output: Output,
}

impl Log {
    fn new(settings: &LogSettings, output: Output) -> Log {
        Log {
            level: settings.level,
            peers: settings.peers.iter().map(ToString::to_string).collect(),
            target: settings.target,
            lines: Mutex::new(Lines { limit: Limit::default(), output }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn most_verbose(&self) -> LevelFilter {
        if self.peers.is_empty() { self.level } else { self.level.max(LevelFilter::DEBUG) }
    }

    fn wants(&self, record: &Record) -> bool {
        record.level <= self.level || record.peer().is_some_and(|peer| self.peers.contains(peer))
    }

    /// Writes each line of `text` as an entry; false where entries are plain lines anyway.
    fn tell_structured(&self, level: Level, text: &str) -> bool {
        let mut lines = self.lock();
        let structured = !matches!(lines.output, Output::Text { .. });
        if structured {
            text.lines().for_each(|line| lines.output.write(&Record::new(level, line)));
        }
        structured
    }
}

/// There are no spans.
impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.most_verbose()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.most_verbose())
    }

    fn event(&self, event: &Event<'_>) {
        let record = Record::of(event);
        if !self.wants(&record) {
            return;
        }
        let mut lines = self.lock();
        let passed = lines.limit.pass(event.metadata().callsite(), record, clock::now());
        passed.iter().for_each(|record| lines.output.write(record));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Values<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Where lines go, and as what.
enum Output {
    Text { colour: bool, timed: bool, stderr: Stderr },
    Json(Stderr),
    Journal(Journal),
}

impl Output {
    fn choose(settings: &LogSettings) -> io::Result<Output> {
        let journal = match settings.target {
            Target::Stderr => None,
            // A journal that cannot be reached still reads our standard error.
            Target::Auto if stderr_is_journal() => Journal::open().ok(),
            Target::Auto => None,
            Target::Journald => Some(Journal::open()?),
        };
        let terminal = io::stderr().is_terminal();
        Ok(match (journal, settings.format) {
            (Some(journal), _) => Output::Journal(journal),
            (None, Format::Json) => Output::Json(Stderr::default()),
            (None, Format::Text) => Output::Text {
                colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
                // Where nobody else adds them.
                timed: !terminal && !stderr_is_journal(),
                stderr: Stderr::default(),
            },
        })
    }

    fn write(&mut self, record: &Record) {
        let interface = INTERFACE.get().map(String::as_str);
        match self {
            Output::Text { colour, timed, stderr } => {
                let now = timed.then(clock::wall);
                stderr.write(&record.text(now, *colour), |lost| Record::lost(lost).text(now, *colour));
            }
            Output::Json(stderr) => {
                let now = clock::wall();
                stderr.write(&record.json(now, interface), |lost| Record::lost(lost).json(now, interface));
            }
            Output::Journal(journal) => journal.write(record, interface),
        }
    }

    /// Whether what else stands on standard error would be said twice, or be no JSON.
    fn owns_stderr(&self) -> bool {
        match self {
            Output::Text { .. } => false,
            Output::Json(_) => true,
            Output::Journal(_) => stderr_is_journal(),
        }
    }
}

/// Source: systemd.exec(5), JOURNAL_STREAM: device and inode of what we were given; others may have redirected it since.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(io::stderr().as_fd()).is_ok_and(|file| stream == format!("{}:{}", file.st_dev, file.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::keys::PublicKey;

    fn log(level: LevelFilter, peers: &[PublicKey]) -> Log {
        let settings = LogSettings { level, peers: peers.to_vec(), ..LogSettings::default() };
        Log::new(&settings, Output::Json(Stderr::default()))
    }

    fn about(level: Level, peer: Option<PublicKey>) -> Record {
        let fields = peer.map(|peer| ("peer", peer.to_string())).into_iter().collect();
        Record { fields, ..Record::new(level, "what happened") }
    }

    #[test]
    fn a_chosen_peer_is_heard_in_detail_and_all_else_as_before() {
        let [chosen, other] = [7, 8].map(|byte| PublicKey::from_bytes([byte; 32]));
        let log = log(LevelFilter::INFO, &[chosen]);
        for (level, peer, wanted) in [
            (Level::DEBUG, Some(chosen), true),
            (Level::DEBUG, Some(other), false),
            (Level::DEBUG, None, false),
            (Level::INFO, Some(other), true),
            (Level::INFO, None, true),
        ] {
            assert_eq!(log.wants(&about(level, peer)), wanted, "{level} {peer:?}");
        }
        assert_eq!(log.most_verbose(), LevelFilter::DEBUG);
    }

    #[test]
    fn without_chosen_peers_only_the_level_counts() {
        let peer = PublicKey::from_bytes([7; 32]);
        let quiet = log(LevelFilter::OFF, &[]);
        assert!(!quiet.wants(&about(Level::ERROR, Some(peer))) && quiet.most_verbose() == LevelFilter::OFF);
        let all = log(LevelFilter::TRACE, &[]);
        assert!(all.wants(&about(Level::TRACE, None)) && all.most_verbose() == LevelFilter::TRACE);
    }
}
