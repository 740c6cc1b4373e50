//! Rules of names, labels and annotations (RFC 1035, RFC 1123, qualified names), with the
//! reasons that Kubernetes gives.

use machinery::Map;

use crate::{
    errors::{Errors, Path},
    strategy::NameRule,
};

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const TOO_LONG_LABEL: &str = "must be no more than 63 bytes";
const TOO_LONG_NAME: &str = "must be no more than 253 bytes";
/// All annotations of an object together.
const ANNOTATIONS_MAX_BYTES: usize = 256 << 10;

pub(crate) fn check(rule: NameRule, name: &str, path: &Path, errors: &mut Errors) {
    let reasons = match rule {
        NameRule::Subdomain => subdomain(name),
        NameRule::Label => label(name),
        NameRule::Label1035 => label_1035(name),
        NameRule::PathSegment => path_segment(name),
    };
    for reason in reasons {
        errors.invalid(path, name, reason);
    }
}

fn is_label(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(&a), Some(&b)) if plain(a) && plain(b))
        && bytes.iter().all(|&c| plain(c) || c == b'-')
}

/// Why a text is no RFC 1123 label; empty when it is one.
pub(crate) fn label(text: &str) -> Vec<&'static str> {
    reasons([(text.len() > 63, TOO_LONG_LABEL), (!is_label(text), LABEL)])
}

pub(crate) fn label_1035(text: &str) -> Vec<&'static str> {
    let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase());
    reasons([(text.len() > 63, TOO_LONG_LABEL), (!is_label(text) || !starts_well, LABEL_1035)])
}

pub(crate) fn subdomain(text: &str) -> Vec<&'static str> {
    reasons([(text.len() > 253, TOO_LONG_NAME), (!text.split('.').all(is_label), SUBDOMAIN)])
}

pub(crate) fn path_segment(text: &str) -> Vec<&'static str> {
    match text {
        "." => vec!["may not be '.'"],
        ".." => vec!["may not be '..'"],
        _ => reasons([
            (text.contains('/'), "may not contain '/'"),
            (text.contains('%'), "may not contain '%'"),
        ]),
    }
}

pub(crate) fn label_value(text: &str) -> Vec<&'static str> {
    reasons([
        (text.len() > 63, TOO_LONG_LABEL),
        (!text.is_empty() && !is_name_part(text), VALUE),
    ])
}

fn reasons<const N: usize>(checks: [(bool, &'static str); N]) -> Vec<&'static str> {
    checks.into_iter().filter(|(broken, _)| *broken).map(|(_, why)| why).collect()
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(a), Some(b)) if a.is_ascii_alphanumeric() && b.is_ascii_alphanumeric())
        && bytes.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// Why a text is no qualified name (`name` or `prefix/name`).
pub(crate) fn qualified(text: &str) -> Vec<String> {
    let mut list = Vec::new();
    let name = match text.split_once('/') {
        None => text,
        Some((_, name)) if name.contains('/') => {
            return vec![format!(
                "a qualified name {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
        Some(("", name)) => {
            list.push("prefix part must be non-empty".to_owned());
            name
        }
        Some((prefix, name)) => {
            list.extend(subdomain(prefix).into_iter().map(|why| format!("prefix part {why}")));
            name
        }
    };
    if name.is_empty() {
        list.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        list.push(format!("name part {TOO_LONG_LABEL}"));
    }
    if !is_name_part(name) {
        list.push(format!("name part {QUALIFIED}"));
    }
    list
}

pub(crate) fn qualified_at(text: &str, path: &Path, errors: &mut Errors) {
    for why in qualified(text) {
        errors.invalid(path, text, &why);
    }
}

pub(crate) fn labels(map: Option<&Map>, path: &Path, errors: &mut Errors) {
    for (key, value) in map.into_iter().flat_map(Map::iter) {
        qualified_at(key, path, errors);
        let value = value.as_str().unwrap_or_default();
        for why in label_value(value) {
            errors.invalid(path, value, why);
        }
    }
}

pub(crate) fn annotations(map: Option<&Map>, path: &Path, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in map.into_iter().flat_map(Map::iter) {
        for why in qualified(&key.to_lowercase()) {
            errors.invalid(path, key.as_str(), &why);
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX_BYTES {
        errors.too_long(path, ANNOTATIONS_MAX_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_rules() {
        for good in ["a", "web-1", "1a"] {
            assert!(label(good).is_empty(), "{good}");
        }
        for bad in ["", "-a", "A", "a.b", "a_b", "a-"] {
            assert_eq!(label(bad), [LABEL], "{bad}");
        }
        assert!(subdomain("a.b-c.d").is_empty());
        assert_eq!(subdomain("a..b"), [SUBDOMAIN]);
        assert_eq!(label_1035("1a"), [LABEL_1035]);
        assert!(qualified("kubernetes.io/metadata.name").is_empty());
        assert_eq!(qualified("/x"), ["prefix part must be non-empty"]);
        assert_eq!(qualified("a/b/c").len(), 1);
        assert_eq!(label_value("has space"), [VALUE]);
    }
}
