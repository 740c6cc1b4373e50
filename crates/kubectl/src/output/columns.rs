//! `-o custom-columns=NAME:.path,…`

use machinery::Value;

use super::{
    jsonpath::{self, JsonPath},
    table::Layout,
};
use crate::{Error, Result};

/// Headers and the paths below them.
#[derive(Clone, Debug)]
pub struct Columns(Vec<(String, JsonPath)>);

impl Columns {
    pub fn parse(spec: &str) -> Result<Self> {
        if spec.is_empty() {
            return Err(Error::other(
                "custom-columns format specified but no custom columns given",
            ));
        }
        let column = |part: &str| {
            let (header, path) = part.split_once(':').ok_or_else(|| {
                Error::other(format!(
                    "unexpected custom-columns spec: {part}, expected <header>:<json-path-expr>"
                ))
            })?;
            Self::column(header, path)
        };
        split_outside_brackets(spec).into_iter().map(column).collect::<Result<_>>().map(Self)
    }

    /// A file with a line of headers and a line of paths.
    pub fn parse_file(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let headers = lines.next().unwrap_or_default().split_whitespace();
        let paths: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
        let headers: Vec<&str> = headers.collect();
        if headers.is_empty() || headers.len() != paths.len() {
            return Err(Error::other(
                "the columns file needs a line of headers and a line of as many paths",
            ));
        }
        headers.iter().zip(paths).map(|(h, p)| Self::column(h, p)).collect::<Result<_>>().map(Self)
    }

    fn column(header: &str, path: &str) -> Result<(String, JsonPath)> {
        let path = match path.starts_with(['.', '{', '[', '$']) {
            true => path.to_owned(),
            false => format!(".{path}"),
        };
        Ok((header.to_owned(), JsonPath::parse(&path)?))
    }

    pub fn render(&self, objects: &[Value]) -> String {
        let mut layout = Layout::default();
        let header = self.0.iter().map(|(header, _)| header.clone()).collect();
        let row = |object: &Value| self.0.iter().map(|(_, path)| cell(path, object)).collect();
        layout.render(std::iter::once(header).chain(objects.iter().map(row)).collect())
    }

    /// The rows alone, for `--no-headers`.
    pub fn render_rows(&self, objects: &[Value]) -> String {
        let row = |object: &Value| self.0.iter().map(|(_, path)| cell(path, object)).collect();
        Layout::default().render(objects.iter().map(row).collect())
    }
}

fn cell(path: &JsonPath, object: &Value) -> String {
    let texts: Vec<String> = path.values(object).into_iter().map(jsonpath::text).collect();
    if texts.is_empty() { "<none>".into() } else { texts.join(",") }
}

fn split_outside_brackets(spec: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0i32, 0);
    for (at, c) in spec.char_indices() {
        match c {
            '[' | '(' | '{' => depth += 1,
            ']' | ')' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&spec[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&spec[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    #[test]
    fn columns_are_aligned_and_gaps_are_said() {
        let columns = Columns::parse("NAME:.metadata.name,IPS:.ips[*]").unwrap();
        let objects = [
            value!({"metadata": {"name": "a-long-name"}, "ips": ["1", "2"]}),
            value!({"metadata": {"name": "b"}}),
        ];
        assert_eq!(
            columns.render(&objects),
            "NAME          IPS\na-long-name   1,2\nb             <none>\n"
        );
        assert_eq!(columns.render_rows(&objects[1..]), "b     <none>\n");
        assert!(Columns::parse("NAME").is_err());
    }
}
