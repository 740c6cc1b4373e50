//! Rules for names and other short texts. Each function gives the list of what is wrong, in the
//! words that clients of Kubernetes know; an empty list means valid.

/// Reasons why a text is invalid.
pub type Faults = Vec<String>;

const LABEL_FORMAT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_FORMAT: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_1035_FORMAT: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_FORMAT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const QUALIFIED_TEXT: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

pub const LABEL_MAX_BYTES: usize = 63;
pub const SUBDOMAIN_MAX_BYTES: usize = 253;

/// The sentence about a text that does not match a pattern.
pub fn pattern_fault(text: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{text} (regex used for validation is '{pattern}')");
    }
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{text} (e.g. {}regex used for validation is '{pattern}')", examples.join(" or "))
}

pub fn too_long_fault(max_bytes: usize) -> String {
    format!("must be no more than {max_bytes} bytes")
}

fn too_many_characters_fault(max: usize) -> String {
    format!("must be no more than {max} characters")
}

pub fn range_fault(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

fn is_lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// Begins and ends as `edge` allows, with `inner` in between.
fn framed(text: &str, edge: fn(u8) -> bool, inner: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(&first), Some(&last)) => edge(first) && edge(last) && bytes.iter().all(|&b| inner(b)),
        _ => false,
    }
}

fn is_label(text: &str) -> bool {
    framed(text, is_lower_alnum, |b| is_lower_alnum(b) || b == b'-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

/// A label of RFC 1123 in lower case: `my-name`.
pub fn dns1123_label(text: &str) -> Faults {
    let mut faults = length_fault(text, LABEL_MAX_BYTES);
    if is_label(text) {
    } else if is_subdomain(text) {
        faults.push("must not contain dots".into());
    } else {
        let what = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
        faults.push(pattern_fault(what, LABEL_FORMAT, &["my-name", "123-abc"]));
    }
    faults
}

/// A subdomain of RFC 1123 in lower case: `example.com`.
pub fn dns1123_subdomain(text: &str) -> Faults {
    let mut faults = length_fault(text, SUBDOMAIN_MAX_BYTES);
    if !is_subdomain(text) {
        let what = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
        faults.push(pattern_fault(what, SUBDOMAIN_FORMAT, &["example.com"]));
    }
    faults
}

/// `example.com` or `*.example.com`, the latter required.
pub fn wildcard_dns1123_subdomain(text: &str) -> Faults {
    let mut faults = length_fault(text, SUBDOMAIN_MAX_BYTES);
    if !text.strip_prefix("*.").is_some_and(is_subdomain) {
        let what = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
        faults.push(pattern_fault(what, &format!(r"\*\.{SUBDOMAIN_FORMAT}"), &["*.example.com"]));
    }
    faults
}

/// A label of RFC 1035: begins with a letter.
pub fn dns1035_label(text: &str) -> Faults {
    let mut faults = length_fault(text, LABEL_MAX_BYTES);
    if !is_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        let what = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
        faults.push(pattern_fault(what, LABEL_1035_FORMAT, &["my-name", "abc-123"]));
    }
    faults
}

/// Labels count bytes by name; the older rules say characters and count bytes too.
fn length_fault(text: &str, max: usize) -> Faults {
    if text.len() > max { vec![too_many_characters_fault(max)] } else { Vec::new() }
}

fn is_qualified_part(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    framed(text, |b| b.is_ascii_alphanumeric(), inner)
}

/// A label key: `name` or `example.com/name`. Also the rule for finalizers and annotations.
pub fn label_key(text: &str) -> Faults {
    let mut faults = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                faults.push("prefix part must be non-empty".into());
            } else {
                let wrong = dns1123_subdomain(prefix);
                faults.extend(wrong.into_iter().map(|fault| format!("prefix part {fault}")));
            }
            name
        }
        _ => {
            let pattern = qualified_fault();
            let tail = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
            return vec![format!("a valid label key {pattern} {tail}")];
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".into());
    } else if name.len() > LABEL_MAX_BYTES {
        faults.push(format!("name part {}", too_long_fault(LABEL_MAX_BYTES)));
    }
    if !is_qualified_part(name) {
        faults.push(format!("name part {}", qualified_fault()));
    }
    faults
}

fn qualified_fault() -> String {
    pattern_fault(QUALIFIED_TEXT, QUALIFIED_FORMAT, &["MyName", "my.name", "123-abc"])
}

/// `label_key` under the name that most rules use.
pub fn qualified_name(text: &str) -> Faults {
    label_key(text)
}

pub fn label_value(text: &str) -> Faults {
    let mut faults = Vec::new();
    if text.len() > LABEL_MAX_BYTES {
        faults.push(too_long_fault(LABEL_MAX_BYTES));
    }
    if !text.is_empty() && !is_qualified_part(text) {
        let what = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
        let pattern = format!("({QUALIFIED_FORMAT})?");
        faults.push(pattern_fault(what, &pattern, &["MyValue", "my_value", "12345"]));
    }
    faults
}

/// The name of a port: an IANA service name.
pub fn port_name(text: &str) -> Faults {
    let mut faults = length_fault(text, 15);
    if !framed(text, |_| true, |b| is_lower_alnum(b) || b == b'-') {
        faults
            .push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        faults.push("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        faults.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        faults.push("must not begin or end with a hyphen".into());
    }
    faults
}

pub fn port_number(port: i64) -> Faults {
    if (1..=65535).contains(&port) { Vec::new() } else { vec![range_fault(1, 65535)] }
}

/// The name of an environment variable; any printable ASCII but `=`.
pub fn relaxed_env_var_name(text: &str) -> Faults {
    if text.is_empty() {
        return vec!["environment variable name must be non-empty".into()];
    }
    if text.bytes().any(|b| !(b' '..=b'~').contains(&b) || b == b'=') {
        let what = "a valid environment variable name must consist only of printable ASCII characters other than '='";
        return vec![what.into()];
    }
    Vec::new()
}

/// The name of an environment variable in its strict form.
pub fn env_var_name(text: &str) -> Faults {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let mut faults = Vec::new();
    if !framed(text, |_| true, inner) || text.starts_with(|c: char| c.is_ascii_digit()) {
        let what = "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', and must not start with a digit";
        let examples = ["my.env-name", "MY_ENV.NAME", "MyEnvName1"];
        faults.push(pattern_fault(what, "[-._a-zA-Z][-._a-zA-Z0-9]*", &examples));
    }
    faults.extend(path_fault(text));
    faults
}

/// A key of a ConfigMap or Secret.
pub fn config_map_key(text: &str) -> Faults {
    let mut faults = length_fault(text, SUBDOMAIN_MAX_BYTES);
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !framed(text, |_| true, inner) {
        let what = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        faults.push(pattern_fault(what, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    }
    faults.extend(path_fault(text));
    faults
}

fn path_fault(text: &str) -> Option<String> {
    match text {
        "." => Some("must not be '.'".into()),
        ".." => Some("must not be '..'".into()),
        _ if text.starts_with("..") => Some("must not start with '..'".into()),
        _ => None,
    }
}

pub fn http_header_name(text: &str) -> Faults {
    if framed(text, |_| true, |b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    let what = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![pattern_fault(what, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

pub fn percent(text: &str) -> Faults {
    let digits = text.strip_suffix('%').unwrap_or_default();
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Vec::new();
    }
    let what = "a valid percent string must be a numeric string followed by an ending '%'";
    vec![pattern_fault(what, "[0-9]+%", &["1%", "93%"])]
}

/// A name as one segment of a URL path; the rule for RBAC objects.
pub fn path_segment(text: &str) -> Faults {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    path_segment_prefix(text)
}

pub fn path_segment_prefix(text: &str) -> Faults {
    let banned = ["/", "%"].into_iter().filter(|part| text.contains(part));
    banned.map(|part| format!("may not contain '{part}'")).collect()
}

/// The rule for a name, and for a `generateName` (`prefix`), whose trailing dash stands for
/// what will be added.
pub type NameRule = fn(name: &str, prefix: bool) -> Faults;

fn masked(name: &str, prefix: bool) -> std::borrow::Cow<'_, str> {
    match name.strip_suffix('-') {
        Some(head) if prefix && !head.is_empty() => {
            format!("{}a", &head[..head.len() - last_char_len(head)]).into()
        }
        _ => name.into(),
    }
}

fn last_char_len(text: &str) -> usize {
    text.chars().next_back().map_or(0, char::len_utf8)
}

pub fn name_is_subdomain(name: &str, prefix: bool) -> Faults {
    dns1123_subdomain(&masked(name, prefix))
}

pub fn name_is_label(name: &str, prefix: bool) -> Faults {
    dns1123_label(&masked(name, prefix))
}

pub fn name_is_1035_label(name: &str, prefix: bool) -> Faults {
    dns1035_label(&masked(name, prefix))
}

pub fn name_is_path_segment(name: &str, prefix: bool) -> Faults {
    if prefix { path_segment_prefix(name) } else { path_segment(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains() {
        assert!(dns1123_label("a-1").is_empty());
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(
            dns1123_label("-"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert!(dns1123_subdomain("a.b-c.1").is_empty());
        for bad in ["", "A", "a..b", ".a", "a-", "é"] {
            assert_eq!(dns1123_subdomain(bad).len(), 1, "{bad}");
        }
        assert_eq!(dns1035_label("1a").len(), 1);
        assert_eq!(dns1123_label(&"a".repeat(64)), ["must be no more than 63 characters"]);
    }

    #[test]
    fn label_keys_and_values() {
        assert!(label_key("example.com/My_Name.1").is_empty());
        assert_eq!(label_key("/a"), ["prefix part must be non-empty"]);
        assert_eq!(label_key("a/b/c").len(), 1);
        assert_eq!(label_key("").len(), 2);
        assert!(label_value("").is_empty() && label_value("A_b.c").is_empty());
        assert_eq!(label_value("a b").len(), 1);
    }

    #[test]
    fn generated_names_may_end_with_a_dash() {
        assert!(name_is_subdomain("web-", true).is_empty());
        assert_eq!(name_is_subdomain("web-", false).len(), 1);
        assert_eq!(name_is_path_segment("a/b%c", false).len(), 2);
    }

    #[test]
    fn ports_and_keys() {
        assert!(port_name("http-1").is_empty());
        assert_eq!(port_name("1--2-").len(), 3);
        assert_eq!(config_map_key("..a"), ["must not start with '..'"]);
        assert_eq!(port_number(0), ["must be between 1 and 65535, inclusive"]);
        assert!(percent("10%").is_empty() && !percent("%").is_empty());
    }
}
