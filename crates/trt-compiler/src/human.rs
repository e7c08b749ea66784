//! Sizes and names for people.

use onnx_export::Precision;

/// A size for people: three digits and a unit of a thousand.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if size < 999.5 {
            let digits = usize::from(size < 10.0 && unit != "B");
            return format!("{size:.digits$} {unit}");
        }
        size /= 1000.0;
    }
    format!("{size:.1} TB")
}

/// This moment, for [`default_version`].
#[must_use]
pub fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// The default name of a version: `vYYYYMMDD-HHMMSS-<precision>`, in UTC.
#[must_use]
pub fn default_version(now: jiff::Timestamp, precision: Precision) -> String {
    format!("v{}-{precision}", now.strftime("%Y%m%d-%H%M%S"))
}
