//! Counters and histograms in Prometheus text, under the names that dashboards look for.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use smol_str::SmolStr;

use crate::request_info::RequestInfo;

/// Upper bounds of `apiserver_request_duration_seconds`, in seconds.
const BUCKETS: [f64; 20] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
    10.0, 15.0, 20.0,
];

/// All figures of one server.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<Request, BTreeMap<u16, u64>>>,
    durations: Mutex<BTreeMap<Request, Histogram>>,
    pub in_flight_mutating: AtomicI64,
    pub in_flight_read_only: AtomicI64,
    pub long_running: AtomicI64,
}

/// The labels of one kind of request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Request {
    verb: SmolStr,
    group: SmolStr,
    version: SmolStr,
    resource: SmolStr,
    subresource: SmolStr,
    scope: &'static str,
    dry_run: &'static str,
}

#[derive(Default)]
struct Histogram {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum_seconds: f64,
}

impl Metrics {
    /// Counts a finished request. `known` tells whether its resource exists: labels of made-up
    /// resources would grow without bound.
    pub fn observe(
        &self,
        info: &RequestInfo,
        known: bool,
        dry_run: bool,
        code: u16,
        took: Duration,
    ) {
        let request = Request::of(info, known, dry_run);
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry(request.clone()).or_default().entry(code).or_default() += 1;
        drop(requests);
        if !info.is_long_running() {
            let mut durations = self.durations.lock().unwrap_or_else(PoisonError::into_inner);
            durations.entry(request).or_default().add(took.as_secs_f64());
        }
    }

    /// Everything in the text format, with `extra` gauges (name, labels, value) at the end.
    pub fn render(&self, extra: &[(&str, String, f64)]) -> String {
        let mut out = String::new();
        self.render_requests(&mut out);
        self.render_durations(&mut out);
        let gauge = |value: &AtomicI64| value.load(Ordering::Relaxed);
        header(
            &mut out,
            "apiserver_current_inflight_requests",
            "gauge",
            "Requests being served now.",
        );
        let inflight =
            [("mutating", &self.in_flight_mutating), ("readOnly", &self.in_flight_read_only)];
        for (kind, value) in inflight {
            let _ = writeln!(
                out,
                "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {}",
                gauge(value)
            );
        }
        header(
            &mut out,
            "apiserver_longrunning_requests",
            "gauge",
            "Watches and streams open now.",
        );
        let _ = writeln!(out, "apiserver_longrunning_requests {}", gauge(&self.long_running));
        let mut last = "";
        for (name, labels, value) in extra {
            if *name != last {
                let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
                header(&mut out, name, kind, "A figure of this process.");
                last = name;
            }
            let _ = writeln!(out, "{name}{labels} {value}");
        }
        out
    }

    fn render_requests(&self, out: &mut String) {
        header(
            out,
            "apiserver_request_total",
            "counter",
            "Requests by what they asked and how they ended.",
        );
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        for (request, codes) in requests.iter() {
            for (code, count) in codes {
                let _ = writeln!(
                    out,
                    "apiserver_request_total{{code=\"{code}\",component=\"apiserver\",{}}} {count}",
                    request.labels()
                );
            }
        }
    }

    fn render_durations(&self, out: &mut String) {
        const NAME: &str = "apiserver_request_duration_seconds";
        header(out, NAME, "histogram", "How long requests took, but for those that stream.");
        let durations = self.durations.lock().unwrap_or_else(PoisonError::into_inner);
        for (request, histogram) in durations.iter() {
            let labels = format!("component=\"apiserver\",{}", request.labels());
            let mut sum = 0;
            for (bound, count) in BUCKETS.iter().zip(histogram.buckets) {
                sum += count;
                let _ = writeln!(out, "{NAME}_bucket{{{labels},le=\"{bound}\"}} {sum}");
            }
            let _ = writeln!(out, "{NAME}_bucket{{{labels},le=\"+Inf\"}} {}", histogram.count);
            let _ = writeln!(out, "{NAME}_sum{{{labels}}} {}", histogram.sum_seconds);
            let _ = writeln!(out, "{NAME}_count{{{labels}}} {}", histogram.count);
        }
    }
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        if let Some(bucket) = BUCKETS.iter().position(|&bound| seconds <= bound) {
            self.buckets[bucket] += 1;
        }
        self.count += 1;
        self.sum_seconds += seconds;
    }
}

impl Request {
    fn of(info: &RequestInfo, known: bool, dry_run: bool) -> Self {
        let scope = match info {
            RequestInfo { is_resource: false, .. } => "",
            RequestInfo { name, .. } if !name.is_empty() || info.verb == "create" => "resource",
            RequestInfo { namespace, .. } if !namespace.is_empty() => "namespace",
            _ => "cluster",
        };
        let verb = match info.verb.as_str() {
            "deletecollection" => "DELETECOLLECTION".into(),
            "create" => "POST".into(),
            "update" => "PUT".into(),
            other => SmolStr::from(other.to_ascii_uppercase()),
        };
        let label = |text: &SmolStr| if known { text.clone() } else { SmolStr::default() };
        Self {
            verb,
            group: label(&info.group),
            version: label(&info.version),
            resource: label(&info.resource),
            subresource: label(&info.subresource),
            scope,
            dry_run: if dry_run { "All" } else { "" },
        }
    }

    fn labels(&self) -> String {
        let Self { verb, group, version, resource, subresource, scope, dry_run } = self;
        format!(
            "dry_run=\"{dry_run}\",group=\"{group}\",resource=\"{resource}\",scope=\"{scope}\",\
             subresource=\"{subresource}\",verb=\"{verb}\",version=\"{version}\""
        )
    }
}

fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Query;

    #[test]
    fn counts_by_kind_of_request() {
        let metrics = Metrics::default();
        let info =
            RequestInfo::parse(&http::Method::GET, "/api/v1/namespaces/a/pods", &Query::default());
        metrics.observe(&info, true, false, 200, Duration::from_millis(30));
        metrics.observe(&info, true, false, 200, Duration::from_millis(30));
        let text = metrics.render(&[("process_open_fds", String::new(), 7.0)]);
        let labels = r#"dry_run="",group="",resource="pods",scope="namespace",subresource="",verb="LIST",version="v1""#;
        assert!(text.contains(&format!(
            "apiserver_request_total{{code=\"200\",component=\"apiserver\",{labels}}} 2"
        )));
        assert!(text.contains(&format!(
            "apiserver_request_duration_seconds_bucket{{component=\"apiserver\",{labels},le=\"0.05\"}} 2"
        )));
        assert!(text.contains("process_open_fds 7"));
    }
}
