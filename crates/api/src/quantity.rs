//! `resource.Quantity`: exact decimal amounts with unit suffixes.

use std::{cmp::Ordering, fmt, ops, str::FromStr};

/// An amount such as `100m`, `1.5Gi` or `2e3`.
///
/// Kubernetes keeps nothing finer than nano units and nothing beyond ±(2^63-1) units, so that an
/// `i128` of nano units is exact for every quantity. Equality and order are those of the amount;
/// the format only decides how it is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// The family of suffixes that a quantity is written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// `1Ki`, `2Mi`
    BinarySI,
    /// `1k`, `100m`
    #[default]
    DecimalSI,
    /// `1e3`
    DecimalExponent,
}

/// Why a text is no quantity. The words are Kubernetes'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const NANO: i128 = 1_000_000_000;
const MAX_NANOS: i128 = i64::MAX as i128 * NANO;
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSI };

    pub const fn from_units(units: i64, format: Format) -> Self {
        Self { nanos: units as i128 * NANO, format }
    }

    pub const fn from_millis(millis: i64) -> Self {
        Self { nanos: millis as i128 * 1_000_000, format: Format::DecimalSI }
    }

    pub const fn from_bytes(bytes: i64) -> Self {
        Self::from_units(bytes, Format::BinarySI)
    }

    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() {
            return Err(QuantityError::Format);
        }
        if text == "0" {
            return Ok(Self::ZERO);
        }
        let (number, suffix) = split(text)?;
        let (base, exponent, format) = suffix_value(suffix)?;
        let nanos = amount(number, base, exponent)?;
        Ok(Self { nanos, format })
    }

    /// The amount in units, rounded up (away from zero for fractions of positive amounts).
    pub fn value(&self) -> i64 {
        saturate(ceil_div(self.nanos, NANO))
    }

    /// The amount in thousandths, rounded up.
    pub fn milli_value(&self) -> i64 {
        saturate(ceil_div(self.nanos, 1_000_000))
    }

    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a whole number of units.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// The canonical text of what a text means.
    pub fn canonical(text: &str) -> Result<String, QuantityError> {
        Self::parse(text).map(|quantity| quantity.to_string())
    }

    fn with(self, nanos: i128, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: nanos.clamp(-MAX_NANOS, MAX_NANOS), format }
    }
}

/// Rounds away from zero, as Kubernetes scales down.
fn ceil_div(nanos: i128, by: i128) -> i128 {
    let (whole, rest) = (nanos / by, nanos % by);
    if rest == 0 { whole } else { whole + rest.signum() }
}

fn saturate(number: i128) -> i64 {
    number.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

/// The number with its sign, and the suffix.
fn split(text: &str) -> Result<(&str, &str), QuantityError> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let sign = text.len() - unsigned.len();
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = text.split_at(sign + end);
    let letters = suffix.trim_start_matches(|c: char| "eEinumkKMGTP".contains(c));
    let digits = letters.strip_prefix(['+', '-']).unwrap_or(letters);
    let suffix_ok = digits.bytes().all(|b| b.is_ascii_digit());
    if end == 0 || !suffix_ok {
        return Err(QuantityError::Format);
    }
    if unsigned[..end].matches('.').count() > 1 || &unsigned[..end] == "." {
        return Err(QuantityError::Numeric);
    }
    Ok((number, suffix))
}

/// Base (2 or 10), exponent and format of a suffix.
fn suffix_value(suffix: &str) -> Result<(u32, i32, Format), QuantityError> {
    if let Some(&(_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((10, exponent, Format::DecimalSI));
    }
    if let Some(at) = BINARY.iter().position(|name| *name == suffix) {
        return Ok((2, at as i32 * 10, Format::BinarySI));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).and_then(|digits| digits.parse::<i32>().ok());
    exponent.map(|e| (10, e, Format::DecimalExponent)).ok_or(QuantityError::Suffix)
}

/// `number × base^exponent` in nano units, fractions rounded away from zero, capped.
fn amount(number: &str, base: u32, exponent: i32) -> Result<i128, QuantityError> {
    let negative = number.starts_with('-');
    let digits = number.trim_start_matches(['+', '-']);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let fraction = fraction.trim_end_matches('0');
    let text = format!("{whole}{fraction}");
    let text = text.trim_start_matches('0');
    if text.is_empty() {
        return Ok(0);
    }
    // The value is `text × 10^ten × 2^two`, in nano units.
    let ten = 9 - fraction.len() as i64 + if base == 10 { i64::from(exponent) } else { 0 };
    let two = if base == 2 { exponent as u32 } else { 0 };
    let nanos = scaled(text, ten, two).min(MAX_NANOS);
    Ok(if negative { -nanos } else { nanos })
}

/// Capped at the largest quantity; rounded up when it is no whole number.
fn scaled(text: &str, ten: i64, two: u32) -> i128 {
    // A number of so many digits before the point is beyond the cap.
    if text.len() as i64 + ten > 30 {
        return MAX_NANOS;
    }
    // Beyond 38 digits an `i128` ends; what follows is below a nano unit and only rounds up.
    let kept = text.len().min(38);
    let dropped = text[kept..].bytes().any(|b| b != b'0');
    let mut number: i128 = text[..kept].parse().unwrap_or(MAX_NANOS);
    let ten = ten + (text.len() - kept) as i64;
    let mut rounded = dropped;
    if ten >= 0 {
        let factor = 10i128.checked_pow(ten.min(38) as u32);
        number = factor.and_then(|f| number.checked_mul(f)).unwrap_or(MAX_NANOS);
    }
    // Multiply first so that `0.1Ki` stays exact; when that overflows the amount is huge or has
    // so many digits that the rest is below a nano unit.
    let Some(product) = number.checked_mul(1i128 << two) else {
        return wide(number, ten, two);
    };
    number = product;
    if ten < 0 {
        let divisor = 10i128.checked_pow((-ten).min(38) as u32).unwrap_or(i128::MAX);
        rounded |= number % divisor != 0 || -ten > 38;
        number = if -ten > 38 { 0 } else { number / divisor };
    }
    number.saturating_add(rounded.into())
}

fn wide(number: i128, ten: i64, two: u32) -> i128 {
    if ten >= 0 {
        return MAX_NANOS;
    }
    let divisor = 10i128.checked_pow((-ten).min(38) as u32).unwrap_or(i128::MAX);
    let (whole, rest) = (number / divisor, number % divisor);
    let Some(high) = whole.checked_mul(1i128 << two) else { return MAX_NANOS };
    // `rest × 2^two / divisor`, in steps that cannot overflow.
    let (mut low, mut rest) = (0i128, rest);
    for _ in 0..two {
        low = low.saturating_mul(2);
        rest = match rest.checked_mul(2) {
            Some(doubled) => doubled,
            None => return MAX_NANOS,
        };
        if rest >= divisor {
            low += rest / divisor;
            rest %= divisor;
        }
    }
    high.saturating_add(low).saturating_add((rest > 0).into())
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let small = self.nanos.abs() < 1024 * NANO;
        match self.format {
            _ if self.nanos == 0 => f.write_str("0"),
            Format::BinarySI if !small && self.is_whole() => write_binary(self.nanos / NANO, f),
            Format::DecimalExponent => {
                let (number, exponent) = engineering(self.nanos);
                if exponent == 0 { write!(f, "{number}") } else { write!(f, "{number}e{exponent}") }
            }
            _ => {
                let (number, exponent) = engineering(self.nanos);
                let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(s, _)| s);
                write!(f, "{number}{suffix}")
            }
        }
    }
}

fn write_binary(mut units: i128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut step = 0;
    while units % 1024 == 0 && step + 1 < BINARY.len() {
        units /= 1024;
        step += 1;
    }
    write!(f, "{units}{}", BINARY[step])
}

/// The shortest number with an exponent of ten that is a multiple of three.
fn engineering(nanos: i128) -> (i128, i32) {
    let (mut number, mut exponent) = (nanos, -9);
    while number % 1000 == 0 && exponent < 18 {
        number /= 1000;
        exponent += 3;
    }
    (number, exponent)
}

impl FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Self::parse(text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}
impl std::hash::Hash for Quantity {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.nanos.hash(state);
    }
}
impl ops::Add for Quantity {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.with(self.nanos + other.nanos, other)
    }
}
impl ops::Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.with(self.nanos - other.nanos, other)
    }
}
impl ops::AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}
impl ops::SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}
impl ops::Neg for Quantity {
    type Output = Self;
    fn neg(self) -> Self {
        Self { nanos: -self.nanos, ..self }
    }
}
impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::ZERO, |sum, item| sum + item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_texts() {
        for (text, expected) in [
            ("0", "0"),
            ("0.5", "500m"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("1500m", "1500m"),
            ("1000m", "1"),
            ("100000k", "100M"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("1500e0", "1500"),
            ("12e-1", "1200e-3"),
            ("0.1Ki", "102400m"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("-0.1n", "-1n"),
            ("+5", "5"),
            (".5", "500m"),
            ("5.", "5"),
            ("0010", "10"),
            ("9223372036854775807", "9223372036854775807"),
            ("99999999999999999999", "9223372036854775807"),
            ("100E", "9223372036854775807"),
            ("1Ei", "1Ei"),
            ("0.00000000000000000000000000000000000000000001", "1n"),
            ("1000Mi", "1000Mi"),
            ("1023", "1023"),
            ("1023Ki", "1023Ki"),
            ("1.0000000000000000000000000000000000000000000Gi", "1Gi"),
        ] {
            assert_eq!(Quantity::canonical(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn bad_texts_have_kubernetes_reasons() {
        for (text, error) in [
            ("", QuantityError::Format),
            ("abc", QuantityError::Format),
            ("1x", QuantityError::Format),
            ("1 ", QuantityError::Format),
            ("1.2.3", QuantityError::Numeric),
            (".", QuantityError::Numeric),
            ("1ki", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("1mm", QuantityError::Suffix),
        ] {
            assert_eq!(Quantity::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn arithmetic_is_exact_and_keeps_the_format() {
        let parse = |text| Quantity::parse(text).unwrap();
        assert_eq!((parse("100m") + parse("0.9")).to_string(), "1");
        assert_eq!((parse("1Gi") - parse("512Mi")).to_string(), "512Mi");
        assert_eq!((Quantity::ZERO + parse("1Gi")).to_string(), "1Gi");
        assert_eq!(parse("1100m").value(), 2);
        assert_eq!(parse("0.0001").milli_value(), 1);
        assert!(parse("1Ki") > parse("1k") && parse("1000m") == parse("1"));
        let sum: Quantity = ["1", "250m"].into_iter().map(parse).sum();
        assert_eq!(sum.milli_value(), 1250);
    }
}
