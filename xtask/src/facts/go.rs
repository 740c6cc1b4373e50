//! Reads type declarations from Go source: just the subset that API packages use.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail};

/// The declarations of one package.
#[derive(Default)]
pub struct Package {
    pub import: String,
    /// The value of `GroupName`, when the package declares one.
    pub group: Option<String>,
    pub structs: BTreeMap<String, Vec<GoField>>,
    /// Named types that are no structs, with their definition.
    pub named: BTreeMap<String, String>,
    /// String constants by named type, of types marked as closed sets.
    pub enums: BTreeMap<String, Vec<String>>,
    /// Named lists that protobuf wraps into a message of their own.
    pub wrapped: BTreeSet<String>,
    /// Import paths by the name that the files use.
    pub imports: BTreeMap<String, String>,
}

pub struct GoField {
    /// The JSON name; `None` when the struct is inline.
    pub json: Option<String>,
    pub ty: String,
    pub omit_empty: bool,
    pub omit_zero: bool,
    /// The protobuf number; `None` when it is not in the message.
    pub proto: Option<u32>,
}

impl Package {
    pub fn read(import: &str, dir: &Path) -> Result<Self> {
        let mut package = Self { import: import.to_owned(), ..Self::default() };
        let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
        let mut files: Vec<_> = entries.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
        files.sort();
        for file in files.iter().filter(|f| wanted(f)) {
            let text = fs::read_to_string(file)?;
            package.read_file(&text).with_context(|| file.display().to_string())?;
        }
        let proto = fs::read_to_string(dir.join("generated.proto")).unwrap_or_default();
        package.wrapped = wrapped_lists(&proto);
        Ok(package)
    }

    /// The name under which Go prints the package: its last path element.
    pub fn name(&self) -> &str {
        self.import.rsplit('/').next().unwrap_or_default()
    }

    fn read_file(&mut self, text: &str) -> Result<()> {
        let text = without_block_comments(text);
        let mut lines = text.lines();
        let mut closed_set = false;
        while let Some(line) = lines.next() {
            let line = line.trim_end();
            if line.trim() == "// +enum" {
                closed_set = true;
            } else if line == "import (" {
                self.read_imports(&mut lines);
            } else if let Some(import) = line.strip_prefix("import ") {
                self.read_import(import);
            } else if let Some(rest) = line.strip_prefix("type ") {
                self.read_type(rest, closed_set, &mut lines)?;
                closed_set = false;
            } else if !line.starts_with("//") {
                self.read_constant(line);
                closed_set = false;
            }
        }
        Ok(())
    }

    fn read_imports<'a>(&mut self, lines: &mut impl Iterator<Item = &'a str>) {
        for line in lines.take_while(|l| !l.starts_with(')')) {
            self.read_import(line.trim());
        }
    }

    fn read_import(&mut self, line: &str) {
        let mut parts = line.split('"');
        let (alias, path) = (parts.next().unwrap_or_default().trim(), parts.next());
        if let Some(path) = path {
            let alias =
                if alias.is_empty() { path.rsplit('/').next().unwrap_or(path) } else { alias };
            self.imports.insert(alias.to_owned(), path.to_owned());
        }
    }

    fn read_type<'a>(
        &mut self,
        rest: &str,
        closed_set: bool,
        lines: &mut impl Iterator<Item = &'a str>,
    ) -> Result<()> {
        let (name, definition) = rest.split_once(' ').unwrap_or((rest, ""));
        let definition = definition.split("//").next().unwrap_or_default().trim();
        let definition = definition.trim_start_matches("= ");
        match definition {
            "struct {" => {
                let fields = read_struct(lines).with_context(|| name.to_owned())?;
                self.structs.insert(name.to_owned(), fields);
            }
            "struct{}" => {
                self.structs.insert(name.to_owned(), Vec::new());
            }
            _ if definition.contains("interface") || definition.contains("func(") => {}
            _ => {
                self.named.insert(name.to_owned(), definition.to_owned());
                if closed_set {
                    self.enums.insert(name.to_owned(), Vec::new());
                }
            }
        }
        Ok(())
    }

    /// `Name Type = "value"`, or `const GroupName = "value"`.
    fn read_constant(&mut self, line: &str) {
        let Some((left, right)) = line.split_once(" = \"") else { return };
        let Some((value, _)) = right.split_once('"') else { return };
        let words: Vec<&str> = left.split_whitespace().filter(|w| *w != "const").collect();
        match words.as_slice() {
            ["GroupName"] => self.group = Some(value.to_owned()),
            [_, ty] => {
                if let Some(values) = self.enums.get_mut(*ty) {
                    values.push(value.to_owned());
                }
            }
            _ => {}
        }
    }
}

fn wanted(file: &Path) -> bool {
    let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let generated =
        name.starts_with("zz_") || name.starts_with("generated.") || name.contains("doc");
    name.ends_with(".go") && !name.ends_with("_test.go") && !generated
}

/// Only comments that begin their line: `/*` within a line comment is prose.
fn without_block_comments(text: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for line in text.lines() {
        inside |= line.trim_start().starts_with("/*");
        if !inside {
            out.push_str(line);
            out.push('\n');
        }
        inside &= !line.contains("*/");
    }
    out
}

fn read_struct<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Result<Vec<GoField>> {
    let mut fields = Vec::new();
    for line in lines {
        let line = line.trim();
        if line == "}" {
            return Ok(fields);
        }
        if line.is_empty() || line.starts_with("//") {
            continue;
        }
        fields.extend(read_field(line));
    }
    bail!("the struct has no end")
}

/// `None` for what is in neither JSON nor protobuf.
fn read_field(line: &str) -> Option<GoField> {
    let (declared, tags) = line.split_once('`')?;
    let ty = declared.split_whitespace().last()?.to_owned();
    let json = tag(tags, "json")?;
    let mut parts = json.split(',');
    let name = parts.next().unwrap_or_default();
    if name == "-" {
        return None;
    }
    let options: Vec<&str> = parts.collect();
    Some(GoField {
        json: (!name.is_empty()).then(|| name.to_owned()),
        ty,
        omit_empty: options.contains(&"omitempty"),
        omit_zero: options.contains(&"omitzero"),
        proto: tag(tags, "protobuf").and_then(proto_tag),
    })
}

fn tag<'a>(tags: &'a str, key: &str) -> Option<&'a str> {
    let at = tags.find(&format!("{key}:\""))?;
    tags[at + key.len() + 2..].split('"').next()
}

/// `bytes,8,opt,name=creationTimestamp`
fn proto_tag(tag: &str) -> Option<u32> {
    tag.split(',').nth(1)?.parse().ok()
}

/// Messages whose only field is `repeated … items = 1`, although Go declares a list.
fn wrapped_lists(proto: &str) -> BTreeSet<String> {
    let mut message = "";
    let mut found = BTreeSet::new();
    for line in proto.lines() {
        if let Some(rest) = line.strip_prefix("message ") {
            message = rest.trim_end_matches(" {");
        }
        if line.trim().starts_with("repeated ") && line.ends_with(" items = 1;") {
            found.insert(message.to_owned());
        }
    }
    found
}
