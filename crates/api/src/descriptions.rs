//! What kinds and fields are for, in the words of their authors. Made at build time from the
//! documentation of the `k8s-openapi` crate, kept compressed, unpacked for as long as somebody
//! makes OpenAPI documents from it.

use std::io::Read as _;

use flate2::read::DeflateDecoder;

/// The unpacked descriptions, a little over a megabyte.
pub struct Descriptions {
    texts: stdx::HashMap<(String, String), String>,
}

impl Descriptions {
    pub fn load() -> Self {
        let packed: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.deflate"));
        let mut text = String::new();
        if DeflateDecoder::new(packed).read_to_string(&mut text).is_err() {
            text.clear();
        }
        let mut texts = stdx::HashMap::default();
        let mut ty = "";
        for line in text.lines() {
            match line.strip_prefix('\t').and_then(|rest| rest.split_once('\t')) {
                Some((field, text)) => {
                    let key = (ty.to_owned(), field.to_owned());
                    texts.insert(key, text.replace('\u{1}', "\n"));
                }
                None => ty = line,
            }
        }
        Self { texts }
    }

    /// By OpenAPI name. Empty when there is none.
    pub fn of_type(&self, ty: &str) -> &str {
        self.find(ty, "")
    }

    /// By the OpenAPI name of the struct and the JSON name of the field.
    pub fn of_field(&self, ty: &str, field: &str) -> &str {
        let normal = field.chars().filter(char::is_ascii_alphanumeric);
        let normal: String = normal.map(|c| c.to_ascii_lowercase()).collect();
        // Every kind has these two, and the crate does not repeat them.
        let text = self.find(ty, &normal);
        match (text, field) {
            ("", "kind") => KIND,
            ("", "apiVersion") => API_VERSION,
            _ => text,
        }
    }

    fn find(&self, ty: &str, field: &str) -> &str {
        let key = (ty.to_owned(), field.to_owned());
        self.texts.get(&key).map_or("", String::as_str)
    }
}

const KIND: &str = "The kind of this object, in CamelCase. The server may infer it from the path of a request. It cannot be changed.";
const API_VERSION: &str = "The version of the schema that this object is written in.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearly_every_served_field_is_described() {
        let all = Descriptions::load();
        assert!(all.of_type("io.k8s.api.core.v1.Pod").starts_with("Pod is a collection"));
        let port = all.of_field("io.k8s.api.core.v1.ContainerPort", "hostIP");
        assert!(port.starts_with("What host IP"), "{port}");
        let mut silent = 0;
        let mut fields = 0;
        for resource in crate::schema().served() {
            let Some(ty) = crate::schema().type_of_kind(&resource.gvk) else { continue };
            for field in &ty.fields {
                fields += 1;
                silent += usize::from(all.of_field(ty.name, field.name).is_empty());
            }
        }
        assert!(silent * 20 < fields, "{silent} of {fields} are silent");
    }
}
