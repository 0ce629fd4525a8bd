//! SVG and HTML as text: escaping, scales, a canvas with axes.
//!
//! Colours and fonts are the page's ([`super::page`]); here things have classes. Whatever the numbers, what is written is
//! well-formed and holds no NaN.

use std::fmt::Write as _;

/// Space around the plot for ticks and titles.
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;

/// `text` where markup is expected, also in quotes. Control characters, which XML has no way to say, are replaced.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// From a value to a place.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Scale {
    /// Where `value` stands; outside the bounds, at the nearer end, and what is no number, at the start.
    pub fn at(&self, value: f64) -> f64 {
        let share = (value - self.from) / (self.to - self.from);
        let share = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
        self.start + share * (self.end - self.start)
    }
}

/// A picture with a plot in it.
#[derive(Debug)]
pub struct Canvas {
    width: f64,
    height: f64,
    body: String,
}

impl Canvas {
    /// An empty one of that size.
    pub fn new(width: f64, height: f64) -> Canvas {
        Canvas { width, height, body: String::new() }
    }

    /// The horizontal scale.
    pub fn x(&self, from: f64, to: f64) -> Scale {
        Scale { from, to, start: LEFT, end: self.width - RIGHT }
    }

    /// The vertical scale, upwards.
    pub fn y(&self, from: f64, to: f64) -> Scale {
        Scale { from, to, start: self.height - BOTTOM, end: TOP }
    }

    /// A vertical line across the plot, with its label below.
    pub fn tick_x(&mut self, at: f64, label: &str) {
        let (top, bottom) = (TOP, self.height - BOTTOM);
        self.line("grid", (at, top), (at, bottom));
        self.text("tick middle", at, bottom + 16.0, label);
    }

    /// A label below the plot without a line.
    pub fn label_x(&mut self, at: f64, label: &str) {
        self.text("tick middle", at, self.height - BOTTOM + 16.0, label);
    }

    /// A horizontal line across the plot, with its label at the left.
    pub fn tick_y(&mut self, at: f64, label: &str) {
        self.line("grid", (LEFT, at), (self.width - RIGHT, at));
        self.text("tick end", LEFT - 6.0, at + 4.0, label);
    }

    /// What the horizontal axis shows.
    pub fn title_x(&mut self, text: &str) {
        self.text("axis middle", (LEFT + self.width - RIGHT) / 2.0, self.height - 5.0, text);
    }

    /// Says in the middle of the plot why it is empty.
    pub fn nothing(&mut self, why: &str) {
        let (x, y) = ((LEFT + self.width - RIGHT) / 2.0, (TOP + self.height - BOTTOM) / 2.0);
        self.text("axis middle", x, y, why);
    }

    /// A straight line.
    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(place);
        let _ = write!(self.body, r#"<line class="{class}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>"#);
    }

    /// A line through `points`.
    pub fn path(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<_> = points.iter().map(|(x, y)| format!("{},{}", place(*x), place(*y))).collect();
        let _ = write!(self.body, r#"<polyline class="{class}" points="{}"/>"#, points.join(" "));
    }

    /// A rectangle between two corners; `title` is what a pointer over it is told.
    pub fn rect(&mut self, class: &str, from: (f64, f64), to: (f64, f64), opacity: f64, title: &str) {
        let [x, y] = [from.0.min(to.0), from.1.min(to.1)].map(place);
        let [width, height] = [(to.0 - from.0).abs(), (to.1 - from.1).abs()].map(place);
        let _ =
            write!(self.body, r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}""#);
        if opacity < 1.0 {
            let _ = write!(self.body, r#" fill-opacity="{opacity:.2}""#);
        }
        match title {
            "" => self.body.push_str("/>"),
            title => {
                let _ = write!(self.body, "><title>{}</title></rect>", escape(title));
            }
        }
    }

    /// Text at a place.
    pub fn text(&mut self, class: &str, x: f64, y: f64, text: &str) {
        let [x, y] = [x, y].map(place);
        let _ = write!(self.body, r#"<text class="{class}" x="{x}" y="{y}">{}</text>"#, escape(text));
    }

    /// The picture; `name` is for those who cannot see it.
    pub fn finish(self, name: &str) -> String {
        let Canvas { width, height, body } = self;
        let name = escape(name);
        format!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{name}\" \
             xmlns=\"http://www.w3.org/2000/svg\">{body}</svg>"
        )
    }
}

/// A coordinate: a tenth of a pixel is fine enough.
fn place(value: f64) -> String {
    let value = if value.is_finite() { value.clamp(-9999.0, 9999.0) } else { 0.0 };
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Round numbers from 0 to at least `max`, about `count` of them.
pub fn ticks(max: f64, count: usize) -> Vec<f64> {
    let max = if max.is_finite() && max > 0.0 { max } else { 1.0 };
    let rough = max / count.max(1) as f64;
    let decade = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0].map(|part| part * decade).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * decade);
    let steps = (max / step - 1e-9).ceil().max(1.0) as usize;
    (0..=steps).map(|index| index as f64 * step).collect()
}

/// For tests: whether every tag is closed in the right order and every attribute quoted, and nothing is not a number.
#[cfg(test)]
pub fn assert_well_formed(markup: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = markup.strip_prefix("<!DOCTYPE html>").unwrap_or(markup);
    while let Some(at) = rest.find('<') {
        assert!(!rest[..at].contains('>'), "a stray > in {}", &rest[..at]);
        let end = at + rest[at..].find('>').expect("the tag ends");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closes what is open");
            continue;
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "quotes in <{tag}>");
        assert!(tag.starts_with(|first: char| first.is_ascii_alphabetic()), "<{tag}>");
        if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().unwrap());
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
    for word in ["NaN", "inf\"", "inf,", "inf ", "-inf"] {
        assert!(!markup.contains(word), "{word}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_is_taken_for_markup() {
        let text = "</title><script>alert(\"x\" & 'y')</script>\u{7}";
        let escaped = escape(text);
        assert!(!escaped.contains(['<', '>', '"', '\'', '\u{7}']));
        assert!(escaped.starts_with("&lt;/title&gt;&lt;script&gt;"));
        let mut canvas = Canvas::new(100.0, 50.0);
        canvas.text("tick", 1.0, 2.0, text);
        canvas.rect("bar", (0.0, 0.0), (1.0, 1.0), 0.5, text);
        assert_well_formed(&canvas.finish(text));
    }

    #[test]
    fn places_are_numbers_within_the_plot_whatever_the_values() {
        let mut canvas = Canvas::new(500.0, 300.0);
        for (from, to) in [(0.0, 1.0), (0.0, 0.0), (3.0, 9.0), (f64::NAN, 1.0), (0.0, f64::INFINITY)] {
            let (x, y) = (canvas.x(from, to), canvas.y(from, to));
            for value in [0.0, -5.0, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                assert!((LEFT..=500.0 - RIGHT).contains(&x.at(value)), "{value} from {from} to {to}");
                assert!((TOP..=300.0 - BOTTOM).contains(&y.at(value)), "{value} from {from} to {to}");
            }
        }
        canvas.path("s0", &[(f64::NAN, 1.0), (f64::INFINITY, f64::NEG_INFINITY)]);
        canvas.line("grid", (f64::NAN, 1.0), (2.0, f64::INFINITY));
        assert_well_formed(&canvas.finish("a picture"));
    }

    #[test]
    fn ticks_are_round_begin_at_zero_and_reach_the_largest_value() {
        assert_eq!(ticks(9.3, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(1000.0, 4), [0.0, 250.0, 500.0, 750.0, 1000.0]);
        for max in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-9, 1e18, 7.0] {
            let ticks = ticks(max, 5);
            assert!((2..=8).contains(&ticks.len()), "{max}: {ticks:?}");
            assert!(!max.is_finite() || *ticks.last().unwrap() >= max * 0.999, "{max}: {ticks:?}");
        }
    }
}
