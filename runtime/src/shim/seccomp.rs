//! The filter of system calls called `RuntimeDefault`.
//!
//! It allows what the default profile of other runtimes allows, so that images that run there
//! run here: everything that programs need, nothing that reaches around namespaces or into the
//! kernel, and what belongs to a capability only with that capability. Everything else fails
//! with `EPERM`.

use std::collections::BTreeMap;
use std::io;

use libc::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

/// Always allowed, on all architectures.
const ALLOWED: &[c_long] = &[
    SYS_accept,
    SYS_accept4,
    SYS_adjtimex,
    SYS_bind,
    SYS_brk,
    SYS_capget,
    SYS_capset,
    SYS_chdir,
    SYS_clock_adjtime,
    SYS_clock_getres,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_close,
    SYS_close_range,
    SYS_connect,
    SYS_copy_file_range,
    SYS_dup,
    SYS_dup3,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_eventfd2,
    SYS_execve,
    SYS_execveat,
    SYS_exit,
    SYS_exit_group,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_fadvise64,
    SYS_fallocate,
    SYS_fanotify_mark,
    SYS_fchdir,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_fchmodat2,
    SYS_fchown,
    SYS_fchownat,
    SYS_fcntl,
    SYS_fdatasync,
    SYS_fgetxattr,
    SYS_flistxattr,
    SYS_flock,
    SYS_fremovexattr,
    SYS_fsetxattr,
    SYS_fstat,
    SYS_fstatfs,
    SYS_fsync,
    SYS_ftruncate,
    SYS_futex,
    SYS_futex_waitv,
    SYS_get_robust_list,
    SYS_getcpu,
    SYS_getcwd,
    SYS_getdents64,
    SYS_getegid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getgroups,
    SYS_getitimer,
    SYS_getpeername,
    SYS_getpgid,
    SYS_getpid,
    SYS_getppid,
    SYS_getpriority,
    SYS_getrandom,
    SYS_getresgid,
    SYS_getresuid,
    SYS_getrlimit,
    SYS_getrusage,
    SYS_getsid,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_gettid,
    SYS_gettimeofday,
    SYS_getuid,
    SYS_getxattr,
    SYS_inotify_add_watch,
    SYS_inotify_init1,
    SYS_inotify_rm_watch,
    SYS_io_cancel,
    SYS_io_destroy,
    SYS_io_getevents,
    SYS_io_setup,
    SYS_io_submit,
    SYS_ioctl,
    SYS_ioprio_get,
    SYS_ioprio_set,
    SYS_kill,
    SYS_landlock_add_rule,
    SYS_landlock_create_ruleset,
    SYS_landlock_restrict_self,
    SYS_lgetxattr,
    SYS_linkat,
    SYS_listen,
    SYS_listxattr,
    SYS_llistxattr,
    SYS_lremovexattr,
    SYS_lseek,
    SYS_lsetxattr,
    SYS_madvise,
    SYS_membarrier,
    SYS_memfd_create,
    SYS_memfd_secret,
    SYS_mincore,
    SYS_mkdirat,
    SYS_mknodat,
    SYS_mlock,
    SYS_mlock2,
    SYS_mlockall,
    SYS_mmap,
    SYS_mprotect,
    SYS_mq_getsetattr,
    SYS_mq_notify,
    SYS_mq_open,
    SYS_mq_timedreceive,
    SYS_mq_timedsend,
    SYS_mq_unlink,
    SYS_mremap,
    SYS_mseal,
    SYS_msgctl,
    SYS_msgget,
    SYS_msgrcv,
    SYS_msgsnd,
    SYS_msync,
    SYS_munlock,
    SYS_munlockall,
    SYS_munmap,
    SYS_name_to_handle_at,
    SYS_nanosleep,
    SYS_newfstatat,
    SYS_openat,
    SYS_openat2,
    SYS_pidfd_open,
    SYS_pidfd_send_signal,
    SYS_pipe2,
    SYS_pkey_alloc,
    SYS_pkey_free,
    SYS_pkey_mprotect,
    SYS_ppoll,
    SYS_prctl,
    SYS_pread64,
    SYS_preadv,
    SYS_preadv2,
    SYS_prlimit64,
    SYS_process_mrelease,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_pselect6,
    SYS_ptrace,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_pwritev2,
    SYS_read,
    SYS_readahead,
    SYS_readlinkat,
    SYS_readv,
    SYS_recvfrom,
    SYS_recvmmsg,
    SYS_recvmsg,
    SYS_remap_file_pages,
    SYS_removexattr,
    SYS_renameat,
    SYS_renameat2,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_rt_sigaction,
    SYS_rt_sigpending,
    SYS_rt_sigprocmask,
    SYS_rt_sigqueueinfo,
    SYS_rt_sigreturn,
    SYS_rt_sigsuspend,
    SYS_rt_sigtimedwait,
    SYS_rt_tgsigqueueinfo,
    SYS_sched_get_priority_max,
    SYS_sched_get_priority_min,
    SYS_sched_getaffinity,
    SYS_sched_getattr,
    SYS_sched_getparam,
    SYS_sched_getscheduler,
    SYS_sched_rr_get_interval,
    SYS_sched_setaffinity,
    SYS_sched_setattr,
    SYS_sched_setparam,
    SYS_sched_setscheduler,
    SYS_sched_yield,
    SYS_seccomp,
    SYS_semctl,
    SYS_semget,
    SYS_semop,
    SYS_semtimedop,
    SYS_sendfile,
    SYS_sendmmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_set_robust_list,
    SYS_set_tid_address,
    SYS_setfsgid,
    SYS_setfsuid,
    SYS_setgid,
    SYS_setgroups,
    SYS_setitimer,
    SYS_setpgid,
    SYS_setpriority,
    SYS_setregid,
    SYS_setresgid,
    SYS_setresuid,
    SYS_setreuid,
    SYS_setrlimit,
    SYS_setsid,
    SYS_setsockopt,
    SYS_setuid,
    SYS_setxattr,
    SYS_shmat,
    SYS_shmctl,
    SYS_shmdt,
    SYS_shmget,
    SYS_shutdown,
    SYS_sigaltstack,
    SYS_signalfd4,
    SYS_socketpair,
    SYS_splice,
    SYS_statfs,
    SYS_statx,
    SYS_symlinkat,
    SYS_sync,
    SYS_sync_file_range,
    SYS_syncfs,
    SYS_sysinfo,
    SYS_tee,
    SYS_tgkill,
    SYS_timer_create,
    SYS_timer_delete,
    SYS_timer_getoverrun,
    SYS_timer_gettime,
    SYS_timer_settime,
    SYS_timerfd_create,
    SYS_timerfd_gettime,
    SYS_timerfd_settime,
    SYS_times,
    SYS_tkill,
    SYS_truncate,
    SYS_umask,
    SYS_uname,
    SYS_unlinkat,
    SYS_utimensat,
    SYS_vmsplice,
    SYS_wait4,
    SYS_waitid,
    SYS_write,
    SYS_writev,
];

/// Always allowed: older forms that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[
    SYS_access,
    SYS_alarm,
    SYS_arch_prctl,
    SYS_chmod,
    SYS_chown,
    SYS_creat,
    SYS_dup2,
    SYS_epoll_create,
    SYS_epoll_wait,
    SYS_eventfd,
    SYS_fork,
    SYS_futimesat,
    SYS_get_thread_area,
    SYS_getdents,
    SYS_getpgrp,
    SYS_inotify_init,
    SYS_lchown,
    SYS_link,
    SYS_lstat,
    SYS_mkdir,
    SYS_mknod,
    SYS_modify_ldt,
    SYS_open,
    SYS_pause,
    SYS_pipe,
    SYS_poll,
    SYS_readlink,
    SYS_rename,
    SYS_rmdir,
    SYS_select,
    SYS_set_thread_area,
    SYS_signalfd,
    SYS_stat,
    SYS_symlink,
    SYS_time,
    SYS_unlink,
    SYS_utime,
    SYS_utimes,
    SYS_vfork,
];

#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

/// Allowed with a capability, by its number.
const ALLOWED_WITH: &[(u32, &[c_long])] = &[
    (
        21,
        &[
            SYS_bpf,
            SYS_clone,
            SYS_clone3,
            SYS_fanotify_init,
            SYS_fsconfig,
            SYS_fsmount,
            SYS_fsopen,
            SYS_fspick,
            SYS_mount,
            SYS_mount_setattr,
            SYS_move_mount,
            SYS_open_tree,
            SYS_perf_event_open,
            SYS_quotactl,
            SYS_quotactl_fd,
            SYS_setdomainname,
            SYS_sethostname,
            SYS_setns,
            SYS_syslog,
            SYS_umount2,
            SYS_unshare,
        ],
    ), // CAP_SYS_ADMIN
    (2, &[SYS_open_by_handle_at]), // CAP_DAC_READ_SEARCH
    (16, &[SYS_delete_module, SYS_finit_module, SYS_init_module]), // CAP_SYS_MODULE
    (18, &[SYS_chroot]),           // CAP_SYS_CHROOT
    (19, &[SYS_kcmp, SYS_pidfd_getfd, SYS_process_madvise]), // CAP_SYS_PTRACE
    (20, &[SYS_acct]),             // CAP_SYS_PACCT
    (22, &[SYS_reboot]),           // CAP_SYS_BOOT
    (23, &[SYS_get_mempolicy, SYS_mbind, SYS_set_mempolicy, SYS_set_mempolicy_home_node]), // CAP_SYS_NICE
    (25, &[SYS_clock_settime, SYS_settimeofday]), // CAP_SYS_TIME
    (26, &[SYS_vhangup]),          // CAP_SYS_TTY_CONFIG
    (34, &[SYS_syslog]),           // CAP_SYSLOG
    (38, &[SYS_perf_event_open]),  // CAP_PERFMON
    (39, &[SYS_bpf]),              // CAP_BPF
];

/// Not in the C library's list of either architecture.
#[cfg(target_arch = "x86_64")]
const SYS_IO_PGETEVENTS: c_long = 333;
#[cfg(not(target_arch = "x86_64"))]
const SYS_IO_PGETEVENTS: c_long = 292;

const CAP_SYS_ADMIN: u32 = 21;

/// Flags of clone that make namespaces.
const CLONE_NAMESPACES: u64 = 0x7E02_0000;

/// Execution domains that programs ask for: Linux, with and without 32 bit addresses, and what
/// the current one is.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];

/// The filter for a process with these capabilities.
pub(super) fn runtime_default(capabilities: u64) -> io::Result<Vec<sock_filter>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut allow = |calls: &[c_long]| rules.extend(calls.iter().map(|call| (*call, Vec::new())));
    allow(ALLOWED);
    allow(ALLOWED_HERE);
    allow(&[SYS_IO_PGETEVENTS]);
    let has = |capability: u32| capabilities >> capability & 1 == 1;
    for (capability, calls) in ALLOWED_WITH {
        if has(*capability) {
            allow(calls);
        }
    }
    let personalities: Result<Vec<_>, _> =
        PERSONALITIES.iter().map(|value| rule(0, SeccompCmpOp::Eq, *value)).collect();
    rules.insert(SYS_personality, personalities?);
    let vsock = u64::try_from(AF_VSOCK).expect("address families are positive");
    rules.insert(SYS_socket, vec![rule(0, SeccompCmpOp::Ne, vsock)?]);
    if !has(CAP_SYS_ADMIN) {
        rules.insert(SYS_clone, vec![rule(0, SeccompCmpOp::MaskedEq(CLONE_NAMESPACES), 0)?]);
    }
    let denied = SeccompAction::Errno(u32::try_from(EPERM).expect("error numbers are positive"));
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, denied, SeccompAction::Allow, arch).map_err(io::Error::other)?;
    let program: BpfProgram = filter.try_into().map_err(io::Error::other)?;
    Ok(match has(CAP_SYS_ADMIN) {
        true => program,
        false => [&CLONE3_IS_NEW[..], &program].concat(),
    })
}

/// A program as the agent wrote it.
pub(crate) fn program(instructions: &[u64]) -> Vec<sock_filter> {
    let instruction = |packed: &u64| {
        let [a, b, jt, jf, k @ ..] = packed.to_be_bytes();
        sock_filter { code: u16::from_be_bytes([a, b]), jt, jf, k: u32::from_be_bytes(k) }
    };
    instructions.iter().map(instruction).collect()
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> io::Result<SeccompRule> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value);
    SeccompRule::new(vec![condition.map_err(io::Error::other)?]).map_err(io::Error::other)
}

/// The arguments of clone3 are in memory, where no filter can look. C libraries fall back to
/// clone if it does not exist: `ENOSYS`, before anything else is looked at. Its number is the
/// same on all architectures.
const CLONE3_IS_NEW: [sock_filter; 3] = [
    // Load the number of the call.
    sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
    // Unless it is 435, skip the next instruction.
    sock_filter { code: 0x15, jt: 0, jf: 1, k: 435 },
    // Return an error, ENOSYS.
    sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x0005_0000 | 38 },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_fits_the_kernel() {
        let program = runtime_default(0).unwrap();
        // The kernel's limit of one program.
        assert!(program.len() < 4096, "{}", program.len());
        assert!(runtime_default(u64::MAX).is_ok());
    }

    #[test]
    fn capabilities_add_calls() {
        let plain = runtime_default(0).unwrap().len();
        assert!(runtime_default(1 << 18).unwrap().len() > plain);
    }
}
