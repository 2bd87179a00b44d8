//! What a process of a container may do, set as the last thing before it is executed.
//!
//! libcontainer is given no capabilities to drop. A filter of system calls can be installed only
//! with `CAP_SYS_ADMIN` or together with no-new-privileges, which would break set-uid programs;
//! so the filter comes first, and the capabilities go after it, both here.

use std::io;

use seccompiler::sock_filter;

use crate::protocol::Privileges;

/// The version of the structures that capset takes: 64 capabilities in two halves.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityHalf {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[repr(C)]
struct Program {
    length: libc::c_ushort,
    filter: *const sock_filter,
}

/// Takes all privileges that are not listed.
pub(super) fn apply(privileges: &Privileges, filters: &[Vec<sock_filter>]) -> io::Result<()> {
    // A process that can gain no privileges may install a filter at any time: then it need not allow what is
    // done here.
    let last = no_new_privileges()?;
    let install_all = || filters.iter().try_for_each(|filter| install(filter));
    if !last {
        install_all()?;
    }
    reduce(privileges)?;
    if last { install_all() } else { Ok(()) }
}

fn no_new_privileges() -> io::Result<bool> {
    // SAFETY: this option takes no pointers and changes nothing.
    match unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        set => Ok(set == 1),
    }
}

fn reduce(privileges: &Privileges) -> io::Result<()> {
    drop_bounding(privileges.bounding)?;
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    // What the agent itself was not given, it cannot pass on.
    let held = held(&header)?;
    let (permitted, ambient) = (privileges.permitted & held, privileges.ambient & held);
    // What is ambient must be inheritable. Nothing else is: CVE-2022-24769.
    set_capabilities(&header, permitted, ambient)?;
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    for capability in (0..64).filter(|bit| ambient >> bit & 1 == 1) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability)?;
    }
    Ok(())
}

fn set_capabilities(header: &CapabilityHeader, permitted: u64, inheritable: u64) -> io::Result<()> {
    let halves = [0, 32].map(|shift| CapabilityHalf {
        effective: half(permitted, shift),
        permitted: half(permitted, shift),
        inheritable: half(inheritable, shift),
    });
    // SAFETY: header and both halves live through the call and have the layout of version 3.
    match unsafe { libc::syscall(libc::SYS_capset, &raw const *header, halves.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes effective what this process may have: becoming another user has taken it away.
pub(super) fn raise() -> io::Result<()> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let held = held(&header)?;
    set_capabilities(&header, held, 0)
}

/// The capabilities that this process has.
fn held(header: &CapabilityHeader) -> io::Result<u64> {
    let mut halves = [CapabilityHalf::default(); 2];
    // SAFETY: header and both halves live through the call and have the layout of version 3.
    if unsafe { libc::syscall(libc::SYS_capget, &raw const *header, halves.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from(halves[0].permitted) | u64::from(halves[1].permitted) << 32)
}

fn half(set: u64, shift: u32) -> u32 {
    u32::try_from(set >> shift & u64::from(u32::MAX)).expect("masked to 32 bits")
}

fn drop_bounding(keep: u64) -> io::Result<()> {
    for capability in 0..64 {
        if keep >> capability & 1 == 1 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            // The kernel's last capability is passed.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            result => result?,
        }
    }
    Ok(())
}

fn prctl(option: i32, first: i32, second: i32) -> io::Result<()> {
    // SAFETY: these options take integers and change this process only.
    match unsafe { libc::prctl(option, libc::c_ulong::try_from(first).unwrap_or(0), second, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn install(filter: &[sock_filter]) -> io::Result<()> {
    let length = libc::c_ushort::try_from(filter.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the filter is too long"))?;
    let program = Program { length, filter: filter.as_ptr() };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the program points to a filter of that length, and both live through the call.
    match unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
