//! Worlds made by hand.

use std::sync::Arc;

use client::{Cached, Lister, Resource};
use machinery::Value;

use crate::{Config, World};

pub fn cached(object: Value) -> Cached {
    Cached::parse(machinery::json::to_vec(&object).into()).expect("a well-formed object")
}

pub fn world<const N: usize>(contents: [(&'static Resource, Vec<Cached>); N]) -> World {
    world_with(Config::default(), contents)
}

pub fn world_with<const N: usize>(config: Config, contents: [(&'static Resource, Vec<Cached>); N]) -> World {
    let listers = contents.into_iter().map(|(r, objects)| (r.clone(), Lister::from_objects(objects)));
    World::new(listers, Arc::new(config))
}
