//! Tables: the server's (`meta.k8s.io/v1`, kind Table) and the alignment of any columns.

use machinery::Value;

use super::jsonpath;

/// Asks the server for a table, and for the plain form where it makes none.
pub const ACCEPT: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

/// Aligns rows. Widths are remembered, so that rows of a watch stand below those before.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    widths: Vec<usize>,
}

/// Spaces between columns, and the least width of one with them.
const PADDING: usize = 3;
const MIN_WIDTH: usize = 6;

impl Layout {
    pub fn render(&mut self, rows: Vec<Vec<String>>) -> String {
        for row in &rows {
            self.widths.resize(self.widths.len().max(row.len()), 0);
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max((cell.chars().count() + PADDING).max(MIN_WIDTH));
            }
        }
        let line = |row: &Vec<String>| {
            let mut line = String::new();
            for (at, cell) in row.iter().enumerate() {
                line.push_str(cell);
                if at + 1 < row.len() {
                    let gap = self.widths[at] - cell.chars().count();
                    line.extend(std::iter::repeat_n(' ', gap));
                }
            }
            line + "\n"
        };
        rows.iter().map(line).collect()
    }
}

/// Which columns to show.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub wide: bool,
    pub with_namespace: bool,
    /// Put before each name: `pod` makes `pod/web`.
    pub kind_prefix: String,
    pub show_labels: bool,
    pub label_columns: Vec<String>,
    pub no_headers: bool,
}

/// Prints server tables of one type, the header once.
#[derive(Debug)]
pub struct TablePrinter {
    options: Options,
    layout: Layout,
    /// Name and priority of each column, from the first table; later ones of a watch have none.
    columns: Vec<(String, i64)>,
    header_done: bool,
}

impl TablePrinter {
    pub fn new(options: Options) -> Self {
        let header_done = options.no_headers;
        Self { options, layout: Layout::default(), columns: Vec::new(), header_done }
    }

    /// Whether the answer is a table at all.
    pub fn is_table(value: &Value) -> bool {
        value.get("kind").and_then(Value::as_str) == Some("Table")
    }

    /// The text of all rows of several tables of the same columns.
    pub fn render(&mut self, tables: &[Value]) -> String {
        let mut lines = Vec::new();
        for table in tables {
            self.learn_columns(table);
            let rows = table.get("rows").and_then(Value::as_list).unwrap_or_default();
            if !rows.is_empty() && !self.header_done {
                self.header_done = true;
                lines.push(self.header());
            }
            lines.extend(rows.iter().map(|row| self.row(row)));
        }
        self.layout.render(lines)
    }

    fn learn_columns(&mut self, table: &Value) {
        let definitions =
            table.get("columnDefinitions").and_then(Value::as_list).unwrap_or_default();
        if definitions.is_empty() {
            return;
        }
        let column = |definition: &Value| {
            let name = definition.get("name").and_then(Value::as_str).unwrap_or_default();
            let priority = definition.get("priority").and_then(Value::as_i64).unwrap_or(0);
            (name.to_owned(), priority)
        };
        self.columns = definitions.iter().map(column).collect();
    }

    fn header(&self) -> Vec<String> {
        let mut header = Vec::new();
        if self.options.with_namespace {
            header.push("NAMESPACE".to_owned());
        }
        let shown = self.columns.iter().filter(|(_, priority)| self.options.wide || *priority == 0);
        header.extend(shown.map(|(name, _)| name.to_uppercase()));
        let label = |key: &String| key.rsplit('/').next().unwrap_or(key).to_uppercase();
        header.extend(self.options.label_columns.iter().map(label));
        if self.options.show_labels {
            header.push("LABELS".to_owned());
        }
        header
    }

    fn row(&self, row: &Value) -> Vec<String> {
        let metadata = |field: &str| row.at(&["object", "metadata", field]);
        let mut out = Vec::new();
        if self.options.with_namespace {
            out.push(metadata("namespace").and_then(Value::as_str).unwrap_or_default().to_owned());
        }
        let cells = row.get("cells").and_then(Value::as_list).unwrap_or_default();
        for (at, cell) in cells.iter().enumerate() {
            let (name, priority) = self.columns.get(at).map_or(("", 0), |(n, p)| (n.as_str(), *p));
            if priority != 0 && !self.options.wide {
                continue;
            }
            let text = cell_text(cell);
            let prefixed =
                name.eq_ignore_ascii_case("name") && !self.options.kind_prefix.is_empty();
            out.push(if prefixed { format!("{}/{text}", self.options.kind_prefix) } else { text });
        }
        let labels = metadata("labels").and_then(Value::as_map);
        for key in &self.options.label_columns {
            let value = labels.and_then(|l| l.get(key)).and_then(Value::as_str);
            out.push(value.unwrap_or_default().to_owned());
        }
        if self.options.show_labels {
            let pairs: Vec<String> = labels
                .into_iter()
                .flat_map(|l| l.iter().map(|(k, v)| format!("{k}={}", jsonpath::text(v))))
                .collect();
            out.push(if pairs.is_empty() { "<none>".into() } else { pairs.join(",") });
        }
        out
    }
}

/// A cell on one line.
fn cell_text(cell: &Value) -> String {
    let text = match cell {
        Value::Null => "<nil>".to_owned(),
        other => jsonpath::text(other),
    };
    match text.split_once(['\n', '\r']) {
        Some((first, _)) => format!("{first}..."),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    fn table() -> Value {
        value!({
            "kind": "Table",
            "columnDefinitions": [
                {"name": "Name", "priority": 0}, {"name": "Ready", "priority": 0}, {"name": "IP", "priority": 1}],
            "rows": [
                {"cells": ["a-long-pod-name", "1/1", "10.0.0.1"],
                 "object": {"metadata": {"name": "a", "namespace": "n", "labels": {"app": "x", "b": "y"}}}},
                {"cells": ["b", "0/1", null], "object": {"metadata": {"name": "b", "namespace": "n"}}}],
        })
    }

    fn check(options: Options, expected: &str) {
        assert_eq!(TablePrinter::new(options).render(&[table()]), expected);
    }

    #[test]
    fn columns_follow_the_options() {
        check(
            Options::default(),
            "NAME              READY\na-long-pod-name   1/1\nb                 0/1\n",
        );
        check(
            Options { wide: true, kind_prefix: "pod".into(), ..Options::default() },
            "NAME                  READY   IP\npod/a-long-pod-name   1/1     10.0.0.1\npod/b                 0/1     <nil>\n",
        );
        check(
            Options { with_namespace: true, no_headers: true, ..Options::default() },
            "n     a-long-pod-name   1/1\nn     b                 0/1\n",
        );
        check(
            Options { show_labels: true, label_columns: vec!["app".into()], ..Options::default() },
            "NAME              READY   APP   LABELS\na-long-pod-name   1/1     x     app=x,b=y\nb                 0/1           <none>\n",
        );
    }

    #[test]
    fn a_watch_keeps_header_and_widths() {
        let mut printer = TablePrinter::new(Options::default());
        printer.render(&[table()]);
        let later = value!({"kind": "Table", "rows": [{"cells": ["c", "1/1", "x"], "object": {}}]});
        assert_eq!(printer.render(&[later]), "c                 1/1\n");
    }
}
