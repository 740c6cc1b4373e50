//! Compaction in the background: old versions leave memory, old segments leave the disk.
//!
//! A checkpoint is the state as of the compacted revision in one file. It is written slice by
//! slice beside the running commits, takes its name only when it is whole and durable, and then
//! the segments whose every record is older are removed. It is written only when they hold more
//! than the checkpoint itself would: so each byte is rewritten about once, however long the store
//! runs, and a store at rest rewrites nothing.

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use stdx::files::File;

use super::{
    Inner,
    index::{Place, SegmentFile},
    log::{checkpoint_path, is_no_space, segment_path},
    record::{BLOCK_BYTES, Batch, Meta, Record},
    recover::CHECKPOINT_NUMBER,
};
use crate::{Error, KeyValue, Revision, error};

/// Events trimmed, or keys looked at, per hold of the state.
const SLICE: usize = 256;
/// What is written and synced at a time, so that commits never wait behind a flood.
const CHUNK_BYTES: usize = 1 << 20;
/// Many small segments (one for each restart) are worth a checkpoint, too.
const MANY_SEGMENTS: usize = 64;

/// Runs until the store is closed or has failed.
pub async fn run(inner: Arc<Inner>, _lock: Arc<dyn File>) {
    while inner.check().is_ok() {
        inner.compaction.notified().await;
        let compacted = inner.read().compacted;
        while !inner.write().trim(SLICE) {
            tokio::task::yield_now().await;
        }
        if !worthwhile(&inner, compacted) {
            continue;
        }
        match Checkpoint::write(&inner, compacted).await {
            Ok(()) => {}
            Err(_) if inner.check().is_err() => {}
            Err(error) => {
                tracing::warn!(error = %stdx::chain(&error), "checkpoint given up; tried again at the next compaction");
            }
        }
    }
}

/// True when what can be removed outweighs what has to be written.
fn worthwhile(inner: &Inner, compacted: Revision) -> bool {
    let state = inner.read();
    let doomed = doomed_segments(&state.files, compacted);
    let bytes: u64 = doomed.iter().map(|number| state.files[number].bytes).sum();
    let enough = inner.options.garbage_bytes.max(state.live_bytes);
    bytes > enough || doomed.len() > MANY_SEGMENTS
}

/// Segments whose every record is older than `compacted`. The record of that revision itself is
/// kept: a watch may start there.
fn doomed_segments(
    files: &std::collections::BTreeMap<u32, SegmentFile>,
    compacted: Revision,
) -> Vec<u32> {
    let segments: Vec<_> = files.range(..CHECKPOINT_NUMBER).collect();
    let pairs = segments.windows(2);
    pairs.take_while(|pair| pair[1].1.start < compacted).map(|pair| *pair[0].0).collect()
}

struct Checkpoint<'a> {
    inner: &'a Inner,
    revision: Revision,
    number: u32,
    file: Arc<dyn File>,
    salt: u64,
    sequence: u64,
    offset: u64,
    batch: Batch,
    /// Which version lies where in the batch or the file.
    places: Vec<(Bytes, Revision, Place)>,
}

impl<'a> Checkpoint<'a> {
    async fn write(inner: &'a Inner, revision: Revision) -> Result<(), Error> {
        let temporary = inner.dir.join("checkpoint.tmp");
        let result = match Self::create(inner, revision, temporary.clone()).await {
            Ok(checkpoint) => checkpoint.fill(&temporary).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            let files = inner.env.files().clone();
            // Best effort: it is removed at the next start, or overwritten before that.
            inner.env.blocking(move || files.remove(&temporary)).await;
        }
        result
    }

    async fn create(inner: &'a Inner, revision: Revision, path: PathBuf) -> Result<Self, Error> {
        let files = inner.env.files().clone();
        let create = move || -> io::Result<Arc<dyn File>> {
            let file = files.open(&path, true)?;
            file.set_len(0)?;
            Ok(file.into())
        };
        let file = inner.blocking_io(create).await?;
        let last = inner.read().files.keys().next_back().copied().unwrap_or(0);
        Ok(Self {
            inner,
            revision,
            number: last.max(CHECKPOINT_NUMBER - 1) + 1,
            file,
            salt: inner.env.random_u64(),
            sequence: 0,
            offset: 0,
            batch: Batch::new(),
            places: Vec::new(),
        })
    }

    async fn fill(mut self, temporary: &std::path::Path) -> Result<(), Error> {
        let leases: Vec<_> = {
            let state = self.inner.read();
            state.leases.iter().map(|(id, l)| (*id, l.ttl_seconds, l.deadline_ms)).collect()
        };
        for (id, ttl_seconds, deadline_ms) in leases {
            self.batch.push(&Record::Grant { id, ttl_seconds, deadline_ms });
        }
        let mut next = Some(Bytes::new());
        while let Some(start) = next {
            self.inner.check()?;
            let (slice, rest) = self.inner.read().versions_at(self.revision, &start, SLICE);
            let (metas, founds): (Vec<Meta>, Vec<_>) = slice.into_iter().unzip();
            let items = self.inner.read_values(founds).await?;
            for (meta, item) in metas.into_iter().zip(items) {
                self.add(meta, item).await?;
            }
            next = rest;
        }
        let count = self.places.len() as i64;
        self.batch.push(&Record::End { revision: self.revision, count });
        self.flush().await?;
        let to = checkpoint_path(&self.inner.dir, self.revision);
        let (files, dir, from) =
            (self.inner.env.files().clone(), self.inner.dir.clone(), temporary.to_owned());
        let publish = move || files.rename(&from, &to).and_then(|()| files.sync_dir(&dir));
        self.inner.blocking_io(publish).await?;
        self.replace_older().await
    }

    async fn add(&mut self, meta: Meta, item: KeyValue) -> Result<(), Error> {
        let span = self.batch.push(&Record::Version { meta, key: &item.key, value: &item.value });
        let offset = u32::try_from(self.offset + u64::from(span.offset));
        let offset = offset.map_err(|_| Error::Unavailable("the state exceeds 4 GiB".into()))?;
        let place = Place { segment: self.number, offset, length: span.length };
        self.places.push((item.key, meta.mod_revision, place));
        match self.batch.len() > CHUNK_BYTES {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let mut batch = std::mem::replace(&mut self.batch, Batch::new());
        let (file, offset, sequence, salt) =
            (self.file.clone(), self.offset, self.sequence, self.salt);
        let write = move || -> io::Result<u64> {
            let payload_end = batch.len();
            let bytes = batch.seal(sequence, salt, payload_end, BLOCK_BYTES);
            file.write_at(offset, bytes)?;
            file.sync()?;
            Ok(bytes.len() as u64)
        };
        self.offset += self.inner.blocking_io(write).await?;
        self.sequence += 1;
        Ok(())
    }

    /// Points the versions to their new place and removes what nobody needs any more.
    async fn replace_older(self) -> Result<(), Error> {
        let Self { inner, revision, number, file, offset, places, .. } = self;
        let older: Vec<u32> = {
            let mut state = inner.write();
            let older = state.files.range(CHECKPOINT_NUMBER..).map(|(number, _)| *number).collect();
            state.files.insert(number, SegmentFile { file, start: revision, bytes: offset });
            older
        };
        for slice in places.chunks(SLICE) {
            {
                let mut state = inner.write();
                slice.iter().for_each(|(key, at, place)| state.relocate(key, *at, *place));
            }
            tokio::task::yield_now().await;
        }
        let mut paths = Vec::new();
        {
            let mut state = inner.write();
            for number in older {
                let removed = state.files.remove(&number);
                paths.extend(removed.map(|old| checkpoint_path(&inner.dir, old.start)));
            }
            for number in doomed_segments(&state.files, revision) {
                state.files.remove(&number);
                paths.push(segment_path(&inner.dir, number));
            }
        }
        let files = inner.env.files().clone();
        inner.blocking_io(move || paths.iter().try_for_each(|path| files.remove(path))).await
    }
}

impl Inner {
    /// Runs file work off the async threads. A full disk is no failure of the store.
    async fn blocking_io<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let done = self.env.blocking(work).await;
        let done = done.unwrap_or_else(|| Err(io::Error::other("the file work panicked")));
        done.map_err(|failure| match is_no_space(&failure) {
            true => Error::NoSpace { path: self.dir.display().to_string() },
            false => error::from_io(&self.dir, failure),
        })
    }
}
