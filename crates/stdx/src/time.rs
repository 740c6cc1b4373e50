//! Wall-clock instants as Kubernetes writes them.

use std::{fmt, time::Duration};

/// A point of wall-clock time, in nanoseconds since the Unix epoch, UTC.
///
/// `Display` and [`Timestamp::rfc3339`] give whole seconds (`metav1.Time`);
/// [`Timestamp::rfc3339_micro`] gives six digits (`metav1.MicroTime`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i128);

impl Timestamp {
    pub const fn from_nanos(nanos: i128) -> Self {
        Self(nanos)
    }

    pub const fn from_secs(secs: i64) -> Self {
        Self(secs as i128 * 1_000_000_000)
    }

    pub const fn as_nanos(self) -> i128 {
        self.0
    }

    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1_000_000_000) as i64
    }

    /// Parses RFC 3339 with any offset and any number of fractional digits.
    pub fn parse(text: &str) -> Option<Self> {
        let parsed: jiff::Timestamp = text.parse().ok()?;
        Some(Self(parsed.as_nanosecond()))
    }

    pub fn rfc3339(self) -> String {
        self.jiff().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    pub fn rfc3339_micro(self) -> String {
        self.jiff().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
    }

    pub fn rfc3339_nano(self) -> String {
        self.jiff().strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string()
    }

    /// The time from `earlier` to `self`, zero when `earlier` is later (a clock may jump back).
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }

    fn jiff(self) -> jiff::Timestamp {
        jiff::Timestamp::from_nanosecond(self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, delta: Duration) -> Self {
        Self(self.0 + delta.as_nanos() as i128)
    }
}

impl std::ops::Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, delta: Duration) -> Self {
        Self(self.0 - delta.as_nanos() as i128)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339_nano())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_as_kubernetes_does() {
        let t = Timestamp::parse("2026-11-23T10:20:30.123456789+02:00").unwrap();
        assert_eq!(t.rfc3339(), "2026-11-23T08:20:30Z");
        assert_eq!(t.rfc3339_micro(), "2026-11-23T08:20:30.123456Z");
        assert_eq!(Timestamp::from_secs(0).rfc3339(), "1970-01-01T00:00:00Z");
        assert!(Timestamp::parse("yesterday").is_none());
    }

    #[test]
    fn since_never_goes_negative() {
        let t = Timestamp::from_secs(10);
        assert_eq!(t.since(Timestamp::from_secs(20)), Duration::ZERO);
        assert_eq!(t.since(Timestamp::from_secs(4)), Duration::from_secs(6));
    }
}
