//! Which objects a command line means: `TYPE NAME…`, `TYPE/NAME…`, `TYPE,TYPE`, `-l`, `-f`.

use client::ListOptions;
use machinery::Object;

use crate::{
    Error, Result,
    discovery::{Discovery, Info},
    manifests::Files,
    session::Session,
};

/// A type, and a name unless all are meant.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub info: Info,
    pub name: Option<String>,
}

/// Reads the arguments `TYPE[,TYPE…] [NAME…]` or `TYPE/NAME…`.
pub fn parse(discovery: &Discovery, arguments: &[String]) -> Result<Vec<Wanted>> {
    let Some((first, names)) = arguments.split_first() else {
        return Err(Error::other(
            "You must specify the type of resource. Use \"kubectl api-resources\" for a complete list of supported resources.",
        ));
    };
    if arguments.iter().any(|argument| argument.contains('/')) {
        return arguments.iter().map(|argument| slash(discovery, argument)).collect();
    }
    let mut out = Vec::new();
    for kind in first.split(',') {
        for info in discovery.find_all(kind)? {
            if names.is_empty() {
                out.push(Wanted { info, name: None });
            } else {
                let of = |name: &String| Wanted { info: info.clone(), name: Some(name.clone()) };
                out.extend(names.iter().map(of));
            }
        }
    }
    Ok(out)
}

fn slash(discovery: &Discovery, argument: &str) -> Result<Wanted> {
    match argument.split_once('/') {
        Some((kind, name)) if !kind.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Wanted { info: discovery.find(kind)?, name: Some(name.to_owned()) })
        }
        Some(_) => Err(Error::other(
            "arguments in resource/name form must have a single resource and name",
        )),
        None => Err(Error::other(
            "there is no need to specify a resource type as a separate argument when passing arguments in resource/name form (e.g. 'kubectl get resource/<resource_name>' instead of 'kubectl get resource resource/<resource_name>'",
        )),
    }
}

/// An object that exists, or is named at least.
#[derive(Clone, Debug)]
pub struct Item {
    pub info: Info,
    pub namespace: String,
    pub name: String,
}

impl Item {
    pub fn display(&self) -> String {
        self.info.display(&self.name)
    }

    /// The URL path of the object or a subresource.
    pub fn path(&self, subresource: &str) -> String {
        self.info.resource.path(&self.namespace, &self.name, subresource)
    }

    pub async fn get(&self, session: &Session) -> Result<Object> {
        let resource = &self.info.resource;
        Ok(session.client()?.get(resource, &self.namespace, &self.name).await?)
    }
}

/// What selects objects for commands that change or wait for them.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Selection {
    /// TYPE NAME..., TYPE/NAME..., or TYPE with -l or --all
    pub arguments: Vec<String>,
    #[command(flatten)]
    pub files: Files,
    /// Label selector such as app=web,tier!=db
    #[arg(short = 'l', long, default_value = "")]
    pub selector: String,
    /// Field selector such as status.phase=Running
    #[arg(long, default_value = "")]
    pub field_selector: String,
    /// All objects of the type in the namespace
    #[arg(long)]
    pub all: bool,
    /// In all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

impl Selection {
    /// The objects meant; those that are named are not looked up.
    pub async fn items(&self, session: &Session) -> Result<Vec<Item>> {
        if !self.files.is_empty() {
            let item = |m: crate::manifests::Manifest| Item {
                name: m.object.name().to_owned(),
                namespace: m.namespace,
                info: m.info,
            };
            return Ok(self.files.load(session).await?.into_iter().map(item).collect());
        }
        let wanted = parse(session.discovery().await?, &self.arguments)?;
        let mut out = Vec::new();
        for Wanted { info, name } in wanted {
            let namespace = self.namespace(session, &info)?;
            match name {
                Some(name) => out.push(Item { info, namespace, name }),
                None => out.extend(self.list(session, &info, &namespace).await?),
            }
        }
        Ok(out)
    }

    fn namespace(&self, session: &Session, info: &Info) -> Result<String> {
        match info.resource.namespaced && !self.all_namespaces {
            true => Ok(session.namespace()?.to_owned()),
            false => Ok(String::new()),
        }
    }

    async fn list(&self, session: &Session, info: &Info, namespace: &str) -> Result<Vec<Item>> {
        if !self.all && self.selector.is_empty() && self.field_selector.is_empty() {
            return Err(Error::other("resource(s) were provided, but no name was specified"));
        }
        let options = ListOptions {
            label_selector: self.selector.clone(),
            field_selector: self.field_selector.clone(),
            ..ListOptions::default()
        };
        let list = session.client()?.list(&info.resource, namespace, &options).await?;
        let item = |bytes: &bytes::Bytes| {
            let object = Object::from_json(bytes).map_err(|e| Error::other(e.to_string()))?;
            Ok(Item {
                info: info.clone(),
                namespace: object.namespace().to_owned(),
                name: object.name().to_owned(),
            })
        };
        list.items.iter().map(item).collect()
    }
}

/// One object from `TYPE/NAME` or `TYPE NAME`; a bare name is of the `default` type.
pub async fn one(session: &Session, arguments: &[String], default: &str) -> Result<Item> {
    let mut arguments = arguments.to_vec();
    if let [only] = arguments.as_slice()
        && !only.contains('/')
        && !default.is_empty()
    {
        arguments.insert(0, default.to_owned());
    }
    let mut wanted = parse(session.discovery().await?, &arguments)?;
    match (wanted.len(), wanted.pop()) {
        (1, Some(Wanted { info, name: Some(name) })) => {
            let namespace = match info.resource.namespaced {
                true => session.namespace()?.to_owned(),
                false => String::new(),
            };
            Ok(Item { info, namespace, name })
        }
        _ => Err(Error::other("exactly one object is needed, as TYPE/NAME")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::sample;

    fn check(arguments: &[&str], expected: &[&str]) {
        let arguments: Vec<String> = arguments.iter().map(|&a| a.into()).collect();
        let found = match parse(&sample(), &arguments) {
            Ok(wanted) => {
                wanted.iter().map(|w| w.info.display(w.name.as_deref().unwrap_or("*"))).collect()
            }
            Err(error) => vec![error.text()],
        };
        assert_eq!(found, expected, "{arguments:?}");
    }

    #[test]
    fn arguments_name_types_and_objects() {
        check(&["pods"], &["pod/*"]);
        check(&["po", "a", "b"], &["pod/a", "pod/b"]);
        check(&["pod/a", "deploy/b"], &["pod/a", "deployment.apps/b"]);
        check(&["no,deploy"], &["node/*", "deployment.apps/*"]);
        check(&["all"], &["pod/*", "deployment.apps/*"]);
        check(
            &["pod/"],
            &["error: arguments in resource/name form must have a single resource and name"],
        );
        check(&["wombat"], &["error: the server doesn't have a resource type \"wombat\""]);
    }

    #[test]
    fn mixing_the_forms_is_an_error() {
        let arguments = ["pods".to_owned(), "deploy/b".to_owned()];
        assert!(parse(&sample(), &arguments).unwrap_err().text().contains("no need to specify"));
        assert!(parse(&sample(), &[]).is_err());
    }
}
