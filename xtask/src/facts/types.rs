//! Writes `types.txt`: every struct that a body can hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context, Result, bail};

use super::{
    go::{GoField, Package},
    modules::Modules,
    openapi::OpenApi,
};

const META: &str = "k8s.io/apimachinery/pkg/apis/meta/v1";
const EXTENSIONS: &str = "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1";
const JSON_SCHEMA: &str =
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// Packages with bodies that the published description leaves out.
const MORE_PACKAGES: &[&str] = &["k8s.io/api/admission/v1", "k8s.io/api/apidiscovery/v2"];

/// A struct by import path and name.
type StructName = (String, String);

pub fn generate(modules: &Modules) -> Result<String> {
    let mut writer = Writer {
        modules,
        openapi: OpenApi::read(&modules.kubernetes)?,
        packages: BTreeMap::new(),
        found: BTreeSet::new(),
        queue: Vec::new(),
    };
    writer.roots()?;
    let mut sections = BTreeMap::new();
    while let Some((import, name)) = writer.queue.pop() {
        let section = writer.section(&import, &name).with_context(|| format!("{import}.{name}"))?;
        sections.insert(openapi_name(&import, &name), section);
    }
    Ok(sections.into_values().collect())
}

struct Writer<'a> {
    modules: &'a Modules,
    openapi: OpenApi,
    packages: BTreeMap<String, Package>,
    found: BTreeSet<StructName>,
    queue: Vec<StructName>,
}

/// Where the fields of a struct stand.
struct Scope<'a> {
    /// The OpenAPI name of the struct that JSON shows.
    owner: &'a str,
    /// The messages around the struct, inside its owner's.
    outer: &'a [u32],
    /// It is in no message at all.
    outside: bool,
    /// The names of the inline structs around it.
    inline: &'a str,
}

/// A Go type as the fact file names it.
struct Resolved {
    text: String,
    /// The name of a named scalar, list or map, as Go prints it.
    go: String,
    enum_values: Vec<String>,
    pointer: bool,
    is_list: bool,
    /// A named list that protobuf wraps into a message.
    wrapped: bool,
}

impl Writer<'_> {
    /// All kinds of all packages that the description mentions, and its other types.
    fn roots(&mut self) -> Result<()> {
        let names: Vec<String> = self.openapi.type_names().cloned().collect();
        let mut imports: BTreeSet<String> = MORE_PACKAGES.iter().map(|p| p.to_string()).collect();
        for name in &names {
            let (package, _) = name.rsplit_once('.').context("a type without package")?;
            let import = package.replacen("io.k8s.", "k8s.io/", 1);
            let (head, tail) = import.split_once('/').context("a package without module")?;
            imports.insert(format!("{head}/{}", tail.replace('.', "/")));
        }
        for import in &imports {
            self.load(import)?;
            let kinds: Vec<String> = self.packages[import]
                .structs
                .iter()
                .filter(|(name, fields)| kind_of(import, name, fields))
                .map(|(name, _)| name.clone())
                .collect();
            kinds.into_iter().for_each(|name| self.want(import, &name));
        }
        self.want(META, "WatchEvent");
        Ok(())
    }

    fn load(&mut self, import: &str) -> Result<()> {
        if !self.packages.contains_key(import) {
            let dir =
                self.modules.package_dir(import).with_context(|| format!("where is {import}"))?;
            self.packages.insert(import.to_owned(), Package::read(import, &dir)?);
        }
        Ok(())
    }

    fn want(&mut self, import: &str, name: &str) {
        let key = (import.to_owned(), name.to_owned());
        if self.found.insert(key.clone()) {
            self.queue.push(key);
        }
    }

    fn section(&mut self, import: &str, name: &str) -> Result<String> {
        let full = openapi_name(import, name);
        let package = &self.packages[import];
        let atomic = if self.openapi.is_atomic(&full) { " atomic" } else { "" };
        let mut out = format!("type {full} {}.{name}{atomic}\n", package.name());
        for (group, version, kind) in kinds(package, name) {
            writeln!(out, "kind {group}/{version} {kind}")?;
        }
        let scope = Scope { owner: &full, outer: &[], outside: false, inline: "" };
        self.fields(import, name, &scope, &mut out)?;
        Ok(out)
    }

    /// Writes the fields of a struct, with those of inline structs in their place.
    fn fields(&mut self, import: &str, name: &str, scope: &Scope, out: &mut String) -> Result<()> {
        let fields = self.packages[import].structs.get(name).context("no such struct")?;
        let fields: Vec<GoField> = fields.iter().map(GoField::copy).collect();
        for field in fields {
            let Some(json) = &field.json else {
                let (import, name) = self.struct_name(import, field.ty.trim_start_matches('*'))?;
                let mut path = scope.outer.to_vec();
                path.extend(field.proto);
                let inline = if field.ty.ends_with("TypeMeta") { "" } else { name.as_str() };
                let within = [scope.inline, inline].into_iter().filter(|n| !n.is_empty());
                let inner = Scope {
                    owner: scope.owner,
                    outer: &path,
                    outside: scope.outside || field.proto.is_none(),
                    inline: &within.collect::<Vec<_>>().join("."),
                };
                self.fields(&import, &name, &inner, out)?;
                continue;
            };
            let resolved = self.resolve(import, &field.ty)?;
            let number = if scope.outside { 0 } else { field.proto.unwrap_or(0) };
            let path: String = scope.outer.iter().map(|n| format!("{n}.")).collect();
            let path = if scope.outside { String::new() } else { path };
            write!(out, "field {json} {} {path}{number}", resolved.text)?;
            self.flags(&field, json, scope, &resolved, out)?;
        }
        Ok(())
    }

    fn flags(
        &self,
        field: &GoField,
        json: &str,
        scope: &Scope,
        resolved: &Resolved,
        out: &mut String,
    ) -> Result<()> {
        let mut flags = self.openapi.flags(scope.owner, json);
        if field.omit_empty {
            flags.push("omitempty".into());
        }
        if field.omit_zero {
            flags.push("omitzero".into());
        }
        if resolved.pointer {
            flags.push("pointer".into());
        }
        if resolved.wrapped {
            flags.push("items".into());
        }
        if !resolved.go.is_empty() {
            flags.push(format!("go={}", resolved.go));
        }
        if !scope.inline.is_empty() {
            flags.push(format!("inline={}", scope.inline));
        }
        if !resolved.enum_values.is_empty() {
            flags.push(format!("enum={}", resolved.enum_values.join(",")));
        }
        if let Some(default) = self.openapi.default(scope.owner, json) {
            flags.push(format!("default={}", serde_json::to_string(default)?));
        }
        for flag in flags {
            write!(out, " {flag}")?;
        }
        out.push('\n');
        Ok(())
    }

    /// Follows names to import path and declared name.
    fn struct_name(&mut self, import: &str, ty: &str) -> Result<StructName> {
        let Some((alias, name)) = ty.split_once('.') else {
            return match self.packages[import].named.get(ty).cloned() {
                Some(alias) if alias.contains('.') && !alias.contains(['[', '*']) => {
                    self.struct_name(import, &alias)
                }
                _ => Ok((import.to_owned(), ty.to_owned())),
            };
        };
        let target = self.packages[import].imports.get(alias);
        let target = target.with_context(|| format!("import {alias}"))?.clone();
        self.load(&target)?;
        Ok((target, name.to_owned()))
    }

    fn resolve(&mut self, import: &str, ty: &str) -> Result<Resolved> {
        if let Some(inner) = ty.strip_prefix('*') {
            return Ok(Resolved { pointer: true, ..self.resolve(import, inner)? });
        }
        if ty == "[]byte" {
            return Ok(plain("bytes"));
        }
        if let Some(inner) = ty.strip_prefix("[]") {
            let inner = self.resolve(import, inner)?;
            return Ok(list_of(&inner));
        }
        if let Some(rest) = ty.strip_prefix("map[") {
            let (key, value) = rest.split_once(']').context("a map without key")?;
            let key = self.resolve(import, key)?;
            let value = self.resolve(import, value)?;
            return Ok(map_of(&key, &value));
        }
        if let Some(text) = builtin(ty) {
            return Ok(plain(text));
        }
        let (import, name) = self.struct_name(import, ty)?;
        self.named(&import, &name)
    }

    fn named(&mut self, import: &str, name: &str) -> Result<Resolved> {
        if let Some(text) = special(import, name) {
            if text.contains('|') {
                self.want(EXTENSIONS, "JSONSchemaProps");
            }
            return Ok(plain(&text));
        }
        let package = &self.packages[import];
        if package.structs.contains_key(name) {
            self.want(import, name);
            return Ok(plain(&openapi_name(import, name)));
        }
        let Some(definition) = package.named.get(name).cloned() else {
            bail!("no declaration of {import}.{name}");
        };
        let go = format!("{}.{name}", package.name());
        let enum_values = package.enums.get(name).cloned().unwrap_or_default();
        let wrapped = package.wrapped.contains(name);
        let resolved = self.resolve(import, &definition)?;
        let is_struct = resolved.text.contains('.') && !resolved.is_list;
        let go = if is_struct && !resolved.text.starts_with("{}") { resolved.go } else { go };
        let enum_values = if enum_values.is_empty() { resolved.enum_values } else { enum_values };
        Ok(Resolved { text: resolved.text, go, enum_values, wrapped, ..resolved })
    }
}

impl GoField {
    fn copy(&self) -> Self {
        Self {
            json: self.json.clone(),
            ty: self.ty.clone(),
            omit_empty: self.omit_empty,
            omit_zero: self.omit_zero,
            proto: self.proto,
        }
    }
}

fn plain(text: &str) -> Resolved {
    Resolved {
        text: text.to_owned(),
        go: String::new(),
        enum_values: Vec::new(),
        pointer: false,
        is_list: false,
        wrapped: false,
    }
}

fn list_of(inner: &Resolved) -> Resolved {
    let go = if inner.go.is_empty() { String::new() } else { format!("[]{}", inner.go) };
    Resolved { go, is_list: true, ..plain(&format!("[]{}", inner.text)) }
}

fn map_of(key: &Resolved, value: &Resolved) -> Resolved {
    let mut resolved = plain(&format!("{{}}{}", value.text));
    if !key.go.is_empty() || !value.go.is_empty() {
        let value_name = if value.go.is_empty() { go_name(&value.text) } else { value.go.clone() };
        let key_name = if key.go.is_empty() { "string" } else { &key.go };
        resolved.go = format!("map[{key_name}]{value_name}");
    }
    resolved
}

/// How Go prints an unnamed type of the fact file.
fn go_name(text: &str) -> String {
    match text {
        "quantity" => "resource.Quantity".into(),
        "bytes" => "[]uint8".into(),
        "time" => "v1.Time".into(),
        _ if text.contains('.') => {
            let mut parts = text.rsplit('.');
            let (name, package) = (parts.next().unwrap_or(text), parts.next().unwrap_or_default());
            format!("{package}.{name}")
        }
        _ => text.to_owned(),
    }
}

fn builtin(ty: &str) -> Option<&'static str> {
    Some(match ty {
        "bool" => "bool",
        "int32" => "int32",
        "int64" | "int" => "int64",
        "uint32" => "uint32",
        "uint64" => "uint64",
        "float64" => "float64",
        "string" => "string",
        "interface{}" | "any" => "json",
        _ => return None,
    })
}

/// Types that write themselves in JSON.
fn special(import: &str, name: &str) -> Option<String> {
    let text = match (import, name) {
        ("k8s.io/apimachinery/pkg/api/resource", "Quantity") => "quantity",
        ("k8s.io/apimachinery/pkg/util/intstr", "IntOrString") => "intorstring",
        ("k8s.io/apimachinery/pkg/runtime", "RawExtension" | "Object") => "raw",
        (META, "Time") => "time",
        (META, "MicroTime") => "microtime",
        (META, "Duration") => "duration",
        (META, "FieldsV1") => "fields",
        (EXTENSIONS, "JSON") => "json",
        (EXTENSIONS, "JSONSchemaPropsOrArray") => return Some(format!("array|{JSON_SCHEMA}")),
        (EXTENSIONS, "JSONSchemaPropsOrBool") => return Some(format!("bool|{JSON_SCHEMA}")),
        (EXTENSIONS, "JSONSchemaPropsOrStringArray") => {
            return Some(format!("strings|{JSON_SCHEMA}"));
        }
        _ => return None,
    };
    Some(text.to_owned())
}

fn openapi_name(import: &str, name: &str) -> String {
    format!("{}.{name}", import.replacen("k8s.io/", "io.k8s.", 1).replace('/', "."))
}

fn kind_of(import: &str, name: &str, fields: &[GoField]) -> bool {
    let internal = import == META && matches!(name, "RootPaths" | "InternalEvent");
    !internal && fields.iter().any(|f| f.json.is_none() && f.ty.ends_with("TypeMeta"))
}

/// Group, version and kind names of a struct. Kinds of the machinery are listed once, under
/// `meta.k8s.io`; the ones without a group of their own also as plain `v1`.
fn kinds(package: &Package, name: &str) -> Vec<(String, String, String)> {
    let Some(group) = &package.group else { return Vec::new() };
    let fields = &package.structs[name];
    if name != "WatchEvent" && !kind_of(&package.import, name, fields) {
        return Vec::new();
    }
    let version = package.name().to_owned();
    let mut kinds = vec![(group.clone(), version.clone(), name.to_owned())];
    let unversioned =
        ["Status", "APIVersions", "APIGroupList", "APIGroup", "APIResourceList", "List"];
    if package.import == META && unversioned.contains(&name) {
        kinds.push((String::new(), version, name.to_owned()));
    }
    kinds
}
