//! Limits, and the files that they are written to.

use std::collections::BTreeMap;

use super::Layout;

/// What to set on a group; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Relative weight in version 1 units (2 to 262144; 1024 is one CPU's worth).
    pub cpu_shares: Option<u64>,
    /// CPU time per period, in microseconds; -1 is unlimited.
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    /// In bytes; -1 is unlimited.
    pub memory_bytes: Option<i64>,
    /// Memory and swap together, in bytes; -1 is unlimited.
    pub memory_and_swap_bytes: Option<i64>,
    /// The most processes and threads; -1 is unlimited.
    pub pids: Option<i64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// Page size as the kernel writes it (`2MB`) to bytes.
    pub hugepages: BTreeMap<String, u64>,
    /// Version 2 files by name, written as they are.
    pub unified: BTreeMap<String, String>,
}

/// One file of one controller and its new content.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub controller: &'static str,
    pub file: String,
    pub value: String,
    /// The host may lack the file, and that is fine.
    pub optional: bool,
}

impl Limits {
    pub(super) fn writes(&self, layout: Layout) -> Vec<Write> {
        let mut writes = match layout {
            Layout::V2 => self.version2(),
            Layout::V1 | Layout::Hybrid => self.version1(),
        };
        for (file, value) in
            [("cpuset.cpus", &self.cpuset_cpus), ("cpuset.mems", &self.cpuset_mems)]
        {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                writes.push(write("cpuset", file, value));
            }
        }
        if let Some(pids) = self.pids {
            writes.push(write("pids", "pids.max", limit_or(pids, "max")));
        }
        writes
    }

    fn version1(&self) -> Vec<Write> {
        let mut writes = Vec::new();
        if let Some(shares) = self.cpu_shares.filter(|shares| *shares > 0) {
            writes.push(write("cpu", "cpu.shares", shares));
        }
        if let Some(period) = self.cpu_period_us.filter(|period| *period > 0) {
            writes.push(write("cpu", "cpu.cfs_period_us", period));
        }
        if let Some(quota) = self.cpu_quota_us.filter(|quota| *quota != 0) {
            writes.push(write("cpu", "cpu.cfs_quota_us", quota.max(-1)));
        }
        if let Some(bytes) = self.memory_bytes.filter(|bytes| *bytes != 0) {
            writes.push(write("memory", "memory.limit_in_bytes", limit_or(bytes, "-1")));
        }
        if let Some(bytes) = self.memory_and_swap_bytes.filter(|bytes| *bytes != 0) {
            let file = "memory.memsw.limit_in_bytes";
            writes.push(Write { optional: true, ..write("memory", file, limit_or(bytes, "-1")) });
        }
        for (size, bytes) in &self.hugepages {
            let file = format!("hugetlb.{size}.limit_in_bytes");
            writes.push(Write { optional: true, ..write("hugetlb", &file, bytes) });
        }
        writes
    }

    fn version2(&self) -> Vec<Write> {
        let mut writes = Vec::new();
        if let Some(shares) = self.cpu_shares.filter(|shares| *shares > 0) {
            writes.push(write("cpu", "cpu.weight", weight_of_shares(shares)));
        }
        if let Some(quota) = self.cpu_quota_us.filter(|quota| *quota != 0) {
            let period = self.cpu_period_us.filter(|period| *period > 0).unwrap_or(100_000);
            writes.push(write("cpu", "cpu.max", format!("{} {period}", limit_or(quota, "max"))));
        }
        if let Some(bytes) = self.memory_bytes.filter(|bytes| *bytes != 0) {
            writes.push(write("memory", "memory.max", limit_or(bytes, "max")));
        }
        if let Some(total) = self.memory_and_swap_bytes.filter(|bytes| *bytes != 0) {
            let memory = self.memory_bytes.unwrap_or(0).max(0);
            let swap = if total < 0 { -1 } else { (total - memory).max(0) };
            let value = limit_or(swap, "max");
            writes.push(Write { optional: true, ..write("memory", "memory.swap.max", value) });
        }
        for (size, bytes) in &self.hugepages {
            let file = format!("hugetlb.{size}.max");
            writes.push(Write { optional: true, ..write("hugetlb", &file, bytes) });
        }
        for (file, value) in self.unified.iter().filter(|(file, _)| !file.contains('/')) {
            writes.push(write("unified", file, value));
        }
        writes
    }
}

fn write(controller: &'static str, file: &str, value: impl ToString) -> Write {
    Write { controller, file: file.to_owned(), value: value.to_string(), optional: false }
}

fn limit_or(value: i64, unlimited: &str) -> String {
    if value < 0 { unlimited.to_owned() } else { value.to_string() }
}

/// Maps shares (2 to 262144) onto weights (1 to 10000) in a straight line (KEP-2254).
pub fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_files() {
        let limits = Limits {
            cpu_shares: Some(1024),
            cpu_quota_us: Some(50_000),
            cpu_period_us: Some(100_000),
            memory_bytes: Some(1 << 20),
            pids: Some(-1),
            ..Limits::default()
        };
        let lines = |layout| -> Vec<String> {
            let line = |write: &Write| format!("{}={}", write.file, write.value);
            limits.writes(layout).iter().map(line).collect()
        };
        let v2 = ["cpu.weight=39", "cpu.max=50000 100000", "memory.max=1048576", "pids.max=max"];
        assert_eq!(lines(Layout::V2), v2);
        let v1 = [
            "cpu.shares=1024",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=50000",
            "memory.limit_in_bytes=1048576",
            "pids.max=max",
        ];
        assert_eq!(lines(Layout::Hybrid), v1);
    }

    #[test]
    fn shares_span_the_weights() {
        assert_eq!((weight_of_shares(0), weight_of_shares(262_144)), (1, 10_000));
    }
}
