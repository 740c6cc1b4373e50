//! `kubectl get`

use bytes::Bytes;
use client::watch::WatchEventKind;
use futures::StreamExt;
use machinery::{Map, Object, Value};

use crate::{
    Error, Result,
    discovery::Info,
    manifests::Files,
    output::{
        self, Format, emit,
        table::{self, TablePrinter},
        without_managed_fields,
    },
    select::{self, Wanted},
    session::Session,
};

/// Display one or many resources
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl get pods -o wide --all-namespaces")]
pub struct Get {
    /// TYPE, TYPE NAME..., TYPE/NAME... or TYPE,TYPE
    arguments: Vec<String>,
    #[command(flatten)]
    files: Files,
    /// json, yaml, name, wide, jsonpath=..., custom-columns=...
    #[arg(short, long, default_value = "")]
    output: String,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Label selector such as app=web,tier!=db
    #[arg(short = 'l', long, default_value = "")]
    selector: String,
    /// Field selector such as status.phase=Running
    #[arg(long, default_value = "")]
    field_selector: String,
    /// After the first answer, show changes as they happen
    #[arg(short, long)]
    watch: bool,
    /// Show only changes
    #[arg(long)]
    watch_only: bool,
    /// Leave out the line of headers
    #[arg(long)]
    no_headers: bool,
    /// Show the labels in a last column
    #[arg(long)]
    show_labels: bool,
    /// Labels to show as columns
    #[arg(short = 'L', long, value_delimiter = ',')]
    label_columns: Vec<String>,
    /// Put the type before each name
    #[arg(long)]
    show_kind: bool,
    /// Keep managedFields in JSON and YAML
    #[arg(long)]
    show_managed_fields: bool,
    /// Succeed without output when an object is missing
    #[arg(long)]
    ignore_not_found: bool,
    /// Sort by a JSONPath expression such as .metadata.creationTimestamp
    #[arg(long, default_value = "")]
    sort_by: String,
    /// How many objects to ask for at a time; accepted for compatibility, lists come as a whole
    #[arg(long, default_value_t = 500)]
    chunk_size: u32,
}

/// The objects of one type that were asked for.
struct Group {
    info: Info,
    namespace: String,
    /// Empty for a list.
    names: Vec<String>,
}

impl Get {
    pub async fn run(self, session: &Session) -> Result<()> {
        let format = Format::parse(&self.output)?;
        let groups = self.groups(session).await?;
        if self.watch || self.watch_only {
            return self.watch(session, &format, &groups).await;
        }
        if format.is_table() && self.sort_by.is_empty() {
            self.tables(session, &groups).await
        } else {
            self.objects(session, &format, &groups).await
        }
    }

    async fn groups(&self, session: &Session) -> Result<Vec<Group>> {
        let mut groups: Vec<Group> = Vec::new();
        let mut add = |info: Info, namespace: String, name: Option<String>| {
            let fits = |g: &&mut Group| {
                g.info.resource == info.resource && g.namespace == namespace && !g.names.is_empty()
            };
            match (groups.last_mut().filter(fits), name) {
                (Some(group), Some(name)) => group.names.push(name),
                (_, name) => groups.push(Group { info, namespace, names: name.into_iter().collect() }),
            }
        };
        if !self.files.is_empty() {
            for m in self.files.load(session).await? {
                add(m.info, m.namespace, Some(m.object.name().to_owned()));
            }
            return Ok(groups);
        }
        for Wanted { info, name } in select::parse(session.discovery().await?, &self.arguments)? {
            let all = self.all_namespaces || !info.resource.namespaced;
            if name.is_some() && self.all_namespaces && info.resource.namespaced {
                return Err(Error::other("a resource cannot be retrieved by name across all namespaces"));
            }
            let namespace = if all { String::new() } else { session.namespace()?.to_owned() };
            add(info, namespace, name);
        }
        Ok(groups)
    }

    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query =
            vec![("labelSelector", self.selector.clone()), ("fieldSelector", self.field_selector.clone())];
        query.retain(|(_, value)| !value.is_empty());
        query
    }

    /// The answers for a group: one list, or one per name. Failures do not stop the others.
    async fn answers(&self, session: &Session, group: &Group, accept: &str, errors: &mut Vec<Error>) -> Result<Vec<Value>> {
        let client = session.client()?;
        let paths = match group.names.is_empty() {
            true => vec![(group.info.resource.path(&group.namespace, "", ""), self.query())],
            false => {
                let path = |name: &String| group.info.resource.path(&group.namespace, name, "");
                group.names.iter().map(|name| (path(name), Vec::new())).collect()
            }
        };
        let mut out = Vec::new();
        for (path, query) in paths {
            match client.get_accepting(accept, &path, &query).await {
                Ok(body) => out.push(parse(&body)?),
                Err(error) if error.is_not_found() && self.ignore_not_found => {}
                Err(error) => errors.push(error.into()),
            }
        }
        Ok(out)
    }

    fn printer(&self, group: &Group, several: bool) -> TablePrinter {
        let with_kind = self.show_kind || several;
        TablePrinter::new(table::Options {
            wide: self.output == "wide",
            with_namespace: self.all_namespaces && group.info.resource.namespaced,
            kind_prefix: if with_kind { group.info.display_kind() } else { String::new() },
            show_labels: self.show_labels,
            label_columns: self.label_columns.clone(),
            no_headers: self.no_headers,
        })
    }

    async fn tables(&self, session: &Session, groups: &[Group]) -> Result<()> {
        let (mut errors, mut printed) = (Vec::new(), false);
        for group in groups {
            let answers = self.answers(session, group, table::ACCEPT, &mut errors).await?;
            let answers = answers.into_iter().map(as_table).collect::<Vec<_>>();
            let text = self.printer(group, groups.len() > 1).render(&answers);
            if text.is_empty() {
                continue;
            }
            if printed && !self.no_headers {
                emit("\n")?;
            }
            printed = true;
            emit(&text)?;
        }
        if !printed && errors.is_empty() && !self.ignore_not_found {
            eprintln!("{}", nothing_found(groups));
        }
        Error::collect(errors)
    }

    /// All output that is made here from whole objects.
    async fn objects(&self, session: &Session, format: &Format, groups: &[Group]) -> Result<()> {
        let mut errors = Vec::new();
        let mut items: Vec<Value> = Vec::new();
        let mut single = groups.len() == 1 && groups[0].names.len() == 1;
        single |= groups.is_empty();
        for group in groups {
            for answer in self.answers(session, group, "application/json", &mut errors).await? {
                items.extend(self.items(group, answer));
            }
        }
        if !self.sort_by.is_empty() {
            let path = output::jsonpath::JsonPath::parse(&self.sort_by)?;
            sort_by(&mut items, &path);
        }
        if format.is_table() {
            return self.sorted_tables(session, groups, &items, errors).await;
        }
        match (format, items.as_slice()) {
            (_, []) if single || !errors.is_empty() => {}
            (Format::Columns(columns), items) if self.no_headers => emit(&columns.render_rows(items))?,
            (_, [one]) if single => emit(&format.render(one, None)?)?,
            (_, _) => emit(&format.render(&list(&items), None)?)?,
        }
        Error::collect(errors)
    }

    /// Rows of the server's tables in the order of the sorted objects.
    async fn sorted_tables(&self, session: &Session, groups: &[Group], items: &[Value], mut errors: Vec<Error>) -> Result<()> {
        let place = |row: &Value| {
            let uid = row.at(&["object", "metadata", "uid"]);
            items.iter().position(|item| item.at(&["metadata", "uid"]) == uid).unwrap_or(usize::MAX)
        };
        errors.clear();
        for group in groups {
            let mut answers = self.answers(session, group, table::ACCEPT, &mut errors).await?;
            for answer in &mut answers {
                let rows = answer.as_map_mut().and_then(|map| map.get_mut("rows"));
                if let Some(rows) = rows.and_then(Value::as_list_mut) {
                    rows.sort_by_key(place);
                }
            }
            emit(&self.printer(group, groups.len() > 1).render(&answers))?;
        }
        Error::collect(errors)
    }

    /// The objects of an answer, each with its kind.
    fn items(&self, group: &Group, answer: Value) -> Vec<Value> {
        let is_list = group.names.is_empty();
        let items = match answer.get("items").and_then(Value::as_list) {
            Some(items) if is_list => items.to_vec(),
            _ if is_list => Vec::new(),
            _ => vec![answer],
        };
        let complete = |item: Value| {
            let mut object = Object::from_value(item)?;
            object.set_gvk(&group.info.gvk());
            let kept = self.show_managed_fields;
            Some(if kept { object } else { without_managed_fields(object) }.into_value())
        };
        items.into_iter().filter_map(complete).collect()
    }

    async fn watch(&self, session: &Session, format: &Format, groups: &[Group]) -> Result<()> {
        let [group] = groups else {
            return Err(Error::other("you may only specify a single resource type with --watch"));
        };
        let mut query = self.query();
        match group.names.as_slice() {
            [] => {}
            [name] => query.push(("fieldSelector", format!("metadata.name={name}"))),
            _ => return Err(Error::other("only one object, or all of a type, can be watched")),
        }
        let client = session.client()?;
        let accept = if format.is_table() { table::ACCEPT } else { "application/json" };
        let path = group.info.resource.path(&group.namespace, "", "");
        let listed = Group { info: group.info.clone(), namespace: group.namespace.clone(), names: Vec::new() };
        let mut printer = self.printer(group, false);
        if let [name] = group.names.as_slice() {
            client.get(&group.info.resource, &group.namespace, name).await?;
        }
        let mut first = true;
        loop {
            let body = client.get_accepting(accept, &path, &query).await?;
            let answer = parse(&body)?;
            let version = answer.at(&["metadata", "resourceVersion"]).and_then(Value::as_str).unwrap_or_default();
            let mut watch_query = query.clone();
            watch_query.push(("resourceVersion", version.to_owned()));
            if first && !self.watch_only {
                self.show(format, &listed, &mut printer, answer.clone(), true)?;
            }
            first = false;
            let mut events = client.watch_accepting(accept, &path, &watch_query).await?;
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) if event.kind == WatchEventKind::Bookmark => {}
                    Ok(event) => self.show(format, &listed, &mut printer, parse(&event.object)?, false)?,
                    Err(error) if error.is_expired() => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }

    fn show(&self, format: &Format, group: &Group, printer: &mut TablePrinter, answer: Value, is_list: bool) -> Result<()> {
        if format.is_table() {
            return emit(&printer.render(&[as_table(answer)]));
        }
        let single = Group { info: group.info.clone(), namespace: String::new(), names: vec![String::new()] };
        let group = if is_list { group } else { &single };
        self.items(group, answer).iter().try_for_each(|item| {
            let text = match format {
                Format::Columns(columns) if !is_list || self.no_headers => {
                    columns.render_rows(std::slice::from_ref(item))
                }
                _ => format.render(item, Some(&group.info))?,
            };
            emit(&text)
        })
    }
}

fn parse(body: &Bytes) -> Result<Value> {
    machinery::json::parse(body).map_err(|e| Error::other(format!("the server sent something unreadable: {e}")))
}

/// A server that makes no table answers with objects: their names and ages are shown.
fn as_table(answer: Value) -> Value {
    if TablePrinter::is_table(&answer) {
        return answer;
    }
    let row = |object: &Value| {
        let text = |field| object.at(&["metadata", field]).cloned().unwrap_or_default();
        let cells = vec![text("name"), text("creationTimestamp")];
        [("cells", Value::from(cells)), ("object", object.clone())].into_iter().collect::<Map>()
    };
    let rows: Vec<Value> = output::objects(&answer).iter().map(|object| row(object).into()).collect();
    machinery::value!({
        "kind": "Table",
        "columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "Created At", "priority": 0}],
    })
    .as_map()
    .map(|table| {
        let mut table = table.clone();
        table.insert("rows", rows);
        table
    })
    .unwrap_or_default()
    .into()
}

fn list(items: &[Value]) -> Value {
    let mut list = Map::new();
    list.insert("apiVersion", "v1");
    list.insert("kind", "List");
    list.set_at(&["metadata", "resourceVersion"], "");
    list.insert("items", items.to_vec());
    list.into()
}

fn nothing_found(groups: &[Group]) -> String {
    match groups.first() {
        Some(group) if !group.namespace.is_empty() => {
            format!("No resources found in {} namespace.", group.namespace)
        }
        _ => "No resources found".to_owned(),
    }
}

fn sort_by(items: &mut [Value], path: &output::jsonpath::JsonPath) {
    let number = |value: &Value| match value {
        Value::Int(n) => Some(*n as f64),
        Value::Float(n) => Some(*n),
        _ => None,
    };
    items.sort_by(|a, b| {
        let (a, b) = (path.values(a), path.values(b));
        match (a.first(), b.first()) {
            (Some(a), Some(b)) => match (number(a), number(b)) {
                (Some(a), Some(b)) => a.total_cmp(&b),
                _ => output::jsonpath::text(a).cmp(&output::jsonpath::text(b)),
            },
            (a, b) => a.is_some().cmp(&b.is_some()),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    #[test]
    fn objects_are_sorted_by_a_path() {
        let mut items = vec![value!({"n": 10, "s": "b"}), value!({"n": 9, "s": "c"}), value!({"s": "a"})];
        let sorted = |items: &mut Vec<Value>, path: &str, field: &str| {
            sort_by(items, &output::jsonpath::JsonPath::parse(path).unwrap());
            items.iter().map(|i| i.get(field).map(output::jsonpath::text).unwrap_or_default()).collect::<Vec<_>>()
        };
        assert_eq!(sorted(&mut items, ".n", "n"), ["", "9", "10"]);
        assert_eq!(sorted(&mut items, "{.s}", "s"), ["a", "b", "c"]);
    }

    #[test]
    fn what_is_no_table_is_shown_by_name() {
        let answer = value!({"kind": "XList", "items": [{"metadata": {"name": "a", "creationTimestamp": "t"}}]});
        let text = TablePrinter::new(table::Options::default()).render(&[as_table(answer)]);
        assert_eq!(text, "NAME   CREATED AT\na      t\n");
    }
}
