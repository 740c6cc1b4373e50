//! Creates objects through the registry and prints what a reader sees, for comparison with
//! another server. One JSON object per line on standard input; one answer per line: the object,
//! or the `Status` of its refusal.

use std::io::{self, BufRead, Write};

use machinery::Object;
use registry::{AdmitAll, CreateOptions, Options, Registry, RequestContext};
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
        let mut cx = RequestContext::internal(env.now());
        cx.field_manager = "probe".into();
        let namespace = object.namespace().to_owned();
        let options = CreateOptions::default();
        let answer = match resource.create(&cx, &namespace, object, &options, &AdmitAll).await {
            Ok(object) => object.to_json(),
            Err(status) => status.to_json(),
        };
        out.write_all(&answer)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}
