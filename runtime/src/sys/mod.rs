//! What the operating system offers, behind small safe functions: paths that cannot leave their
//! root, mounts, control groups, processes by identity, durable files, passing file descriptors,
//! extended attributes, ids of user namespaces.

pub(crate) mod cgroup;
pub(crate) mod durable;
pub(crate) mod fds;
pub(crate) mod idmap;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod rooted;
pub(crate) mod xattr;
