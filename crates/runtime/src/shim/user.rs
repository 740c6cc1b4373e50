//! Users and groups as the image's own files name them.

use std::{fs, io};

use crate::launch::{Identity, User};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Looks `user` up in the /etc/passwd and /etc/group of the root that this process is in.
pub(super) fn resolve(user: &User) -> io::Result<Identity> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    resolve_in(user, &read("/etc/passwd"), &read("/etc/group"))
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn resolve_in(user: &User, passwd: &str, group: &str) -> io::Result<Identity> {
    let (name, group_name) = user.spec.split_once(':').unwrap_or((&user.spec, ""));
    let name = if name.is_empty() { "0" } else { name };
    let accounts = || passwd.lines().filter_map(account);
    let number: Option<u32> = name.parse().ok();
    let account = accounts()
        .find(|account| account.name == name)
        .or_else(|| number.and_then(|uid| accounts().find(|account| account.uid == uid)));
    let uid = match (&account, number) {
        (Some(account), _) => account.uid,
        (None, Some(uid)) => uid,
        (None, None) => {
            let text = format!("the image's /etc/passwd has no user {name:?}");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
    };
    let gid = match user.gid {
        Some(gid) => gid,
        None if !group_name.is_empty() => group_number(group_name, group)?,
        None => account.as_ref().map_or(0, |account| account.gid),
    };
    let mut groups = vec![gid];
    groups.extend(&user.supplementary);
    if let Some(account) = account.as_ref().filter(|_| !user.strict) {
        groups.extend(memberships(account.name, group));
    }
    let mut seen = Vec::new();
    groups.retain(|gid| {
        !seen.contains(gid) && {
            seen.push(*gid);
            true
        }
    });
    let home = account.map_or("/", |account| account.home);
    Ok(Identity { uid, gid, groups, home: if home.is_empty() { "/" } else { home }.to_owned() })
}

fn account(line: &str) -> Option<Account<'_>> {
    let fields: Vec<&str> = line.split(':').collect();
    let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
    Some(Account { name: fields[0], uid, gid, home: fields.get(5).copied().unwrap_or("/") })
}

fn group_number(name: &str, group: &str) -> io::Result<u32> {
    let named = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    });
    named.or_else(|| name.parse().ok()).ok_or_else(|| {
        let text = format!("the image's /etc/group has no group {name:?}");
        io::Error::new(io::ErrorKind::NotFound, text)
    })
}

fn memberships<'a>(name: &'a str, group: &'a str) -> impl Iterator<Item = u32> + 'a {
    group.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split(':').collect();
        let member = fields.get(3)?.split(',').any(|member| member == name);
        member.then(|| fields[2].parse().ok())?
    })
}

/// `env` with PATH and HOME where they are missing.
pub(super) fn complete_env(env: &[String], home: &str) -> Vec<String> {
    let mut env = env.to_vec();
    let has = |env: &[String], name: &str| env.iter().any(|entry| entry.starts_with(name));
    if !has(&env, "PATH=") {
        env.push(DEFAULT_PATH.to_owned());
    }
    if !has(&env, "HOME=") {
        env.push(format!("HOME={home}"));
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nmedia:x:50:root,web\nalso:x:51:web\n";

    fn resolve(spec: &str, gid: Option<u32>, strict: bool) -> Result<(u32, u32, Vec<u32>), String> {
        let user = User { spec: spec.to_owned(), gid, supplementary: vec![7, 50], strict };
        let identity = resolve_in(&user, PASSWD, GROUP).map_err(|error| error.to_string())?;
        Ok((identity.uid, identity.gid, identity.groups))
    }

    #[test]
    fn names_and_numbers_are_found() {
        assert_eq!(resolve("web", None, false), Ok((33, 34, vec![34, 7, 50, 51])));
        assert_eq!(resolve("33", None, true), Ok((33, 34, vec![34, 7, 50])));
        assert_eq!(resolve("1000:media", None, false), Ok((1000, 50, vec![50, 7])));
        assert_eq!(resolve("", Some(9), true), Ok((0, 9, vec![9, 7, 50])));
        assert_eq!(resolve("4:5", None, true), Ok((4, 5, vec![5, 7, 50])));
        assert!(resolve("nobody", None, false).unwrap_err().contains("\"nobody\""));
        assert!(resolve("0:nogroup", None, false).unwrap_err().contains("\"nogroup\""));
    }

    #[test]
    fn path_and_home_are_filled_in_once() {
        let env = complete_env(&["PATH=/x".to_owned()], "/srv");
        assert_eq!(env, ["PATH=/x", "HOME=/srv"]);
    }
}
