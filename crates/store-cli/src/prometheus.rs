//! Prometheus' text format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::{self, Write};

use serde::Serialize;

/// Metrics of one name.
#[derive(Debug, Serialize)]
pub(crate) struct Family {
    name: &'static str,
    #[serde(rename = "type")]
    kind: Kind,
    help: &'static str,
    samples: Vec<Sample>,
}

/// Whether a value only grows.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Gauge,
    Counter,
}

#[derive(Debug, Serialize)]
struct Sample {
    labels: Vec<(&'static str, String)>,
    value: f64,
}

impl Family {
    pub(crate) fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Gauge, help, samples: Vec::new() }
    }

    pub(crate) fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Counter, help, samples: Vec::new() }
    }

    /// Adds a value.
    pub(crate) fn add(&mut self, labels: &[(&'static str, &str)], value: f64) {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.samples.push(Sample { labels, value });
    }

    /// The same with a value.
    pub(crate) fn with(mut self, value: f64) -> Self {
        self.add(&[], value);
        self
    }

    /// Whether it has no value and is not to be seen.
    pub(crate) fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        writeln!(f, "# HELP {} {}", self.name, self.help.replace('\\', r"\\").replace('\n', r"\n"))?;
        writeln!(f, "# TYPE {} {kind}", self.name)?;
        for Sample { labels, value } in &self.samples {
            f.write_str(self.name)?;
            for (index, (name, value)) in labels.iter().enumerate() {
                let open = if index == 0 { '{' } else { ',' };
                let value = value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
                write!(f, "{open}{name}=\"{value}\"")?;
            }
            if !labels.is_empty() {
                f.write_char('}')?;
            }
            writeln!(f, " {value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_special_in_the_format_is_escaped() {
        let mut family = Family::gauge("a_bytes", "one\\two\nthree");
        family.add(&[("x", "a\"b\\c\nd"), ("y", "")], 16_060_522_240.0);
        family.add(&[], 0.5);
        let expected = "\
# HELP a_bytes one\\\\two\\nthree
# TYPE a_bytes gauge
a_bytes{x=\"a\\\"b\\\\c\\nd\",y=\"\"} 16060522240
a_bytes 0.5
";
        assert_eq!(family.to_string(), expected);
    }
}
