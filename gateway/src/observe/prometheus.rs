//! Figures in Prometheus' text format, version 0.0.4: a family with its help and type, then its samples. It knows the
//! format and no figure.

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
        let text = &mut self.page.0;
        text.push_str(self.name);
        for (index, (label, value)) in labels.iter().enumerate() {
            text.push(if index == 0 { '{' } else { ',' });
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
        if !labels.is_empty() {
            text.push('}');
        }
        text.push_str(&format!(" {value}\n"));
        self
    }

    /// The one sample of a metric without labels.
    pub fn only(&mut self, value: u64) {
        self.with(&[], value);
    }
}

#[cfg(test)]
mod tests {
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
}
