//! Completion indexes: a set of numbers, written as `0-2,5`, and how a pod learns its own.

use std::{collections::BTreeSet, fmt};

use machinery::{Object, Value, value};

use super::INDEX;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Indexes(BTreeSet<i64>);

impl Indexes {
    /// Parts that are no numbers are left out.
    pub fn parse(text: &str) -> Self {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse::<i64>().ok()?..=last.parse::<i64>().ok()?)
        };
        Self(text.split(',').filter_map(range).flatten().collect())
    }

    pub fn insert(&mut self, index: i64) {
        self.0.insert(index);
    }

    pub fn contains(&self, index: i64) -> bool {
        self.0.contains(&index)
    }

    pub fn len(&self) -> i64 {
        self.0.len() as i64
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(i64, i64)> = Vec::new();
        for &index in &self.0 {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == index => *last = index,
                _ => ranges.push((index, index)),
            }
        }
        let texts = ranges.iter().map(|(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        });
        f.write_str(&texts.collect::<Vec<_>>().join(","))
    }
}

/// Gives a pod its index: annotation, label, host name and environment.
pub fn mark(pod: &mut Object, job: &str, index: i64) {
    for field in ["annotations", "labels"] {
        pod.set_at(&["metadata", field, INDEX], index.to_string());
    }
    pod.set_at(&["spec", "hostname"], format!("{job}-{index}"));
    let path = format!("metadata.labels['{INDEX}']");
    let variable = value!({"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let spec = pod.root_mut().map_entry("spec");
    for field in ["containers", "initContainers"] {
        if !spec.contains_key(field) {
            continue;
        }
        for container in spec.list_entry(field).iter_mut().filter_map(Value::as_map_mut) {
            let environment = container.list_entry("env");
            let is_set = |v: &Value| v.get("name").and_then(Value::as_str) == Some("JOB_COMPLETION_INDEX");
            if !environment.iter().any(is_set) {
                environment.push(variable.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_writes() {
        let indexes = Indexes::parse("0-2,5,7,8");
        assert_eq!(indexes.len(), 6);
        assert_eq!(indexes.to_string(), "0-2,5,7,8");
        assert_eq!(Indexes::parse(""), Indexes::default());
    }
}
