//! Failures in kubectl's words.

use std::{fmt::Write, io, process::ExitCode};

use api::{Reason, Status};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Client(#[from] client::Error),
    /// A failure of the server while it worked on something from a file or list.
    #[error("{context}")]
    During { context: String, source: client::Error },
    /// Wrong use, or a state that the command cannot deal with.
    #[error("{0}")]
    Other(String),
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    /// Several objects failed, each for its own reason.
    #[error("several objects failed")]
    Many(Vec<Error>),
    /// Already reported, or the exit code of a program that ran in a container.
    #[error("exit code {0}")]
    Exit(u8),
}

impl Error {
    pub fn other(text: impl Into<String>) -> Self {
        Self::Other(text.into())
    }

    /// All failures of a loop that went on after the first.
    pub fn collect(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Many(errors)),
        }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Client(e) | Self::During { source: e, .. } if e.is_not_found())
    }

    /// Prints the failure and gives the exit code.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::Exit(code) => ExitCode::from(*code),
            Self::Output(source) if source.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            other => {
                eprintln!("{}", other.text());
                ExitCode::FAILURE
            }
        }
    }

    /// The text for the user, possibly of several lines.
    pub fn text(&self) -> String {
        match self {
            Self::Client(error) => client_text(error, ""),
            Self::During { context, source } => client_text(source, context),
            Self::Output(source) => format!("error: {self}: {source}"),
            Self::Many(errors) => errors.iter().map(Self::text).collect::<Vec<_>>().join("\n"),
            Self::Other(text) => format!("error: {text}"),
            Self::Exit(_) => String::new(),
        }
    }
}

fn client_text(error: &client::Error, context: &str) -> String {
    match error {
        client::Error::Api(status) => status_text(status, context),
        client::Error::Transport(source) => transport_text(source.as_ref()),
        other => format!("error: {}", stdx::chain(other)),
    }
}

fn status_text(status: &Status, context: &str) -> String {
    let message = match context {
        "" => status.message.clone(),
        context => format!("{context}: {}", status.message),
    };
    match status.reason {
        Reason::Unauthorized => "error: You must be logged in to the server (Unauthorized)".into(),
        Reason::Invalid if context.is_empty() => invalid_text(status),
        Reason::Unknown => format!("Error from server: {message}"),
        reason => format!("Error from server ({}): {message}", reason.as_str()),
    }
}

fn invalid_text(status: &Status) -> String {
    let Some(details) = &status.details else {
        return format!("The request is invalid: {}", status.message);
    };
    let mut text = match (details.kind.as_str(), details.name.as_str()) {
        ("", "") => "The request is invalid".to_owned(),
        (kind, name) => format!("The {kind} {name:?} is invalid"),
    };
    match details.causes.as_slice() {
        [] => {
            let _ = write!(text, ": {}", status.message);
        }
        [one] => {
            let _ = write!(text, ": {}: {}", one.field, one.message);
        }
        many => {
            text.push_str(": ");
            for cause in many {
                let _ = write!(text, "\n* {}: {}", cause.field, cause.message);
            }
        }
    }
    text
}

fn transport_text(source: &(dyn std::error::Error + Send + Sync + 'static)) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(source);
    let mut innermost = source.to_string();
    while let Some(error) = cause {
        let refused = error
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
        if refused {
            return "The connection to the server was refused - did you specify the right host or port?".into();
        }
        innermost = error.to_string();
        cause = error.source();
    }
    format!("Unable to connect to the server: {innermost}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::Cause;

    #[test]
    fn texts_are_those_of_kubectl() {
        let missing = Error::from(client::Error::Api(Status::not_found("", "pods", "x")));
        assert_eq!(missing.text(), "Error from server (NotFound): pods \"x\" not found");
        let cause = |field: &str| Cause {
            field: field.into(),
            message: "Required value".into(),
            ..Cause::default()
        };
        let invalid = |causes| {
            Error::from(client::Error::Api(Status::invalid("", "Pod", "x", causes))).text()
        };
        assert_eq!(invalid(vec![cause("a")]), "The Pod \"x\" is invalid: a: Required value");
        assert_eq!(
            invalid(vec![cause("a"), cause("b")]),
            "The Pod \"x\" is invalid: \n* a: Required value\n* b: Required value"
        );
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let refused = Error::from(client::Error::Transport(refused.into())).text();
        assert!(refused.starts_with("The connection to the server was refused"), "{refused}");
    }
}
