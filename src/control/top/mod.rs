//! `uringvpn top`: looks at a running tunnel again and again and shows what it does.
//!
//! | file | holds |
//! |---|---|
//! | `rates` | what happened between two looks, per second |
//! | `cpu` | CPU time of the workers, from /proc |
//! | `keys` | what the keys choose |
//! | `sheets` | rows and columns of each pane |
//! | `view` | the screen, drawn from the sheets |
//! | `screen` | the terminal, and who waits for what |
//! | `lines` | the same without a terminal |
//!
//! All but `screen`, `lines` and `cpu` are pure.

mod cpu;
mod keys;
mod lines;
#[cfg(test)]
mod made_up;
mod rates;
mod screen;
mod sheets;
mod view;

use std::io::{IsTerminal, stdin, stdout};
use std::sync::Arc;
use std::time::Duration;

use self::rates::{Look, Rates};
use self::view::Ink;
use super::show::{ShowError, imbalance, look, meant, socket};

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Top {
    /// Of this interface; otherwise of the only one.
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
    let name = meant(top.name.as_deref())?;
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
    let snapshot = look(name)?;
    Ok(Look { snapshot, cpu: cpu::of_listener(&socket(name)) })
}

/// What is known of the tunnel that is watched.
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
    /// Takes in a look. One that was not answered in time, as may happen on a busy machine, is shown and forgiven.
    fn take(&mut self, result: Result<Look, ShowError>) -> Result<(), ShowError> {
        match result {
            Ok(look) => {
                self.before = Some(std::mem::replace(&mut self.now, look));
                self.odd_looks = imbalance(&self.now.snapshot).map_or(0, |_| self.odd_looks + 1);
                self.trouble = None;
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

    fn rates(&self) -> Rates<'_> {
        Rates::between(self.before.as_ref(), &self.now)
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

    #[test]
    fn a_look_in_vain_is_forgiven_and_an_end_is_not() {
        let mut watch = Watch {
            name: "uvt7".into(),
            before: None,
            now: made_up::look(1.0, 10),
            odd_looks: 0,
            trouble: None,
        };
        let late = ShowError::Answer("uvt7".to_owned(), "it does not answer".to_owned());
        assert!(watch.take(Err(late)).is_ok());
        assert_eq!(watch.trouble.as_deref(), Some("uvt7: it does not answer"));
        let mut odd = made_up::look(2.0, 20);
        odd.snapshot.balance[0].in_flight = -1;
        assert!(watch.take(Ok(odd.clone())).is_ok() && watch.take(Ok(odd)).is_ok());
        assert_eq!((watch.trouble.as_deref(), watch.odd_looks), (None, 2));
        assert!(watch.take(Ok(made_up::look(3.0, 30))).is_ok());
        assert_eq!((watch.odd_looks, watch.rates().total("out_packets")), (0, Some(10.0)));
        let end = watch.take(Err(ShowError::NotRunning("uvt7".to_owned()))).expect_err("it is over");
        assert_eq!(end.to_string(), "uvt7: the tunnel has ended");
    }
}
