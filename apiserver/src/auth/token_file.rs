//! Static bearer tokens: lines of `token,user,uid[,"group1,group2"]`, as kube-apiserver reads them.

use std::collections::HashMap;
use std::path::Path;

use ring::digest;

use super::UserInfo;

/// Why a token file was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read the token file")]
    Read(#[from] std::io::Error),
    /// A line lacks fields.
    #[error("line {line} of the token file: want token,user,uid[,\"groups\"]")]
    Line {
        /// The number of the line, from 1.
        line: usize,
    },
}

/// The tokens of a file, by the digest of the token: comparing digests takes the same time
/// whatever the tokens have in common.
#[derive(Default)]
pub(crate) struct TokenFile {
    users: HashMap<[u8; 32], UserInfo>,
}

impl TokenFile {
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        Self::parse(&std::fs::read_to_string(path)?)
    }

    fn parse(text: &str) -> Result<Self, Error> {
        let mut users = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fields = split(line);
            let [token, name, uid, rest @ ..] = fields.as_slice() else {
                return Err(Error::Line { line: index + 1 });
            };
            if token.is_empty() || name.is_empty() {
                return Err(Error::Line { line: index + 1 });
            }
            let groups = rest.first().map(|g| g.split(',').map(|g| g.trim().to_owned()).collect());
            let mut user = UserInfo {
                username: name.clone(),
                uid: uid.clone(),
                groups: groups.unwrap_or_default(),
                ..UserInfo::default()
            };
            user.mark_authenticated();
            users.insert(digest_of(token), user);
        }
        Ok(Self { users })
    }

    pub(crate) fn authenticate(&self, token: &str) -> Option<UserInfo> {
        self.users.get(&digest_of(token)).cloned()
    }
}

fn digest_of(token: &str) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    out
}

/// The fields of a CSV line; double quotes keep commas together.
fn split(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => {
                if let Some(field) = fields.last_mut() {
                    field.push(c);
                }
            }
        }
    }
    fields.iter_mut().for_each(|f| *f = f.trim().to_owned());
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_users_and_groups() {
        let file = TokenFile::parse("# c\nabc,jane,7,\"dev, ops\"\n\nxyz,joe,8\n").unwrap();
        let jane = file.authenticate("abc").unwrap();
        assert_eq!((jane.username.as_str(), jane.uid.as_str()), ("jane", "7"));
        assert_eq!(jane.groups, ["dev", "ops", "system:authenticated"]);
        assert_eq!(file.authenticate("xyz").unwrap().groups, ["system:authenticated"]);
        assert!(file.authenticate("ab").is_none());
    }

    #[test]
    fn refuses_short_lines() {
        assert!(matches!(TokenFile::parse("abc,jane"), Err(Error::Line { line: 1 })));
    }
}
