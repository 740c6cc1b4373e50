//! JSON patch (RFC 6902).

use api::{Reason, Status};

use super::unprocessable;
use crate::Value;

const MAX_OPERATIONS: usize = 10_000;
/// Copies multiply; together they may not make more than this.
const MAX_COPIED_NODES: usize = 1_000_000;

/// Why an operation does not fit; told to nobody, as upstream.
struct Misfit;

type Done<T = ()> = Result<T, Misfit>;

/// Applies a JSON patch: 400 when it is none, 422 when an operation does not fit.
pub fn apply_json_patch(document: &Value, patch: &Value) -> Result<Value, Status> {
    let Value::List(operations) = patch else {
        let found = patch.type_name();
        return Err(Status::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {found} into Go value of type []handlers.jsonPatchOp"
        )));
    };
    if operations.len() > MAX_OPERATIONS {
        let message = format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        );
        return Err(Status::new(413, Reason::RequestEntityTooLarge, message));
    }
    let mut document = document.clone();
    let mut copied = 0;
    for operation in operations.iter() {
        apply(&mut document, operation, &mut copied).map_err(|Misfit| unprocessable())?;
    }
    Ok(document)
}

fn apply(document: &mut Value, operation: &Value, copied: &mut usize) -> Done {
    let text = |key| operation.get(key).and_then(Value::as_str).ok_or(Misfit);
    let path = pointer(text("path")?)?;
    let value = || operation.get("value").cloned();
    match text("op")? {
        "add" => add(document, &path, value().ok_or(Misfit)?),
        "remove" => remove(document, &path).map(drop),
        "replace" => {
            get(document, &path)?;
            set(document, &path, value().ok_or(Misfit)?)
        }
        "move" => {
            let from = pointer(text("from")?)?;
            let moved = remove(document, &from)?;
            add(document, &path, moved)
        }
        "copy" => {
            let source = get(document, &pointer(text("from")?)?)?.clone();
            *copied += count(&source);
            if *copied > MAX_COPIED_NODES {
                return Err(Misfit);
            }
            add(document, &path, source)
        }
        "test" => {
            let wanted = value().unwrap_or(Value::Null);
            match get(document, &path) {
                Ok(found) if equal(found, &wanted) => Ok(()),
                Err(Misfit) if wanted.is_null() => Ok(()),
                _ => Err(Misfit),
            }
        }
        _ => Err(Misfit),
    }
}

fn count(value: &Value) -> usize {
    match value {
        Value::List(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Map(map) => 1 + map.iter().map(|(_, v)| count(v)).sum::<usize>(),
        _ => 1,
    }
}

/// Numbers are equal by value, whatever their kind.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Int(a), Value::Float(b)) | (Value::Float(b), Value::Int(a)) => *a as f64 == *b,
        (Value::List(a), Value::List(b)) => {
            a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| equal(a, b))
        }
        (Value::Map(a), Value::Map(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| equal(v, w)))
        }
        _ => a == b,
    }
}

/// The parts of a JSON pointer (RFC 6901).
fn pointer(text: &str) -> Done<Vec<String>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let rest = text.strip_prefix('/').ok_or(Misfit)?;
    Ok(rest.split('/').map(|part| part.replace("~1", "/").replace("~0", "~")).collect())
}

/// The place of an existing item; negative numbers count from the end.
fn index(part: &str, length: usize) -> Done<usize> {
    let number: i64 = part.parse().map_err(|_| Misfit)?;
    let at = if number < 0 { number + length as i64 } else { number };
    usize::try_from(at).ok().filter(|at| *at < length).ok_or(Misfit)
}

fn get<'a>(document: &'a Value, path: &[String]) -> Done<&'a Value> {
    path.iter().try_fold(document, |value, part| match value {
        Value::Map(map) => map.get(part).ok_or(Misfit),
        Value::List(items) => Ok(&items[index(part, items.len())?]),
        _ => Err(Misfit),
    })
}

/// Changes the container that holds the path's last part.
fn within<T>(
    document: &mut Value,
    path: &[String],
    change: impl FnOnce(&mut Value, &str) -> Done<T>,
) -> Done<T> {
    let (last, parents) = path.split_last().ok_or(Misfit)?;
    let mut value = document;
    for part in parents {
        value = match value {
            Value::Map(map) => map.get_mut(part).ok_or(Misfit)?,
            Value::List(_) => {
                let items = value.as_list_mut().ok_or(Misfit)?;
                let at = index(part, items.len())?;
                &mut items[at]
            }
            _ => return Err(Misfit),
        };
    }
    change(value, last)
}

fn add(document: &mut Value, path: &[String], new: Value) -> Done {
    if path.is_empty() {
        *document = new;
        return Ok(());
    }
    within(document, path, |container, last| {
        if let Value::Map(map) = container {
            map.insert(last, new);
            return Ok(());
        }
        let items = container.as_list_mut().ok_or(Misfit)?;
        // One place more than there are items: the end.
        let at = if last == "-" { items.len() } else { index(last, items.len() + 1)? };
        items.insert(at, new);
        Ok(())
    })
}

fn set(document: &mut Value, path: &[String], new: Value) -> Done {
    if path.is_empty() {
        *document = new;
        return Ok(());
    }
    within(document, path, |container, last| {
        if let Value::Map(map) = container {
            map.insert(last, new);
            return Ok(());
        }
        let items = container.as_list_mut().ok_or(Misfit)?;
        let at = index(last, items.len())?;
        items[at] = new;
        Ok(())
    })
}

fn remove(document: &mut Value, path: &[String]) -> Done<Value> {
    within(document, path, |container, last| {
        if let Value::Map(map) = container {
            return map.remove(last).ok_or(Misfit);
        }
        let items = container.as_list_mut().ok_or(Misfit)?;
        let at = index(last, items.len())?;
        Ok(items.remove(at))
    })
}
