//! YAML in the layout that kubectl's readers are used to: two spaces, lists not indented below
//! their key, quotes only where needed.

use std::fmt::Write;

use machinery::Value;

/// One document with a newline at its end.
pub fn to_string(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Map(map) if !map.is_empty() => block(value, 0, &mut out),
        Value::List(list) if !list.is_empty() => block(value, 0, &mut out),
        other => {
            let _ = writeln!(out, "{}", scalar(other, 0));
        }
    }
    out
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Map(map) => !map.is_empty(),
        Value::List(list) => !list.is_empty(),
        _ => false,
    }
}

/// Writes a map or list whose lines begin at `indent`; the cursor stands at a line's start.
fn block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Map(map) => {
            for (key, value) in map.iter() {
                pad(indent, out);
                entry(key, value, indent, out);
            }
        }
        Value::List(list) => {
            for item in list.iter() {
                pad(indent, out);
                list_item(item, indent, out);
            }
        }
        _ => {}
    }
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn entry(key: &str, value: &Value, indent: usize, out: &mut String) {
    let _ = write!(out, "{}:", text_scalar(key, indent + 2, false));
    match value {
        Value::List(list) if !list.is_empty() => {
            out.push('\n');
            block(value, indent, out);
        }
        Value::Map(map) if !map.is_empty() => {
            out.push('\n');
            block(value, indent + 2, out);
        }
        other => {
            let _ = writeln!(out, " {}", scalar(other, indent + 2));
        }
    }
}

fn list_item(item: &Value, indent: usize, out: &mut String) {
    out.push_str("- ");
    match item {
        Value::Map(map) if !map.is_empty() => {
            for (at, (key, value)) in map.iter().enumerate() {
                if at > 0 {
                    pad(indent + 2, out);
                }
                entry(key, value, indent + 2, out);
            }
        }
        Value::List(list) if is_block(item) => {
            for (at, inner) in list.iter().enumerate() {
                if at > 0 {
                    pad(indent + 2, out);
                }
                list_item(inner, indent + 2, out);
            }
        }
        other => {
            let _ = writeln!(out, "{}", scalar(other, indent + 2));
        }
    }
}

fn scalar(value: &Value, indent: usize) -> String {
    match value {
        Value::Map(_) => "{}".into(),
        Value::List(_) => "[]".into(),
        Value::Null => "null".into(),
        Value::String(text) => text_scalar(text, indent, true),
        other => String::from_utf8_lossy(&machinery::json::to_vec(other)).into_owned(),
    }
}

/// A string as plain, quoted or literal block text; `indent` is that of a block's lines.
fn text_scalar(text: &str, indent: usize, may_be_block: bool) -> String {
    let printable = text.chars().all(|c| c == '\n' || c == '\t' || !c.is_control());
    if text.contains('\n') && may_be_block && printable && !text.starts_with([' ', '\n']) {
        return literal(text, indent);
    }
    if !printable || text.contains(['\n', '\t']) || resolves_to_other_type(text) {
        return serde_json::to_string(text).unwrap_or_default();
    }
    if is_plain(text) { text.to_owned() } else { format!("'{}'", text.replace('\'', "''")) }
}

fn literal(text: &str, indent: usize) -> String {
    let body = text.trim_end_matches('\n');
    let chomp = match text.len() - body.len() {
        0 => "-",
        1 => "",
        _ => "+",
    };
    let mut out = format!("|{chomp}");
    let lines = if chomp == "+" { &text[..text.len() - 1] } else { body };
    for line in lines.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            pad(indent, &mut out);
            out.push_str(line);
        }
    }
    out
}

/// Whether a YAML 1.1 reader would not take the plain text for a string.
fn resolves_to_other_type(text: &str) -> bool {
    let words = ["", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n", "<<", "="];
    if words.contains(&text.to_lowercase().as_str()) {
        return true;
    }
    let unsigned = text.trim_start_matches(['+', '-']).replace('_', "");
    let lower = unsigned.to_lowercase();
    let numeric = lower.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let is_number = numeric
        && (lower.parse::<f64>().is_ok()
            || lower.starts_with("0x")
            || lower.starts_with("0b")
            || lower.starts_with("0o")
            || [".inf", ".nan"].contains(&lower.as_str())
            || lower
                .split(':')
                .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())));
    is_number || is_timestamp(text)
}

fn is_timestamp(text: &str) -> bool {
    let bytes = text.as_bytes();
    let digits = |range: std::ops::Range<usize>| {
        bytes.get(range).is_some_and(|part| part.iter().all(u8::is_ascii_digit))
    };
    digits(0..4)
        && bytes.get(4) == Some(&b'-')
        && digits(5..7)
        && bytes.get(7) == Some(&b'-')
        && digits(8..10)
}

fn is_plain(text: &str) -> bool {
    let first_bad = "!&*?|>@`\"'#%{}[],";
    let Some(first) = text.chars().next() else { return false };
    let dash_alone =
        matches!(first, '-' | '?' | ':') && text[1..].chars().next().is_none_or(|c| c == ' ');
    !first_bad.contains(first)
        && !dash_alone
        && first != ' '
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && !text.starts_with("---")
        && !text.starts_with("...")
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    #[test]
    fn the_layout_is_that_of_kubectl() {
        let value = value!({
            "a": {"list": [{"x": 1, "y": ["p", "q"]}, [1, 2], "s"], "empty": {}, "none": [], "null": null},
            "text": "one\ntwo\n", "cut": "one\ntwo", "flag": "true", "number": "010", "time": "2026-01-02T03:04:05Z",
            "colon": "a: b", "star": "*", "url": "https://x:1/y", "float": 1.5, "quote": "it's",
        });
        let expected = "\
a:
  empty: {}
  list:
  - x: 1
    \"y\":
    - p
    - q
  - - 1
    - 2
  - s
  none: []
  \"null\": null
colon: 'a: b'
cut: |-
  one
  two
flag: \"true\"
float: 1.5
number: \"010\"
quote: it's
star: '*'
text: |
  one
  two
time: \"2026-01-02T03:04:05Z\"
url: https://x:1/y
";
        assert_eq!(to_string(&value), expected);
    }

    #[test]
    fn what_is_written_reads_back() {
        for text in [
            "", " x", "x ", "- a", "-", "a #b", "#", "1e3", "0x1f", "1:30", "a\tb", "\n x",
            "x\n\n", "é", "\u{1}", "yes", "a:", "---", "{a", "%x", "@x",
        ] {
            let value = value!({"k": text, "list": [text]});
            assert_eq!(machinery::yaml::parse(&to_string(&value)).unwrap(), value, "{text:?}");
        }
    }
}
