//! The older text format of Prometheus, made from OpenMetrics line by line.
//!
//! Its samples are written alike. It gives a family the name of its samples, where OpenMetrics leaves their suffix away, and knows
//! neither units, nor infos, nor an end. `promtool` and whoever asks for nothing in particular reads this one. Pure.
//!
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>, and OpenMetrics 1.0, "Metric Types".

/// The media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `openmetrics` in the older format.
pub fn of(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len() + openmetrics.len() / 16);
    // What is known of a family stands together, its help first and its type second.
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                _ => ("", kind),
            };
            if let Some((_, help)) = help.take() {
                text += &format!("# HELP {name}{suffix} {help}\n");
            }
            text += &format!("# TYPE {name}{suffix} {kind}\n");
        } else if !line.starts_with('#') {
            text += line;
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_named_like_their_samples_and_nothing_else_changes() {
        let openmetrics = "# HELP a Counted.\n# TYPE a counter\na_total{x=\"1\"} 3\n\
            # HELP b What it is.\n# TYPE b info\nb_info{v=\"# TYPE x counter\"} 1\n\
            # HELP c_seconds How long.\n# TYPE c_seconds histogram\n# UNIT c_seconds seconds\n\
            c_seconds_sum 1.5\nc_seconds_count 2\nc_seconds_bucket{le=\"+Inf\"} 2\n# EOF\n";
        let text = "# HELP a_total Counted.\n# TYPE a_total counter\na_total{x=\"1\"} 3\n\
            # HELP b_info What it is.\n# TYPE b_info gauge\nb_info{v=\"# TYPE x counter\"} 1\n\
            # HELP c_seconds How long.\n# TYPE c_seconds histogram\n\
            c_seconds_sum 1.5\nc_seconds_count 2\nc_seconds_bucket{le=\"+Inf\"} 2\n";
        assert_eq!(of(openmetrics), text);
    }
}
