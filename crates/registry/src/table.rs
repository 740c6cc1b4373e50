//! `meta.k8s.io/v1` Tables: what `kubectl get` prints.

use machinery::{Map, Object, Value, value};
use stdx::Timestamp;

/// One column of a kind.
#[derive(Clone, Copy)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `boolean`, `date`, ...
    pub kind: &'static str,
    /// `name` for the column that kubectl prefixes with the kind, else empty.
    pub format: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: i32,
    pub cell: fn(&Object, &TableContext) -> Value,
}

#[derive(Clone, Copy, Debug)]
pub struct TableContext {
    pub now: Timestamp,
}

impl Column {
    pub const fn text(name: &'static str, cell: fn(&Object, &TableContext) -> Value) -> Self {
        Self { name, kind: "string", format: "", priority: 0, cell }
    }

    pub const fn integer(name: &'static str, cell: fn(&Object, &TableContext) -> Value) -> Self {
        Self { kind: "integer", ..Self::text(name, cell) }
    }

    /// Shown with `-o wide` only.
    #[must_use]
    pub const fn wide(self) -> Self {
        Self { priority: 1, ..self }
    }
}

pub const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    priority: 0,
    cell: |o, _| o.name().into(),
};
pub const AGE: Column = Column::text("Age", |o, cx| age(o.creation_timestamp(), cx).into());

/// The columns of a kind that has none of its own.
pub static DEFAULT_COLUMNS: [Column; 2] = [
    NAME,
    Column {
        name: "Created At",
        kind: "date",
        format: "",
        priority: 0,
        cell: |o, _| o.str_at(&["metadata", "creationTimestamp"]).into(),
    },
];

/// `columnDefinitions` of a table.
pub fn definitions(columns: &[Column]) -> Value {
    let list: Vec<Value> = columns
        .iter()
        .map(|column| {
            value!({
                "name": column.name,
                "type": column.kind,
                "format": column.format,
                "description": describe(column.name),
                "priority": column.priority,
            })
        })
        .collect();
    list.into()
}

/// The cells of one row.
pub fn cells(columns: &[Column], object: &Object, cx: &TableContext) -> Value {
    let list: Vec<Value> = columns.iter().map(|column| (column.cell)(object, cx)).collect();
    list.into()
}

/// A row with the object in the form asked for.
pub fn row(
    columns: &[Column],
    object: &Object,
    cx: &TableContext,
    include: IncludeObject,
) -> Value {
    let mut row = Map::new();
    row.insert("cells", cells(columns, object, cx));
    match include {
        IncludeObject::None => {}
        IncludeObject::Object => {
            row.insert("object", object.clone().into_value());
        }
        IncludeObject::Metadata => {
            row.insert("object", partial_metadata(object));
        }
    }
    row.into()
}

/// `metav1.PartialObjectMetadata` of an object.
pub fn partial_metadata(object: &Object) -> Value {
    let mut partial = Map::new();
    partial.insert("kind", "PartialObjectMetadata");
    partial.insert("apiVersion", "meta.k8s.io/v1");
    partial.insert("metadata", object.metadata().cloned().unwrap_or_default());
    partial.into()
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

impl IncludeObject {
    /// Reads the `includeObject` parameter.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

fn describe(name: &str) -> &'static str {
    match name {
        "Name" => "Name must be unique within a namespace.",
        "Age" | "Created At" => "The time since this object was created.",
        _ => "",
    }
}

/// `2d3h` since a moment; `<unknown>` when there is none.
pub fn age(since: Option<Timestamp>, cx: &TableContext) -> String {
    match since {
        Some(since) => {
            human_duration((cx.now.as_nanos() - since.as_nanos()).div_euclid(1_000_000_000) as i64)
        }
        None => "<unknown>".into(),
    }
}

/// The age of a timestamp field.
pub fn age_of(text: &str, cx: &TableContext) -> String {
    age(Timestamp::parse(text), cx)
}

/// A span in the short form of kubectl: at most two units, coarser with length.
pub fn human_duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 3600;
    const DAY: i64 = 86_400;
    const YEAR: i64 = 365 * DAY;
    let two = |large: i64, large_unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{large}{large_unit}")
        } else {
            format!("{large}{large_unit}{small}{small_unit}")
        }
    };
    match seconds {
        ..-1 => "<invalid>".into(),
        -1..=0 => "0s".into(),
        1..120 => format!("{seconds}s"),
        120..600 => two(seconds / MINUTE, "m", seconds % MINUTE, "s"),
        600..10_800 => format!("{}m", seconds / MINUTE),
        10_800..28_800 => two(seconds / HOUR, "h", seconds / MINUTE % 60, "m"),
        28_800..172_800 => format!("{}h", seconds / HOUR),
        172_800..691_200 => two(seconds / DAY, "d", seconds / HOUR % 24, "h"),
        691_200..63_072_000 => format!("{}d", seconds / DAY),
        63_072_000..252_288_000 => two(seconds / YEAR, "y", seconds / DAY % 365, "d"),
        _ => format!("{}y", seconds / YEAR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_kubectls() {
        let cases = [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (601, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_000, "3h3m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (691_200, "8d"),
            (63_072_000 + 86_400, "2y1d"),
            (400_000_000, "12y"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }
}
