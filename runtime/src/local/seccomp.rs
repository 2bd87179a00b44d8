//! seccomp profiles of the node (`type: Localhost`), made into programs for the kernel.
//!
//! A profile may give each system call another action, a program of seccompiler knows two. So each action that
//! denies becomes a program of its own that allows all the rest, and what the profile allows another one, which comes
//! last: the kernel asks all of them and takes the strictest answer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};
use serde::Deserialize;

use super::syscalls;
use crate::error::{Error, Result};

/// The largest profile that is read; one that lists every call by name takes a few kilobytes.
const MAX_PROFILE: u64 = 1 << 20;

/// What libseccomp answers where a profile names no error: `EPERM`.
const DEFAULT_ERRNO: u32 = 1;

/// `linux.seccomp` of the OCI runtime specification, as far as it decides something here: a kernel of another
/// architecture than the node's is never asked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is no profile: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the action {0:?} is not supported")]
    Action(String),
    #[error("the operator {0:?} is not known")]
    Operator(String),
    #[error(transparent)]
    Compile(#[from] seccompiler::BackendError),
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The programs of the profile at `path`, in the order in which they are to be installed.
pub(super) fn load(path: &Path) -> Result<Vec<Vec<u64>>> {
    let read = || -> Result<Vec<Vec<u64>>, Fault> {
        let mut text = String::new();
        File::open(path)?.take(MAX_PROFILE).read_to_string(&mut text)?;
        programs(&serde_json::from_str(&text)?)
    };
    read().map_err(|fault| {
        Error::invalid(
            "seccomp",
            format!("cannot load seccomp profile {:?}: {fault}", path.display().to_string()),
        )
    })
}

fn programs(profile: &Profile) -> Result<Vec<Vec<u64>>, Fault> {
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    // By action, in the order in which the profile names them; there are a handful.
    let mut groups: Vec<(SeccompAction, Rules)> = Vec::new();
    let mut named = Rules::new();
    for group in &profile.syscalls {
        let action = action(&group.action, group.errno_ret)?;
        if action == default {
            continue;
        }
        let at = groups.iter().position(|(other, _)| *other == action).unwrap_or_else(|| {
            groups.push((action.clone(), Rules::new()));
            groups.len() - 1
        });
        // Calls that this kernel does not have cannot be made either.
        for number in group.names.iter().filter_map(|name| syscalls::number(name)) {
            add(&mut groups[at].1, number, group.args.as_deref())?;
            add(&mut named, number, group.args.as_deref())?;
        }
    }
    let mut programs = Vec::new();
    for (action, rules) in groups.into_iter().filter(|(action, _)| *action != SeccompAction::Allow) {
        programs.push(compile(rules, SeccompAction::Allow, action)?);
    }
    if default != SeccompAction::Allow {
        programs.push(compile(named, default, SeccompAction::Allow)?);
    }
    Ok(programs)
}

/// One more case for a call; without conditions it is all cases, which an empty list stands for.
fn add(rules: &mut Rules, number: i64, arguments: Option<&[Argument]>) -> Result<(), Fault> {
    let conditions: Vec<_> = arguments.into_iter().flatten().map(condition).collect::<Result<_, _>>()?;
    if conditions.is_empty() {
        rules.insert(number, Vec::new());
        return Ok(());
    }
    let all_cases = rules.get(&number).is_some_and(Vec::is_empty);
    if !all_cases {
        rules.entry(number).or_default().push(SeccompRule::new(conditions)?);
    }
    Ok(())
}

fn condition(argument: &Argument) -> Result<SeccompCondition, Fault> {
    let (operator, value) = match argument.op.as_str() {
        "SCMP_CMP_NE" => (SeccompCmpOp::Ne, argument.value),
        "SCMP_CMP_LT" => (SeccompCmpOp::Lt, argument.value),
        "SCMP_CMP_LE" => (SeccompCmpOp::Le, argument.value),
        "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, argument.value),
        "SCMP_CMP_GE" => (SeccompCmpOp::Ge, argument.value),
        "SCMP_CMP_GT" => (SeccompCmpOp::Gt, argument.value),
        "SCMP_CMP_MASKED_EQ" => (SeccompCmpOp::MaskedEq(argument.value), argument.value_two),
        other => return Err(Fault::Operator(other.to_owned())),
    };
    Ok(SeccompCondition::new(argument.index, SeccompCmpArgLen::Qword, operator, value)?)
}

fn action(name: &str, errno: Option<u32>) -> Result<SeccompAction, Fault> {
    let errno = errno.unwrap_or(DEFAULT_ERRNO);
    Ok(match name {
        "SCMP_ACT_ALLOW" => SeccompAction::Allow,
        "SCMP_ACT_ERRNO" => SeccompAction::Errno(errno),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => SeccompAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => SeccompAction::KillProcess,
        "SCMP_ACT_LOG" => SeccompAction::Log,
        "SCMP_ACT_TRACE" => SeccompAction::Trace(errno),
        "SCMP_ACT_TRAP" => SeccompAction::Trap,
        other => return Err(Fault::Action(other.to_owned())),
    })
}

fn compile(rules: Rules, mismatch: SeccompAction, matches: SeccompAction) -> Result<Vec<u64>, Fault> {
    let arch = std::env::consts::ARCH.try_into()?;
    let program: BpfProgram = SeccompFilter::new(rules, mismatch, matches, arch)?.try_into()?;
    Ok(program.iter().map(pack).collect())
}

fn pack(instruction: &sock_filter) -> u64 {
    let [a, b] = instruction.code.to_be_bytes();
    let [c, d, e, f] = instruction.k.to_be_bytes();
    u64::from_be_bytes([a, b, instruction.jt, instruction.jf, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn count(profile: serde_json::Value) -> Result<usize, Fault> {
        programs(&serde_json::from_value(profile)?).map(|programs| programs.len())
    }

    #[test]
    fn each_action_that_denies_is_a_program() {
        let groups = json!([
            { "names": ["read", "write", "of_another_kernel"], "action": "SCMP_ACT_ALLOW" },
            { "names": ["personality"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 0, "value": 8, "op": "SCMP_CMP_EQ" }] },
            { "names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
            { "names": ["kexec_load"], "action": "SCMP_ACT_KILL_PROCESS" },
        ]);
        let with = |default: &str| count(json!({ "defaultAction": default, "syscalls": groups.clone() }));
        assert_eq!(with("SCMP_ACT_ERRNO").unwrap(), 3);
        assert_eq!(with("SCMP_ACT_ALLOW").unwrap(), 2);
        assert_eq!(count(json!({ "defaultAction": "SCMP_ACT_ALLOW" })).unwrap(), 0);
    }

    #[test]
    fn what_cannot_be_enforced_is_refused() {
        assert!(matches!(count(json!({ "defaultAction": "SCMP_ACT_NOTIFY" })), Err(Fault::Action(_))));
        let args = json!([{ "index": 0, "value": 0, "op": "SCMP_CMP_LIKE" }]);
        let group = json!([{ "names": ["read"], "action": "SCMP_ACT_ALLOW", "args": args }]);
        let profile = json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": group });
        assert!(matches!(count(profile), Err(Fault::Operator(_))));
        let error = load(Path::new("/nothing/here.json")).unwrap_err().to_string();
        assert!(error.contains("/nothing/here.json"), "{error}");
    }

    #[test]
    fn calls_are_known_by_their_names() {
        assert_eq!(syscalls::number("mount"), Some(libc::SYS_mount));
        assert_eq!(syscalls::number("mkdirat"), Some(libc::SYS_mkdirat));
        assert_eq!(syscalls::number("_llseek"), None);
    }

    #[test]
    fn instructions_survive_the_way_to_the_shim() {
        let instruction = sock_filter { code: 0x15, jt: 3, jf: 250, k: 0xDEAD_BEEF };
        let back = crate::shim::seccomp_program(&[pack(&instruction)]);
        assert_eq!((back[0].code, back[0].jt, back[0].jf, back[0].k), (0x15, 3, 250, 0xDEAD_BEEF));
    }
}
