//! The pictures of a report: rates over time, latency by percentile, a heat map, bars.
//!
//! What is to be compared is drawn with the same bounds, which are therefore arguments.

use super::run::{Interval, Run};
use super::svg::{Canvas, Scale, escape, ticks};
use super::tables::quantity;
use crate::stats::histograms::{Distribution, lowest_equivalent};

/// Of most pictures.
pub const WIDTH: f64 = 540.0;
/// See [`WIDTH`].
pub const HEIGHT: f64 = 280.0;
/// Lines that look different; more begin again.
pub const LINES: usize = 6;
/// Columns that a heat map has at most, and rows for each power of ten.
const COLUMNS_MAX: usize = 120;
const ROWS_PER_DECADE: f64 = 10.0;
/// Percentiles are drawn up to so many nines, as far as there are values.
const NINES: std::ops::RangeInclusive<u32> = 2..=6;

/// A line over time.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// What the legend calls it.
    pub label: &'static str,
    /// The counter.
    pub counter: &'static str,
    /// What one of it counts for.
    pub factor: f64,
}

/// A picture with its title and legend.
pub fn figure(title: &str, legend: &[&str], svg: &str) -> String {
    let entries: String = legend
        .iter()
        .enumerate()
        .map(|(index, label)| format!("<span class=\"key k{}\">{}</span>", index % LINES, escape(label)))
        .collect();
    format!("<figure><figcaption><b>{}</b> {entries}</figcaption>{svg}</figure>\n", escape(title))
}

/// The largest rate of any second.
pub fn rate_max(runs: &[&Run], rates: &[Rate]) -> f64 {
    let intervals = runs.iter().flat_map(|run| &run.intervals);
    let all =
        intervals.flat_map(|interval| rates.iter().map(|rate| interval.rate(rate.counter) * rate.factor));
    all.fold(0.0, f64::max)
}

/// What was counted per second, second by second.
pub fn rates(run: &Run, title: &str, unit: &str, rates: &[Rate], max: f64, seconds: f64) -> String {
    let mut canvas = Canvas::new(WIDTH, HEIGHT);
    let ticks = ticks(max, 5);
    let top = ticks.last().copied().unwrap_or(1.0);
    let (x, y) = (canvas.x(0.0, seconds), canvas.y(0.0, top));
    let (size, unit) = scaled_unit(top, unit);
    for tick in &ticks {
        canvas.tick_y(y.at(*tick), &short(tick / size));
    }
    time_axis(&mut canvas, x, seconds);
    for (index, rate) in rates.iter().enumerate() {
        let steps = run.intervals.iter().flat_map(|interval| {
            let at = y.at(interval.rate(rate.counter) * rate.factor);
            [(x.at(interval.from), at), (x.at(interval.to), at)]
        });
        canvas.path(&format!("s s{index}"), &steps.collect::<Vec<_>>());
    }
    let labels: Vec<_> = rates.iter().map(|rate| rate.label).collect();
    let title = format!("{title}, {unit}");
    figure(&title, &labels, &canvas.finish(&title))
}

/// The unit that makes numbers up to `max` short, and how much it is.
fn scaled_unit(max: f64, unit: &str) -> (f64, String) {
    let prefixes =
        [(1e12, "T", "trillion"), (1e9, "G", "billion"), (1e6, "M", "million"), (1e3, "k", "thousand")];
    match prefixes.into_iter().find(|(size, ..)| max >= *size) {
        Some((size, prefix, _)) if unit.starts_with("bit") => (size, format!("{prefix}{unit}")),
        Some((size, _, word)) if unit.starts_with('/') => (size, format!("{word}{unit}")),
        Some((size, _, word)) => (size, format!("{word} {unit}")),
        None => (1.0, unit.to_owned()),
    }
}

/// A number on an axis.
pub fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn time_axis(canvas: &mut Canvas, x: Scale, seconds: f64) {
    // A tick beyond the end would stand at the end.
    for tick in ticks(seconds, 8).into_iter().filter(|tick| *tick <= seconds + 0.05) {
        canvas.tick_x(x.at(tick), &short(tick));
    }
    canvas.title_x("seconds");
}

/// Powers of ten that all values in nanoseconds lie between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decades {
    from: i32,
    to: i32,
}

impl Decades {
    /// Around all of `distributions`. Below 100 ns nothing is told apart.
    pub fn around<'a>(distributions: impl IntoIterator<Item = &'a Distribution>) -> Decades {
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for distribution in distributions {
            if let (Some(low), Some(high)) = (distribution.at(0.001), distribution.max()) {
                least = least.min(low as f64);
                most = most.max(high as f64);
            }
        }
        if most == 0.0 {
            return Decades { from: 3, to: 6 };
        }
        let from = (least.max(1.0).log10().floor() as i32).max(2);
        Decades { from, to: (most.log10() - 0.02).ceil().max(f64::from(from) + 1.0) as i32 }
    }

    /// The scale of logarithms, with a line for each power and fainter ones between.
    fn axis(self, canvas: &mut Canvas) -> Scale {
        let y = canvas.y(f64::from(self.from), f64::from(self.to));
        for power in self.from..=self.to {
            canvas.tick_y(y.at(f64::from(power)), &power_of_ten(power));
        }
        y
    }
}

/// So many nanoseconds in their own unit.
fn power_of_ten(power: i32) -> String {
    let (size, unit) = match power {
        ..3 => (0, "ns"),
        3..6 => (3, "µs"),
        6..9 => (6, "ms"),
        _ => (9, "s"),
    };
    format!("{} {unit}", 10_f64.powi(power - size))
}

fn log(value: u64) -> f64 {
    (value.max(1) as f64).log10()
}

/// Nines that the most frequent of `distributions` has values for.
pub fn nines<'a>(distributions: impl IntoIterator<Item = &'a Distribution>) -> u32 {
    let most = distributions.into_iter().map(Distribution::count).max().unwrap_or_default();
    (log(most).ceil() as u32).clamp(*NINES.start(), *NINES.end())
}

/// Latency at each percentile. To the right each step is ten times as rare.
pub fn curves(title: &str, series: &[(&str, Option<&Distribution>)], decades: Decades, nines: u32) -> String {
    let mut canvas = Canvas::new(WIDTH, HEIGHT + 20.0);
    let x = canvas.x(0.0, f64::from(nines));
    let y = decades.axis(&mut canvas);
    canvas.tick_x(x.at(0.5_f64.log10().abs()), "50 %");
    for nine in 1..=nines {
        let label = match nine {
            1 => "90 %".to_owned(),
            2 => "99 %".to_owned(),
            _ => format!("99.{} %", "9".repeat(nine as usize - 2)),
        };
        // The last label ends where the plot does.
        let shift = if nine == nines { 14.0 } else { 0.0 };
        let at = x.at(f64::from(nine));
        canvas.tick_x(at, "");
        canvas.label_x(at - shift, &label);
    }
    canvas.title_x("percentile: of 100 packets, so many were not slower");
    let mut empty = true;
    for (index, (_, distribution)) in series.iter().enumerate() {
        let points = distribution.map(|found| curve(found, x, y, nines)).unwrap_or_default();
        if !points.is_empty() {
            empty = false;
            canvas.path(&format!("s s{index}"), &points);
        }
    }
    if empty {
        canvas.nothing("nothing was recorded");
    }
    let labels: Vec<_> = series.iter().map(|(label, _)| *label).collect();
    figure(title, &labels, &canvas.finish(title))
}

/// A step for each bucket that is wide enough to be seen.
fn curve(distribution: &Distribution, x: Scale, y: Scale, nines: u32) -> Vec<(f64, f64)> {
    let total = distribution.count() as f64;
    let mut points: Vec<(f64, f64)> = Vec::new();
    let mut passed = 0.0;
    for &(value, count) in &distribution.buckets {
        let before = passed / total;
        passed += count as f64;
        let rare = |share: f64| if share < 1.0 { -(1.0 - share).log10() } else { f64::from(nines) };
        let (from, to, at) = (x.at(rare(before)), x.at(rare(passed / total)), y.at(log(value)));
        if points.last().is_none_or(|last| to - last.0 >= 0.5 || (last.1 - at).abs() >= 0.5) {
            points.extend([(from, at), (to, at)]);
        }
    }
    points
}

/// A moment with values in it.
struct Column {
    from: f64,
    to: f64,
    latency: Distribution,
}

/// Seconds joined so that none is empty only because the workers hand over once a second, and not too many remain.
fn columns(run: &Run, latency: impl Fn(&Interval) -> &Distribution, counter: &str) -> Vec<Column> {
    let mut columns = Vec::new();
    let mut from = None;
    for interval in &run.intervals {
        let moved = interval.counters.get(counter).is_some_and(|count| *count > 0);
        let latency = latency(interval);
        if !latency.buckets.is_empty() {
            let from = from.take().unwrap_or(interval.from);
            columns.push(Column { from, to: interval.to, latency: latency.clone() });
        } else if moved {
            from.get_or_insert(interval.from);
        } else {
            from = None;
        }
    }
    let each = run.intervals.len().div_ceil(COLUMNS_MAX).max(1) as f64;
    let width = each * run.intervals.last().map_or(1.0, |last| last.to / run.intervals.len() as f64);
    let mut joined: Vec<Column> = Vec::new();
    for column in columns {
        match joined.last_mut() {
            Some(last) if each > 1.0 && column.to - last.from <= width * 1.01 => {
                last.latency = last.latency.and(&column.latency);
                last.to = column.to;
            }
            _ => joined.push(column),
        }
    }
    joined
}

/// How many packets had which latency when. The darker, the more of that moment's packets.
pub fn heat(
    run: &Run,
    title: &str,
    latency: fn(&Interval) -> &Distribution,
    counter: &str,
    decades: Decades,
    seconds: f64,
) -> String {
    let mut canvas = Canvas::new(WIDTH, HEIGHT);
    let x = canvas.x(0.0, seconds);
    let y = decades.axis(&mut canvas);
    time_axis(&mut canvas, x, seconds);
    let columns = columns(run, latency, counter);
    for column in &columns {
        let (left, right) = (x.at(column.from), x.at(column.to));
        for (row, share) in rows(&column.latency, decades) {
            let edge = |row: f64| y.at(f64::from(decades.from) + row / ROWS_PER_DECADE);
            // Rare ones are to be seen: they are why one looks.
            let opacity = share.sqrt().max(0.08);
            canvas.rect("heat", (left, edge(row)), (right, edge(row + 1.0)), opacity, "");
        }
    }
    for (class, quantile) in [("s p50", 0.5), ("s p99", 0.99)] {
        for run in columns.chunk_by(|one, next| next.from - one.to < 0.01) {
            let steps = run.iter().flat_map(|column| {
                let at = y.at(column.latency.at(quantile).map_or(0.0, log));
                [(x.at(column.from), at), (x.at(column.to), at)]
            });
            canvas.path(class, &steps.collect::<Vec<_>>());
        }
    }
    if columns.is_empty() {
        canvas.nothing("nothing was recorded");
    }
    let key = "<span class=\"ramp\">few <i class=\"r0\"></i><i class=\"r1\"></i><i class=\"r2\"></i><i class=\"r3\"></i> \
               all packets of a second</span><span class=\"key kp50\">p50</span><span class=\"key kp99\">p99</span>";
    let title = escape(title);
    format!("<figure><figcaption><b>{title}</b> {key}</figcaption>{}</figure>\n", canvas.finish(&title))
}

/// Rows of a column with anything in them, each with its share.
fn rows(latency: &Distribution, decades: Decades) -> Vec<(f64, f64)> {
    let last = f64::from(decades.to - decades.from) * ROWS_PER_DECADE - 1.0;
    let total = latency.count() as f64;
    let mut rows: Vec<(f64, f64)> = Vec::new();
    for &(value, count) in &latency.buckets {
        let row = ((log(value) - f64::from(decades.from)) * ROWS_PER_DECADE).floor().clamp(0.0, last);
        let share = count as f64 / total;
        match rows.last_mut() {
            Some((newest, sum)) if *newest == row => *sum += share,
            _ => rows.push((row, share)),
        }
    }
    rows
}

/// How often which size occurred, in powers of two; beside each other what is to be compared.
pub fn bars(distributions: &[&Distribution], labels: &[&str]) -> String {
    let Some(info) = distributions.first() else { return String::new() };
    let mut canvas = Canvas::new(360.0, 190.0);
    let shares: Vec<Vec<(u32, f64)>> = distributions.iter().map(|found| by_power(found)).collect();
    let powers = shares.iter().flatten().map(|(power, _)| *power);
    let (first, last) = (powers.clone().min().unwrap_or(0), powers.max().unwrap_or(0));
    // A single bar as wide as the plot would look like a wall.
    let last = last.max(first + 3);
    let y = canvas.y(0.0, 1.0);
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        canvas.tick_y(y.at(tick), &format!("{} %", tick * 100.0));
    }
    let count = f64::from(last - first + 1);
    let x = canvas.x(0.0, count);
    for power in first..=last {
        // Every other label, where all would not fit.
        if count <= 9.0 || (last - power) % 2 == 0 {
            canvas.label_x(x.at(f64::from(power - first) + 0.5), &up_to(power));
        }
    }
    for (index, shares) in shares.iter().enumerate() {
        let part = 0.8 / distributions.len() as f64;
        for (power, share) in shares {
            let left = f64::from(power - first) + 0.1 + part * index as f64;
            let title = format!("up to {}: {:.2} %", up_to(*power), share * 100.0);
            let (from, to) = ((x.at(left), y.at(0.0)), (x.at(left + part), y.at(*share)));
            canvas.rect(&format!("b b{index}"), from, to, 1.0, &title);
        }
    }
    if shares.iter().all(Vec::is_empty) {
        canvas.nothing("nothing was recorded");
    }
    canvas.title_x(match info.unit.as_str() {
        "bytes" => "bytes, up to",
        _ => "up to",
    });
    let means = distributions.iter().map(|found| match found.mean() {
        Some(mean) => quantity(mean.round() as u64, &found.unit),
        None => "–".to_owned(),
    });
    let means = means.collect::<Vec<_>>().join(" and ");
    let title = format!("{}, share of {}", info.name.replace('_', " "), info.per);
    let svg = canvas.finish(&title);
    let help = format!("<p class=\"help\">{} Mean {}.</p>", escape(&info.help), escape(&means));
    figure(&title, labels, &(svg + &help))
}

/// Shares by the smallest power of two that the values are not above.
fn by_power(distribution: &Distribution) -> Vec<(u32, f64)> {
    let total = distribution.count() as f64;
    let mut shares: Vec<(u32, f64)> = Vec::new();
    for &(value, count) in &distribution.buckets {
        // A bucket is named by the largest value that shares its slot; powers of two are where slots begin.
        let least = lowest_equivalent(value).max(1);
        let power = least.checked_next_power_of_two().map_or(64, u64::trailing_zeros);
        let share = count as f64 / total;
        match shares.last_mut() {
            Some((newest, sum)) if *newest == power => *sum += share,
            _ => shares.push((power, share)),
        }
    }
    shares
}

/// A power of two, short.
fn up_to(power: u32) -> String {
    match power {
        0..10 => (1_u64 << power).to_string(),
        10..20 => format!("{}k", 1_u64 << (power - 10)),
        20..30 => format!("{}M", 1_u64 << (power - 20)),
        _ => format!("2^{power}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::run::samples;
    use super::super::svg::assert_well_formed;
    use super::*;

    fn of(buckets: &[(u64, u64)]) -> Distribution {
        Distribution { buckets: buckets.to_vec(), ..Distribution::default() }
    }

    /// The points of the first line of class `class`.
    fn points(svg: &str, class: &str) -> Vec<(f64, f64)> {
        let start = format!("<polyline class=\"{class}\" points=\"");
        let Some((_, rest)) = svg.split_once(&start) else { return Vec::new() };
        let pairs = rest.split('"').next().unwrap().split(' ');
        let numbers = pairs.map(|pair| pair.split_once(',').unwrap());
        numbers.map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).collect()
    }

    #[test]
    fn a_curve_rises_to_the_right_and_ends_with_the_largest_value() {
        let latency = of(&[(1_000, 900), (10_000, 90), (100_000, 9), (1_000_000, 1)]);
        let decades = Decades::around([&latency]);
        assert_eq!(decades, Decades { from: 3, to: 6 });
        let svg = curves("latency", &[("all", Some(&latency))], decades, nines([&latency]));
        assert_well_formed(&svg);
        let points = points(&svg, "s s0");
        assert_eq!(points.len(), 8);
        // Nine of ten lie left of the first nine, at the bottom; the one of a thousand ends at the right, at the top.
        assert_eq!((points[0], points[1]), ((62.0, 260.0), (216.7, 260.0)));
        assert_eq!(points[7], (526.0, 10.0));
        assert!(points.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 >= pair[1].1));
    }

    #[test]
    fn nothing_one_value_and_huge_values_are_drawn() {
        for latency in [of(&[]), of(&[(0, 1)]), of(&[(5, 1)]), of(&[(1, u64::MAX), (u64::MAX, u64::MAX)])] {
            let (decades, nines) = (Decades::around([&latency]), nines([&latency]));
            let svg = curves("latency", &[("all", Some(&latency)), ("none", None)], decades, nines);
            assert_well_formed(&svg);
            assert_eq!(points(&svg, "s s0").is_empty(), latency.buckets.is_empty());
            assert_eq!(svg.contains("nothing was recorded"), latency.buckets.is_empty());
            assert_well_formed(&bars(&[&latency, &latency], &["this", "other"]));
        }
    }

    #[test]
    fn a_heat_map_has_a_column_for_each_second_and_never_too_many() {
        for (seconds, columns_expected) in [(1, 1), (5, 5), (120, 120), (600, 120)] {
            let run = samples::run("wg0", seconds, 100, 2_000);
            let columns = columns(&run, |interval| &interval.outbound, "sent_datagrams");
            assert_eq!(columns.len(), columns_expected, "{seconds} seconds");
            let decades = Decades::around([run.distribution("outbound").unwrap()]);
            let svg = heat(
                &run,
                "outbound",
                |interval| &interval.outbound,
                "sent_datagrams",
                decades,
                seconds as f64,
            );
            assert_well_formed(&svg);
            assert_eq!(svg.matches("class=\"heat\"").count(), 4 * columns_expected);
        }
    }

    #[test]
    fn a_second_whose_hand_over_came_late_belongs_to_the_next() {
        let mut run = samples::run("wg0", 4, 100, 2_000);
        run.intervals[1].outbound.buckets.clear();
        let columns = columns(&run, |interval| &interval.outbound, "sent_datagrams");
        let edges: Vec<_> = columns.iter().map(|column| (column.from, column.to)).collect();
        assert_eq!(edges, [(0.0, 1.0), (1.0, 3.0), (3.0, 4.0)]);
    }

    #[test]
    fn rates_step_from_second_to_second() {
        let run = samples::run("wg0", 3, 1_000, 2_000);
        let lines = [Rate { label: "outbound", counter: "sent_datagrams", factor: 1.0 }];
        let max = rate_max(&[&run], &lines);
        assert_eq!(max, 1_000.0);
        let svg = rates(&run, "Packets", "packets/s", &lines, max, 3.0);
        assert_well_formed(&svg);
        assert!(svg.contains("Packets, thousand packets/s"));
        assert_eq!(points(&svg, "s s0").iter().map(|point| point.1).collect::<Vec<_>>(), [10.0; 6]);
    }

    #[test]
    fn a_size_that_is_a_power_of_two_is_up_to_it_and_one_more_is_not() {
        let mut recorded = crate::stats::distributions::histogram::<u64>();
        (0..=16).for_each(|power| recorded.saturating_record(1 << power));
        let sizes = of(&crate::stats::histograms::buckets(&recorded));
        let powers: Vec<_> = by_power(&sizes).into_iter().map(|(power, _)| power).collect();
        assert_eq!(powers, (0..=16).collect::<Vec<_>>());
        assert_eq!(by_power(&of(&[(1039, 1)])), [(11, 1.0)], "the slot after that of 1024");
    }

    #[test]
    fn bars_hold_shares_by_powers_of_two() {
        let sizes = of(&[(1, 10), (2, 10), (3, 5), (4, 5), (45, 70)]);
        assert_eq!(by_power(&sizes), [(0, 0.1), (1, 0.1), (2, 0.1), (6, 0.7)]);
        let svg = bars(&[&sizes], &[]);
        assert_eq!(svg.matches("class=\"b b0\"").count(), 4);
        assert!(svg.contains("up to 64: 70.00 %"));
    }
}
