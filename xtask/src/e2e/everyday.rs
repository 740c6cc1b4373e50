//! The commands of an everyday week, each with what must be in its answer.

use anyhow::{Context, Result, ensure};

use super::harness::{Cluster, eventually};

/// A command line and a text that its output must hold.
type Step = (&'static str, &'static str);

const LOOKING: &[Step] = &[
    ("version", "Server Version: v1.37"),
    ("cluster-info", "is running at"),
    ("get nodes", "STATUS"),
    ("get nodes -o wide", "CONTAINER-RUNTIME"),
    ("get nodes -o custom-columns=N:.metadata.name", "node-1"),
    ("api-resources", "deployments"),
    ("api-versions", "apps/v1"),
    ("explain pod.spec.containers", "KIND:"),
    ("auth can-i create pods", "yes"),
    ("get --raw /readyz", "ok"),
    ("get namespaces", "kube-system"),
    ("describe node node-1", "Allocatable:"),
];

const MAKING: &[Step] = &[
    ("create namespace week", "created"),
    ("create configmap settings -n week --from-literal=color=blue", "created"),
    ("create secret generic keys -n week --from-literal=word=hush", "created"),
    ("create serviceaccount robot -n week", "created"),
    ("create role reader -n week --verb=get,list --resource=pods", "created"),
    ("create rolebinding reads -n week --role=reader --serviceaccount=week:robot", "created"),
    ("auth can-i list pods -n week --as=system:serviceaccount:week:robot", "yes"),
    ("create quota limits -n week --hard=pods=20 --dry-run=server", "created"),
    ("create priorityclass eager --value=1000", "created"),
    ("create deployment web -n week --image=gantry/hello:latest --replicas=2", "created"),
    (
        "patch deployment web -n week --type=json -p [{\"op\":\"add\",\"path\":\"/spec/template/spec/containers/0/imagePullPolicy\",\"value\":\"IfNotPresent\"}]",
        "patched",
    ),
    ("rollout status deployment/web -n week --timeout=60s", "successfully rolled out"),
    ("expose deployment web -n week --port=80 --target-port=8080", "exposed"),
    ("get service web -n week -o wide", "app=web"),
    ("scale deployment web -n week --replicas=3", "scaled"),
    ("label deployment web -n week tier=front", "labeled"),
    ("annotate deployment web -n week note=hello", "annotated"),
    ("get all -n week", "replicaset.apps/web"),
    ("set env deployment/web -n week MOOD=good", "env updated"),
    ("rollout status deployment/web -n week --timeout=60s", "successfully rolled out"),
    ("rollout history deployment/web -n week", "REVISION"),
    ("rollout undo deployment/web -n week", "rolled back"),
    ("rollout restart deployment/web -n week", "restarted"),
    ("rollout status deployment/web -n week --timeout=60s", "successfully rolled out"),
    ("describe deployment web -n week", "NewReplicaSet:"),
    ("get pods -n week -l app=web --field-selector=status.phase=Running", "Running"),
    ("get events -n week", "ScalingReplicaSet"),
    ("run box -n week --image=busybox:1 --image-pull-policy=IfNotPresent -- sleep 3600", "created"),
    ("wait pod/box -n week --for=condition=Ready --timeout=30s", "condition met"),
    ("exec box -n week -- cat /etc/hostname", "box"),
    ("exec box -n week -- nslookup kubernetes.default.svc.cluster.local", "10.96.0.1"),
    ("exec box -n week -- wget -q -O- http://web/", "Hello from Gantry"),
    ("logs -n week deployment/web --tail=1", "web-"),
    ("get pod box -n week -o yaml", "podIP"),
    ("get pod box -n week -o jsonpath={.status.phase}", "Running"),
    ("describe pod box -n week", "Started"),
];

const NODES: &[Step] = &[
    ("taint node node-1 week=busy:NoSchedule", "tainted"),
    ("taint node node-1 week-", "untainted"),
    ("cordon node-2", "cordoned"),
    ("drain node-2 --ignore-daemonsets --delete-emptydir-data --force --timeout=60s", "drained"),
    ("uncordon node-2", "uncordoned"),
];

pub fn run(cluster: &Cluster) -> Result<String> {
    let mut failures = Vec::new();
    let mut count = 0;
    let mut steps = |steps: &[Step], failures: &mut Vec<String>| {
        for (line, expected) in steps {
            count += 1;
            if let Err(error) = step(cluster, line, expected) {
                failures.push(format!("{error:#}"));
            }
        }
    };
    steps(LOOKING, &mut failures);
    steps(MAKING, &mut failures);
    type Check = (&'static str, fn(&Cluster) -> Result<()>);
    let checks: &[Check] = &[
        ("server-side apply", server_side_apply),
        ("cp", copy),
        ("port-forward", port_forward),
        ("logs -f", follow),
    ];
    let check =
        |(name, check): &Check| check(cluster).map_err(|error| format!("{name}: {error:#}")).err();
    failures.extend(checks.iter().filter_map(check));
    steps(NODES, &mut failures);
    failures.extend(check(&("delete namespace", delete_namespace)));
    count += checks.len() + 1;
    let _ = cluster.k("delete priorityclass eager");
    let passed = count - failures.len();
    ensure!(
        failures.is_empty(),
        "{passed} of {count}; these fail:\n    {}",
        failures.join("\n    ")
    );
    Ok(format!("{passed} of {count} commands"))
}

fn step(cluster: &Cluster, line: &str, expected: &str) -> Result<()> {
    let answer = cluster.k(line)?;
    ensure!(answer.contains(expected), "kubectl {line}: no {expected:?} in:\n{answer}");
    Ok(())
}

fn server_side_apply(cluster: &Cluster) -> Result<()> {
    let object = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shared, namespace: week}\ndata: {color: red}\n";
    let apply = |manager: &str, text: &str| {
        cluster
            .kubectl_with(&["apply", "--server-side", "--field-manager", manager, "-f", "-"], text)
    };
    apply("first", object)?;
    let other = object.replace("color: red", "color: green");
    let refused = apply("second", &other).err().context("a conflict was not noticed")?;
    ensure!(refused.to_string().contains("conflict with \"first\""), "{refused}");
    Ok(())
}

fn copy(cluster: &Cluster) -> Result<()> {
    let directory = std::env::temp_dir();
    let (there, back) = (directory.join("gantry-e2e-there"), directory.join("gantry-e2e-back"));
    std::fs::write(&there, "carried")?;
    cluster.k(&format!("cp {} week/box:/tmp/carried", there.display()))?;
    cluster.k(&format!("cp week/box:/tmp/carried {}", back.display()))?;
    let carried = std::fs::read_to_string(&back)?;
    let _ = (std::fs::remove_file(there), std::fs::remove_file(back));
    ensure!(carried == "carried", "the file came back as {carried:?}");
    Ok(())
}

/// One request through the port that kubectl announces.
fn forwarded(output: &mut impl std::io::BufRead) -> Result<String> {
    use std::io::{Read, Write};
    let mut line = String::new();
    output.read_line(&mut line)?;
    let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
    let port: u16 = port.context("no port in kubectl's answer")?.parse()?;
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn port_forward(cluster: &Cluster) -> Result<()> {
    use std::io::BufReader;
    let serve = "mkdir /tmp/www && echo Hello from the box > /tmp/www/index.html && httpd -p 8080 -h /tmp/www";
    cluster.kubectl(&["exec", "-n", "week", "box", "--", "sh", "-c", serve])?;
    let mut child = cluster
        .kubectl_command()
        .args(["port-forward", "-n", "week", "pod/box", ":8080"])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    // Kept open to the end: kubectl writes a line for each connection and dies when it cannot.
    let mut output = BufReader::new(child.stdout.take().context("no output")?);
    let answer = forwarded(&mut output);
    let _ = child.kill();
    let _ = child.wait();
    let answer = answer?;
    ensure!(answer.contains("Hello from the box"), "{answer:?}");
    Ok(())
}

fn follow(cluster: &Cluster) -> Result<()> {
    use std::io::{BufRead, BufReader};
    cluster.k("run ticker -n week --image=busybox:1 --image-pull-policy=IfNotPresent --restart=Never -- sh -c 'for i in 1 2 3; do echo tick $i; sleep 0.2; done'")?;
    eventually("the ticker has started", 30, || {
        let phase = cluster.k("get pod ticker -n week -o jsonpath={.status.phase}")?;
        Ok((phase != "Pending").then_some(()))
    })?;
    let mut child = cluster
        .kubectl_command()
        .args(["logs", "-f", "-n", "week", "ticker"])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().context("no output")?).lines().count();
    child.wait()?;
    ensure!(lines == 3, "{lines} lines of 3 arrived");
    Ok(())
}

fn delete_namespace(cluster: &Cluster) -> Result<()> {
    cluster.k("delete namespace week --timeout=60s")?;
    let left = cluster.k("get pods -n week -o name")?;
    ensure!(left.is_empty(), "left in the namespace: {left}");
    Ok(())
}
