//! What a group has used.

/// Counters of a group; zero where the host does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time since the group was made, in nanoseconds.
    pub cpu_usage_ns: u64,
    pub memory_usage_bytes: u64,
    /// Usage without the file pages that the kernel would drop first.
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// `None` when unlimited.
    pub memory_limit_bytes: Option<u64>,
    pub swap_usage_bytes: u64,
    /// Processes and threads now.
    pub pids: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Periods in which the CPU quota was used up, and the time lost to it.
    pub throttled_periods: u64,
    pub periods: u64,
    pub throttled_ns: u64,
}

/// Version 1: `read(controller, file)`.
pub(super) fn version1(read: impl Fn(&str, &str) -> Option<String>) -> Stats {
    let whole = |controller: &str, file: &str| number(read(controller, file).as_deref());
    let memory = read("memory", "memory.stat").unwrap_or_default();
    let cpu = read("cpu", "cpu.stat").unwrap_or_default();
    let oom = read("memory", "memory.oom_control").unwrap_or_default();
    let usage = whole("memory", "memory.usage_in_bytes").unwrap_or(0);
    Stats {
        cpu_usage_ns: whole("cpuacct", "cpuacct.usage").unwrap_or(0),
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage.saturating_sub(field(&memory, "total_inactive_file")),
        memory_rss_bytes: field(&memory, "total_rss"),
        page_faults: field(&memory, "total_pgfault"),
        major_page_faults: field(&memory, "total_pgmajfault"),
        // Unlimited shows as the largest multiple of a page.
        memory_limit_bytes: whole("memory", "memory.limit_in_bytes")
            .filter(|limit| *limit < 1 << 62),
        swap_usage_bytes: field(&memory, "total_swap"),
        pids: whole("pids", "pids.current").unwrap_or(0),
        oom_kills: field(&oom, "oom_kill"),
        throttled_periods: field(&cpu, "nr_throttled"),
        periods: field(&cpu, "nr_periods"),
        throttled_ns: field(&cpu, "throttled_time"),
    }
}

/// Version 2: `read(controller, file)`, where all controllers share one directory.
pub(super) fn version2(read: impl Fn(&str, &str) -> Option<String>) -> Stats {
    let file = |name: &str| read("unified", name);
    let memory = file("memory.stat").unwrap_or_default();
    let cpu = file("cpu.stat").unwrap_or_default();
    let events = file("memory.events").unwrap_or_default();
    let usage = number(file("memory.current").as_deref()).unwrap_or(0);
    Stats {
        cpu_usage_ns: field(&cpu, "usage_usec") * 1000,
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage.saturating_sub(field(&memory, "inactive_file")),
        memory_rss_bytes: field(&memory, "anon"),
        page_faults: field(&memory, "pgfault"),
        major_page_faults: field(&memory, "pgmajfault"),
        memory_limit_bytes: number(file("memory.max").as_deref()),
        swap_usage_bytes: number(file("memory.swap.current").as_deref()).unwrap_or(0),
        pids: number(file("pids.current").as_deref()).unwrap_or(0),
        oom_kills: field(&events, "oom_kill"),
        throttled_periods: field(&cpu, "nr_throttled"),
        periods: field(&cpu, "nr_periods"),
        throttled_ns: field(&cpu, "throttled_usec") * 1000,
    }
}

fn number(text: Option<&str>) -> Option<u64> {
    text?.trim().parse().ok()
}

fn field(text: &str, name: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_counts_without_inactive_files() {
        let stats = version1(|_, file| {
            let text = match file {
                "memory.stat" => "rss 1\ntotal_rss 300\ntotal_inactive_file 400\n",
                "memory.usage_in_bytes" => "1000\n",
                "memory.limit_in_bytes" => "9223372036854771712\n",
                "memory.oom_control" => "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
                "cpuacct.usage" => "77\n",
                _ => return None,
            };
            Some(text.to_owned())
        });
        assert_eq!((stats.memory_working_set_bytes, stats.memory_rss_bytes), (600, 300));
        assert_eq!((stats.oom_kills, stats.cpu_usage_ns, stats.memory_limit_bytes), (2, 77, None));
    }

    #[test]
    fn version_2_counts_microseconds() {
        let stats = version2(|_, file| {
            let text = match file {
                "cpu.stat" => "usage_usec 5\nnr_throttled 3\n",
                "memory.max" => "max\n",
                "memory.events" => "oom 1\noom_kill 1\n",
                _ => return None,
            };
            Some(text.to_owned())
        });
        assert_eq!((stats.cpu_usage_ns, stats.throttled_periods), (5000, 3));
        assert_eq!((stats.oom_kills, stats.memory_limit_bytes), (1, None));
    }
}
