//! Amounts of resources, as integers.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use smol_str::SmolStr;

/// CPU in thousandths, everything else in its own unit (bytes, pieces).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub ephemeral_storage_bytes: i64,
    /// Only in a node's allocatable: how many pods it takes.
    pub pods: i64,
    /// Extended resources and huge pages, by name.
    pub scalar: BTreeMap<SmolStr, i64>,
}

impl Resources {
    pub fn from_list(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        let mut total = Self::default();
        for (name, quantity) in list.into_iter().flatten() {
            match name.as_str() {
                "cpu" => total.cpu_milli = milli(quantity),
                "memory" => total.memory_bytes = whole(quantity),
                "ephemeral-storage" => total.ephemeral_storage_bytes = whole(quantity),
                "pods" => total.pods = whole(quantity),
                other => drop(total.scalar.insert(other.into(), whole(quantity))),
            }
        }
        total
    }

    pub fn add(&mut self, other: &Self) {
        self.cpu_milli += other.cpu_milli;
        self.memory_bytes += other.memory_bytes;
        self.ephemeral_storage_bytes += other.ephemeral_storage_bytes;
        for (name, amount) in &other.scalar {
            *self.scalar.entry(name.clone()).or_default() += amount;
        }
    }

    pub fn subtract(&mut self, other: &Self) {
        self.cpu_milli -= other.cpu_milli;
        self.memory_bytes -= other.memory_bytes;
        self.ephemeral_storage_bytes -= other.ephemeral_storage_bytes;
        for (name, amount) in &other.scalar {
            *self.scalar.entry(name.clone()).or_default() -= amount;
        }
    }

    /// The larger of both, resource by resource.
    pub fn raise_to(&mut self, other: &Self) {
        self.cpu_milli = self.cpu_milli.max(other.cpu_milli);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.ephemeral_storage_bytes =
            self.ephemeral_storage_bytes.max(other.ephemeral_storage_bytes);
        for (name, amount) in &other.scalar {
            let entry = self.scalar.entry(name.clone()).or_default();
            *entry = (*entry).max(*amount);
        }
    }
}

/// In thousandths, rounded up; zero for what is no quantity (the API server let none through).
fn milli(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 1000)
}

fn whole(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 1)
}

/// `text` times `scale`, rounded up, by Kubernetes' quantity grammar.
fn scaled(text: &str, scale: i128) -> i64 {
    let digits =
        text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let Some((multiplier, divisor)) = factor(suffix) else { return 0 };
    let (integer, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = &fraction[..fraction.len().min(12)];
    let Ok(mantissa) = format!("{integer}{fraction}").parse::<i128>() else { return 0 };
    let below = divisor * 10i128.pow(fraction.len() as u32);
    let product = mantissa.saturating_mul(multiplier).saturating_mul(scale);
    let rounded = product.div_euclid(below) + i128::from(product.rem_euclid(below) > 0);
    i64::try_from(rounded).unwrap_or(i64::MAX)
}

/// A suffix as multiplier and divisor.
fn factor(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (10i128.pow(6), 1),
        "G" => (10i128.pow(9), 1),
        "T" => (10i128.pow(12), 1),
        "P" => (10i128.pow(15), 1),
        "E" => (10i128.pow(18), 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_round_up() {
        let cases = [
            ("1", 1000, 1000),
            ("250m", 1000, 250),
            ("1.5", 1000, 1500),
            ("1500u", 1000, 2),
            ("64Mi", 1, 64 << 20),
            ("1e3", 1, 1000),
            ("0.5Gi", 1, 1 << 29),
            ("1E", 1, 1_000_000_000_000_000_000),
            ("nonsense", 1, 0),
        ];
        for (text, scale, expected) in cases {
            assert_eq!(scaled(text, scale), expected, "{text}");
        }
    }
}
