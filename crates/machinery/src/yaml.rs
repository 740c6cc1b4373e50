//! YAML in and out of [`Value`], as Kubernetes reads it: converted to JSON, with the booleans of
//! YAML 1.1.

use serde_saphyr::{DuplicateKeyPolicy, Options};

use crate::Value;

#[derive(Debug, thiserror::Error)]
#[error("error converting YAML to JSON: {0}")]
pub struct Error(String);

/// Parses one document; an empty one is `null`. Of a field that stands twice the last wins.
pub fn parse(text: &str) -> Result<Value, Error> {
    serde_saphyr::from_str_with_options(text, options(DuplicateKeyPolicy::LastWins)).map_err(error)
}

/// Parses one document and fails on a field that stands twice.
pub fn parse_strict(text: &str) -> Result<Value, Error> {
    serde_saphyr::from_str_with_options(text, options(DuplicateKeyPolicy::Error)).map_err(error)
}

/// Parses a stream of documents separated by `---`, leaving out empty ones.
pub fn parse_many(text: &str) -> Result<Vec<Value>, Error> {
    let options = options(DuplicateKeyPolicy::LastWins);
    let documents: Vec<Value> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(error)?;
    Ok(documents.into_iter().filter(|d| !d.is_null()).collect())
}

pub fn to_string(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_saphyr::to_string(value).map_err(|e| Error(e.to_string()))
}

fn error(source: serde_saphyr::Error) -> Error {
    Error(source.to_string())
}

fn options(duplicates: DuplicateKeyPolicy) -> Options {
    let mut options = Options::default();
    options.duplicate_keys = duplicates;
    options.legacy_octal_numbers = true;
    options.strict_booleans = false;
    options.with_snippet = false;
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn scalars_take_kubernetes_types() {
        let parsed =
            parse("a: yes\nb: 'yes'\nc: 010\nd: 1.5\ne: ~\nf: 1e3\ng: \"1\"\n1: x\n").unwrap();
        let expected = value!({
            "a": true, "b": "yes", "c": 8, "d": 1.5, "e": null, "f": 1000.0, "g": "1", "1": "x"
        });
        assert_eq!(parsed, expected);
    }

    #[test]
    fn several_documents() {
        let documents = parse_many("---\na: 1\n---\n# nothing\n---\nb: 2\n").unwrap();
        assert_eq!(documents, [value!({"a": 1}), value!({"b": 2})]);
    }

    #[test]
    fn duplicates_are_an_error_when_strict() {
        assert!(parse("a: 1\na: 2\n").is_ok());
        assert!(parse_strict("a: 1\na: 2\n").is_err());
    }

    #[test]
    fn writing_keeps_strings_strings() {
        let value = value!({"a": "yes", "b": "1", "c": "multi\nline\n", "d": true});
        assert_eq!(parse(&to_string(&value).unwrap()).unwrap(), value);
    }
}
