//! JSON in and out of [`Value`], with the rules and error texts of Go's decoder.
//!
//! Own parser because of three needs at once: duplicate fields are reported with their path,
//! nesting is bounded, and the messages reach users of unmodified clients.

use std::fmt;

use smol_str::SmolStr;

use crate::{Map, Value};

/// The deepest nesting that a body may have. Go stops at 10,000; every real object stays below
/// 100, and recursion over a tree of this depth fits the stack of a worker thread.
pub const MAX_DEPTH: usize = 500;

/// A body that is no JSON. The text is Go's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    text: String,
    /// Bytes before the error.
    pub offset: usize,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

/// Parses one JSON document. Of a field that stands twice the last wins.
pub fn parse(bytes: &[u8]) -> Result<Value, Error> {
    Parser::new(bytes, None).document()
}

/// Parses and collects the paths of fields that stand twice: `spec.containers[0].name`.
pub fn parse_noting_duplicates(bytes: &[u8]) -> Result<(Value, Vec<String>), Error> {
    let mut duplicates = Vec::new();
    let value = Parser::new(bytes, Some(&mut duplicates)).document()?;
    Ok((value, duplicates))
}

/// The paths of all fields in the order of the document, a field that stands twice twice.
pub fn field_order(bytes: &[u8]) -> Vec<String> {
    let (mut duplicates, mut order) = (Vec::new(), Vec::new());
    let mut parser = Parser::new(bytes, Some(&mut duplicates));
    parser.order = Some(&mut order);
    match parser.document() {
        Ok(_) => order,
        Err(_) => Vec::new(),
    }
}

pub fn to_vec(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    duplicates: Option<&'a mut Vec<String>>,
    order: Option<&'a mut Vec<String>>,
    /// Where the parser stands; kept only while duplicates are collected.
    path: Vec<Step>,
}

enum Step {
    Key(SmolStr),
    Index(usize),
}

type Parsed<T> = Result<T, Error>;

impl<'a> Parser<'a> {
    fn new(bytes: &'a [u8], duplicates: Option<&'a mut Vec<String>>) -> Self {
        Self { bytes, at: 0, depth: 0, duplicates, order: None, path: Vec::new() }
    }

    fn document(mut self) -> Parsed<Value> {
        self.skip_space();
        let value = self.value()?;
        self.skip_space();
        match self.bytes.get(self.at) {
            None => Ok(value),
            Some(_) => Err(self.unexpected("after top-level value")),
        }
    }

    fn error(&self, text: impl Into<String>) -> Error {
        Error { text: text.into(), offset: self.at }
    }

    /// Go's sentence about the character here, or about the end.
    fn unexpected(&self, context: &str) -> Error {
        match self.bytes.get(self.at) {
            None => self.error("unexpected end of JSON input"),
            Some(&byte) => self.error(format!("invalid character {} {context}", quote_char(byte))),
        }
    }

    fn skip_space(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self) -> Parsed<Value> {
        match self.bytes.get(self.at) {
            Some(b'{') => self.nested(Self::map),
            Some(b'[') => self.nested(Self::list),
            Some(b'"') => Ok(Value::String(self.string()?)),
            Some(b't') => self.literal("true", Value::Bool(true)),
            Some(b'f') => self.literal("false", Value::Bool(false)),
            Some(b'n') => self.literal("null", Value::Null),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.unexpected("looking for beginning of value")),
        }
    }

    fn nested(&mut self, parse: fn(&mut Self) -> Parsed<Value>) -> Parsed<Value> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error("exceeded max depth"));
        }
        let value = parse(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn map(&mut self) -> Parsed<Value> {
        self.at += 1;
        let mut entries: Vec<(SmolStr, Value)> = Vec::new();
        self.skip_space();
        if self.bytes.get(self.at) == Some(&b'}') {
            self.at += 1;
            return Ok(Value::Map(Map::new()));
        }
        loop {
            self.skip_space();
            if self.bytes.get(self.at) != Some(&b'"') {
                return Err(self.unexpected("looking for beginning of object key string"));
            }
            let key = self.string()?;
            self.skip_space();
            if self.bytes.get(self.at) != Some(&b':') {
                return Err(self.unexpected("after object key"));
            }
            self.at += 1;
            self.skip_space();
            let value = self.field(&key)?;
            entries.push((key, value));
            self.skip_space();
            match self.bytes.get(self.at) {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(self.unexpected("after object key:value pair")),
            }
        }
        self.at += 1;
        self.note_duplicates(&entries);
        Ok(Value::Map(entries.into_iter().collect()))
    }

    fn field(&mut self, key: &SmolStr) -> Parsed<Value> {
        if self.duplicates.is_none() {
            return self.value();
        }
        if let Some(order) = &mut self.order {
            order.push(path_text(&self.path, key));
        }
        self.path.push(Step::Key(key.clone()));
        let value = self.value()?;
        self.path.pop();
        Ok(value)
    }

    fn note_duplicates(&mut self, entries: &[(SmolStr, Value)]) {
        let Some(found) = &mut self.duplicates else { return };
        let mut seen: stdx::HashSet<&str> = stdx::HashSet::default();
        for (key, _) in entries.iter().filter(|(key, _)| !seen.insert(key)) {
            found.push(path_text(&self.path, key));
        }
    }

    fn list(&mut self) -> Parsed<Value> {
        self.at += 1;
        let mut items: Vec<Value> = Vec::new();
        self.skip_space();
        if self.bytes.get(self.at) == Some(&b']') {
            self.at += 1;
            return Ok(Value::from(items));
        }
        loop {
            self.skip_space();
            let item = self.item(items.len())?;
            items.push(item);
            self.skip_space();
            match self.bytes.get(self.at) {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return Err(self.unexpected("after array element")),
            }
        }
        self.at += 1;
        Ok(Value::from(items))
    }

    fn item(&mut self, index: usize) -> Parsed<Value> {
        if self.duplicates.is_none() {
            return self.value();
        }
        self.path.push(Step::Index(index));
        let value = self.value()?;
        self.path.pop();
        Ok(value)
    }

    fn literal(&mut self, word: &'static str, value: Value) -> Parsed<Value> {
        for &expected in word.as_bytes() {
            if self.bytes.get(self.at) != Some(&expected) {
                let expected = char::from(expected);
                return Err(self.unexpected(&format!("in literal {word} (expecting '{expected}')")));
            }
            self.at += 1;
        }
        Ok(value)
    }

    fn digits(&mut self, context: &str) -> Parsed<()> {
        if !matches!(self.bytes.get(self.at), Some(b'0'..=b'9')) {
            return Err(self.unexpected(context));
        }
        while matches!(self.bytes.get(self.at), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Parsed<Value> {
        let start = self.at;
        if self.bytes[self.at] == b'-' {
            self.at += 1;
        }
        if self.bytes.get(self.at) == Some(&b'0') {
            self.at += 1;
        } else {
            self.digits("in numeric literal")?;
        }
        let mut whole = true;
        if self.bytes.get(self.at) == Some(&b'.') {
            (whole, self.at) = (false, self.at + 1);
            self.digits("after decimal point in numeric literal")?;
        }
        if matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            (whole, self.at) = (false, self.at + 1);
            if matches!(self.bytes.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits("in exponent of numeric literal")?;
        }
        let text = std::str::from_utf8(&self.bytes[start..self.at]).unwrap_or_default();
        if let (true, Ok(number)) = (whole, text.parse::<i64>()) {
            return Ok(Value::Int(number));
        }
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Value::Float(number)),
            _ => Err(self.error(format!(
                "json: cannot unmarshal number {text} into Go value of type float64"
            ))),
        }
    }

    fn string(&mut self) -> Parsed<SmolStr> {
        self.at += 1;
        let start = self.at;
        while let Some(&byte) = self.bytes.get(self.at) {
            match byte {
                b'"' => {
                    let text = text(&self.bytes[start..self.at]);
                    self.at += 1;
                    return Ok(text);
                }
                b'\\' => return self.escaped_string(start),
                0..=0x1f => break,
                _ => self.at += 1,
            }
        }
        Err(self.unexpected("in string literal"))
    }

    fn escaped_string(&mut self, start: usize) -> Parsed<SmolStr> {
        let mut out = self.bytes[start..self.at].to_vec();
        while let Some(&byte) = self.bytes.get(self.at) {
            match byte {
                b'"' => {
                    self.at += 1;
                    return Ok(text(&out));
                }
                b'\\' => {
                    self.at += 1;
                    let c = self.escape()?;
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                0..=0x1f => break,
                _ => {
                    out.push(byte);
                    self.at += 1;
                }
            }
        }
        Err(self.unexpected("in string literal"))
    }

    fn escape(&mut self) -> Parsed<char> {
        let c = match self.bytes.get(self.at) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(),
            _ => return Err(self.unexpected("in string escape code")),
        };
        self.at += 1;
        Ok(c)
    }

    /// At the `u`. Half a surrogate pair becomes U+FFFD.
    fn unicode_escape(&mut self) -> Parsed<char> {
        let high = self.hex4()?;
        if !(0xd800..0xdc00).contains(&high) {
            return Ok(char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
        let follows = self.bytes[self.at..].starts_with(b"\\u");
        if follows {
            let before = self.at;
            self.at += 1;
            let low = self.hex4()?;
            if (0xdc00..0xe000).contains(&low) {
                let point = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                return Ok(char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = before;
        }
        Ok(char::REPLACEMENT_CHARACTER)
    }

    fn hex4(&mut self) -> Parsed<u32> {
        self.at += 1;
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.bytes.get(self.at).and_then(|&b| char::from(b).to_digit(16));
            let Some(digit) = digit else {
                return Err(self.unexpected("in \\u hexadecimal character escape"));
            };
            code = code * 16 + digit;
            self.at += 1;
        }
        Ok(code)
    }
}

fn text(bytes: &[u8]) -> SmolStr {
    match std::str::from_utf8(bytes) {
        Ok(text) => SmolStr::new(text),
        Err(_) => SmolStr::new(String::from_utf8_lossy(bytes)),
    }
}

fn quote_char(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".into(),
        b'"' => "'\"'".into(),
        b'\n' => r"'\n'".into(),
        b'\r' => r"'\r'".into(),
        b'\t' => r"'\t'".into(),
        0..=0x1f | 0x7f => format!(r"'\x{byte:02x}'"),
        0x80.. => format!("'{}'", char::from(byte)),
        _ => format!("'{}'", char::from(byte)),
    }
}

fn path_text(path: &[Step], key: &str) -> String {
    let mut out = String::new();
    for step in path {
        match step {
            Step::Key(key) => push_key(&mut out, key),
            Step::Index(index) => out.push_str(&format!("[{index}]")),
        }
    }
    push_key(&mut out, key);
    out
}

fn push_key(out: &mut String, key: &str) {
    if !out.is_empty() {
        out.push('.');
    }
    out.push_str(key);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_gos() {
        let cases = [
            ("", "unexpected end of JSON input"),
            ("{", "unexpected end of JSON input"),
            ("{a", "invalid character 'a' looking for beginning of object key string"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 2}", "invalid character '2' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("trux", "invalid character 'x' in literal true (expecting 'e')"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("\"\n\"", "invalid character '\\n' in string literal"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            ("-", "unexpected end of JSON input"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("hello", "invalid character 'h' looking for beginning of value"),
        ];
        for (input, expected) in cases {
            assert_eq!(parse(input.as_bytes()).unwrap_err().to_string(), expected, "{input}");
        }
    }

    #[test]
    fn numbers_keep_their_kind() {
        let value = parse(b"[9223372036854775807, 9223372036854775808, 1.0, -0, 1e3]").unwrap();
        let expected = [
            Value::Int(i64::MAX),
            Value::Float(9223372036854775808.0),
            Value::Float(1.0),
            Value::Int(0),
            Value::Float(1000.0),
        ];
        assert_eq!(value.as_list().unwrap(), expected);
    }

    #[test]
    fn strings_are_unescaped_and_made_valid() {
        let value = parse(br#""a\u00e9\ud83d\ude00\ud800x\/""#).unwrap();
        assert_eq!(value.as_str(), Some("aé😀\u{fffd}x/"));
        assert_eq!(parse(b"\"\xff\"").unwrap().as_str(), Some("\u{fffd}"));
    }

    #[test]
    fn duplicates_are_noted_with_their_path() {
        let text = br#"{"spec":{"c":[{"n":1,"n":2}],"r":1,"r":2}}"#;
        let (value, duplicates) = parse_noting_duplicates(text).unwrap();
        assert_eq!(duplicates, ["spec.c[0].n", "spec.r"]);
        assert_eq!(value.at(&["spec", "r"]), Some(&Value::Int(2)));
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let deep = "[".repeat(100_000);
        assert_eq!(parse(deep.as_bytes()).unwrap_err().to_string(), "exceeded max depth");
        let fits = "[".repeat(MAX_DEPTH) + &"]".repeat(MAX_DEPTH);
        assert!(parse(fits.as_bytes()).is_ok());
    }
}
