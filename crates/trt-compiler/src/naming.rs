//! Names of versions.

use onnx_export::Precision;

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
