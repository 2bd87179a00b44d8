//! Who a container runs as: names are looked up in the image's own files.

use std::io;
use std::path::Path;

use decapod_proto::cri;

use crate::error::{Error, Result};
use crate::sys::rooted;

/// Largest user database that is read; images come from anywhere.
const MAX_DATABASE: u64 = 4 << 20;

/// A user of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Resolves the user: the pod's word goes before the image's.
pub(super) fn resolve(
    rootfs: &Path,
    context: &cri::LinuxContainerSecurityContext,
    image_user: &str,
) -> Result<User> {
    let passwd = database(rootfs, "etc/passwd")?;
    let group = database(rootfs, "etc/group")?;
    let (image_name, image_group) = match image_user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (image_user, None),
    };
    let name = match (&context.run_as_user, context.run_as_username.as_str()) {
        (Some(uid), _) => uid.value.to_string(),
        (None, "") => image_name.to_owned(),
        (None, name) => name.to_owned(),
    };
    let account = accounts(&passwd).find(|account| account.name == name || name.parse() == Ok(account.uid));
    let uid = match (&account, name.as_str()) {
        (Some(account), _) => account.uid,
        (None, "") => 0,
        (None, name) => name
            .parse()
            .map_err(|_| Error::invalid("user", format!("{name:?}: no matching entries in passwd file")))?,
    };
    let gid = match (&context.run_as_group, image_group.filter(|_| context.run_as_user.is_none())) {
        (Some(gid), _) => {
            u32::try_from(gid.value).map_err(|error| Error::invalid("run_as_group", error.to_string()))?
        }
        (None, Some(name)) => group_id(&group, name)?,
        (None, None) => account.as_ref().map_or(0, |account| account.gid),
    };
    let mut groups = vec![gid];
    if context.supplemental_groups_policy() == cri::SupplementalGroupsPolicy::Merge
        && let Some(account) = &account
    {
        groups.extend(memberships(&group, account.name));
    }
    groups.extend(context.supplemental_groups.iter().filter_map(|gid| u32::try_from(*gid).ok()));
    groups.sort_unstable();
    groups.dedup();
    let home = account.map(|account| account.home).filter(|home| !home.is_empty());
    Ok(User { uid, gid, groups, home: home.unwrap_or("/").to_owned() })
}

fn database(rootfs: &Path, file: &str) -> Result<String> {
    match rooted::read(rootfs, Path::new(file), MAX_DATABASE) {
        Ok(content) => Ok(String::from_utf8_lossy(&content).into_owned()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(String::new())
        }
        Err(error) => Err(Error::internal(format!("read the image's /{file}"), error)),
    }
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields.as_slice() else { return None };
        Some(Account { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

fn group_id(group: &str, name: &str) -> Result<u32> {
    let mut groups = group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some((fields.next()?, fields.nth(1)?.parse().ok()?))
    });
    groups
        .find(|(other, _)| *other == name)
        .map(|(_, gid)| gid)
        .or_else(|| name.parse().ok())
        .ok_or_else(|| Error::invalid("group", format!("{name:?}: no matching entries in group file")))
}

fn memberships<'a>(group: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    group.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, gid, members] = fields.as_slice() else { return None };
        members.split(',').any(|member| member == user).then(|| gid.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rootfs() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:w:/var/www:/bin/false\n";
        std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(dir.path().join("etc/group"), "web:x:34:\nlogs:x:50:web,x\n").unwrap();
        dir
    }

    #[test]
    fn names_are_looked_up_in_the_image() {
        let dir = rootfs();
        let user = resolve(dir.path(), &Default::default(), "web").unwrap();
        let expected = User { uid: 33, gid: 34, groups: vec![34, 50], home: "/var/www".into() };
        assert_eq!(user, expected);
        let user = resolve(dir.path(), &Default::default(), "web:logs").unwrap();
        assert_eq!(user.gid, 50);
        assert!(resolve(dir.path(), &Default::default(), "nobody").is_err());
    }

    #[test]
    fn the_pod_goes_before_the_image() {
        let dir = rootfs();
        let context = cri::LinuxContainerSecurityContext {
            run_as_user: Some(cri::Int64Value { value: 1000 }),
            supplemental_groups: vec![2000],
            ..Default::default()
        };
        let user = resolve(dir.path(), &context, "web:logs").unwrap();
        assert_eq!(user, User { uid: 1000, gid: 0, groups: vec![0, 2000], home: "/".into() });
    }

    #[test]
    fn images_without_users_run_as_root() {
        let dir = tempfile::tempdir().unwrap();
        let user = resolve(dir.path(), &Default::default(), "").unwrap();
        assert_eq!((user.uid, user.gid), (0, 0));
    }
}
