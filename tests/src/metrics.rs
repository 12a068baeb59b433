//! Metrics as Prometheus reads them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};

use crate::Result;

/// A page of metrics, held against the text format 0.0.4 while it is read.
#[derive(Debug)]
pub struct Page {
    /// Samples by series: the name with its labels.
    pub samples: BTreeMap<String, f64>,
}

impl Page {
    /// Reads a page, or says what is wrong with it.
    pub fn of(text: &str) -> Result<Self> {
        let mut samples = BTreeMap::new();
        let mut families = BTreeSet::new();
        let mut below = None;
        let mut lines = text.lines().peekable();
        ensure!(text.ends_with('\n'), "the last line has no end");
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, words) = help.split_once(' ').context("a help without words")?;
                ensure!(words.ends_with('.'), "the help of {name} is no sentence");
                let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE "));
                let kind = kind.and_then(|kind| kind.strip_prefix(name));
                let kind = kind.with_context(|| format!("{name} has no type"))?.trim_start();
                let ending = match kind {
                    "counter" => name.ends_with("_total"),
                    "histogram" => name.ends_with("_seconds"),
                    "gauge" => !name.ends_with("_total"),
                    _ => false,
                };
                ensure!(ending, "{name} is a {kind}");
                ensure!(families.insert(name), "{name} comes twice");
                let letters = |letter: char| letter.is_ascii_lowercase() || letter == '_';
                ensure!(name.chars().all(letters), "{name} is no good name");
                ensure!(name.starts_with("gateway_"), "{name} is nobody's");
                below = Some((name, kind));
                continue;
            }
            let (series, value) = line.rsplit_once(' ').context("a sample without a value")?;
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let stands = |(own, kind)| own == name || (kind == "histogram" && own == family(name));
            ensure!(below.is_some_and(stands), "{series} stands below another family");
            let labels = labels.strip_suffix('}').context("labels without end")?;
            let mut seen = BTreeSet::new();
            for label in labels.split(',').filter(|label| !label.is_empty()) {
                let (label, value) = label.split_once('=').context("a label without a value")?;
                ensure!(seen.insert(label), "{series} has {label} twice");
                let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
                let quoted = quoted.with_context(|| format!("{series}: {value} is not quoted"))?;
                // An empty value is the same as no label (Prometheus' data model).
                ensure!(!quoted.contains(['"', '\\']), "{series}");
            }
            let value = value.parse().with_context(|| format!("{line}: no number"))?;
            ensure!(samples.insert(series.to_owned(), value).is_none(), "{series} comes twice");
        }
        Ok(Self { samples })
    }

    /// The value of a series whose values are whole numbers.
    pub fn value(&self, series: &str) -> Option<u64> {
        self.samples.get(series).map(|value| *value as u64)
    }
}

/// The metric that a series belongs to: its name without labels and without what a histogram puts behind it.
pub fn family(series: &str) -> &str {
    let name = series.split('{').next().unwrap_or_default();
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
    of_histogram.filter(|name| name.ends_with("_seconds")).unwrap_or(name)
}
