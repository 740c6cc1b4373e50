//! Equality as the API machinery means it: absent, null and empty are the same.

use machinery::Value;

/// `apiequality.Semantic.DeepEqual` on trees: an absent field equals null, an empty list and an
/// empty map; quantities are compared by the caller.
pub fn semantically_equal(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a.filter(|v| !is_empty(v)), b.filter(|v| !is_empty(v))) {
        (None, None) => true,
        (Some(Value::Map(a)), Some(Value::Map(b))) => {
            a.same(b)
                || (a.iter().all(|(key, value)| semantically_equal(Some(value), b.get(key)))
                    && b.iter().all(|(key, value)| a.contains_key(key) || is_empty(value)))
        }
        (Some(Value::List(a)), Some(Value::List(b))) => {
            a.len() == b.len()
                && a.iter().zip(b.iter()).all(|(a, b)| semantically_equal(Some(a), Some(b)))
        }
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::List(list) => list.is_empty(),
        Value::Map(map) => map.iter().all(|(_, value)| is_empty(value)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    #[test]
    fn absent_equals_empty() {
        let a = value!({"x": 1, "y": {}, "z": []});
        let b = value!({"x": 1, "w": null});
        assert!(semantically_equal(Some(&a), Some(&b)));
        let c = value!({"x": 1, "w": 0});
        assert!(!semantically_equal(Some(&a), Some(&c)));
    }
}
