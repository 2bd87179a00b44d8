//! Archives that were made to do harm: each ends with an error that says why, or does what it does inside.
//!
//! They are generated, entry by entry, from tables. After each, what lies outside of the root is compared
//! with what was there before.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::blob::digest_of;
use super::error::Error;
use super::{Store, unpack};

/// What must come of an archive.
enum Expect {
    /// An error with this in it.
    Refused(&'static str),
    /// It is unpacked, and this is true of the root.
    Contained(fn(&Path) -> bool),
}
use Expect::{Contained, Refused};

struct Case {
    name: String,
    bytes: Vec<u8>,
    expect: Expect,
}

/// A tar archive in the making, of headers that no library would write.
#[derive(Default, Clone)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(
        mut self,
        kind: u8,
        path: &[u8],
        link: &[u8],
        content: &[u8],
        change: impl FnOnce(&mut [u8]),
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(0o644);
        header.set_uid(nix::unistd::geteuid().as_raw().into());
        header.set_gid(nix::unistd::getegid().as_raw().into());
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        let fields = header.as_old_mut();
        fields.name[..path.len()].copy_from_slice(path);
        fields.linkname[..link.len()].copy_from_slice(link);
        change(header.as_mut_bytes());
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn entry(self, kind: u8, path: &str, link: &str) -> Self {
        let content: &[u8] = if kind == b'0' { b"evil" } else { b"" };
        self.raw(kind, path.as_bytes(), link.as_bytes(), content, |_| {})
    }

    fn file(self, path: &str) -> Self {
        self.entry(b'0', path, "")
    }

    fn dir(self, path: &str) -> Self {
        self.raw(b'5', path.as_bytes(), b"", b"", |header| header[100..107].copy_from_slice(b"0000755"))
    }

    fn link(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path, target)
    }

    fn hard(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path, target)
    }

    /// A name or link target of any length, before the entry that it is for.
    fn long(self, kind: u8, name: &[u8]) -> Self {
        let mut content = name.to_vec();
        content.push(0);
        self.raw(kind, b"././@LongLink", b"", &content, |_| {})
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            content.extend_from_slice(format!("{length} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.raw(b'x', b"pax", b"", &content, |_| {})
    }

    /// A size as the twelve bytes of its field.
    fn sized(self, path: &str, size: &[u8; 12]) -> Self {
        self.raw(b'0', path.as_bytes(), b"", b"", |header| header[124..136].copy_from_slice(size))
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn case(name: impl Into<String>, tar: Tar, expect: Expect) -> Case {
    Case { name: name.into(), bytes: tar.end(), expect }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Entries of all kinds whose names lead upwards.
fn upwards() -> Vec<Case> {
    let mut cases = Vec::new();
    for path in ["../x", "./../x", "a/../../x", "a/b/../../../x", "..", "a/..", "/../x"] {
        for kind in *b"0125673" {
            let name = format!("upwards {path} {}", char::from(kind));
            cases.push(case(name, Tar::default().entry(kind, path, "y"), Refused("leads upwards")));
        }
        let hidden = format!("{path}/.wh.x");
        cases.push(case(format!("upwards {hidden}"), Tar::default().file(&hidden), Refused("leads upwards")));
    }
    cases
}

/// Entries below links to all sorts of places.
fn through_links(outside: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for target in
        [outside, "../outside", "/proc/self/root", "/proc/self/cwd", "/", "..", "real", "l", "/dev/fd"]
    {
        let tar = Tar::default().dir("real/").link("l", target);
        for (what, path) in [
            (b'0', "l/evil"),
            (b'5', "l/evil/"),
            (b'2', "l/evil"),
            (b'1', "l/evil"),
            (b'6', "l/evil"),
            (b'0', "l/.wh.secret"),
            (b'0', "l/.wh..wh..opq"),
            (b'0', "l/deep/evil"),
        ] {
            let name = format!("through l -> {target}: {path} {}", char::from(what));
            cases.push(case(name, tar.clone().entry(what, path, "real"), Refused("symbolic link")));
        }
        let hard = tar.clone().hard("h", "l/secret");
        cases.push(case(format!("hard link through l -> {target}"), hard, Refused("link target")));
    }
    let chain = Tar::default().link("a", outside).link("b", "a").link("c", "b").file("c/evil");
    cases.push(case("chain of links", chain, Refused("symbolic link")));
    let late = Tar::default().dir("d/").file("d/a").link("d", outside).file("d/evil");
    cases.push(case("a directory becomes a link", late, Refused("symbolic link")));
    let above = Tar::default().dir("a/").dir("a/b/").file("a/b/x").link("a", outside).file("a/b/evil");
    cases.push(case("a directory above becomes a link", above, Refused("symbolic link")));
    cases
}

fn hard_links(outside: &str) -> Vec<Case> {
    let target = |target: &str| Tar::default().file("own").hard("h", target);
    let secret = format!("{outside}/secret");
    let through = Tar::default().link("s", &secret).hard("h", "s").file("h");
    let linked = Tar::default().file("own").hard("h", "own").file("h");
    vec![
        case("hard link upwards", target("../outside/secret"), Refused("link target")),
        case("hard link outside", target(&secret), Refused("link target")),
        case("hard link to the root", target("/"), Refused("it is the root")),
        case("hard link to .", target("."), Refused("it is the root")),
        case("hard link to nothing", target("none"), Refused("link target")),
        case("hard link without target", target(""), Refused("link target")),
        case("hard link to itself", Tar::default().hard("h", "h"), Refused("link target")),
        case("hard link to a directory", Tar::default().dir("d/").hard("h", "d"), Refused("link target")),
        case("hard link through a file", target("own/x"), Refused("link target")),
        case("hard link to a link, then written", through, Contained(|root| is_file(&root.join("h")))),
        case(
            "hard link that is replaced",
            linked,
            Contained(|root| root.join("own").metadata().unwrap().nlink() == 1),
        ),
    ]
}

fn is_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_file())
}

/// Names that are replaced, and absolute ones.
fn replaced(outside: &str) -> Vec<Case> {
    let secret = format!("{outside}/secret");
    let inside = |path: &str| Tar::default().file(path);
    vec![
        case(
            "link replaced by file",
            Tar::default().link("f", &secret).file("f"),
            Contained(|root| is_file(&root.join("f"))),
        ),
        case(
            "link replaced by directory",
            Tar::default().link("d", outside).dir("d/").file("d/x"),
            Contained(|root| is_file(&root.join("d/x"))),
        ),
        case(
            "link replaced by fifo",
            Tar::default().link("f", &secret).entry(b'6', "f", ""),
            Contained(|root| !root.join("f").is_symlink()),
        ),
        case(
            "link replaced by link",
            Tar::default().link("f", &secret).link("f", "x"),
            Contained(|root| fs::read_link(root.join("f")).unwrap() == Path::new("x")),
        ),
        case(
            "directory replaced by file",
            Tar::default().dir("d/").file("d/x").file("d"),
            Contained(|root| is_file(&root.join("d"))),
        ),
        case("file replaced by directory", inside("f").dir("f/"), Contained(|root| root.join("f").is_dir())),
        case(
            "directory twice",
            Tar::default().dir("d/").file("d/x").dir("d/"),
            Contained(|root| is_file(&root.join("d/x"))),
        ),
        case("file twice", inside("f").file("f"), Contained(|root| is_file(&root.join("f")))),
        case(
            "root replaced by a link",
            Tar::default().link("./", outside).file("x"),
            Contained(|root| is_file(&root.join("x"))),
        ),
        case("root's mode", Tar::default().dir("./").file("x"), Contained(|root| is_file(&root.join("x")))),
        case("absolute file", inside("/etc/x"), Contained(|root| is_file(&root.join("etc/x")))),
        case("absolute to outside", inside(&secret), Contained(|root| root.exists())),
        case("two slashes", inside("//x"), Contained(|root| is_file(&root.join("x")))),
        case("dots between", inside("./a/./x"), Contained(|root| is_file(&root.join("a/x")))),
        case(
            "absolute link is kept as it is",
            Tar::default().link("l", "/etc/passwd"),
            Contained(|root| root.join("l").is_symlink()),
        ),
        case("file below a file", inside("f").file("f/x"), Refused("no directory")),
        case("file below a fifo", Tar::default().entry(b'6', "f", "").file("f/x"), Refused("no directory")),
        case(
            "global header named like a file",
            inside("f").entry(b'g', "f", ""),
            Contained(|root| is_file(&root.join("f"))),
        ),
    ]
}

fn whiteouts() -> Vec<Case> {
    let mut cases = Vec::new();
    for name in [".wh.", ".wh..", ".wh...", ".wh..wh.x", ".wh..wh.", ".wh..wh..wh..opq"] {
        for path in [name.to_owned(), format!("d/{name}")] {
            cases.push(case(format!("whiteout {path}"), Tar::default().file(&path), Refused("no whiteout")));
        }
    }
    let own = Tar::default().file("x").file(".wh.x");
    cases.push(case("whiteout of the layer's own", own, Contained(|root| is_file(&root.join("x")))));
    if is_root() {
        let mark =
            |path: &Path| path.symlink_metadata().is_ok_and(|meta| meta.rdev() == 0 && !meta.is_file());
        let _: fn(&Path) -> bool = mark;
        cases.push(case(
            "whiteout",
            Tar::default().file(".wh.x"),
            Contained(|root| !is_file(&root.join("x")) && root.join("x").symlink_metadata().is_ok()),
        ));
        cases.push(case(
            "opaque at the root",
            Tar::default().file(".wh..wh..opq"),
            Contained(|root| fs::read_dir(root).unwrap().count() == 0),
        ));
        cases.push(case(
            "opaque without its directory",
            Tar::default().file("d/.wh..wh..opq"),
            Contained(|root| root.join("d").is_dir()),
        ));
        cases.push(case(
            "whiteout that is a directory",
            Tar::default().dir(".wh.d/"),
            Contained(|root| !root.join(".wh.d").exists()),
        ));
        cases.push(case(
            "whiteout that is a link",
            Tar::default().link(".wh.d", "/etc"),
            Contained(|root| !root.join(".wh.d").is_symlink()),
        ));
        cases.push(case(
            "whiteout twice",
            Tar::default().file(".wh.x").file(".wh.x"),
            Contained(|root| root.exists()),
        ));
        cases.push(case(
            "file in place of a whiteout",
            Tar::default().file(".wh.x").file("x"),
            Contained(|root| is_file(&root.join("x"))),
        ));
    }
    cases
}

fn device(kind: u8, major: &[u8; 8], minor: &[u8; 8]) -> Tar {
    Tar::default().raw(kind, b"dev", b"", b"", |header| {
        header[329..337].copy_from_slice(major);
        header[337..345].copy_from_slice(minor);
    })
}

fn kinds() -> Vec<Case> {
    let mut cases = vec![
        case("overlayfs' own mark", device(b'3', b"0000000\0", b"0000000\0"), Refused("0:0")),
        case("device without numbers", device(b'3', b"zzzzzzz\0", b"zzzzzzz\0"), Refused("0:0")),
        case("fifo", Tar::default().entry(b'6', "f", ""), Contained(|root| !is_file(&root.join("f")))),
        case("link without target", Tar::default().link("l", ""), Refused("cannot be unpacked")),
    ];
    for kind in *b"ZVMDNA" {
        let name = format!("unknown type {}", char::from(kind));
        cases.push(case(name, Tar::default().entry(kind, "x", ""), Refused("unknown type")));
    }
    let setuid =
        Tar::default().raw(b'0', b"su", b"", b"x", |header| header[100..107].copy_from_slice(b"0006755"));
    cases.push(case(
        "set-id bits are the image's",
        setuid,
        Contained(|root| root.join("su").metadata().unwrap().mode() & 0o7777 == 0o6755),
    ));
    let wide =
        Tar::default().raw(b'0', b"x", b"", b"x", |header| header[100..107].copy_from_slice(b"7777644"));
    cases.push(case("bits beyond permissions", wide, Contained(|root| is_file(&root.join("x")))));
    if is_root() {
        cases.push(case(
            "device",
            device(b'3', b"0000001\0", b"0000003\0"),
            Contained(|root| root.join("dev").metadata().unwrap().rdev() == 0x103),
        ));
        cases.push(case(
            "block device",
            device(b'4', b"0000010\0", b"0000000\0"),
            Contained(|root| root.join("dev").metadata().unwrap().rdev() == 0x800),
        ));
    }
    cases
}

/// Numbers that are none, or too large.
fn numbers() -> Vec<Case> {
    let mut huge = [0xff; 12];
    huge[0] = 0x80;
    let mut exa = [0; 12];
    exa[0] = 0x80;
    exa[4] = 0x7f;
    let owner = |at: usize| {
        Tar::default().raw(b'0', b"x", b"", b"", |header| {
            header[at..at + 8].copy_from_slice(&[0x80, 0, 0, 1, 0, 0, 0, 0]);
        })
    };
    let pax = |key: &str, value: &str| Tar::default().pax(&[(key, value.as_bytes())]).file("x");
    let field = |at: usize| {
        Tar::default().raw(b'0', b"x", b"", b"", |header| header[at..at + 7].copy_from_slice(b"9z!9z!9"))
    };
    let sparse = |offset: &[u8; 12], length: &[u8; 12], real: &[u8; 12]| {
        Tar::default().raw(b'S', b"x", b"", b"", |header| {
            header[386..398].copy_from_slice(offset);
            header[398..410].copy_from_slice(length);
            header[483..495].copy_from_slice(real);
        })
    };
    vec![
        case("negative size", Tar::default().sized("x", &[0xff; 12]), Refused("")),
        case("size beyond 64 bits", Tar::default().sized("x", &huge), Refused("")),
        case("exabytes", Tar::default().sized("x", &exa), Refused("")),
        case("more than the archive has", Tar::default().sized("x", b"00077777777\0"), Refused("")),
        case(
            "more than a layer may have",
            Tar::default().sized("x", b"77777777777\0").raw(b'0', b"y", b"", b"", |_| {}),
            Refused(""),
        ),
        case("size that is no number", Tar::default().sized("x", b"zzzzzzzzzzz\0"), Refused("")),
        case("mode that is no number", field(100), Refused("")),
        case("owner that is no number", field(108), Refused("")),
        case("time that is no number", field(136), Refused("")),
        case("owner beyond 32 bits", owner(108), Refused("owner is out of range")),
        case("group beyond 32 bits", owner(116), Refused("owner is out of range")),
        case("PAX owner beyond 32 bits", pax("uid", "99999999999"), Refused("owner is out of range")),
        case("PAX size beyond the archive", pax("size", "99999999999"), Refused("")),
        case(
            "PAX size beyond 64 bits",
            pax("size", "99999999999999999999999"),
            Contained(|root| is_file(&root.join("x"))),
        ),
        case("PAX size that is negative", pax("size", "-1"), Contained(|root| is_file(&root.join("x")))),
        case("sparse petabytes", sparse(b"00000000000\0", b"00000000000\0", b"77777777777\0"), Refused("")),
        case(
            "sparse that overlaps",
            sparse(b"00000001000\0", b"77777777777\0", b"00000000010\0"),
            Refused(""),
        ),
        case(
            "sparse that is no number",
            sparse(b"zzzzzzzzzzz\0", b"00000000001\0", b"00000000010\0"),
            Refused(""),
        ),
    ]
}

fn names() -> Vec<Case> {
    let long = |name: &[u8]| Tar::default().long(b'L', name).file("x");
    let pax = |key: &str, value: &[u8]| Tar::default().pax(&[(key, value)]).file("x");
    let deep = "d/".repeat(300);
    let claimed = |kind: u8| {
        Tar::default()
            .raw(kind, b"long", b"", b"", |header| header[124..136].copy_from_slice(b"07777777777\0"))
    };
    let broken = |records: &[u8]| Tar::default().raw(b'x', b"pax", b"", records, |_| {}).file("x");
    vec![
        case(
            "name with a newline",
            Tar::default().file("a\nb"),
            Contained(|root| is_file(&root.join("a\nb"))),
        ),
        case(
            "name that is no UTF-8",
            Tar::default().raw(b'0', b"\xff\xfe", b"", b"", |_| {}),
            Contained(|root| is_file(&root.join(std::ffi::OsStr::from_bytes(b"\xff\xfe")))),
        ),
        case("no name", Tar::default().file(""), Contained(|root| fs::read_dir(root).unwrap().count() == 0)),
        case("a name too long", long(&[b'n'; 300]), Refused("cannot be unpacked")),
        case("a path too long", long("n/".repeat(3000).as_bytes()), Refused("nested too deeply")),
        case(
            "a long path of short depth",
            long(&[[b'n'; 250].as_slice(), b"/", &[b'm'; 250]].concat()),
            Contained(|root| root.exists()),
        ),
        case("nested too deeply", long(deep.as_bytes()), Refused("nested too deeply")),
        case("long name upwards", long(b"a/../../../x"), Refused("leads upwards")),
        case("PAX name upwards", pax("path", b"../x"), Refused("leads upwards")),
        case("PAX name with a zero", pax("path", b"a\0b"), Refused("")),
        case(
            "long link upwards",
            Tar::default().long(b'K', b"../outside/secret").hard("h", "x"),
            Refused("link target"),
        ),
        case(
            "PAX link upwards",
            Tar::default().pax(&[("linkpath", b"../outside/secret")]).hard("h", "x"),
            Refused("link target"),
        ),
        case("a gigabyte as a name", claimed(b'L'), Refused("more than")),
        case("a gigabyte as a link", claimed(b'K'), Refused("more than")),
        case("a gigabyte of records", claimed(b'x'), Refused("more than")),
        case("two long names", Tar::default().long(b'L', b"a").long(b'L', b"b").file("x"), Refused("")),
        case("long name and nothing", Tar::default().long(b'L', b"a"), Refused("")),
        case("records without length", broken(b"no length\n"), Refused("")),
        case("records of a wrong length", broken(b"99 a=b\n"), Refused("")),
        case("records without end", broken(b"7 a=bc"), Contained(|root| is_file(&root.join("x")))),
        case(
            "overlayfs' attribute",
            pax("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            Refused("overlayfs' own"),
        ),
        case(
            "overlayfs' redirection",
            pax("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            Refused("overlayfs' own"),
        ),
        case(
            "overlayfs' user attribute",
            pax("SCHILY.xattr.user.overlay.whiteout", b"y"),
            Refused("overlayfs' own"),
        ),
        case("attribute with a zero in its name", pax("SCHILY.xattr.user.a\0b", b"y"), Refused("")),
        case("attribute without a name", pax("SCHILY.xattr.", b"y"), Refused("")),
        case(
            "attribute of a megabyte",
            pax("SCHILY.xattr.user.a", &vec![b'y'; 900_000]),
            Refused("cannot be unpacked"),
        ),
    ]
}

/// What is no whole archive.
fn broken() -> Vec<Case> {
    let whole = Tar::default().file("x").file("y").end();
    let cut = |length: usize| whole[..length].to_vec();
    let mut checksum = whole.clone();
    checksum[10] ^= 1;
    let raw = |name: &str, bytes: Vec<u8>, expect| Case { name: name.to_owned(), bytes, expect };
    vec![
        raw("nothing", Vec::new(), Contained(|root| fs::read_dir(root).unwrap().count() == 0)),
        raw("zeros", vec![0; 1 << 20], Contained(|root| fs::read_dir(root).unwrap().count() == 0)),
        raw("text", b"this is no archive at all".repeat(100), Refused("not a tar archive")),
        raw("wrong checksum", checksum, Refused("not a tar archive")),
        raw("cut in a header", cut(100), Refused("")),
        raw("cut in the content", cut(514), Refused("")),
        raw("cut in the second header", cut(1100), Refused("")),
        raw("without an end", cut(2048), Contained(|root| is_file(&root.join("y")))),
        raw(
            "garbage after the end",
            [whole.clone(), vec![0xaa; 4096]].concat(),
            Contained(|root| is_file(&root.join("y"))),
        ),
        raw(
            "another archive after the end",
            [whole.clone(), Tar::default().file("../x").end()].concat(),
            Contained(|root| is_file(&root.join("y"))),
        ),
    ]
}

/// What is there, with everything that an unpacker could change.
fn snapshot(path: &Path) -> BTreeMap<PathBuf, (u32, u32, u64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut open = vec![path.to_owned()];
    while let Some(path) = open.pop() {
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        found.insert(path, (meta.mode(), meta.uid(), meta.nlink(), meta.mtime(), content));
    }
    found
}

fn text(error: &Error) -> String {
    crate::error::chain(error)
}

#[test]
fn layers_are_refused_or_contained() {
    let world = tempfile::tempdir().unwrap();
    let outside = world.path().join("outside");
    fs::create_dir_all(outside.join("deep")).unwrap();
    fs::write(outside.join("secret"), "whole").unwrap();
    symlink("secret", outside.join("link")).unwrap();
    let before = snapshot(&outside);
    let shown = outside.display().to_string();
    let tables = [
        upwards(),
        through_links(&shown),
        hard_links(&shown),
        replaced(&shown),
        whiteouts(),
        kinds(),
        numbers(),
        names(),
        broken(),
    ];
    let cases: Vec<Case> = tables.into_iter().flatten().collect();
    let names: std::collections::BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "each has a name of its own");
    assert!(cases.len() >= 100, "{}", cases.len());
    let root = world.path().join("root");
    let mut wrong = Vec::new();
    for Case { name, bytes, expect } in &cases {
        fs::create_dir(&root).unwrap();
        let result = unpack(name, bytes.as_slice(), &root).map_err(|error| text(&error));
        match (&result, expect) {
            (Err(error), Refused(why)) if error.contains(why) => {}
            (Ok(_), Contained(holds)) if holds(&root) => {}
            (_, Refused(why)) => wrong.push(format!("{name}: expected {why:?}: {result:?}")),
            (_, Contained(_)) => wrong.push(format!("{name}: not contained as expected: {result:?}")),
        }
        assert_eq!(snapshot(&outside), before, "{name}: changed what is outside");
        let names: Vec<_> =
            fs::read_dir(world.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{name}: {names:?}");
        fs::remove_dir_all(&root).unwrap();
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn many_entries_take_no_memory_of_their_own() {
    let root = tempfile::tempdir().unwrap();
    // The same file again and again, as a stream: nothing of it is kept.
    let one = Tar::default().file("x").0;
    let stream = std::io::Read::chain(std::io::Cursor::new(one.repeat(20_000)), std::io::empty());
    unpack("many", stream, root.path()).unwrap();
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}

/// An OCI archive with these files, and what must be said about it.
fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn blob(files: &mut Vec<(String, Vec<u8>)>, content: Vec<u8>) -> String {
    let digest = digest_of(&content);
    files.push((format!("blobs/sha256/{}", &digest[7..]), content));
    digest
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image of a layer that says it has this digest when unpacked.
fn image(layer: Vec<u8>, diff_id: &str, change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut files = Vec::new();
    let layer = blob(&mut files, layer);
    let config = json!({ "os": "linux", "rootfs": { "type": "layers", "diff_ids": [diff_id] } });
    let config = blob(&mut files, config.to_string().into_bytes());
    let mut manifest = json!({ "config": { "digest": config }, "layers": [{ "digest": layer }] });
    change(&mut manifest);
    let manifest = blob(&mut files, manifest.to_string().into_bytes());
    let index = json!({ "manifests": [{ "mediaType": MANIFEST, "digest": manifest }] });
    files.push(("index.json".into(), index.to_string().into_bytes()));
    archive(&files)
}

fn docker(manifest: &serde_json::Value, files: &[(&str, &str)]) -> Vec<u8> {
    let mut all = vec![("manifest.json".to_owned(), manifest.to_string().into_bytes())];
    all.extend(files.iter().map(|(name, content)| ((*name).to_owned(), content.as_bytes().to_vec())));
    archive(&all)
}

fn nested_indexes() -> Vec<u8> {
    let mut files = Vec::new();
    let mut digest = blob(&mut files, b"{}".to_vec());
    for _ in 0..20 {
        let index = json!({ "manifests": [{ "mediaType": INDEX, "digest": digest }] });
        digest = blob(&mut files, index.to_string().into_bytes());
    }
    let index = json!({ "manifests": [{ "mediaType": INDEX, "digest": digest }] });
    files.push(("index.json".into(), index.to_string().into_bytes()));
    archive(&files)
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn images() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = Tar::default().file("x").end();
    let diff_id = digest_of(&good);
    let other = digest_of(b"other");
    let keep = |_: &mut serde_json::Value| {};
    let truncated = gzip(&good.repeat(50));
    let truncated = truncated[..truncated.len() / 2].to_vec();
    let zstd = zstd::encode_all(good.repeat(50).as_slice(), 1).unwrap();
    let zstd = zstd[..zstd.len() / 2].to_vec();
    let config = r#"{"rootfs":{"diff_ids":[]}}"#;
    let docker_of =
        |config: &str, layers: &[&str]| json!([{ "Config": config, "Layers": layers, "RepoTags": null }]);
    let many: Vec<String> = vec![other.clone(); 200];
    let many_config = json!({ "rootfs": { "diff_ids": many } }).to_string();
    let deep = "[".repeat(100_000);
    vec![
        ("layer of another digest", image(good.clone(), &other, keep), "content has digest"),
        (
            "layer with an upward path",
            image(Tar::default().file("../x").end(), &other, keep),
            "leads upwards",
        ),
        ("gzip that is cut off", image(truncated, &diff_id, keep), ""),
        ("zstd that is cut off", image(zstd, &diff_id, keep), ""),
        ("gzip with garbage", image([gzip(&good), vec![0xaa; 100]].concat(), &diff_id, keep), ""),
        (
            "gigabytes of padding",
            image(gzip(&vec![0; 80 << 20]), &digest_of(b""), keep),
            "content has digest",
        ),
        ("digest of another kind", image(good.clone(), "sha512:abc", keep), "not a SHA-256 digest"),
        (
            "digest that is a path",
            image(good.clone(), &diff_id, |m| m["layers"][0]["digest"] = "sha256:../../../etc/passwd".into()),
            "not a SHA-256 digest",
        ),
        (
            "layer that is missing",
            image(good.clone(), &diff_id, |m| m["layers"][0]["digest"] = digest_of(b"none").into()),
            "missing",
        ),
        (
            "config that is missing",
            image(good.clone(), &diff_id, |m| m["config"]["digest"] = digest_of(b"none").into()),
            "missing",
        ),
        (
            "more layers than digests",
            image(good.clone(), &diff_id, |m| {
                let layer = m["layers"][0].clone();
                m["layers"].as_array_mut().unwrap().push(layer);
            }),
            "2 layers, but",
        ),
        ("manifest that is a list", image(good.clone(), &diff_id, |m| *m = json!([])), "JSON"),
        ("indexes in indexes", nested_indexes(), "nested too deeply"),
        ("index of brackets", archive(&[("index.json".into(), deep.into_bytes())]), "JSON"),
        ("index of megabytes", archive(&[("index.json".into(), vec![b' '; 5 << 20])]), "larger than"),
        ("docker config upwards", docker(&docker_of("../../../etc/passwd", &[]), &[]), "missing"),
        (
            "docker layer upwards",
            docker(&docker_of("c.json", &["../../../etc/passwd"]), &[("c.json", config)]),
            "1 layers, but",
        ),
        (
            "docker with too many layers",
            docker(&docker_of("c.json", &vec!["l"; 200]), &[("c.json", &many_config)]),
            "more than 127 layers",
        ),
        (
            "docker config of another digest",
            docker(
                &docker_of(&format!("{}.json", "a".repeat(64)), &[]),
                &[(&format!("{}.json", "a".repeat(64)), config)],
            ),
            "content has digest",
        ),
        ("nothing of an image", archive(&[("hello".into(), Vec::new())]), "neither"),
    ]
}

#[test]
fn images_are_refused_and_leave_nothing() {
    let world = tempfile::tempdir().unwrap();
    let store = Store::open(world.path().join("store")).unwrap();
    let path = world.path().join("image.tar");
    for (name, bytes, expected) in images() {
        fs::write(&path, bytes).unwrap();
        match store.import(&path) {
            Ok(images) => panic!("{name}: imported {images:?}"),
            Err(error) => assert!(text(&error).contains(expected), "{name}: {}", text(&error)),
        }
        assert!(store.list().is_empty(), "{name}");
        assert_eq!(fs::read_dir(store.layers()).unwrap().count(), 0, "{name}: a layer is left");
    }
    // A link to a file of the machine is no file of the archive.
    let manifest = json!([{ "Config": "c.json", "Layers": [], "RepoTags": null }]).to_string();
    let linked = Tar::default()
        .raw(b'0', b"manifest.json", b"", manifest.as_bytes(), |_| {})
        .link("c.json", "/etc/passwd");
    fs::write(&path, linked.end()).unwrap();
    assert!(text(&store.import(&path).unwrap_err()).contains("c.json: missing"));
}
