//! Extended attributes, of the very file that a path names: links are not followed.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What the kernel allows for all names of a file, and for one value.
const MAX_BYTES: usize = 64 << 10;

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// The names of a file's attributes; none where the file system does not know them.
pub(crate) fn list(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let path = c_path(path)?;
    let mut names = vec![0u8; MAX_BYTES];
    // SAFETY: the path ends with a zero byte, and the buffer has the length that is given.
    let length = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    match usize::try_from(length) {
        Ok(length) => {
            let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
            Ok(names.map(<[u8]>::to_vec).collect())
        }
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOTSUP) => Ok(Vec::new()),
            error => Err(error),
        },
    }
}

/// The value of an attribute, if the file has it.
pub(crate) fn get(path: &Path, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let (path, name) = (c_path(path)?, CString::new(name)?);
    let mut value = vec![0u8; MAX_BYTES];
    // SAFETY: both strings end with a zero byte, and the buffer has the length that is given.
    let length =
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match usize::try_from(length) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(_) => match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::ENOTSUP)) => Ok(None),
            error => Err(error),
        },
    }
}
