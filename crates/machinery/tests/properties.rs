//! What must hold for any input: decoders do not panic, and what they read they write back.

use api::{FieldType, Quantity, TypeId, schema, selector::LabelSelector};
use machinery::{Map, Object, Value, apply::FieldSet, codec, fields, json, patch, scalars};
use proptest::prelude::*;

/// Bytes that a real server stored.
fn stored() -> Vec<Vec<u8>> {
    let text = include_str!("../testdata/peer.txt");
    let lines = text.lines().filter(|l| !l.is_empty() && !l.starts_with(['#', '{']));
    lines.map(|line| scalars::base64_decode(line).unwrap()).collect()
}

/// A small generator, so that one number makes one object.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn structure(&mut self, ty: TypeId, depth: usize) -> Map {
        let mut map = Map::new();
        for field in &schema().type_of(ty).fields {
            if field.proto == 0 {
                // Kind and version: of the whole object alone.
                continue;
            }
            let wanted = if depth > 6 { 12 } else { 3 };
            if self.roll(wanted) == 0 {
                map.insert(field.name, self.value(&field.ty, depth + 1));
            }
        }
        map
    }

    fn value(&mut self, ty: &FieldType, depth: usize) -> Value {
        use FieldType as T;
        match ty {
            T::Bool => (self.roll(2) == 0).into(),
            T::Int32 | T::UInt32 => (self.roll(1 << 31) as i64).into(),
            T::Int64 | T::UInt64 => (self.roll(1 << 62) as i64).into(),
            T::Float64 => Value::Float(self.roll(1000) as f64 + 0.5),
            T::String => format!("s{}", self.roll(100)).into(),
            T::Bytes => scalars::base64_encode(&self.roll(1 << 40).to_le_bytes()).into(),
            T::Quantity => Quantity::from_millis(self.roll(100_000) as i64).to_string().into(),
            T::IntOrString if self.roll(2) == 0 => "50%".into(),
            T::IntOrString => (self.roll(100) as i64).into(),
            T::Time => stdx::Timestamp::from_secs(self.roll(1 << 32) as i64).rfc3339().into(),
            T::MicroTime => {
                let micros = self.roll(1 << 50) as i128;
                stdx::Timestamp::from_nanos(micros * 1000).rfc3339_micro().into()
            }
            T::Duration => scalars::format_duration(self.roll(1 << 50) as i64).into(),
            T::RawExtension | T::FieldsV1 | T::Json => machinery::value!({"f:a": {"f:b": {}}}),
            T::SchemaOrBool(_) => Value::Bool(true),
            T::SchemaOrArray(id) if self.roll(2) == 0 && depth < 8 => {
                Value::from(vec![Value::from(self.structure(*id, depth + 1))])
            }
            T::SchemaOrStrings(_) => Value::from(vec!["a"]),
            T::Ref(id) | T::SchemaOrArray(id) => self.structure(*id, depth).into(),
            T::List(item) => {
                let count = 1 + self.roll(2);
                Value::from((0..count).map(|_| self.value(item, depth + 1)).collect::<Vec<_>>())
            }
            T::Map(item) => {
                let mut map = Map::new();
                for at in 0..1 + self.roll(2) {
                    map.insert(format!("k{at}"), self.value(item, depth + 1));
                }
                map.into()
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn objects_of_every_kind_survive_protobuf(seed in 1u64..) {
        let mut dice = Dice(seed);
        let resources = schema().resources();
        let resource = &resources[dice.roll(resources.len() as u64) as usize];
        let ty = schema().kind(&resource.gvk).unwrap().ty;
        let mut map = dice.structure(ty, 0);
        map.insert("apiVersion", resource.gvk.api_version());
        map.insert("kind", resource.gvk.kind.clone());
        let decoded = fields::decode(&map.into(), ty).unwrap();
        prop_assert!(decoded.strict.is_empty());
        let object = Object::from_map(decoded.map);
        let again = fields::decode(&object.clone().into_value(), ty).unwrap();
        prop_assert_eq!(&again.map, object.root());
        let mut object = object;
        fields::complete(&mut object);
        let bytes = codec::to_protobuf(&object).unwrap();
        prop_assert_eq!(codec::from_protobuf(&bytes).unwrap(), object.clone());
        prop_assert_eq!(Object::from_json(&object.to_json()).unwrap(), object);
    }

    #[test]
    fn damaged_bytes_are_errors_or_objects(which in 0usize..10, at in 0usize..5000, byte: u8, cut in 0usize..5000) {
        let mut bytes = stored().swap_remove(which);
        let length = bytes.len();
        bytes[at % length] = byte;
        if cut < length {
            bytes.truncate(cut);
        }
        if let Ok(object) = codec::decode_storage(&bytes)
            && let Ok(written) = codec::to_protobuf(&object)
        {
            prop_assert_eq!(codec::from_protobuf(&written).unwrap(), object);
        }
    }

    #[test]
    fn any_message_is_an_error_or_an_object(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = codec::protobuf::seal("v1", "Pod", &raw);
        let _ = codec::from_protobuf(&bytes);
        let _ = codec::decode_storage(&raw);
        let _ = codec::read_protobuf_watch_event(&raw);
    }

    #[test]
    fn json_is_read_as_it_is_written(text in "[\\[\\]{}:,\"a0-9.eE+ tfn\\\\u-]{0,40}") {
        if let Ok(value) = json::parse(text.as_bytes()) {
            // A whole float is written as an integer, as Go does.
            let written = json::to_vec(&value);
            prop_assert_eq!(json::to_vec(&json::parse(&written).unwrap()), written);
        }
        let _ = machinery::yaml::parse(&text);
    }

    #[test]
    fn quantities_have_one_canonical_form(text in "[+-]?[0-9]{0,25}\\.?[0-9]{0,25}(e[+-]?[0-9]{0,3}|[numkMGTPE]?i?)") {
        if let Ok(quantity) = Quantity::parse(&text) {
            let canonical = quantity.to_string();
            prop_assert_eq!(Quantity::parse(&canonical).unwrap(), quantity, "{}", &canonical);
            prop_assert_eq!(Quantity::canonical(&canonical).unwrap(), canonical);
        }
    }

    #[test]
    fn selectors_print_what_they_mean(text in "[ab!=<>(), in0]{0,20}") {
        if let Ok(selector) = LabelSelector::parse(&text) {
            prop_assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
        }
    }

    #[test]
    fn field_sets_survive(paths in proptest::collection::vec(proptest::collection::vec("[a-c]", 1..4), 0..6)) {
        let mut set = FieldSet::new();
        for path in &paths {
            let path: Vec<_> = path.iter().map(|name| machinery::apply::PathElement::field(name)).collect();
            set.insert(&path);
        }
        prop_assert_eq!(FieldSet::decode(&set.encode()).unwrap(), set);
    }

    #[test]
    fn any_patch_is_an_error_or_an_object(seed in 1u64.., kind in 0..3) {
        let mut dice = Dice(seed);
        let ty = schema().type_named("io.k8s.api.core.v1.Pod").unwrap();
        let document = Object::from_map(dice.structure(ty, 0));
        let (patch_type, patch) = match kind {
            0 => (patch::PatchType::Strategic, Value::from(dice.structure(ty, 0))),
            1 => (patch::PatchType::Merge, Value::from(dice.structure(ty, 0))),
            _ => (patch::PatchType::Json, machinery::value!([{"op": "add", "path": "/spec/containers/0", "value": 1}])),
        };
        if let Ok((patched, _)) = patch::apply(&document, &json::to_vec(&patch), patch_type, Some(ty)) {
            // A second application of a strategic or merge patch changes nothing more.
            if patch_type == patch::PatchType::Merge {
                let once = Object::from_value(patched.clone()).unwrap();
                let twice = patch::apply(&once, &json::to_vec(&patch), patch_type, Some(ty)).unwrap().0;
                prop_assert_eq!(twice, patched);
            }
        }
    }
}
