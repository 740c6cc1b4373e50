//! Most kinds' particulars as data: a [`Facts`] constant is a whole strategy.

use machinery::{Object, Value};
use smol_str::SmolStr;

use crate::{
    Options, RequestContext,
    errors::Errors,
    request::{DeleteOptions, Propagation},
    strategy::{NameRule, Scale, Strategy},
    table::Column,
};

/// A strategy that needs no state and waits for nothing. See [`Strategy`] for each field.
#[derive(Clone, Copy)]
pub struct Facts {
    pub default: fn(&mut Object),
    pub on_read: fn(&mut Object),
    pub prepare_create: fn(&RequestContext, &mut Object),
    pub prepare_update: fn(&str, &mut Object, &Object),
    pub validate: fn(&Object, &mut Errors),
    pub validate_update: fn(&str, &Object, &Object, &mut Errors),
    pub warnings: fn(&Object, Option<&Object>) -> Vec<String>,
    pub initial_status: fn(&Object) -> Option<Value>,
    pub generation: bool,
    /// Top-level fields whose change counts for the generation.
    pub generation_fields: &'static [&'static str],
    pub unconditional_update: bool,
    pub create_on_update: bool,
    pub returns_deleted: bool,
    pub name_rule: NameRule,
    pub fields: &'static [&'static str],
    pub field_value: Option<fn(&Object, &str) -> SmolStr>,
    /// The text before the label in the refusal of a field selector.
    pub unsupported_field: Option<fn(&str) -> String>,
    pub propagation: Option<Propagation>,
    pub grace: fn(&Object, &DeleteOptions) -> Option<i64>,
    pub mark_deleting: fn(&mut Object),
    pub may_go: fn(&Object) -> bool,
    pub ttl: fn(&Options) -> Option<i64>,
    pub scale: Option<&'static Scale>,
    pub columns: &'static [Column],
    pub to_version: fn(&mut Object, &str),
    pub from_version: fn(&mut Object, &str),
}

/// A kind without particulars.
pub const PLAIN: Facts = Facts {
    default: |_| {},
    on_read: |_| {},
    prepare_create: |_, _| {},
    prepare_update: |_, _, _| {},
    validate: |_, _| {},
    validate_update: |_, _, _, _| {},
    warnings: |_, _| Vec::new(),
    initial_status: |_| None,
    generation: false,
    generation_fields: &["spec"],
    unconditional_update: true,
    create_on_update: false,
    returns_deleted: false,
    name_rule: NameRule::Subdomain,
    fields: &[],
    field_value: None,
    unsupported_field: None,
    propagation: Some(Propagation::Background),
    grace: |_, _| None,
    mark_deleting: |_| {},
    may_go: |_| true,
    ttl: |_| None,
    scale: None,
    columns: &[],
    to_version: |_, _| {},
    from_version: |_, _| {},
};

impl Strategy for Facts {
    fn default(&self, object: &mut Object) {
        (self.default)(object);
    }

    fn on_read(&self, object: &mut Object) {
        (self.on_read)(object);
    }

    fn prepare_create(&self, cx: &RequestContext, object: &mut Object) {
        (self.prepare_create)(cx, object);
    }

    fn prepare_update(
        &self,
        _: &RequestContext,
        subresource: &str,
        new: &mut Object,
        old: &Object,
    ) {
        (self.prepare_update)(subresource, new, old);
    }

    fn validate_create(&self, object: &Object, errors: &mut Errors) {
        (self.validate)(object, errors);
    }

    fn validate_update(&self, subresource: &str, new: &Object, old: &Object, errors: &mut Errors) {
        (self.validate_update)(subresource, new, old, errors);
    }

    fn warnings(&self, new: &Object, old: Option<&Object>) -> Vec<String> {
        (self.warnings)(new, old)
    }

    fn initial_status(&self, object: &Object) -> Option<Value> {
        (self.initial_status)(object)
    }

    fn has_generation(&self) -> bool {
        self.generation
    }

    fn generation_changes(&self, new: &Object, old: &Object) -> bool {
        let differs =
            |field: &&str| !crate::compare::semantically_equal(new.at(&[field]), old.at(&[field]));
        self.generation_fields.iter().any(differs)
    }

    fn allows_unconditional_update(&self) -> bool {
        self.unconditional_update
    }

    fn allows_create_on_update(&self) -> bool {
        self.create_on_update
    }

    fn returns_deleted_object(&self) -> bool {
        self.returns_deleted
    }

    fn name_rule(&self) -> NameRule {
        self.name_rule
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        self.fields
    }

    fn selectable_value(&self, object: &Object, field: &str) -> SmolStr {
        match self.field_value {
            Some(value) => value(object, field),
            None => field_text(object, field),
        }
    }

    fn unsupported_field(&self, field: &str) -> String {
        match self.unsupported_field {
            Some(text) => text(field),
            None if self.fields.is_empty() => {
                format!(
                    "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                )
            }
            None => format!("field label not supported: {field}"),
        }
    }

    fn default_propagation(&self) -> Option<Propagation> {
        self.propagation
    }

    fn grace_period_seconds(&self, object: &Object, options: &DeleteOptions) -> Option<i64> {
        (self.grace)(object, options)
    }

    fn mark_deleting(&self, object: &mut Object) {
        (self.mark_deleting)(object);
    }

    fn may_go(&self, object: &Object) -> bool {
        (self.may_go)(object)
    }

    fn ttl_seconds(&self, options: &Options) -> Option<i64> {
        (self.ttl)(options)
    }

    fn scale(&self) -> Option<&'static Scale> {
        self.scale
    }

    fn columns(&self) -> &'static [Column] {
        self.columns
    }

    fn to_version(&self, object: &mut Object, version: &str) {
        (self.to_version)(object, version);
    }

    fn from_version(&self, object: &mut Object, version: &str) {
        (self.from_version)(object, version);
    }
}

/// The text at a dotted path; numbers and flags as they print.
pub(crate) fn field_text(object: &Object, field: &str) -> SmolStr {
    let path: Vec<&str> = field.split('.').collect();
    match object.at(&path) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Int(number)) => number.to_string().into(),
        Some(Value::Bool(flag)) => flag.to_string().into(),
        _ => SmolStr::default(),
    }
}
