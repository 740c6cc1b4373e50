//! Collects the descriptions of kinds and fields from the sources of the `k8s-openapi` crate,
//! whose documentation they are, into one compressed file.

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use flate2::{Compression, write::DeflateEncoder};

const SOURCES: &str = "src/v1_37";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../Cargo.lock");
    let mut text = String::new();
    match sources() {
        Some(dir) => collect(&dir, &mut text),
        None => println!("cargo::warning=no sources of k8s-openapi: kinds have no descriptions"),
    }
    let out =
        PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("descriptions.deflate");
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    let packed = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish());
    fs::write(out, packed.expect("compressing in memory")).expect("writing the descriptions");
}

/// Where Cargo keeps the crate, wherever that is (registry, vendored).
fn sources() -> Option<PathBuf> {
    let output = Command::new(env::var_os("CARGO")?)
        .args(["metadata", "--format-version", "1", "--offline", "--filter-platform"])
        .arg(env::var_os("TARGET")?)
        .output()
        .ok()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let packages = metadata["packages"].as_array()?;
    let package = packages.iter().find(|p| p["name"] == "k8s-openapi")?;
    let dir = Path::new(package["manifest_path"].as_str()?).parent()?.join(SOURCES);
    dir.is_dir().then_some(dir)
}

fn collect(dir: &Path, out: &mut String) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, out);
        } else if let Ok(source) = fs::read_to_string(&path) {
            describe(&source, out);
        }
    }
}

/// Writes `NAME`, then `\tFIELD\tTEXT` lines, the type's own text under an empty field; line
/// breaks within a text as U+0001.
fn describe(source: &str, out: &mut String) {
    const HEAD: &str = "// Generated from definition ";
    let Some(name) = source.lines().find_map(|line| line.strip_prefix(HEAD)) else { return };
    let mut comment: Vec<String> = Vec::new();
    let mut inside = false;
    out.push_str(name);
    out.push('\n');
    for line in source.lines() {
        let trimmed = line.trim_start();
        if let Some(text) = trimmed.strip_prefix("///") {
            comment.push(unescape(text.strip_prefix(' ').unwrap_or(text)));
        } else if trimmed.starts_with("#[") {
            continue;
        } else if let Some(declared) = trimmed.strip_prefix("pub struct ") {
            if inside || !declared.starts_with(name.rsplit('.').next().unwrap_or(name)) {
                break;
            }
            write_text("", &comment, out);
            comment.clear();
            inside = true;
        } else if let (true, Some((field, _))) =
            (inside, trimmed.strip_prefix("pub ").and_then(|f| f.split_once(": ")))
        {
            write_text(&normal(field), &comment, out);
            comment.clear();
        } else if inside && line == "}" {
            break;
        } else {
            comment.clear();
        }
    }
}

fn write_text(field: &str, comment: &[String], out: &mut String) {
    let text = comment.join("\u{1}");
    if !text.is_empty() {
        out.push_str(&format!("\t{field}\t{text}\n"));
    }
}

/// The spelling under which a JSON name and a Rust name are the same.
fn normal(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// The documentation escapes what Markdown would read as markup.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.peek().is_some_and(char::is_ascii_punctuation) => {
                out.extend(chars.next())
            }
            _ => out.push(c),
        }
    }
    out
}
