//! `tracing`: which traces requests belong to, and how upstreams are told. Without a format it is off.

use serde::Deserialize;

use super::Share;
use super::at::At;
use super::value::share;

/// How trace contexts are carried on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// The formats that upstreams are told in. At least one.
    pub propagate: Vec<TraceFormat>,
    /// Whose contexts are continued.
    pub trust: TraceTrust,
    /// Share of the traces that begin here which are sampled.
    pub sample: Share,
}

/// How a trace context is written in header fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceFormat {
    /// `traceparent` and `tracestate`.
    W3c,
    /// `b3`.
    B3,
    /// `x-b3-traceid` and those beside it.
    B3Multi,
}

/// Whose contexts are continued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceTrust {
    /// Those of peers in `trusted_proxies`.
    #[default]
    TrustedProxies,
    /// Everyone's.
    Everyone,
    /// Nobody's.
    Nobody,
}

/// `tracing` as typed.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTracing {
    /// `w3c`, `b3` or `b3_multi`.
    propagate: Vec<TraceFormat>,
    /// `trusted_proxies`, `everyone` or `nobody`.
    trust: TraceTrust,
    /// A share of traces.
    sample: String,
}

impl Default for RawTracing {
    fn default() -> Self {
        Self { propagate: Vec::new(), trust: TraceTrust::default(), sample: "100%".to_owned() }
    }
}

/// `None`: header fields of traces go through as they come.
pub(super) fn tracing(raw: &RawTracing, at: At<'_>) -> Option<Tracing> {
    for (index, format) in raw.propagate.iter().enumerate() {
        if raw.propagate.iter().take(index).any(|before| before == format) {
            let at = at.key("propagate").item(index);
            at.error_with_help("this format is given twice", "remove one of the two");
        }
    }
    let sample = share(&raw.sample, Share::ZERO..=Share::WHOLE, at.key("sample"))?;
    let propagate = raw.propagate.clone();
    (!propagate.is_empty()).then_some(Tracing { propagate, trust: raw.trust, sample })
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Errors, parse};
    use super::*;

    fn with(section: &str) -> Result<Config, Errors> {
        parse("a.yaml", &format!("listen: [{{address: 127.0.0.1:80}}]\ntracing: {section}"))
    }

    #[test]
    fn there_is_none_unless_a_format_is_named() {
        assert_eq!(with("{}").unwrap().tracing, None);
        assert_eq!(with("{trust: everyone, sample: 1%}").unwrap().tracing, None);
        let propagate = vec![TraceFormat::B3Multi, TraceFormat::W3c, TraceFormat::B3];
        let tracing =
            Tracing { propagate, trust: TraceTrust::TrustedProxies, sample: Share::WHOLE };
        assert_eq!(with("{propagate: [b3_multi, w3c, b3]}").unwrap().tracing, Some(tracing));
        let nobody = with("{propagate: [b3], trust: nobody, sample: 0.5%}").unwrap().tracing;
        let nobody = nobody.unwrap();
        assert_eq!(nobody.trust, TraceTrust::Nobody);
        assert_eq!(nobody.sample, Share::per_million(5000));
    }

    #[test]
    fn mistakes_are_named() {
        for (section, message) in [
            ("{propagate: [w3]}", "expected `w3c` or `b3` or `b3_multi`, found `w3`"),
            ("{propagate: [b3, w3c, b3]}", "this format is given twice"),
            ("{propagate: [b3], trust: trusted}", "found `trusted`"),
            ("{propagate: [b3], sample: 101%}", "out of bounds"),
            ("{propagat: [b3]}", "did you mean `propagate`?"),
        ] {
            let errors = with(section).expect_err(section).to_string();
            assert!(errors.contains(message), "{errors}");
        }
    }
}
