//! What the DNS server counts, in the text form that Prometheus reads.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hickory_proto::{op::ResponseCode, rr::RecordType};

/// Counters of one DNS server.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    answers: BTreeMap<(String, String), u64>,
    cache_hits: u64,
    cache_misses: u64,
    upstream_failures: u64,
    /// Answers that took at most the bound, by bound.
    buckets: [u64; BUCKETS.len()],
    sum: Duration,
    total: u64,
}

/// Upper bounds in microseconds.
const BUCKETS: [u64; 8] = [50, 100, 250, 1_000, 5_000, 25_000, 250_000, 2_000_000];

impl Metrics {
    pub fn answered(&self, kind: RecordType, code: ResponseCode, took: Duration) {
        let mut counts = self.lock();
        let key = (kind.to_string(), code_name(code));
        *counts.answers.entry(key).or_default() += 1;
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        for (bucket, bound) in counts.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(micros <= bound);
        }
        counts.sum += took;
        counts.total += 1;
    }

    pub fn cache(&self, hit: bool) {
        let mut counts = self.lock();
        if hit {
            counts.cache_hits += 1;
        } else {
            counts.cache_misses += 1;
        }
    }

    pub fn upstream_failed(&self) {
        self.lock().upstream_failures += 1;
    }

    /// The metrics in the Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        let counts = self.lock();
        let mut text = String::from("# TYPE gantry_dns_answers_total counter\n");
        for ((kind, code), count) in &counts.answers {
            let _ = writeln!(
                text,
                "gantry_dns_answers_total{{type=\"{kind}\",rcode=\"{code}\"}} {count}"
            );
        }
        for (name, value) in [
            ("cache_hits", counts.cache_hits),
            ("cache_misses", counts.cache_misses),
            ("upstream_failures", counts.upstream_failures),
        ] {
            let _ = writeln!(text, "# TYPE gantry_dns_{name}_total counter");
            let _ = writeln!(text, "gantry_dns_{name}_total {value}");
        }
        text.push_str("# TYPE gantry_dns_answer_seconds histogram\n");
        for (bound, count) in BUCKETS.iter().zip(counts.buckets) {
            let bound = *bound as f64 / 1e6;
            let _ = writeln!(text, "gantry_dns_answer_seconds_bucket{{le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(text, "gantry_dns_answer_seconds_bucket{{le=\"+Inf\"}} {}", counts.total);
        let _ = writeln!(text, "gantry_dns_answer_seconds_sum {}", counts.sum.as_secs_f64());
        let _ = writeln!(text, "gantry_dns_answer_seconds_count {}", counts.total);
        text
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mnemonic of RFC 1035 and its successors.
fn code_name(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".into(),
        ResponseCode::FormErr => "FORMERR".into(),
        ResponseCode::ServFail => "SERVFAIL".into(),
        ResponseCode::NXDomain => "NXDOMAIN".into(),
        ResponseCode::NotImp => "NOTIMP".into(),
        ResponseCode::Refused => "REFUSED".into(),
        other => u16::from(other).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_type_and_code() {
        let metrics = Metrics::default();
        metrics.answered(RecordType::A, ResponseCode::NoError, Duration::from_micros(80));
        metrics.answered(RecordType::A, ResponseCode::NXDomain, Duration::from_secs(3));
        let text = metrics.render();
        assert!(text.contains("gantry_dns_answers_total{type=\"A\",rcode=\"NXDOMAIN\"} 1"));
        assert!(text.contains("gantry_dns_answer_seconds_bucket{le=\"0.0001\"} 1"));
        assert!(text.contains("gantry_dns_answer_seconds_bucket{le=\"2\"} 1"));
        assert!(text.contains("gantry_dns_answer_seconds_count 2"));
    }
}
