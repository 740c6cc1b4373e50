//! The sizes of a rolling update, and of a change of `spec.replicas` in the middle of one.

use super::{Deployment, Rollout, sets::ReplicaSet};

impl Rollout<'_> {
    pub fn roll(&mut self) {
        let Some(new) = self.sets.new.clone() else { return self.create_new_set() };
        let size = self.new_size(new.replicas);
        if size != new.replicas {
            self.scale(&new, size);
            return self.write_rollout_status();
        }
        if self.shrink_old(&new) {
            return self.write_rollout_status();
        }
        self.finish();
    }

    /// The size that the new ReplicaSet may have now, being `current`.
    pub fn new_size(&self, current: i64) -> i64 {
        let Deployment { replicas, max_surge, is_rolling, .. } = self.deployment;
        if current >= replicas || !is_rolling {
            return replicas;
        }
        let room = replicas + max_surge - self.sets.total();
        if room <= 0 { current } else { current + room.min(replicas - current) }
    }

    /// Shrinks old ReplicaSets, unhealthy pods first, never below what must stay available.
    fn shrink_old(&mut self, new: &ReplicaSet) -> bool {
        let Deployment { replicas, max_unavailable, .. } = self.deployment;
        if self.sets.old.iter().all(|set| set.replicas == 0) {
            return false;
        }
        let minimum = replicas - max_unavailable;
        let new_unavailable = new.replicas - new.available;
        let allowed = self.sets.total() - minimum - new_unavailable;
        if allowed <= 0 {
            return false;
        }
        let mut sizes: Vec<i64> = self.sets.old.iter().map(|set| set.replicas).collect();
        let mut left = allowed;
        for (set, size) in self.sets.old.iter().zip(&mut sizes) {
            let unhealthy = (*size - set.available).clamp(0, left);
            *size -= unhealthy;
            left -= unhealthy;
        }
        let available: i64 = self.sets.all().map(|set| set.available).sum();
        let mut surplus = (available - minimum).max(0);
        for size in &mut sizes {
            let step = surplus.min(*size);
            *size -= step;
            surplus -= step;
        }
        let changes: Vec<(ReplicaSet, i64)> =
            self.sets.old.iter().cloned().zip(sizes).filter(|(set, size)| set.replicas != *size).collect();
        for (set, size) in &changes {
            self.scale(set, *size);
        }
        !changes.is_empty()
    }

    /// Follows `spec.replicas`: one active ReplicaSet takes it all, several take it in proportion,
    /// so that a rollout in the middle stays in the middle.
    pub fn follow_scale(&mut self) {
        let wanted = self.deployment.replicas;
        if let Some(only) = self.active_or_latest() {
            return self.scale(&only, wanted);
        }
        let saturated = |set: &ReplicaSet| {
            set.replicas == wanted && set.desired() == Some(wanted) && set.available == wanted
        };
        if self.sets.new.as_ref().is_some_and(saturated) {
            for set in self.sets.old.clone() {
                self.scale(&set, 0);
            }
        } else if self.deployment.is_rolling {
            self.scale_in_proportion();
        }
    }

    /// The only active ReplicaSet, or with none active the newest; `None` with several.
    fn active_or_latest(&self) -> Option<ReplicaSet> {
        let mut active = self.sets.all().filter(|set| set.replicas > 0);
        match (active.next(), active.next()) {
            (Some(only), None) => Some(only.clone()),
            (None, _) => self.sets.new.clone().or_else(|| self.sets.old.last().cloned()),
            _ => None,
        }
    }

    fn scale_in_proportion(&mut self) {
        let Deployment { replicas, max_surge, .. } = self.deployment;
        let mut active: Vec<ReplicaSet> = self.sets.all().filter(|s| s.replicas > 0).cloned().collect();
        let allowed = if replicas > 0 { replicas + max_surge } else { 0 };
        let to_add = allowed - active.iter().map(|set| set.replicas).sum::<i64>();
        let created = |set: &ReplicaSet| set.object.creation_timestamp();
        if to_add > 0 {
            active.sort_by(|a, b| b.replicas.cmp(&a.replicas).then(created(b).cmp(&created(a))));
        } else {
            active.sort_by(|a, b| b.replicas.cmp(&a.replicas).then(created(a).cmp(&created(b))));
        }
        let mut added = 0;
        let mut sizes: Vec<i64> = Vec::new();
        for set in &active {
            let share = self.proportion(set, to_add, added);
            sizes.push(set.replicas + share);
            added += share;
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (set, size) in active.iter().zip(sizes) {
            self.resize(set, size);
        }
    }

    fn proportion(&self, set: &ReplicaSet, to_add: i64, added: i64) -> i64 {
        if to_add == 0 || to_add == added {
            return 0;
        }
        let Deployment { replicas, max_surge, .. } = self.deployment;
        let share = if replicas == 0 {
            -set.replicas
        } else {
            let status = self.deployment.object.i64_at(&["status", "replicas"]).unwrap_or(0);
            let base = set.annotated_max().filter(|&max| max != 0).unwrap_or(status).max(1);
            let size = (set.replicas * (replicas + max_surge)) as f64 / base as f64;
            size.round() as i64 - set.replicas
        };
        if to_add > 0 { share.min(to_add - added) } else { share.max(to_add - added) }
    }
}
