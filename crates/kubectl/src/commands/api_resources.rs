//! `kubectl api-resources`

use crate::{
    Error, Result,
    discovery::Info,
    output::{emit, table::Layout},
    session::Session,
};

/// List what the server serves
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl api-resources --api-group=apps")]
pub struct ApiResources {
    /// Only this group; empty for the core group
    #[arg(long)]
    api_group: Option<String>,
    /// Only namespaced types (true) or only others (false)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    namespaced: Option<bool>,
    /// Only types with all these verbs
    #[arg(long, value_delimiter = ',')]
    verbs: Vec<String>,
    /// Only types of all these categories
    #[arg(long, value_delimiter = ',')]
    categories: Vec<String>,
    /// wide or name
    #[arg(short, long, default_value = "")]
    output: String,
    /// Leave out the line of headers
    #[arg(long)]
    no_headers: bool,
}

impl ApiResources {
    pub async fn run(self, session: &Session) -> Result<()> {
        let mut found: Vec<&Info> =
            session.discovery().await?.resources.iter().filter(|info| self.shows(info)).collect();
        found.sort_by_key(|info| (info.group().to_owned(), info.resource.gvr.resource.clone()));
        match self.output.as_str() {
            "name" => {
                let names: String =
                    found.iter().map(|info| info.resource.gvr.group_resource() + "\n").collect();
                emit(&names)
            }
            "" | "wide" => {
                let mut rows = Vec::new();
                if !self.no_headers {
                    rows.push(self.header());
                }
                rows.extend(found.iter().map(|info| self.row(info)));
                emit(&Layout::default().render(rows))
            }
            other => Err(Error::other(format!("--output {other} is not available"))),
        }
    }

    fn shows(&self, info: &Info) -> bool {
        info.preferred
            && self.api_group.as_ref().is_none_or(|group| group == info.group())
            && self.namespaced.is_none_or(|namespaced| namespaced == info.resource.namespaced)
            && self.verbs.iter().all(|verb| info.has_verb(verb))
            && self.categories.iter().all(|category| info.categories.contains(category))
    }

    fn header(&self) -> Vec<String> {
        let mut header = vec!["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"];
        if self.output == "wide" {
            header.extend(["VERBS", "CATEGORIES"]);
        }
        header.into_iter().map(str::to_owned).collect()
    }

    fn row(&self, info: &Info) -> Vec<String> {
        let mut row = vec![
            info.resource.gvr.resource.to_string(),
            info.short_names.join(","),
            info.resource.api_version(),
            info.resource.namespaced.to_string(),
            info.kind.clone(),
        ];
        if self.output == "wide" {
            row.extend([info.verbs.join(","), info.categories.join(",")]);
        }
        row
    }
}
