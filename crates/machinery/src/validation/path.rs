//! Where in an object an error lies.

use std::fmt;

/// A path such as `spec.containers[0].env[NAME]`, made without allocating: each step refers to
/// the one before and the text is built only when an error needs it.
#[derive(Clone, Copy)]
pub struct FieldPath<'a> {
    parent: Option<&'a FieldPath<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Name(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> FieldPath<'a> {
    pub const fn root(name: &'a str) -> FieldPath<'a> {
        FieldPath { parent: None, step: Step::Name(name) }
    }

    /// A field, or several separated by dots.
    pub const fn child<'b>(&'b self, name: &'b str) -> FieldPath<'b>
    where
        'a: 'b,
    {
        FieldPath { parent: Some(self), step: Step::Name(name) }
    }

    pub const fn index<'b>(&'b self, index: usize) -> FieldPath<'b>
    where
        'a: 'b,
    {
        FieldPath { parent: Some(self), step: Step::Index(index) }
    }

    pub const fn key<'b>(&'b self, key: &'b str) -> FieldPath<'b>
    where
        'a: 'b,
    {
        FieldPath { parent: Some(self), step: Step::Key(key) }
    }
}

impl fmt::Display for FieldPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Name(name) if self.parent.is_some() => write!(f, ".{name}"),
            Step::Name(name) => f.write_str(name),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{key}]"),
        }
    }
}

impl fmt::Debug for FieldPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
