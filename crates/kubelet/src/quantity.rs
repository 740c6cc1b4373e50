//! Resource quantities as numbers: what the node adds, compares and hands to the runtime.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A list of resources as the API writes it.
pub type ResourceList = BTreeMap<String, Quantity>;

/// A quantity in thousandths of its unit, rounded up; `None` when it is not a quantity.
/// The grammar is that of `resource.Quantity` (binary and decimal suffixes, exponents).
pub fn milli(text: &str) -> Option<i128> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || "+-.".contains(c)));
    let (number, suffix) = text.split_at(split.unwrap_or(text.len()));
    let (numerator, denominator) = scale(suffix)?;
    let (negative, digits) = match number.as_bytes().first()? {
        b'-' => (true, &number[1..]),
        b'+' => (false, &number[1..]),
        _ => (false, number),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() + fraction.len() == 0
        || fraction.len() > 18
        || !is_number(whole)
        || !is_number(fraction)
    {
        return None;
    }
    let parse = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i128>().ok() };
    let unit = 10i128.pow(fraction.len() as u32);
    let scaled = parse(whole)?.checked_mul(unit)?.checked_add(parse(fraction)?)?;
    let top = scaled.checked_mul(numerator)?.checked_mul(1000)?;
    let bottom = unit.checked_mul(denominator)?;
    let rounded_up = (top + bottom - 1) / bottom;
    Some(if negative { -rounded_up } else { rounded_up })
}

fn scale(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| Some((1i128 << (10 * power), 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "k" => Some((1000, 1)),
        "M" => Some((1_000_000, 1)),
        "G" => Some((1_000_000_000, 1)),
        "T" => Some((10i128.pow(12), 1)),
        "P" => Some((10i128.pow(15), 1)),
        "E" => Some((10i128.pow(18), 1)),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs())?;
            Some(if exponent >= 0 { (power, 1) } else { (1, power) })
        }
    }
}

/// A resource in thousandths, zero when it is absent.
pub fn milli_of(list: Option<&ResourceList>, name: &str) -> i64 {
    let found = list.and_then(|list| list.get(name)).and_then(|quantity| milli(&quantity.0));
    found.map_or(0, |value| i64::try_from(value).unwrap_or(i64::MAX))
}

/// A resource in whole units (bytes, pods), zero when it is absent.
pub fn whole_of(list: Option<&ResourceList>, name: &str) -> i64 {
    let found = list.and_then(|list| list.get(name)).and_then(|quantity| milli(&quantity.0));
    found.map_or(0, |value| i64::try_from((value + 999) / 1000).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_notation() {
        for (text, expected) in [
            ("1", 1000),
            ("100m", 100),
            ("1.5", 1500),
            ("1Ki", 1_024_000),
            ("128Mi", 134_217_728_000),
            ("1e3", 1_000_000),
            ("5E-1", 500),
            ("1E", 10i128.pow(21)),
            ("1n", 1),
            (".5", 500),
            ("-2", -2000),
        ] {
            assert_eq!(milli(text), Some(expected), "{text}");
        }
        for bad in ["", "x", "1x", "1.2.3", "Ki", "--1"] {
            assert_eq!(milli(bad), None, "{bad}");
        }
    }
}
