//! Draws the screen. Pure: what is known and chosen in, cells out, whatever the size of the screen.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Wrap};

use super::keys::{Choice, PANES, Pane, place};
use super::page::Page;
use super::rates::BARS;
use super::sheets::{Sheet, cut, join};

/// From this height on both directions have a line each.
const HEIGHT_WITH_DIRECTIONS: u16 = 8;
/// From this height on the offloads, or what there is now, have one.
const HEIGHT_WITH_STATE: u16 = 18;
/// From this height on the panes stand below each other; below it only the chosen one is shown.
const HEIGHT_OF_ALL_PANES: u16 = 12;
/// What every pane gets there at least, if it can use it: a head and two rows.
const PANE_LINES_MIN: u16 = 3;
/// Lines in which the selected row explains itself.
const DETAIL_LINES: u16 = 3;

/// How the terminal can be drawn on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ink {
    /// Nothing but ASCII.
    pub ascii: bool,
    /// Colours; without them bold and reversed letters must do.
    pub colour: bool,
}

/// What is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// What happens there.
    pub page: Page<'a>,
    /// What the keys have chosen.
    pub choice: &'a Choice,
    /// Looks in a row at which the balance was odd.
    pub odd_looks: u32,
    /// Why there is nothing newer.
    pub trouble: Option<&'a str>,
    /// How it is drawn.
    pub ink: Ink,
}

/// Draws all of it.
pub fn draw(frame: &mut Frame, scene: &Scene) {
    let area = frame.area();
    let mut top = Lines { left: area };
    let width = usize::from(area.width);
    let head = scene.page.header(scene.choice.paused, scene.odd_looks, width);
    let wrong = head.contains("WRONG");
    top.write(
        frame,
        head,
        scene.ink.style(if wrong { Color::Red } else { Color::Green }).add_modifier(Modifier::BOLD),
    );
    if area.height >= HEIGHT_WITH_DIRECTIONS {
        for (text, minute) in scene.page.directions() {
            let room = width.saturating_sub(text.len() + 2);
            let bars = bars(&minute, room, scene.ink.ascii);
            top.write(frame, format!("{text}  {bars}"), scene.ink.style(Color::Cyan));
        }
    }
    let state = scene.page.state(width);
    if area.height >= HEIGHT_WITH_STATE && !state.is_empty() {
        let worse = state.contains("DOWNGRADED");
        top.write(frame, state, scene.ink.style(if worse { Color::Red } else { Color::Green }));
    }
    if let Some(footer) = top.take_last().filter(|_| area.height > 2) {
        draw_footer(frame, footer, scene);
    }
    if scene.choice.help {
        draw_help(frame, top, &scene.page);
    } else {
        draw_panes(frame, top.left, scene);
    }
}

impl Ink {
    fn style(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }
}

/// Lines that are still free, used from the top.
struct Lines {
    left: Rect,
}

impl Lines {
    fn take(&mut self, height: u16) -> Rect {
        let height = height.min(self.left.height);
        let taken = Rect { height, ..self.left };
        self.left.y += height;
        self.left.height -= height;
        taken
    }

    fn take_last(&mut self) -> Option<Rect> {
        self.left.height = self.left.height.checked_sub(1)?;
        Some(Rect { y: self.left.y + self.left.height, height: 1, ..self.left })
    }

    fn write(&mut self, frame: &mut Frame, text: String, style: Style) {
        let line = self.take(1);
        frame.render_widget(Line::styled(text, style), line);
    }
}

fn draw_footer(frame: &mut Frame, line: Rect, scene: &Scene) {
    let (text, style) = match scene.trouble {
        Some(trouble) => (trouble.to_owned(), scene.ink.style(Color::Red).add_modifier(Modifier::BOLD)),
        None => (
            join(scene.page.hints().iter().copied(), usize::from(line.width)),
            Style::new().add_modifier(Modifier::DIM),
        ),
    };
    frame.render_widget(Line::styled(text, style), line);
}

fn draw_help(frame: &mut Frame, mut lines: Lines, page: &Page) {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    lines.write(frame, "keys".to_owned(), bold);
    for (keys, what) in page.help() {
        lines.write(frame, format!(" {keys:<11}{what}"), Style::new());
    }
    lines.write(
        frame,
        "bars: bits of each second of the last minute, the newest at the right".to_owned(),
        bold,
    );
}

fn draw_panes(frame: &mut Frame, area: Rect, scene: &Scene) {
    let all = scene.page.sheets(scene.choice);
    let chosen = scene.choice.pane;
    let heights = if area.height < HEIGHT_OF_ALL_PANES {
        PANES.map(|pane| if pane == chosen { area.height } else { 0 })
    } else {
        heights(&all, chosen, area.height)
    };
    let mut lines = Lines { left: area };
    for ((pane, sheet), height) in PANES.into_iter().zip(&all).zip(heights) {
        draw_pane(frame, lines.take(height), pane, sheet, scene);
    }
}

/// Lines for each pane: a little for all, then as much as the chosen one can use, then the others from the top.
fn heights(sheets: &[Sheet; PANES.len()], chosen: Pane, mut left: u16) -> [u16; PANES.len()] {
    let wanted = PANES.map(|pane| {
        let rows = u16::try_from(sheets[pane as usize].rows.len().max(1)).unwrap_or(u16::MAX);
        rows.saturating_add(if pane == chosen { 1 + DETAIL_LINES } else { 1 })
    });
    let mut heights = wanted.map(|wanted| wanted.min(PANE_LINES_MIN));
    left = left.saturating_sub(heights.iter().sum());
    for pane in std::iter::once(chosen).chain(PANES) {
        let more = (wanted[pane as usize] - heights[pane as usize]).min(left);
        heights[pane as usize] += more;
        left -= more;
    }
    heights
}

fn draw_pane(frame: &mut Frame, area: Rect, pane: Pane, sheet: &Sheet, scene: &Scene) {
    let chosen = pane == scene.choice.pane;
    let mut lines = Lines { left: area };
    // One column for the mark of the selected row.
    let width = usize::from(area.width.saturating_sub(1));
    let head = format!("{}{}", if chosen { "*" } else { " " }, sheet.head(width));
    let mut style = scene.ink.style(Color::Yellow).add_modifier(Modifier::BOLD);
    if chosen {
        style = style.add_modifier(Modifier::UNDERLINED);
    }
    lines.write(frame, head, style);
    if sheet.rows.is_empty() {
        return lines.write(frame, format!("  {}", sheet.nothing), Style::new());
    }
    let names: Vec<&str> = sheet.rows.iter().map(|row| row.name.as_str()).collect();
    let selected = place(&names, scene.choice.selected(pane));
    let detail = chosen && !sheet.rows[selected].detail.is_empty() && lines.left.height > DETAIL_LINES;
    let shown = usize::from(lines.left.height - if detail { DETAIL_LINES } else { 0 });
    // The selected row stays in sight; only the chosen pane scrolls.
    let first = if chosen { (selected + 1).saturating_sub(shown) } else { 0 };
    for (index, row) in sheet.rows.iter().enumerate().skip(first).take(shown) {
        let marked = chosen && index == selected;
        let style = if marked { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        let text = format!("{}{}", if marked { ">" } else { " " }, sheet.line(row, width));
        lines.write(frame, text, style);
    }
    if detail {
        let text = sheet.rows[selected].detail.as_str();
        let text = cut(text, usize::from(area.width) * usize::from(DETAIL_LINES));
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), lines.left);
    }
}

/// The last minute in at most `room` columns, of one or more seconds each; what is not zero is never invisible.
fn bars(seconds: &[u64; BARS], room: usize, ascii: bool) -> String {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    const LETTERS: [char; 9] = [' ', '.', ':', '-', '=', '+', '*', '%', '#'];
    if room == 0 {
        return String::new();
    }
    let levels = if ascii { LETTERS } else { BLOCKS };
    let top = seconds.iter().copied().max().unwrap_or_default();
    let level = |seconds: &[u64]| match seconds.iter().copied().max().unwrap_or_default() {
        0 => levels[0],
        value => levels[(u128::from(value) * 8).div_ceil(u128::from(top)) as usize],
    };
    seconds.chunks(BARS.div_ceil(room)).map(level).collect()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::made_up;
    use super::super::rates::{self, Rates};
    use super::*;

    const PLAIN: Ink = Ink { ascii: true, colour: false };

    /// The screen as text, a line each.
    fn screen(size: (u16, u16), choice: &Choice, ink: Ink) -> String {
        let [before, now] = [made_up::look(100.0, 1_000), made_up::look(101.0, 2_000)];
        render(size, &scene(&before, &now, choice, ink))
    }

    fn scene<'a>(before: &'a rates::Look, now: &'a rates::Look, choice: &'a Choice, ink: Ink) -> Scene<'a> {
        Scene {
            page: Page::Tunnel(Rates::between(Some(before), now)),
            choice,
            odd_looks: 0,
            trouble: None,
            ink,
        }
    }

    fn render((width, height): (u16, u16), scene: &Scene) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a made-up terminal");
        terminal.draw(|frame| draw(frame, scene)).expect("it cannot fail");
        let cells = terminal.backend().buffer().content();
        let line =
            |cells: &[ratatui::buffer::Cell]| cells.iter().map(|cell| cell.symbol()).collect::<String>();
        cells.chunks(usize::from(width)).map(|cells| line(cells).trim_end().to_owned() + "\n").collect()
    }

    #[track_caller]
    fn assert_shows(screen: &str, parts: &[&str]) {
        for part in parts {
            assert!(screen.contains(part), "no {part:?} in\n{screen}");
        }
    }

    #[test]
    fn eighty_by_twenty_four_holds_every_part() {
        let screen = screen((80, 24), &Choice::new(), PLAIN);
        assert_shows(
            &screen,
            &[
                "uvt7  balance ok  up 1 min 41 s  2 workers  uringvpn 9.9.9",
                "out   1000 packets/s 8.00 Mbit/s",
                "in     500 packets/s 4.00 Mbit/s",
                "\noffloads  on: tso uso gso gro steering uring defer-taskrun multishot-read\n",
                "*1 stages              p50     p90     p99   p99.9     max  of worker 0, last s",
                ">outbound          12.3 us 45.0 us 99.0 us  120 us  150 us         1000 packets",
                " 2 workers      out/s     in/s   out bit/s    in bit/s calls/packet   CPU",
                " worker 0         500      250 4.00 Mbit/s 2.00 Mbit/s        0.100   50%",
                " 3 peers by rate         received        sent   handshake  endpoint",
                " busypeer00000000000~ 8.00 Mbit/s 16.0 Mbit/s  2 min 30 s  192.0.2.7:51820",
                " 4 drops            dropped/s   in all  what it means",
                " no_route                1000     2000  No peer has",
                "q quit  ? help  Tab 1-4 pane  j k select  t time  w worker  s sort  p pause",
            ],
        );
    }

    #[test]
    fn exposed_ports_have_their_own_panes_in_the_same_places() {
        let [before, now] = [made_up::exposed(100.0, 1_000), made_up::exposed(101.0, 2_000)];
        let page = Page::Exposed(super::super::exposed::Rates::between(Some(&before), &now));
        let choice = Choice::new();
        let scene = Scene { page, choice: &choice, odd_looks: 0, trouble: None, ink: PLAIN };
        let screen = render((80, 24), &scene);
        assert_shows(
            &screen,
            &[
                "server-7835  sums ok  up 1 min 41 s  CPU 50%  uringvpn 9.9.9",
                "in    1000 visitors/s  800 kbit/s",
                "out    900 joined/s   8.00 Mbit/s",
                "\nnow  12 connections open  0 visitors waiting  2 ports open  1 held",
                "*1 times                  p50     p90     p99   p99.9     max            last s",
                ">join                 2.00 ms",
                " 2 counted",
                " 3 ports by rate        received        sent visitors/s  open state  whose",
                " 8080                 800 kbit/s 8.00 Mbit/s       1000     2  open  192.0.2.7",
                " 4 ends",
                " away not_taken",
                "q quit  ? help  Tab 1-4 pane  j k select  t time  s sort  p pause",
            ],
        );
        for pane in PANES {
            for width in (1..=100).step_by(9) {
                for height in 1..=40 {
                    let choice = Choice { pane, help: height % 7 == 0, ..Choice::new() };
                    render((width, height), &Scene { choice: &choice, ..scene });
                }
            }
        }
    }

    #[test]
    fn twenty_columns_or_five_lines_hold_the_chosen_pane() {
        let narrow = screen((20, 24), &Choice::new(), PLAIN);
        assert_shows(
            &narrow,
            &["uvt7  balance ok\n", ">outbound    12.3 us\n", "q quit  ? help\n", " 3 peer~    received"],
        );
        let drops = Choice { pane: Pane::Drops, ..Choice::new() };
        let low = screen((80, 5), &drops, PLAIN);
        assert_shows(&low, &["uvt7  balance ok", "*4 drops", ">no_route", "q quit"]);
        assert!(!low.contains("stages"), "{low}");
    }

    #[test]
    fn no_size_is_too_small_or_too_large_in_any_state() {
        let [before, now] = [made_up::look(100.0, 1_000), made_up::look(101.0, 2_000)];
        let help = Choice { help: true, ..Choice::new() };
        let panes = PANES.map(|pane| Choice { pane, ..Choice::new() });
        for choice in panes.iter().chain([&help]) {
            for width in (1..=100).step_by(7) {
                for height in 1..=40 {
                    render(
                        (width, height),
                        &scene(&before, &now, choice, Ink { ascii: false, colour: true }),
                    );
                }
            }
        }
        render((300, 100), &scene(&before, &now, &help, PLAIN));
    }

    #[test]
    fn the_selected_row_is_in_sight_and_explains_itself() {
        let choice = Choice {
            pane: Pane::Stages,
            selected: [Some("write_bytes".to_owned()), None, None, None],
            ..Choice::new()
        };
        assert_shows(&screen((80, 5), &choice, PLAIN), &[">write_bytes "]);
        let choice = Choice {
            pane: Pane::Drops,
            selected: [None, None, None, Some("tun_down".to_owned())],
            ..Choice::new()
        };
        assert_shows(&screen((80, 24), &choice, PLAIN), &["tun_down, inbound: The interface is down."]);
        let choice = Choice { selected: [None, None, None, Some("overflown".to_owned())], ..choice };
        let overflown = screen((80, 24), &choice, PLAIN);
        assert_shows(
            &overflown,
            &[">overflown", "overflown, inbound: Datagrams the kernel dropped", "net.core.rmem_max."],
        );
        let choice = Choice { pane: Pane::Peers, ..Choice::new() };
        assert_shows(
            &screen((80, 24), &choice, PLAIN),
            &["allowed IPs 10.9.0.7/32", ">busypeer0000", "received 2.00 MB"],
        );
    }

    #[test]
    fn without_colour_no_cell_has_one_and_in_ascii_every_cell_is() {
        let [before, now] = [made_up::look(100.0, 1_000), made_up::look(101.0, 2_000)];
        let choice = Choice::new();
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a made-up terminal");
        let mut cells = |ink| {
            terminal.draw(|frame| draw(frame, &scene(&before, &now, &choice, ink))).expect("it cannot fail");
            terminal.backend().buffer().content().to_vec()
        };
        let coloured = |cell: &ratatui::buffer::Cell| cell.fg != Color::Reset || cell.bg != Color::Reset;
        let plain = cells(PLAIN);
        assert!(!plain.iter().any(coloured));
        assert!(plain.iter().all(|cell| cell.symbol().is_ascii()));
        let rich = cells(Ink { ascii: false, colour: true });
        assert!(rich.iter().any(coloured));
        assert!(rich.iter().any(|cell| cell.symbol() == "█"));
    }

    #[test]
    fn trouble_help_and_a_pause_are_seen() {
        let [before, now] = [made_up::look(100.0, 1_000), made_up::look(101.0, 2_000)];
        let choice = Choice { help: true, paused: true, ..Choice::new() };
        let scene =
            Scene { trouble: Some("uvt7: it does not answer"), ..scene(&before, &now, &choice, PLAIN) };
        assert_shows(
            &render((80, 24), &scene),
            &["PAUSED", "order of the peers", "uvt7: it does not answer"],
        );
    }

    #[test]
    fn bars_grow_with_the_bits_and_join_seconds_where_room_is_short() {
        let mut seconds = [0; BARS];
        (seconds[0], seconds[58], seconds[59]) = (1, 400, 800);
        assert_eq!(bars(&seconds, 60, true), format!(".{}=#", " ".repeat(57)));
        assert_eq!(bars(&seconds, 59, true), format!(".{}#", " ".repeat(28)));
        assert_eq!(bars(&[0; BARS], 60, true), " ".repeat(60));
        assert_eq!(bars(&[u64::MAX; BARS], 1, false), "█");
        assert_eq!(bars(&seconds, 0, true), "");
    }
}
