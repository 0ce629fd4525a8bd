//! Where news go: the log, or lines of JSON on standard output.

use std::mem::{Discriminant, discriminant};

use tracing::Level;

use super::news::News;
use crate::control::logging::{self, Limit};
use crate::stats::exposed::public_port::Protocol;
use crate::time::Time;

/// Tells what happened. The public address goes to standard output.
#[derive(Debug)]
pub(super) struct Output {
    json: bool,
    several: bool,
    /// For JSON; the log has its own.
    limit: Limit<Discriminant<News>, News>,
}

impl Output {
    /// With `several` ports in one program each line with an address says which it is.
    pub fn new(json: bool, several: bool) -> Output {
        Output { json, several, limit: Limit::default() }
    }

    /// Tells of each.
    pub fn tell(&mut self, news: Vec<News>, now: Time) {
        for news in news {
            if self.json {
                self.pass(news, now).iter().for_each(print);
            } else {
                log(&news, self.several);
            }
        }
    }

    /// Tells what was left out so far.
    pub fn finish(&mut self) {
        self.limit.finish().iter().for_each(print);
    }

    /// What is to be told of in JSON: of what others bring about so much and no more, as in the log.
    fn pass(&mut self, news: News, now: Time) -> Vec<News> {
        if news.level() > Level::INFO {
            return Vec::new();
        }
        match news.is_brought_about_by_others() {
            true => self.limit.pass(discriminant(&news), news, now),
            false => vec![news],
        }
    }
}

fn json(news: &News) -> String {
    serde_json::to_string(news).expect("news have a JSON form")
}

fn print(news: &News) {
    logging::print_out(&json(news), |lines| json(&News::Unread { lines }));
}

fn log(news: &News, several: bool) {
    match news {
        News::Public { address, port, local } => {
            let suffix = if port.protocol == Protocol::Udp { "/udp" } else { "" };
            let which = if several { format!(" for {local}{suffix}") } else { String::new() };
            logging::print_out(&format!("listening at {address}{suffix}{which}"), |lines| {
                News::Unread { lines }.to_string()
            });
        }
        // The log lets through so many lines of one place: those that enemies bring about do not hide the others.
        News::Refused { .. } => tracing::warn!("{news}"),
        News::TurnedAway { .. } => tracing::warn!("{news}"),
        News::Unserved { .. } => tracing::warn!("{news}"),
        News::Opened { .. } => tracing::info!("{news}"),
        News::Left { .. } => tracing::info!("{news}"),
        _ => match news.level() {
            Level::WARN => tracing::warn!("{news}"),
            Level::DEBUG => tracing::debug!("{news}"),
            _ => tracing::info!("{news}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::exposed::public_port::PublicPort;

    fn refused(number: u32) -> News {
        News::Refused { client: ([10, 0, 0, 1], 7).into(), reason: number.to_string() }
    }

    #[test]
    fn a_flood_of_refusals_is_a_few_lines_of_json_and_hides_nothing_else() {
        let mut output = Output::new(true, false);
        let at = Time::from_nanos;
        let told: Vec<_> = (0..100_000).flat_map(|number| output.pass(refused(number), at(1))).collect();
        assert_eq!(told, (0..20).map(refused).collect::<Vec<_>>());
        for port in 1..100 {
            let port = PublicPort::tcp(port);
            let public = News::Public { address: "here:1".into(), port, local: "there:1".into() };
            assert_eq!(output.pass(public.clone(), at(1)), [public]);
        }
        let left_out = News::LeftOut { lines: 99_980, newest: Box::new(refused(99_999)) };
        assert_eq!(output.pass(refused(7), at(5_000_000_001)), [left_out.clone(), refused(7)]);
        assert!(output.limit.finish().is_empty());
        let line = r#"{"event":"left_out","lines":99980,"newest":{"event":"refused","client":"10.0.0.1:7","reason":"99999"}}"#;
        assert_eq!(json(&left_out), line);
    }
}
