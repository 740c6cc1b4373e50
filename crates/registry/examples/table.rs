//! Prints the table rows of objects, for comparison with another server. One JSON object per
//! line on standard input; one row with its columns per line.

use std::io::{self, BufRead, Write};

use machinery::Object;
use registry::{
    Options, Registry,
    table::{IncludeObject, TableContext, definitions},
};
use stdx::Env;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (env, dir) = (Env::real(), tempfile::tempdir()?);
    let store = store::embedded::Embedded::open(&env, dir.path(), Default::default()).await?;
    let registry = Registry::open(env.clone(), store, Options::default());
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let object = Object::from_json(line?.as_bytes())?;
        let gvk = object.gvk().ok_or("an object without kind")?;
        let resource = registry.resource_of_kind(&gvk).ok_or("a kind that is not served")?;
        let cx = TableContext { now: env.now() };
        let row = resource.row(&object, &cx, IncludeObject::None);
        let mut row = Object::from_value(row).unwrap_or_default();
        row.set_at(&["columns"], definitions(resource.columns()));
        out.write_all(&row.to_json())?;
        out.write_all(b"\n")?;
    }
    Ok(())
}
