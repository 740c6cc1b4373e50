//! How long the steps of a request take: `cargo run --release -p machinery --example speed`.

#![allow(clippy::disallowed_methods)]

use std::{hint::black_box, time::Instant};

use machinery::{Object, apply, codec, defaults, fields, json, scalars};

fn main() {
    let text = include_str!("../testdata/peer.txt");
    let mut lines = text.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    let body = lines.next().unwrap_or_default().as_bytes().to_vec();
    let stored = scalars::base64_decode(lines.next().unwrap_or_default()).unwrap_or_default();
    let object = Object::from_json(&body).unwrap_or_default();
    let Some(gvk) = object.gvk() else { return };
    let Some(kind) = api::schema().kind(&gvk) else { return };
    println!("{} of {} bytes JSON, {} bytes protobuf", gvk, body.len(), stored.len());
    time("parse JSON", || json::parse(&body).map(drop).unwrap_or_default());
    time("parse JSON, noting duplicates", || {
        black_box(json::parse_noting_duplicates(&body).is_ok());
    });
    time("write JSON", || drop(black_box(object.to_json())));
    let value = object.clone().into_value();
    time("check and normalise", || drop(black_box(fields::decode(&value, kind.ty))));
    time("set defaults", || {
        let mut map = object.root().clone();
        black_box(defaults::apply(&mut map, kind.ty));
    });
    time("write protobuf", || drop(black_box(codec::to_protobuf(&object))));
    time("read protobuf", || drop(black_box(codec::from_protobuf(&stored))));
    let cx = apply::Context::built_in(&gvk, "apps/v1", "", stdx::Timestamp::from_secs(1));
    let Some(cx) = cx else { return };
    let mut changed = object.clone();
    changed.set_at(&["spec", "replicas"], 7);
    time("track an update", || {
        drop(black_box(apply::track_update(Some(&object), &changed, "m", &cx)));
    });
    let mut fresh = object.clone();
    fresh.remove_at(&["metadata", "managedFields"]);
    time("track a create", || drop(black_box(apply::track_update(None, &fresh, "m", &cx))));
    time("apply", || drop(black_box(apply::apply(Some(&object), &fresh, "m", true, &cx))));
}

/// The best of many short batches, which a busy machine disturbs least.
fn time(what: &str, mut step: impl FnMut()) {
    const BATCHES: u32 = 200;
    const ROUNDS: u32 = 10;
    let mut best = f64::MAX;
    for _ in 0..BATCHES {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            step();
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS));
    }
    println!("{what:<32} {best:8.1} µs");
}
