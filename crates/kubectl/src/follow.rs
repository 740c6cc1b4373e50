//! Watching one object until something is true of it.

use std::time::Duration;

use client::{ListOptions, watch::WatchEventKind};
use futures::StreamExt;
use machinery::Object;

use crate::{Error, Result, select::Item, session::Session};

/// Calls `check` with each state of the object (`None` while it does not exist) until it gives a
/// value. `None` when `limit` passes first; no limit when it is `None`.
pub async fn until<T>(
    session: &Session,
    item: &Item,
    limit: Option<Duration>,
    check: impl FnMut(Option<&Object>) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let following = follow(session, item, check);
    match limit {
        None => following.await.map(Some),
        Some(limit) => session.env.timeout(limit, following).await.transpose(),
    }
}

async fn follow<T>(
    session: &Session,
    item: &Item,
    mut check: impl FnMut(Option<&Object>) -> Result<Option<T>>,
) -> Result<T> {
    let client = session.client()?;
    let resource = &item.info.resource;
    let selector = format!("metadata.name={}", item.name);
    loop {
        let mut options =
            ListOptions { field_selector: selector.clone(), ..ListOptions::default() };
        let list = client.list(resource, &item.namespace, &options).await?;
        let object = list.items.first().map(|bytes| parse(bytes)).transpose()?;
        if let Some(done) = check(object.as_ref())? {
            return Ok(done);
        }
        options.resource_version = list.resource_version;
        let mut watch = client.watch(resource, &item.namespace, &options).await?;
        while let Some(event) = watch.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) if error.is_expired() => break,
                Err(error) => return Err(error.into()),
            };
            let done = match event.kind {
                WatchEventKind::Added | WatchEventKind::Modified => {
                    check(Some(&parse(&event.object)?))?
                }
                WatchEventKind::Deleted => check(None)?,
                WatchEventKind::Bookmark | WatchEventKind::Error => None,
            };
            if let Some(done) = done {
                return Ok(done);
            }
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Object> {
    Object::from_json(bytes)
        .map_err(|e| Error::other(format!("the server sent something unreadable: {e}")))
}
