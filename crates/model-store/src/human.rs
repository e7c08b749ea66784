//! Sizes and errors as people read them; every command shows them alike.

/// A size in decimal units with at most one digit behind the point: `512 B`, `31 KB`, `0.9 MB`, `16.1 GB`.
#[must_use]
pub fn human_size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "KB")];
    // Megabytes are used from a tenth on, as models are compared in them; every other unit from one on.
    let unit = UNITS.iter().find(|(unit, name)| match *name {
        "MB" => bytes >= unit / 10,
        _ => bytes >= *unit,
    });
    let Some((unit, name)) = unit else { return format!("{bytes} B") };
    let tenths = rounded(bytes, unit / 10);
    match (tenths / 10, tenths % 10) {
        (whole, _) if whole >= 10 && *name == "KB" => format!("{} KB", rounded(bytes, *unit)),
        (whole, tenth) => format!("{whole}.{tenth} {name}"),
    }
}

/// How often `unit` is in `bytes`, to the nearest.
fn rounded(bytes: u64, unit: u64) -> u64 {
    bytes / unit + u64::from(bytes % unit >= unit / 2)
}

/// An error with its causes, in one line.
#[must_use]
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::human_size;

    #[test]
    fn sizes() {
        let rows = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 KB"),
            (9_949, "9.9 KB"),
            (31_200, "31 KB"),
            (99_999, "100 KB"),
            (100_000, "0.1 MB"),
            (850_001, "0.9 MB"),
            (90_868_376, "90.9 MB"),
            (141_002_000, "141.0 MB"),
            (999_900_000, "999.9 MB"),
            (1_000_000_000, "1.0 GB"),
            (16_060_522_240, "16.1 GB"),
            (u64::MAX / 20, "922337.2 TB"),
            (u64::MAX, "18446744.1 TB"),
        ];
        for (bytes, expected) in rows {
            assert_eq!(human_size(bytes), expected, "{bytes}");
        }
    }
}
