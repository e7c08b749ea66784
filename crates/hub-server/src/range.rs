//! The `Range` header: one range of bytes, as clients that resume send it.

/// What part of a file is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// From a byte to a byte, the latter included.
    Bytes(u64, u64),
    /// None that the file has.
    Unsatisfiable,
}

/// Reads a `Range` header for a file of `size` bytes. Several ranges, and what is no range of bytes, are answered
/// with the whole file, as RFC 9110 allows.
pub(crate) fn part(header: Option<&str>, size: u64) -> Part {
    let Some(ranges) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else {
        return Part::Whole;
    };
    let Some((first, last)) = ranges.split_once('-') else { return Part::Whole };
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        return match last.parse::<u64>() {
            Ok(0) => Part::Unsatisfiable,
            Ok(_) if size == 0 => Part::Unsatisfiable,
            Ok(length) => Part::Bytes(size.saturating_sub(length), size - 1),
            Err(_) => Part::Whole,
        };
    }
    let (Ok(first), Ok(last)) = (first.parse(), if last.is_empty() { Ok(u64::MAX) } else { last.parse() })
    else {
        return Part::Whole;
    };
    if first >= size {
        Part::Unsatisfiable
    } else if last < first {
        Part::Whole
    } else {
        Part::Bytes(first, last.min(size - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let check = |header: &str, size: u64, expected: Part| {
            assert_eq!(part(Some(header), size), expected, "{header} of {size}");
        };
        assert_eq!(part(None, 10), Part::Whole);
        check("bytes=0-", 10, Part::Bytes(0, 9));
        check("bytes=3-", 10, Part::Bytes(3, 9));
        check("bytes=3-4", 10, Part::Bytes(3, 4));
        check("bytes=3-400", 10, Part::Bytes(3, 9));
        check("bytes=9-9", 10, Part::Bytes(9, 9));
        check("bytes=-4", 10, Part::Bytes(6, 9));
        check("bytes=-40", 10, Part::Bytes(0, 9));
        check("bytes=10-", 10, Part::Unsatisfiable);
        check("bytes=-0", 10, Part::Unsatisfiable);
        check("bytes=0-", 0, Part::Unsatisfiable);
        check("bytes=-1", 0, Part::Unsatisfiable);
        check("bytes=5-4", 10, Part::Whole);
        check("bytes=1-2,4-5", 10, Part::Whole);
        check("lines=1-2", 10, Part::Whole);
        check("bytes=a-b", 10, Part::Whole);
    }
}
