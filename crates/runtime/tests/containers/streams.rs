//! Exec, attach and port-forward as streams.

use cri::{
    streaming::{Streaming, TerminalSize},
    v1,
};
use stdx::Env;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Node, Outcome, Result, texts, wait_log};

async fn read_until(stream: &mut (impl AsyncReadExt + Unpin), wanted: &str) -> Result<String> {
    let mut text = String::new();
    let mut buffer = [0; 1024];
    let limit = std::time::Duration::from_secs(10);
    while !text.contains(wanted) {
        let length = Env::real().timeout(limit, stream.read(&mut buffer)).await;
        let length = length.ok_or_else(|| format!("{wanted:?} does not come: {text:?}"))??;
        if length == 0 {
            return Err(format!("the stream ended before {wanted:?}: {text:?}").into());
        }
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    Ok(text)
}

fn exec(id: &str, command: &[&str], tty: bool, stdin: bool) -> v1::ExecRequest {
    v1::ExecRequest {
        container_id: id.to_owned(),
        cmd: texts(command),
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    }
}

pub async fn an_exec_has_its_streams() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let id = pod.run(&["sleep", "1000"]).await?;
    let script = "cat; echo problem >&2; exit 5";
    let mut session = node.runtime.exec(exec(&id, &["sh", "-c", script], false, true)).await?;
    let mut stdin = session.stdin.take().ok_or("stdin")?;
    stdin.write_all(b"through and through").await?;
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    session.stdout.as_mut().ok_or("stdout")?.read_to_string(&mut out).await?;
    session.stderr.as_mut().ok_or("stderr")?.read_to_string(&mut err).await?;
    assert_eq!((&*out, &*err, session.exit.await?), ("through and through", "problem\n", 5));
    let missing = node.runtime.exec(exec(&id, &["nothing-here"], false, false)).await;
    let error = missing.err().ok_or("a missing command starts")?.message().to_owned();
    assert!(error.contains("executable file not found"), "{error}");
    pod.remove().await?;
    node.end().await
}

pub async fn an_exec_on_a_terminal_is_resized() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let id = pod.run(&["sleep", "1000"]).await?;
    let mut session = node.runtime.exec(exec(&id, &["sh"], true, true)).await?;
    let mut stdin = session.stdin.take().ok_or("stdin")?;
    let mut stdout = session.stdout.take().ok_or("stdout")?;
    assert!(session.stderr.is_none());
    stdin.write_all(b"tty; echo first-$((20+22))\n").await?;
    let text = read_until(&mut stdout, "first-42").await?;
    assert!(text.contains("/dev/pts/"), "{text}");
    let resize = session.resize.take().ok_or("resize")?;
    resize.send(TerminalSize { columns: 123, rows: 45 })?;
    // The size arrives by another way than input, so ask until it has.
    let mut seen = String::new();
    for _ in 0..50 {
        stdin.write_all(b"stty size; echo again-$((1+1))\n").await?;
        seen = read_until(&mut stdout, "again-2").await?;
        if seen.contains("45 123") {
            break;
        }
    }
    assert!(seen.contains("45 123"), "{seen}");
    stdin.write_all(b"exit 9\n").await?;
    assert_eq!(session.exit.await?, 9);
    drop((stdin, stdout, resize));
    pod.remove().await?;
    node.end().await
}

pub async fn an_exec_is_killed_after_its_timeout() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let id = pod.run(&["sleep", "1000"]).await?;
    let request =
        v1::ExecSyncRequest { container_id: id.clone(), cmd: texts(&["sleep", "777"]), timeout: 1 };
    let status = pod.client.clone().exec_sync(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    let mut left = true;
    for _ in 0..50 {
        left = pod.exec(&id, &["ps"]).await?.1.contains("sleep 777");
        if !left {
            break;
        }
    }
    assert!(!left);
    pod.remove().await?;
    node.end().await
}

pub async fn an_attachment_gives_input_once() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let id = pod
        .run_with(&["sh", "-c", "while read x; do echo got-$x; done; echo end"], |config| {
            config.stdin = true;
            config.stdin_once = true;
        })
        .await?;
    let request = v1::AttachRequest {
        container_id: id.clone(),
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
    };
    let mut session = node.runtime.attach(request).await?;
    let mut stdin = session.stdin.take().ok_or("stdin")?;
    let mut stdout = session.stdout.take().ok_or("stdout")?;
    stdin.write_all(b"one\ntwo\n").await?;
    read_until(&mut stdout, "got-two").await?;
    drop(stdin);
    read_until(&mut stdout, "end").await?;
    assert_eq!(session.exit.await?, 0);
    let log = wait_log(&pod, &id, "end").await?;
    assert!(log.contains("got-one") && log.contains("got-two"), "{log}");
    pod.remove().await?;
    node.end().await
}

pub async fn a_terminal_is_attached() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let id = pod
        .run_with(&["sh"], |config| {
            config.stdin = true;
            config.tty = true;
        })
        .await?;
    let attach = || {
        node.runtime.attach(v1::AttachRequest {
            container_id: id.clone(),
            stdin: true,
            stdout: true,
            stderr: false,
            tty: true,
        })
    };
    let mut session = attach().await?;
    let mut stdin = session.stdin.take().ok_or("stdin")?;
    let mut stdout = session.stdout.take().ok_or("stdout")?;
    session.resize.as_ref().ok_or("resize")?.send(TerminalSize { columns: 99, rows: 11 })?;
    stdin.write_all(b"stty size; tty; echo $TERM\n").await?;
    let text = read_until(&mut stdout, "xterm").await?;
    assert!(text.contains("11 99") && text.contains("/dev/pts/0"), "{text}");
    drop((stdin, stdout, session));
    let mut session = attach().await?;
    let mut stdin = session.stdin.take().ok_or("stdin")?;
    stdin.write_all(b"exit 4\n").await?;
    assert_eq!(session.exit.await?, 4);
    drop((stdin, session.stdout));
    assert_eq!(pod.wait_exit(&id).await?.exit_code, 4);
    pod.remove().await?;
    node.end().await
}

pub async fn a_port_is_forwarded() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let script = "echo ready; nc -l -p 8080 -e sh -c 'read x; echo answer-$x'";
    let id = pod.run(&["sh", "-c", script]).await?;
    wait_log(&pod, &id, "ready").await?;
    let mut stream = None;
    for _ in 0..100 {
        // The listener comes a moment after its announcement.
        stream = node.runtime.port_forward(&pod.id, 8080).await.ok();
        if stream.is_some() {
            break;
        }
        Env::real().sleep(std::time::Duration::from_millis(10)).await;
    }
    let mut stream = stream.ok_or("nobody listens")?;
    stream.write_all(b"42\n").await?;
    read_until(&mut stream, "answer-42").await?;
    let refused = node.runtime.port_forward(&pod.id, 8081).await;
    assert!(refused.is_err());
    pod.remove().await?;
    node.end().await
}
