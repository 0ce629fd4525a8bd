//! `uringvpn top`: looks at a running tunnel, or a program that exposes ports, again and again and shows what it does.
//!
//! | file | holds |
//! |---|---|
//! | `rates` | what happened between two looks, per second |
//! | `cpu` | CPU time of the workers, from /proc |
//! | `keys` | what the keys choose |
//! | `sheets` | rows and columns of each pane |
//! | `exposed` | rates and panes of a program that exposes ports |
//! | `page` | the parts that both have |
//! | `view` | the screen, drawn from the sheets |
//! | `screen` | the terminal, and who waits for what |
//! | `lines` | the same without a terminal |
//!
//! All but `screen`, `lines` and `cpu` are pure.

mod cpu;
mod exposed;
mod keys;
mod lines;
#[cfg(test)]
mod made_up;
mod page;
mod rates;
mod screen;
mod sheets;
mod view;

use std::io::{IsTerminal, stdin, stdout};
use std::sync::Arc;
use std::time::Duration;

use self::page::{Look, Page};
use self::view::Ink;
use super::show::{ShowError, Shown, look_at_any, meant_of_any};

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Top {
    /// Of this interface or program; otherwise of the only one.
    pub name: Option<String>,
    /// Time between two looks.
    pub interval: Duration,
    /// End after so many looks.
    pub count: Option<u64>,
    /// Lines, even on a terminal.
    pub plain: bool,
    /// No characters but ASCII.
    pub ascii: bool,
}

/// Reads a time between looks: seconds, perhaps with a fraction, from 0.1 to 60.
///
/// # Errors
/// A sentence that says so.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=60.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "seconds from 0.1 to 60 are possible".to_owned())
}

/// Shows what is wanted until a key or a signal ends it.
///
/// # Errors
/// [`ShowError`], also when the tunnel ends.
pub fn run(top: &Top) -> Result<(), ShowError> {
    let name = meant_of_any(top.name.as_deref())?;
    let now = look_at(&name)?;
    let watch = Watch { name: name.into(), before: None, now, odd_looks: 0, trouble: None };
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let terminal = stdin().is_terminal() && stdout().is_terminal() && variable("TERM") != "dumb";
    if top.plain || !terminal {
        return lines::run(top, watch, &mut stdout().lock());
    }
    let ink = Ink { ascii: top.ascii || !speaks_utf8(variable), colour: variable("NO_COLOR").is_empty() };
    screen::run(top, watch, ink)
}

/// Whether the locale's characters are UTF-8; of the three variables the first that is set counts. locale(7).
fn speaks_utf8(variable: impl Fn(&str) -> String) -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().map(variable).find(|value| !value.is_empty());
    let locale = locale.unwrap_or_default().to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

fn look_at(name: &str) -> Result<Look, ShowError> {
    Ok(match look_at_any(name)? {
        Shown::Tunnel(snapshot) => {
            let cpu = cpu::of_tunnel(&snapshot.settings);
            Look::Tunnel(Box::new(rates::Look { snapshot: *snapshot, cpu }))
        }
        Shown::Exposed(snapshot) => {
            let cpu = cpu::of_process(snapshot.settings.pid, &snapshot.settings.pid_namespace);
            Look::Exposed(Box::new(exposed::Look { snapshot: *snapshot, cpu }))
        }
    })
}

/// What is known of who is watched.
struct Watch {
    name: Arc<str>,
    before: Option<Look>,
    now: Look,
    /// Looks in a row at which the balance was odd.
    odd_looks: u32,
    /// Why the last look brought nothing.
    trouble: Option<String>,
}

impl Watch {
    /// Takes in a look; while the screen stands still (`paused`), only that the tunnel answers. One that was not answered in
    /// time, as may happen on a busy machine, is shown and forgiven.
    fn take(&mut self, result: Result<Look, ShowError>, paused: bool) -> Result<(), ShowError> {
        match result {
            Ok(look) => {
                self.trouble = None;
                if !paused {
                    self.before = Some(std::mem::replace(&mut self.now, look));
                    self.odd_looks = if self.now.is_odd() { self.odd_looks + 1 } else { 0 };
                }
                Ok(())
            }
            Err(ShowError::NotRunning(name)) => Err(ShowError::Ended(name)),
            Err(error @ ShowError::Answer(..)) => {
                self.trouble = Some(error.to_string());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn page(&self) -> Page<'_> {
        Page::between(self.before.as_ref(), &self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::super::cli::{CliError, Invocation, parse};
    use super::*;

    fn top(words: &str) -> Result<Invocation, CliError> {
        parse(["uringvpn", "top"].into_iter().chain(words.split_whitespace()))
    }

    #[test]
    fn the_command_line_says_what_to_watch_and_how_often() {
        let wanted = top("wg0 --interval 0.5 --count 3 --plain --ascii").expect("it is right");
        let expected = Top {
            name: Some("wg0".to_owned()),
            interval: Duration::from_millis(500),
            count: Some(3),
            plain: true,
            ascii: true,
        };
        assert_eq!(wanted, Invocation::Top(expected));
        let second = Duration::from_secs(1);
        let usual = Top { name: None, interval: second, count: None, plain: false, ascii: false };
        assert_eq!(top("").expect("it is right"), Invocation::Top(usual));
    }

    #[test]
    fn absurd_intervals_and_counts_are_refused() {
        for words in ["--interval 0", "--interval 0.09", "--interval 61", "--interval nan", "--interval inf"]
        {
            let error = top(words).expect_err(words);
            assert!(error.to_string().contains("0.1 to 60"), "{words}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
        for words in ["--interval -1", "--interval", "--count 0", "--count x", "wg0 wg1"] {
            assert_eq!(top(words).expect_err(words).exit_code(), 2);
        }
    }

    #[test]
    fn the_first_locale_variable_that_is_set_counts() {
        let with = |set: &'static [(&str, &str)]| {
            speaks_utf8(|name| {
                set.iter()
                    .find(|(set, _)| *set == name)
                    .map(|(_, value)| (*value).to_owned())
                    .unwrap_or_default()
            })
        };
        assert!(with(&[("LANG", "en_GB.UTF-8")]));
        assert!(with(&[("LC_CTYPE", "C.utf8"), ("LANG", "C")]));
        assert!(!with(&[("LC_ALL", "C"), ("LANG", "en_GB.UTF-8")]));
        assert!(!with(&[]));
    }

    fn tunnel(uptime_seconds: f64, packets: u64) -> Look {
        Look::Tunnel(Box::new(made_up::look(uptime_seconds, packets)))
    }

    #[test]
    fn a_look_in_vain_is_forgiven_and_an_end_is_not() {
        let mut watch =
            Watch { name: "uvt7".into(), before: None, now: tunnel(1.0, 10), odd_looks: 0, trouble: None };
        let late = || ShowError::Answer("uvt7".to_owned(), "it does not answer".to_owned());
        assert!(watch.take(Err(late()), false).is_ok());
        assert_eq!(watch.trouble.as_deref(), Some("uvt7: it does not answer"));
        let mut odd = made_up::look(2.0, 20);
        odd.snapshot.balance[0].in_flight = -1;
        let odd = Look::Tunnel(Box::new(odd));
        assert!(watch.take(Ok(odd.clone()), false).is_ok() && watch.take(Ok(odd), false).is_ok());
        assert_eq!((watch.trouble.as_deref(), watch.odd_looks), (None, 2));
        assert!(watch.take(Ok(tunnel(3.0, 30)), false).is_ok());
        let rate = |watch: &Watch| match watch.page() {
            Page::Tunnel(rates) => rates.total("out_packets"),
            Page::Exposed(_) => None,
        };
        assert_eq!((watch.odd_looks, rate(&watch)), (0, Some(10.0)));
        // Paused, trouble comes and goes, and the numbers stay.
        assert!(watch.take(Err(late()), true).is_ok() && watch.trouble.is_some());
        assert!(watch.take(Ok(tunnel(4.0, 99)), true).is_ok());
        let uptime = |look: &Look| match look {
            Look::Tunnel(look) => look.snapshot.uptime_seconds,
            Look::Exposed(look) => look.snapshot.uptime_seconds,
        };
        assert_eq!((watch.trouble.as_deref(), uptime(&watch.now)), (None, 3.0));
        // A server has taken over the name.
        let server = Look::Exposed(Box::new(made_up::exposed(9.0, 9)));
        assert!(watch.take(Ok(server), false).is_ok() && rate(&watch).is_none());
        let gone = || Err(ShowError::NotRunning("uvt7".to_owned()));
        for paused in [false, true] {
            let end = watch.take(gone(), paused).expect_err("it is over");
            assert_eq!(end.to_string(), "uvt7: the tunnel has ended");
        }
    }
}
