//! Which devices a group may use, with control groups of version 2.
//!
//! Version 1 has a controller for it. Version 2 asks a program, which is written here,
//! instruction by instruction: without it a container that may make device files could read the
//! machine's disks.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// What the kernel calls the kinds of devices, and what may be done with them.
const BLOCK: u32 = 1;
const CHAR: u32 = 2;
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// One kind of devices that a group may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    kind: u32,
    access: u32,
    major: Option<u32>,
    minor: Option<u32>,
}

impl Rule {
    /// From OCI's words: `c` or `b`, numbers, and any of `rwm`.
    pub(crate) fn new(kind: &str, major: Option<u32>, minor: Option<u32>, access: &str) -> Self {
        let bit = |letter: char, bit: u32| if access.contains(letter) { bit } else { 0 };
        Rule {
            kind: if kind == "b" { BLOCK } else { CHAR },
            access: bit('m', MKNOD) | bit('r', READ) | bit('w', WRITE),
            major,
            minor,
        }
    }

    /// What every container may use: the harmless devices of its own `/dev`, terminals, and
    /// making device files as such.
    pub(crate) fn defaults() -> Vec<Self> {
        let memory = [3, 5, 7, 8, 9].map(|minor| Rule::new("c", Some(1), Some(minor), "rwm"));
        let terminals = [
            Rule::new("c", Some(5), Some(0), "rwm"),
            Rule::new("c", Some(5), Some(2), "rwm"),
            Rule::new("c", Some(136), None, "rwm"),
        ];
        let making = ["c", "b"].map(|kind| Rule::new(kind, None, None, "m"));
        [memory.as_slice(), &terminals, &making].concat()
    }
}

/// An instruction of the kernel's virtual machine.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The part of the kernel's `bpf_attr` that loading a program takes.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The part of the kernel's `bpf_attr` that attaching one takes.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Lets a group use what one of the rules allows, and nothing else. Lasts as long as the group.
pub(super) fn restrict(directory: &Path, rules: &[Rule]) -> io::Result<()> {
    let program = program(rules);
    let license = c"Apache-2.0";
    let load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: program and license outlive the call, and the lengths are theirs.
    let loaded = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    if loaded < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(loaded).expect("a descriptor fits an int");
    // SAFETY: the descriptor is new and nobody else owns it.
    let loaded = unsafe { OwnedFd::from_raw_fd(fd) };
    let directory = File::open(directory)?;
    let attach = Attach {
        target: directory.as_raw_fd().cast_unsigned(),
        program: loaded.as_raw_fd().cast_unsigned(),
        kind: ATTACH_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: both descriptors are open through the call.
    match unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attach, size_of::<Attach>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The program: answers 1 at the first rule that fits, 0 after the last.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    // Register 1 points to the question: kind and access, major, minor.
    let mut program = vec![
        load_word(2, 0),
        and(2, 0xFFFF),
        load_word(3, 0),
        shift_right(3, 16),
        load_word(4, 4),
        load_word(5, 8),
    ];
    for rule in rules {
        let mut checks = vec![Check::Differs(2, rule.kind), Check::Exceeds(rule.access)];
        checks.extend(rule.major.map(|major| Check::Differs(4, major)));
        checks.extend(rule.minor.map(|minor| Check::Differs(5, minor)));
        for (index, check) in checks.iter().enumerate() {
            // Over the checks that follow, and the two instructions that allow.
            let rest = checks[index + 1..].iter().map(Check::length).sum::<usize>() + 2;
            check.emit(i16::try_from(rest).expect("a rule has a dozen instructions"), &mut program);
        }
        program.extend([set(0, 1), EXIT]);
    }
    program.extend([set(0, 0), EXIT]);
    program
}

/// What keeps a rule from fitting.
enum Check {
    /// The register has another value.
    Differs(u8, u32),
    /// More is asked for than this access.
    Exceeds(u32),
}

impl Check {
    fn length(&self) -> usize {
        match self {
            Check::Differs(..) => 1,
            Check::Exceeds(_) => 3,
        }
    }

    fn emit(&self, skip: i16, program: &mut Vec<Instruction>) {
        match *self {
            Check::Differs(register, value) => program.push(jump_if_not(register, value, skip)),
            Check::Exceeds(access) => {
                program.extend([copy(6, 3), and(6, !access & 7), jump_if_not(6, 0, skip)]);
            }
        }
    }
}

const EXIT: Instruction = Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 };

fn load_word(target: u8, offset: i16) -> Instruction {
    Instruction { code: 0x61, registers: target | 1 << 4, offset, immediate: 0 }
}

fn and(register: u8, mask: u32) -> Instruction {
    Instruction { code: 0x54, registers: register, offset: 0, immediate: mask.cast_signed() }
}

fn shift_right(register: u8, bits: i32) -> Instruction {
    Instruction { code: 0x74, registers: register, offset: 0, immediate: bits }
}

fn copy(target: u8, source: u8) -> Instruction {
    Instruction { code: 0xBC, registers: target | source << 4, offset: 0, immediate: 0 }
}

fn set(register: u8, value: i32) -> Instruction {
    Instruction { code: 0xB7, registers: register, offset: 0, immediate: value }
}

fn jump_if_not(register: u8, value: u32, skip: i16) -> Instruction {
    Instruction { code: 0x55, registers: register, offset: skip, immediate: value.cast_signed() }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// On machines with both versions the second has no controllers, but runs such programs.
    #[test]
    fn groups_use_what_they_may() {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .find(|path| Path::new(path).join("cgroup.controllers").exists())
            .expect("version 2 is mounted somewhere");
        let group = Path::new(root).join(format!("dcp-device-{}", std::process::id()));
        std::fs::create_dir(&group).unwrap();
        restrict(&group, &Rule::defaults()).unwrap();
        let script = format!(
            "echo $$ > {}/cgroup.procs; head -c1 /dev/zero | tr '\\0' z; head -c1 /dev/full | tr '\\0' f; \
             head -c1 /dev/kmsg 2>/dev/null >/dev/null && echo kmsg; \
             head -c0 /dev/loop0 2>/dev/null && echo disk; echo; exit 0",
            group.display()
        );
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        std::fs::remove_dir(&group).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "zf\n", "{output:?}");
    }

    #[test]
    fn every_jump_lands_in_the_program() {
        let program = program(&Rule::defaults());
        for (index, instruction) in program.iter().enumerate().filter(|(_, found)| found.code == 0x55) {
            let target = index + 1 + usize::try_from(instruction.offset).unwrap();
            // At the next rule's first check, or at the refusal.
            assert!(target < program.len() && program[target - 1] == EXIT, "{index}");
        }
    }
}
