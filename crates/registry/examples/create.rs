//! Creates objects through the registry, or replaces those that exist, and prints what a reader
//! sees, for comparison with another server. One JSON object per line on standard input; one
//! answer per line: the object, or the `Status` of its refusal.

use std::io::{self, BufRead, Write};

use machinery::{
    Object,
    fields::{FieldValidation, decode_object},
};
use registry::{AdmitAll, CreateOptions, Options, Registry, RequestContext, UpdateOptions};
use stdx::Env;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (env, dir) = (Env::real(), tempfile::tempdir()?);
    let store = store::embedded::Embedded::open(&env, dir.path(), Default::default()).await?;
    let registry = Registry::open(env.clone(), store, Options::default());
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let body = machinery::json::parse(line?.as_bytes())?;
        let sent = Object::from_value(body.clone()).ok_or("not an object")?;
        let gvk = sent.gvk().ok_or("an object without kind")?;
        let (object, _) = decode_object(&body, &[], &gvk, FieldValidation::Ignore)?;
        let resource = registry.resource_of_kind(&gvk).ok_or("a kind that is not served")?;
        let mut cx = RequestContext::internal(env.now());
        cx.field_manager = "probe".into();
        let namespace = object.namespace().to_owned();
        let options = CreateOptions::default();
        let mut answer =
            resource.create(&cx, &namespace, object.clone(), &options, &AdmitAll).await;
        if answer.as_ref().is_err_and(|status| status.is_already_exists()) {
            let replace = |_: Option<&Object>| Ok(object.clone());
            let options = UpdateOptions::default();
            let replaced =
                resource.update(&cx, &namespace, object.name(), "", &replace, &options, &AdmitAll);
            answer = replaced.await.map(|(object, _)| object);
        }
        let answer = answer.map_or_else(|status| status.to_json(), |object| object.to_json());
        out.write_all(&answer)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}
