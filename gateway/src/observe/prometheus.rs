//! Figures in Prometheus' text format, version 0.0.4: a family with its help and type, then its samples. It knows the
//! format and no figure.

use std::fmt;

use super::histogram::{Durations, SHOWN_US};

/// What is answered with.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page of metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page(String);

impl Page {
    /// A number that only grows; its name ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.family(name, "counter", help)
    }

    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    /// Durations in buckets; its name ends in `_seconds`.
    pub fn histogram(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.family(name, "histogram", help)
    }

    /// All of it.
    pub fn text(self) -> String {
        self.0
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        self.0.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        Family { page: self, name }
    }
}

/// The samples of one metric.
pub struct Family<'p> {
    page: &'p mut Page,
    name: &'static str,
}

impl Family<'_> {
    /// A sample with these labels.
    pub fn with(&mut self, labels: &[(&'static str, &str)], value: u64) -> &mut Self {
        self.sample("", labels, None, format_args!("{value}"));
        self
    }

    /// The one sample of a metric without labels.
    pub fn only(&mut self, value: u64) {
        self.with(&[], value);
    }

    /// The samples of a histogram with these labels.
    pub fn durations(&mut self, labels: &[(&'static str, &str)], durations: &Durations) {
        for us in SHOWN_US {
            let up_to = durations.up_to(us);
            self.sample("_bucket", labels, Some(&seconds(us)), format_args!("{up_to}"));
        }
        let count = durations.count();
        self.sample("_bucket", labels, Some("+Inf"), format_args!("{count}"));
        self.sample("_sum", labels, None, format_args!("{}", seconds(durations.sum_us())));
        self.sample("_count", labels, None, format_args!("{count}"));
    }

    fn sample(
        &mut self,
        suffix: &str,
        labels: &[(&'static str, &str)],
        up_to: Option<&str>,
        value: fmt::Arguments<'_>,
    ) {
        let text = &mut self.page.0;
        text.extend([self.name, suffix]);
        let labels = labels.iter().copied().chain(up_to.map(|bound| ("le", bound)));
        let mut before = '{';
        for (label, value) in labels {
            text.push(before);
            before = ',';
            text.push_str(label);
            text.push_str("=\"");
            for character in value.chars() {
                match character {
                    '\\' => text.push_str("\\\\"),
                    '"' => text.push_str("\\\""),
                    '\n' => text.push_str("\\n"),
                    other => text.push(other),
                }
            }
            text.push('"');
        }
        if before == ',' {
            text.push('}');
        }
        text.push_str(&format!(" {value}\n"));
    }
}

/// Microseconds as seconds, without zeros at the end.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::histogram::Histogram;
    use super::*;

    #[test]
    fn a_page_as_prometheus_reads_it() {
        let mut page = Page::default();
        page.counter("a_total", "What a is.").with(&[("why", "x"), ("who", "\"\\\n")], 3);
        page.gauge("b", "What b is.").only(7);
        let text = "# HELP a_total What a is.\n# TYPE a_total counter\n\
                    a_total{why=\"x\",who=\"\\\"\\\\\\n\"} 3\n\
                    # HELP b What b is.\n# TYPE b gauge\nb 7\n";
        assert_eq!(page.text(), text);
    }
    #[test]
    fn a_histogram_is_cumulative_and_in_seconds() {
        let histogram = Histogram::default();
        for us in [50, 1_000, 1_001, 200_000_000] {
            histogram.add(std::time::Duration::from_micros(us));
        }
        let mut durations = Durations::default();
        durations.add(&histogram);
        let mut page = Page::default();
        page.histogram("h_seconds", "What h is.").durations(&[("a", "b")], &durations);
        let text = page.text();
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines[0], "# TYPE h_seconds histogram");
        assert_eq!(lines[1], "h_seconds_bucket{a=\"b\",le=\"0.0001\"} 1");
        assert_eq!(lines[4], "h_seconds_bucket{a=\"b\",le=\"0.001\"} 2");
        assert_eq!(lines[5], "h_seconds_bucket{a=\"b\",le=\"0.002\"} 3");
        assert_eq!(lines[19], "h_seconds_bucket{a=\"b\",le=\"100\"} 3");
        assert_eq!(lines[20], "h_seconds_bucket{a=\"b\",le=\"+Inf\"} 4");
        assert_eq!(lines[21], "h_seconds_sum{a=\"b\"} 200.002051");
        assert_eq!(lines[22], "h_seconds_count{a=\"b\"} 4");
    }
}
