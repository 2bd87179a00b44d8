//! Images from Dockerfiles.

use std::path::{Path, PathBuf};

use decapod_proto::cri;
use decapod_runtime::{BuildRequest, Error, PROGRESS_LINES};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::support::{World, command};

/// A context of these files.
fn context(world: &World, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let context = world.root.join(name);
    for (path, content) in files {
        let path = context.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    context
}

fn request(context: &Path, tag: &str) -> BuildRequest {
    BuildRequest {
        context: context.to_owned(),
        file: context.join("Dockerfile"),
        file_name: "Dockerfile".into(),
        tags: vec![tag.to_owned()],
        ..Default::default()
    }
}

/// Builds, and returns what was said.
async fn build(world: &World, request: BuildRequest) -> (Result<cri::Image, Error>, Vec<String>) {
    let (sender, mut receiver) = mpsc::channel(PROGRESS_LINES);
    let building = world.embedded().image_build(request, sender, CancellationToken::new());
    let listening = async {
        let mut lines = Vec::new();
        while let Some(line) = receiver.recv().await {
            lines.push(line);
        }
        lines
    };
    tokio::join!(building, listening)
}

async fn built(world: &World, request: BuildRequest) -> (cri::Image, Vec<String>) {
    let (result, lines) = build(world, request).await;
    match result {
        Ok(image) => (image, lines),
        Err(error) => panic!("{}\n{}", error.chain(), lines.join("\n")),
    }
}

async fn refused(world: &World, request: BuildRequest) -> String {
    match build(world, request).await.0 {
        Ok(image) => panic!("built: {image:?}"),
        Err(error @ Error::Image { .. }) => error.chain(),
        Err(error) => panic!("not an image error: {error:?}"),
    }
}

fn of_image(name: &str, image: &str, words: &[&str]) -> cri::ContainerConfig {
    let mut config = command(name, words);
    config.image = Some(cri::ImageSpec { image: image.into(), ..Default::default() });
    config
}

fn cached(lines: &[String]) -> usize {
    lines.iter().filter(|line| *line == "CACHED").count()
}

const DOCKERFILE: &str = r#"# every instruction
ARG BASE=test.internal/busybox:1
FROM ${BASE} AS tools
RUN busybox mkdir -p /out/empty && echo made > /out/made && busybox rm /etc/group && busybox ln /out/made /out/second
RUN <<EOF
echo "heredoc $(id -u)" > /out/heredoc
EOF

FROM test.internal/busybox:1
ARG WHO=nobody
ENV GREETING="hello $WHO" KEPT=yes
LABEL a=b
WORKDIR /work/dir
COPY --from=tools /out ./
COPY --chown=web:logs --chmod=640 *.txt src /data/
COPY <<FILE /inline
greeting is $GREETING
FILE
ADD archive.tar.gz /unpacked
RUN busybox rm /etc/group && echo "$WHO $GREETING" > said && busybox test ! -e /data/skipped.txt
RUN ["sh", "-c", "echo direct; echo wrong >&2"]
USER web
EXPOSE 80
VOLUME /state
ENTRYPOINT ["cat"]
CMD ["/work/dir/said", "/inline"]
"#;

pub(crate) async fn dockerfiles_become_images() {
    let world = World::new("build").await;
    let files = [
        ("Dockerfile", DOCKERFILE),
        ("a.txt", "text a"),
        ("skipped.txt", "not to be copied"),
        ("src/deep/b", "b"),
        (".dockerignore", "skipped.*\n"),
    ];
    let context = context(&world, "context", &files);
    let inside = super::archive::tar_of(&[super::archive::Entry::file("inside", "of the archive\n")]);
    let inside = super::archive::compress(&inside, super::archive::Compression::Gzip);
    std::fs::write(context.join("archive.tar.gz"), inside).unwrap();

    let mut wanted = request(&context, "built.internal/app:1");
    wanted.args.insert("WHO".into(), "world".into());
    let (image, lines) = built(&world, wanted.clone()).await;
    assert!(lines.contains(&"direct".to_owned()) && lines.contains(&"wrong".to_owned()), "{lines:#?}");
    assert_eq!(cached(&lines), 0, "{lines:#?}");
    assert_eq!(image.repo_tags, ["built.internal/app:1"]);

    let pod = world.pod("build").await;
    let own = of_image("own", "built.internal/app:1", &[]);
    assert_eq!(world.run(&pod, &own).await.1, "world hello world\ngreeting is hello world\n");
    let look = "id -u; busybox pwd; cat made heredoc /unpacked/inside; stat -c '%u %g %a' /data/a.txt; \
                stat -c %h made; ls -a /data /; ls empty; busybox test -e /etc/group || echo no group; echo $KEPT";
    let mut config = of_image("look", "built.internal/app:1", &["sh", "-c", look]);
    config.command = ["sh", "-c", look].map(str::to_owned).to_vec();
    let (status, log) = world.run(&pod, &config).await;
    let begin = "33\n/work/dir\nmade\nheredoc 0\nof the archive\n33 50 640\n2\n";
    assert!(log.starts_with(begin) && log.ends_with("no group\nyes\n"), "{status:?}\n{log}");
    assert!(!log.contains("skipped"), "{log}");

    // Again: nothing is run, and it is the same image.
    let (again, lines) = built(&world, wanted.clone()).await;
    assert_eq!(again.id, image.id);
    assert_eq!(cached(&lines), 9, "{lines:#?}");
    // What comes before a change is taken, what comes after it is not.
    std::fs::write(context.join("a.txt"), "other").unwrap();
    let (changed, lines) = built(&world, wanted.clone()).await;
    assert_ne!(changed.id, image.id);
    assert_eq!(cached(&lines), 4, "{lines:#?}");
    // One stage, as an archive.
    wanted.target = Some("tools".into());
    wanted.tags = vec!["built.internal/tools:1".into()];
    wanted.output = Some(world.root.join("tools.tar"));
    let (tools, _) = built(&world, wanted).await;
    let spec = cri::ImageSpec { image: "built.internal/tools:1".into(), ..Default::default() };
    world.runtime.image_remove(&spec).await.unwrap();
    let imported = world.import(&world.root.join("tools.tar")).await.unwrap();
    assert_eq!((&imported[0].id, imported[0].repo_tags[0].as_str()), (&tools.id, "built.internal/tools:1"));
    world.end().await;
}

pub(crate) async fn images_come_from_nothing_and_are_reproducible() {
    let world = World::new("scratch").await;
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let context = context(&world, "context", &[("f", "x")]);
    std::fs::write(context.join("busybox"), busybox).unwrap();
    let dockerfile = "FROM scratch\nCOPY --chmod=755 busybox /bin/\nRUN [\"/bin/busybox\", \"touch\", \"/made\"]\n\
                      RUN --mount=type=cache,target=/cache [\"/bin/busybox\", \"touch\", \"/cache/x\"]\n\
                      CMD [\"/bin/busybox\", \"ls\", \"/\"]\n";
    std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let mut wanted = request(&context, "built.internal/scratch:1");
    wanted.epoch = Some(1_000_000_000);
    wanted.no_cache = true;
    let (first, _) = built(&world, wanted.clone()).await;
    let (second, lines) = built(&world, wanted).await;
    assert_eq!(first.id, second.id, "{lines:#?}");
    let pod = world.pod("scratch").await;
    let (_, log) = world.run(&pod, &of_image("c", "built.internal/scratch:1", &[])).await;
    // Mount points are each container's own: there is none of those that the build had.
    assert_eq!(log, "bin\ndev\netc\nmade\nproc\nsys\n");
    let layers = std::fs::read_dir(world.root.join("data/images/layers")).unwrap().flatten();
    let is_bad = |layer: &Path| layer.join("etc/hosts").exists() || layer.join("proc").exists();
    assert_eq!(layers.filter(|layer| is_bad(&layer.path())).count(), 0, "mount points are in a layer");
    assert!(world.embedded().builds_forget().await.unwrap() > 0);
    world.end().await;
}

pub(crate) async fn builds_that_fail_say_where() {
    let world = World::new("badbuild").await;
    let cases = [
        ("\nRUN echo x && exit 3", "Dockerfile:3: RUN: the command ended with exit code 3"),
        ("RUN [\"nothing\"]", "Dockerfile:2: RUN: failed to start: exec: \"nothing\""),
        ("COPY none /", "Dockerfile:2: COPY: \"none\": there is no such file"),
        ("COPY ../../etc/passwd /", "there is no such file"),
        ("COPY f /bin/sh/x", "/bin/sh: is there and is no directory"),
        ("COPY --chown=x f /", "--chown=x: invalid user: \"x\": no matching entries"),
        ("COPY --from=127.0.0.1:1/x:1 f /", "Dockerfile:2: COPY: image \"127.0.0.1:1/x:1\""),
        ("ENV A=\"${B:?is needed}\"", "Dockerfile:2: ENV: B: is needed"),
        ("FROM $NONE", "Dockerfile:2: FROM: \"$NONE\" is empty: expected an image"),
        ("FROM --platform=linux/s390x scratch", "expected linux/"),
        ("USER nobody\nRUN id", "Dockerfile:3: RUN: invalid user: \"nobody\""),
        ("EXPOSE web", "Dockerfile:2: EXPOSE: \"web\": expected PORT"),
    ];
    for (lines, expected) in cases {
        let dockerfile = format!("FROM test.internal/busybox:1\n{lines}\n");
        let context = context(&world, "context", &[("Dockerfile", dockerfile.as_str()), ("f", "f")]);
        let error = refused(&world, request(&context, "bad.internal/x:1")).await;
        assert!(error.contains(expected), "{dockerfile}: {error}");
    }
    let mut wanted = request(&world.root.join("context"), "bad.internal/x:1");
    wanted.target = Some("none".into());
    assert!(refused(&world, wanted).await.contains("--target none: Dockerfile has no such stage"));
    assert!(world.runtime.sandbox_list(None).await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(world.root.join("data/builds")).unwrap().count(), 0);
    assert_eq!(world.runtime.image_list(None).await.unwrap().len(), 1);
    world.end().await;
}

pub(crate) async fn builds_that_are_cut_off_leave_nothing() {
    let world = World::new("cutoff").await;
    let dockerfile = "FROM test.internal/busybox:1\nRUN echo begun; sleep 1000\n";
    let context = context(&world, "context", &[("Dockerfile", dockerfile)]);
    let wanted = request(&context, "bad.internal/x:1");

    let (sender, mut receiver) = mpsc::channel(PROGRESS_LINES);
    let cancel = CancellationToken::new();
    let building = world.embedded().image_build(wanted.clone(), sender, cancel.clone());
    let cancelling = async {
        while receiver.recv().await.unwrap() != "begun" {}
        cancel.cancel();
    };
    let (result, ()) = tokio::join!(building, cancelling);
    assert!(result.unwrap_err().chain().contains("the build was cancelled"));
    assert!(world.runtime.sandbox_list(None).await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(world.root.join("data/builds")).unwrap().count(), 0);

    // An agent that ends in the middle of a command: the next one removes what is left.
    let (sender, mut receiver) = mpsc::channel(PROGRESS_LINES);
    {
        let building = world.embedded().image_build(wanted, sender, CancellationToken::new());
        let waiting = async { while receiver.recv().await.unwrap() != "begun" {} };
        tokio::select! {
            result = building => panic!("{result:?}"),
            () = waiting => {}
        }
    }
    assert_eq!(world.runtime.sandbox_list(None).await.unwrap().len(), 1);
    world.embedded().close().await;
    let name = world.root.file_name().unwrap().to_str().unwrap().trim_start_matches("dcp-").to_owned();
    let next = World::open(&name).await;
    assert!(next.runtime.sandbox_list(None).await.unwrap().is_empty());
    assert!(!next.root.join("data/builds").exists());
    next.end().await;
}
