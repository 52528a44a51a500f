//! Sizes as people write them: `4096`, `64K`, `1.5G`, `512MiB`. All units count by 1,024.

/// Bytes in each unit, by its first letter.
const UNITS: [(char, u64); 6] =
    [('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30), ('T', 1 << 40), ('P', 1 << 50), ('E', 1 << 60)];

/// Largest length that a file offset can express.
const LARGEST: u64 = i64::MAX as u64;

/// Reads a size; the error says what was expected.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = factor(unit.trim()).ok_or_else(|| {
        format!("'{text}' is not a size: write a number with K, M, G or T (or KiB, MiB, ...), for example 1G")
    })?;
    let bytes = scaled(number, factor).ok_or_else(|| format!("'{text}' is not a size: '{number}' is not a number"))?;
    match u64::try_from(bytes) {
        Ok(bytes) if bytes <= LARGEST => Ok(bytes),
        _ => Err(format!("'{text}' is too large: a size is at most {LARGEST} bytes (8 EiB)")),
    }
}

fn factor(unit: &str) -> Option<u64> {
    let upper = unit.to_ascii_uppercase();
    if upper.is_empty() || upper == "B" {
        return Some(1);
    }
    let first = upper.chars().next()?;
    let rest = upper.get(1..)?;
    let (_, factor) = UNITS.iter().find(|(letter, _)| *letter == first)?;
    matches!(rest, "" | "B" | "IB").then_some(*factor)
}

/// `number` x `factor`, exactly where the number is whole.
fn scaled(number: &str, factor: u64) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || !fraction.chars().all(|c| c.is_ascii_digit()) {
        return None;
    }
    // More digits than any size has are too large, not "not a number".
    let whole: u128 = whole.parse().unwrap_or(u128::from(u64::MAX)).min(u128::from(u64::MAX));
    let part: f64 = if fraction.is_empty() { 0.0 } else { format!("0.{fraction}").parse().ok()? };
    Some(whole * u128::from(factor) + (part * factor as f64) as u128)
}

/// `bytes` for people: `1 GiB`, `1.5 MiB`, `100 B`.
pub(crate) fn show(bytes: u64) -> String {
    let Some((letter, unit)) = UNITS.iter().rev().find(|(_, unit)| bytes >= *unit) else {
        return format!("{bytes} B");
    };
    let tenths = u128::from(bytes) * 10 / u128::from(*unit);
    if tenths.is_multiple_of(10) || tenths >= 1000 {
        format!("{} {letter}iB", tenths / 10)
    } else {
        format!("{}.{} {letter}iB", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_count_by_1024_in_every_spelling() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1k", 1024),
            ("64KiB", 64 << 10),
            ("64 kb", 64 << 10),
            ("1G", 1 << 30),
            ("1.5G", 3 << 29),
            (" 2T ", 2 << 40),
            ("9223372036854775807", i64::MAX as u64),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_said_to_be_none_and_overflow_is_named() {
        for text in ["", "G", "1Q", "1GX", "-1", "one", "1..5G", ".5G", "1,5G", "1é"] {
            assert!(parse(text).is_err_and(|e| e.contains("not a size")), "{text}");
        }
        for text in ["9223372036854775808", "8E", "99999999999T", "99999999999999999999999999999999999999999G"] {
            assert!(parse(text).is_err_and(|e| e.contains("too large")), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1 << 30, "1 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(show(bytes), text);
        }
    }
}
