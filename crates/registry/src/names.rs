//! Rules of names, labels and annotations as field errors.

use api::names::{
    label_key, label_value, name_is_1035_label, name_is_label, name_is_path_segment,
    name_is_subdomain,
};
use machinery::Map;

use crate::{
    errors::{Errors, Path},
    strategy::NameRule,
};

/// All annotations of an object together.
const ANNOTATIONS_MAX_BYTES: usize = 256 << 10;

pub(crate) fn check(rule: NameRule, name: &str, path: &Path, errors: &mut Errors) {
    let faults = match rule {
        NameRule::Subdomain => name_is_subdomain(name, false),
        NameRule::Label => name_is_label(name, false),
        NameRule::Label1035 => name_is_1035_label(name, false),
        NameRule::PathSegment => name_is_path_segment(name, false),
    };
    report(&faults, path, name, errors);
}

/// One error per fault of one text.
pub(crate) fn report(faults: &[String], path: &Path, text: &str, errors: &mut Errors) {
    for fault in faults {
        errors.invalid(path, text, fault);
    }
}

pub(crate) fn qualified_at(text: &str, path: &Path, errors: &mut Errors) {
    report(&label_key(text), path, text, errors);
}

pub(crate) fn labels(map: Option<&Map>, path: &Path, errors: &mut Errors) {
    for (key, value) in map.into_iter().flat_map(Map::iter) {
        qualified_at(key, path, errors);
        let value = value.as_str().unwrap_or_default();
        report(&label_value(value), path, value, errors);
    }
}

pub(crate) fn annotations(map: Option<&Map>, path: &Path, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in map.into_iter().flat_map(Map::iter) {
        report(&label_key(&key.to_lowercase()), path, key, errors);
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX_BYTES {
        errors.too_long(path, ANNOTATIONS_MAX_BYTES);
    }
}
