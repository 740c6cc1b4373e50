//! ConfigMaps, Secrets and ServiceAccounts.

use api::names::config_map_key;
use machinery::{Map, Object, Value, scalars};

use crate::{
    compare::semantically_equal,
    edit::or,
    errors::{Errors, Path},
    facts::{Facts, PLAIN},
    kinds::cells::NAME_AGE,
    names,
    table::{AGE, Column, NAME},
};

/// All values of a ConfigMap or Secret together.
const MAX_BYTES: usize = 1 << 20;

fn count(object: &Object, fields: &[&str]) -> Value {
    let sizes = fields.iter().map(|field| object.map_at(&[field]).map_or(0, Map::len));
    (sizes.sum::<usize>() as i64).into()
}

static MAP_COLUMNS: [Column; 3] =
    [NAME, Column::text("Data", |o, _| count(o, &["data", "binaryData"])), AGE];

pub(crate) const CONFIG_MAPS: Facts = Facts {
    validate: |map, errors| {
        let mut size = 0;
        for field in ["data", "binaryData"] {
            for (key, value) in map.map_at(&[field]).into_iter().flat_map(Map::iter) {
                let path = Path::new(field).key(key);
                names::report(&config_map_key(key), &path, key, errors);
                if field == "data" && map.at(&["binaryData", key]).is_some() {
                    let message = "duplicate of key present in binaryData";
                    errors.invalid(&path, key.as_str(), message);
                }
                let text = value.as_str().unwrap_or_default();
                size += if field == "data" { text.len() } else { text.len() / 4 * 3 };
            }
        }
        if size > MAX_BYTES {
            errors.too_long(&Path::default(), MAX_BYTES);
        }
    },
    validate_update: |_, new, old, errors| {
        immutable(new, old, &["data", "binaryData"], errors);
    },
    columns: &MAP_COLUMNS,
    ..PLAIN
};

/// An immutable object keeps its data and the mark itself.
fn immutable(new: &Object, old: &Object, fields: &[&str], errors: &mut Errors) {
    if !old.bool_at(&["immutable"]) {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    if !new.bool_at(&["immutable"]) {
        errors.forbidden(&"immutable".into(), why);
    }
    for field in fields {
        if !semantically_equal(new.at(&[field]), old.at(&[field])) {
            errors.forbidden(&Path::new(field), why);
        }
    }
}

static SECRET_COLUMNS: [Column; 4] = [
    NAME,
    Column::text("Type", |o, _| o.str_at(&["type"]).into()),
    Column::text("Data", |o, _| count(o, &["data"])),
    AGE,
];

pub(crate) const SECRETS: Facts = Facts {
    default: |secret| {
        or(secret.root_mut(), "type", "Opaque");
        // Plain texts become data; they are never stored themselves.
        if let Some(Value::Map(texts)) = secret.root_mut().remove("stringData") {
            let data = secret.root_mut().map_entry("data");
            for (key, value) in texts.iter() {
                let text = value.as_str().unwrap_or_default();
                data.insert(key.clone(), scalars::base64_encode(text.as_bytes()));
            }
        }
    },
    validate: |secret, errors| {
        let mut size = 0;
        let data = secret.map_at(&["data"]);
        for (key, value) in data.into_iter().flat_map(Map::iter) {
            names::report(&config_map_key(key), &Path::new("data").key(key), key, errors);
            size += value.as_str().map_or(0, |text| text.len() / 4 * 3);
        }
        if size > MAX_BYTES {
            errors.too_long(&"data".into(), MAX_BYTES);
        }
        secret_type(secret, errors);
    },
    validate_update: |_, new, old, errors| {
        errors.immutable(&"type".into(), new.at(&["type"]), old.at(&["type"]));
        immutable(new, old, &["data"], errors);
    },
    fields: &["type"],
    columns: &SECRET_COLUMNS,
    ..PLAIN
};

/// Types that promise keys must hold them.
fn secret_type(secret: &Object, errors: &mut Errors) {
    let has = |key: &str| secret.at(&["data", key]).is_some();
    let missing = |key: &str, errors: &mut Errors| errors.required(&Path::new("data").key(key), "");
    match secret.str_at(&["type"]) {
        "kubernetes.io/service-account-token" => {
            let annotation = "kubernetes.io/service-account.name";
            if secret.annotation(annotation).unwrap_or_default().is_empty() {
                errors.required(&Path::new("metadata").child("annotations").key(annotation), "");
            }
        }
        "kubernetes.io/dockercfg" if !has(".dockercfg") => missing(".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" if !has(".dockerconfigjson") => {
            missing(".dockerconfigjson", errors)
        }
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            missing("username", errors);
            missing("password", errors);
        }
        "kubernetes.io/ssh-auth" if secret.str_at(&["data", "ssh-privatekey"]).is_empty() => {
            missing("ssh-privatekey", errors);
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"] {
                if !has(key) {
                    missing(key, errors);
                }
            }
        }
        _ => {}
    }
}

pub(crate) const SERVICE_ACCOUNTS: Facts =
    Facts { returns_deleted: true, columns: &NAME_AGE, ..PLAIN };
