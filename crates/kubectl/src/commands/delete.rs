//! `kubectl delete`

use std::time::Duration;

use client::DeleteOptions;

use super::change::DryRun;
use crate::{
    Error, Result, follow,
    output::emit,
    select::{Item, Selection},
    session::{Session, parse_duration},
};

/// Delete objects by file, name, label or all of a type
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl delete pod web-1 --grace-period=5")]
pub struct Delete {
    #[command(flatten)]
    selection: Selection,
    /// Wait until the objects are gone
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    wait: bool,
    /// How long to wait; zero waits as long as it takes
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    timeout: Duration,
    /// Seconds for the object to end by itself; negative for its own setting
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    grace_period: i64,
    /// With --grace-period=0: delete at once, without waiting for the node
    #[arg(long)]
    force: bool,
    /// The same as --grace-period=1
    #[arg(long)]
    now: bool,
    /// What happens to dependents: background, orphan or foreground
    #[arg(long, default_value = "background", num_args = 0..=1, default_missing_value = "background")]
    cascade: Cascade,
    /// Do not fail when an object is missing
    #[arg(long)]
    ignore_not_found: bool,
    /// none, client or server
    #[arg(long, default_value = "none", num_args = 0..=1, default_missing_value = "client")]
    dry_run: DryRun,
    /// name, or nothing for a sentence
    #[arg(short, long, default_value = "")]
    output: String,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Cascade {
    Background,
    Orphan,
    Foreground,
}

impl Delete {
    pub async fn run(self, session: &Session) -> Result<()> {
        let grace = self.grace_seconds()?;
        if !["", "name"].contains(&self.output.as_str()) {
            return Err(Error::other(format!("unexpected -o output mode: {}. We only support '-o name'", self.output)));
        }
        if self.force && grace == 0 {
            eprintln!("Warning: the objects are removed without waiting for their containers to end; those may go on running.");
        }
        let items = self.selection.items(session).await?;
        if items.is_empty() {
            eprintln!("No resources found");
            return Ok(());
        }
        let (mut errors, mut deleted) = (Vec::new(), Vec::new());
        for item in items {
            match self.delete(session, &item, grace).await {
                Ok(uid) => deleted.extend(uid.map(|uid| (item, uid))),
                Err(error) if error.is_not_found() && self.ignores_missing() => {}
                Err(error) => errors.push(error),
            }
        }
        if self.wait && self.dry_run == DryRun::None {
            for (item, uid) in deleted {
                errors.extend(self.wait_gone(session, &item, &uid).await.err());
            }
        }
        Error::collect(errors)
    }

    fn ignores_missing(&self) -> bool {
        self.ignore_not_found || self.selection.all
    }

    /// Negative when the object's own setting holds.
    fn grace_seconds(&self) -> Result<i64> {
        match (self.now, self.grace_period, self.force) {
            (true, 0.., _) => Err(Error::other("--now and --grace-period cannot be specified together")),
            (true, ..) => Ok(1),
            (_, 0, false) => Ok(1),
            (_, seconds, true) if seconds > 0 => {
                Err(Error::other("--force and --grace-period greater than 0 cannot be specified together"))
            }
            (_, _, true) => Ok(0),
            (_, seconds, false) => Ok(seconds),
        }
    }

    /// The uid of the deleted object, when the server told it.
    async fn delete(&self, session: &Session, item: &Item, grace: i64) -> Result<Option<String>> {
        let resource = &item.info.resource;
        let uid = match self.dry_run {
            DryRun::Client => {
                item.get(session).await?;
                None
            }
            dry_run => {
                let options = DeleteOptions {
                    grace_period_seconds: (grace >= 0).then_some(grace),
                    propagation_policy: match self.cascade {
                        Cascade::Background => "Background",
                        Cascade::Orphan => "Orphan",
                        Cascade::Foreground => "Foreground",
                    },
                    dry_run: dry_run == DryRun::Server,
                    ..DeleteOptions::default()
                };
                let answer = session.client()?.delete(resource, &item.namespace, &item.name, &options).await?;
                let uid = match answer.kind() {
                    "Status" => answer.str_at(&["details", "uid"]).to_owned(),
                    _ => answer.uid().to_owned(),
                };
                (!uid.is_empty()).then_some(uid)
            }
        };
        emit(&self.line(item, grace))?;
        Ok(uid)
    }

    fn line(&self, item: &Item, grace: i64) -> String {
        if self.output == "name" {
            return format!("{}\n", item.display());
        }
        let done = if grace == 0 { "force deleted" } else { "deleted" };
        let place = match item.namespace.as_str() {
            "" => String::new(),
            namespace => format!(" from {namespace} namespace"),
        };
        format!("{} {:?} {done}{place}{}\n", item.info.display_kind(), item.name, self.dry_run.suffix())
    }

    async fn wait_gone(&self, session: &Session, item: &Item, uid: &str) -> Result<()> {
        let limit = (!self.timeout.is_zero()).then_some(self.timeout);
        let gone = follow::until(session, item, limit, |object| {
            Ok(object.is_none_or(|o| o.uid() != uid).then_some(()))
        });
        match gone.await? {
            Some(()) => Ok(()),
            None => Err(Error::other(format!(
                "timed out waiting for the condition on {}/{}",
                item.info.resource.gvr.resource, item.name
            ))),
        }
    }
}
