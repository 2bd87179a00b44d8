//! From lines to typed instructions.

use super::lines::{self, Heredoc, Line};
use super::words;
use super::{
    Command, Copy, Dockerfile, Error, Healthcheck, Inline, Instruction, MAX_BYTES, Pair, Place, Run, Stage,
    Step,
};

/// Instructions of one file; each may become a layer, and overlayfs takes some hundred.
const MAX_STEPS: usize = 10_000;

/// What a line can begin with, for the error about one that does not.
const KNOWN: &str = "ADD, ARG, CMD, COPY, ENTRYPOINT, ENV, EXPOSE, FROM, HEALTHCHECK, LABEL, ONBUILD, RUN, \
                     SHELL, STOPSIGNAL, USER, VOLUME or WORKDIR";

/// Reads a Dockerfile; `file` is what errors name.
pub(crate) fn parse(file: &str, text: &str) -> Result<Dockerfile, Error> {
    let place =
        |line, instruction: &str| Place { file: file.to_owned(), line, instruction: instruction.to_owned() };
    if text.len() > MAX_BYTES {
        return Err(place(1, "Dockerfile").error(format!("larger than {MAX_BYTES} bytes")));
    }
    let (escape, lines) = lines::split(file, text)?;
    if lines.len() > MAX_STEPS {
        return Err(place(1, "Dockerfile").error(format!("more than {MAX_STEPS} instructions")));
    }
    let mut parsed = Dockerfile { escape, args: Vec::new(), stages: Vec::new() };
    for line in &lines {
        if line.place.instruction == "FROM" {
            let stage = from(line)?;
            if let Some(name) = &stage.name
                && parsed.stages.iter().any(|other| other.name.as_ref() == Some(name))
            {
                return Err(line.place.error(format!("there is a stage {name:?} already")));
            }
            parsed.stages.push(stage);
            continue;
        }
        let step = step(line, escape)?;
        match (parsed.stages.last_mut(), &step.instruction) {
            (Some(stage), _) => stage.steps.push(step),
            (None, Instruction::Arg(_)) => parsed.args.push(step),
            (None, _) => return Err(line.place.error("before the first FROM: only ARG may be there")),
        }
    }
    match parsed.stages.is_empty() {
        true => {
            Err(place(1, "FROM").error("the file has no FROM: expected \"FROM IMAGE\" or \"FROM scratch\""))
        }
        false => Ok(parsed),
    }
}

/// Reads an instruction that a base image left for those who build on it.
pub(crate) fn parse_trigger(place: &Place, text: &str) -> Result<Vec<Step>, Error> {
    let (escape, lines) = lines::split(&place.file, text).map_err(|error| place.error(error.what))?;
    let here = |mut line: Line| {
        line.place = Place { instruction: line.place.instruction, ..place.clone() };
        step(&line, escape)
    };
    lines.into_iter().map(here).collect()
}

fn from(line: &Line) -> Result<Stage, Error> {
    let (flags, rest) = flags(&line.rest);
    let mut platform = None;
    for (name, value) in flags {
        match name.as_str() {
            "platform" => platform = Some(value),
            _ => return Err(unknown_flag(&line.place, &name)),
        }
    }
    let words: Vec<&str> = rest.split_whitespace().collect();
    let (base, name) = match words.as_slice() {
        [base] => (base, None),
        [base, word, name] if word.eq_ignore_ascii_case("as") => (base, Some(name.to_ascii_lowercase())),
        _ => return Err(line.place.error(format!("{rest:?}: expected \"IMAGE\" or \"IMAGE AS NAME\""))),
    };
    if let Some(name) = &name
        && !is_stage_name(name)
    {
        let expected = "expected a letter, and then letters, digits and . _ -";
        return Err(line.place.error(format!("the stage's name {name:?}: {expected}")));
    }
    Ok(Stage { place: line.place.clone(), base: (*base).to_owned(), platform, name, steps: Vec::new() })
}

fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn step(line: &Line, escape: char) -> Result<Step, Error> {
    let place = &line.place;
    let rest = line.rest.as_str();
    if rest.is_empty() {
        return Err(place.error("nothing follows it"));
    }
    let instruction = match place.instruction.as_str() {
        "ARG" => Instruction::Arg(args(rest, escape)),
        "ENV" => Instruction::Env(pairs(place, rest, escape)?),
        "LABEL" => Instruction::Label(pairs(place, rest, escape)?),
        "RUN" => Instruction::Run(run(line)?),
        "COPY" => Instruction::Copy(copy(line, false)?),
        "ADD" => Instruction::Copy(copy(line, true)?),
        "WORKDIR" => Instruction::Workdir(rest.to_owned()),
        "USER" => Instruction::User(rest.to_owned()),
        "ENTRYPOINT" => Instruction::Entrypoint(command(rest)),
        "CMD" => Instruction::Cmd(command(rest)),
        "EXPOSE" => Instruction::Expose(words::split(rest, escape)),
        "VOLUME" => Instruction::Volume(list(rest).unwrap_or_else(|| words::split(rest, escape))),
        "STOPSIGNAL" => Instruction::StopSignal(rest.to_owned()),
        "SHELL" => Instruction::Shell(list(rest).filter(|words| !words.is_empty()).ok_or_else(|| {
            place.error(format!("{rest:?}: expected a list such as [\"/bin/sh\", \"-c\"]"))
        })?),
        "HEALTHCHECK" => Instruction::Healthcheck(healthcheck(place, rest)?),
        "ONBUILD" => Instruction::OnBuild(on_build(place, rest)?),
        "MAINTAINER" => Instruction::Maintainer(rest.to_owned()),
        other => return Err(place.error(format!("there is no instruction {other}: expected {KNOWN}"))),
    };
    let text = format!("{} {rest}", place.instruction);
    Ok(Step { place: place.clone(), text, instruction })
}

/// `--name=value` words at the beginning, and what follows.
fn flags(rest: &str) -> (Vec<Pair>, &str) {
    let mut flags = Vec::new();
    let mut rest = rest;
    while let Some(flag) = rest.strip_prefix("--") {
        let (word, after) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        flags.push((name.to_owned(), value.to_owned()));
        rest = after.trim_start();
    }
    (flags, rest)
}

fn unknown_flag(place: &Place, name: &str) -> Error {
    place.error(format!("the flag --{name} is not known here"))
}

/// A list of strings as JSON; anything else is a line for the shell.
fn list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok())?
}

fn command(rest: &str) -> Command {
    list(rest).map_or_else(|| Command::Shell(rest.to_owned()), Command::Exec)
}

fn args(rest: &str, escape: char) -> Vec<(String, Option<String>)> {
    let split = |word: String| match word.split_once('=') {
        Some((name, default)) => (name.to_owned(), Some(default.to_owned())),
        None => (word, None),
    };
    words::split(rest, escape).into_iter().map(split).collect()
}

/// `name=value …`, or the old form `name value`.
fn pairs(place: &Place, rest: &str, escape: char) -> Result<Vec<Pair>, Error> {
    let words = words::split(rest, escape);
    if words.first().is_some_and(|first| !first.contains('=')) {
        return match rest.split_once(char::is_whitespace) {
            Some((name, value)) => Ok(vec![(name.to_owned(), value.trim().to_owned())]),
            None => Err(place.error(format!("{rest:?}: expected NAME=VALUE"))),
        };
    }
    let pair = |word: String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(place.error(format!("{word:?}: expected NAME=VALUE"))),
    };
    words.into_iter().map(pair).collect()
}

fn run(line: &Line) -> Result<Run, Error> {
    let place = &line.place;
    let (flags, rest) = flags(&line.rest);
    let mut scratch = Vec::new();
    for (name, value) in flags {
        match (name.as_str(), value.as_str()) {
            ("network", "default" | "host") | ("security", "sandbox") => {}
            ("network", _) => {
                return Err(place.error(format!(
                    "--network={value} is not supported: commands have the machine's network"
                )));
            }
            ("mount", value) => scratch.push(scratch_mount(place, value)?),
            _ => return Err(unknown_flag(place, &name)),
        }
    }
    if rest.is_empty() {
        return Err(place.error("nothing follows the flags: expected a command"));
    }
    let (command, script) = match line.heredocs.as_slice() {
        [] => (command(rest), None),
        [only] if only.marker == rest => match only.content.starts_with("#!") {
            true => (Command::Exec(Vec::new()), Some(only.content.clone())),
            false => (Command::Shell(only.content.clone()), None),
        },
        texts => {
            let mut whole = format!("{rest}\n");
            for Heredoc { name, content, .. } in texts {
                whole.push_str(content);
                whole.push_str(name);
                whole.push('\n');
            }
            // The shell takes the tabs away as well, which are gone already.
            (Command::Shell(whole), None)
        }
    };
    Ok(Run { command, script, scratch })
}

fn scratch_mount(place: &Place, value: &str) -> Result<String, Error> {
    let mut kind = "bind";
    let mut target = None;
    for option in value.split(',') {
        match option.split_once('=') {
            Some(("type", value)) => kind = value,
            Some(("target" | "dst" | "destination", value)) => target = Some(value),
            // Who may write it, how large it is, with whom it is shared: it is this command's alone.
            _ => {}
        }
    }
    match (kind, target) {
        ("cache" | "tmpfs", Some(target))
            if target.starts_with('/') && !target.split('/').any(|p| p == "..") =>
        {
            Ok(target.to_owned())
        }
        ("cache" | "tmpfs", _) => {
            Err(place.error(format!("--mount={value}: expected target=/an/absolute/path")))
        }
        (kind, _) => Err(place.error(format!(
            "--mount=type={kind} is not supported: expected type=cache or type=tmpfs; COPY the files instead"
        ))),
    }
}

fn copy(line: &Line, add: bool) -> Result<Copy, Error> {
    let place = &line.place;
    let (flags, rest) = flags(&line.rest);
    let mut copy = Copy { add, ..Copy::default() };
    for (name, value) in flags {
        match name.as_str() {
            "from" if !add => copy.from = Some(value),
            "chown" => copy.chown = Some(value),
            "chmod" => copy.chmod = Some(value),
            "exclude" => copy.exclude.push(value),
            // How layers are stacked, not what is in them.
            "link" => {}
            _ => return Err(unknown_flag(place, &name)),
        }
    }
    let mut words =
        list(rest).unwrap_or_else(|| rest.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    copy.target = words.pop().unwrap_or_default();
    for word in words {
        match line.heredocs.iter().find(|text| text.marker == word) {
            Some(Heredoc { name, content, expand, .. }) => {
                copy.inline.push(Inline { name: name.clone(), content: content.clone(), expand: *expand });
            }
            None => copy.sources.push(word),
        }
    }
    if copy.sources.is_empty() && copy.inline.is_empty() {
        return Err(place.error(format!("{rest:?}: expected at least one source, and a target")));
    }
    if copy.sources.len() + copy.inline.len() > 1 && !copy.target.ends_with('/') && copy.target != "." {
        let what = "with more than one source the target is a directory: expected it to end with /";
        return Err(place.error(format!("{:?}: {what}", copy.target)));
    }
    if let Some(url) = copy.sources.iter().find(|source| add && is_remote(source)) {
        return Err(place.error(format!(
            "{url}: nothing is downloaded by ADD: fetch it before the build, or with RUN, and check its digest"
        )));
    }
    Ok(copy)
}

fn is_remote(source: &str) -> bool {
    ["http://", "https://", "git@", "git://", "ssh://"].iter().any(|scheme| source.starts_with(scheme))
}

fn on_build(place: &Place, rest: &str) -> Result<String, Error> {
    let word = rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    if matches!(word.as_str(), "FROM" | "ONBUILD" | "MAINTAINER") {
        return Err(place.error(format!("{word} may not follow ONBUILD")));
    }
    // What is wrong with it is found here, not by those who build on the image.
    parse_trigger(place, rest)?;
    Ok(rest.to_owned())
}

fn healthcheck(place: &Place, rest: &str) -> Result<Healthcheck, Error> {
    let (flags, rest) = flags(rest);
    let mut check = Healthcheck::default();
    for (name, value) in flags {
        let duration = || nanoseconds(&value).ok_or_else(|| place.error(bad_duration(&name, &value)));
        match name.as_str() {
            "interval" => check.interval = duration()?,
            "timeout" => check.timeout = duration()?,
            "start-period" => check.start_period = duration()?,
            "start-interval" => check.start_interval = duration()?,
            "retries" => {
                let number = value.parse().ok().filter(|number| *number >= 0);
                check.retries = number
                    .ok_or_else(|| place.error(format!("--retries={value}: expected a number from 0")))?;
            }
            _ => return Err(unknown_flag(place, &name)),
        }
    }
    let (word, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    check.test = match (word.to_ascii_uppercase().as_str(), command(rest.trim())) {
        ("NONE", _) if rest.trim().is_empty() => vec!["NONE".to_owned()],
        ("CMD", Command::Shell(line)) if !line.is_empty() => vec!["CMD-SHELL".to_owned(), line],
        ("CMD", Command::Exec(words)) if !words.is_empty() => {
            ["CMD".to_owned()].into_iter().chain(words).collect()
        }
        _ => return Err(place.error(format!("{word:?}: expected NONE, or CMD and a command"))),
    };
    Ok(check)
}

fn bad_duration(name: &str, value: &str) -> String {
    format!("--{name}={value}: expected a duration such as 30s or 1m30s")
}

/// `1h2m3.5s`, `100ms`
fn nanoseconds(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let number: f64 = number.parse().ok()?;
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let factor = match &after[..unit] {
            "h" => 3600e9,
            "m" => 60e9,
            "s" => 1e9,
            "ms" => 1e6,
            "us" | "µs" => 1e3,
            "ns" => 1.0,
            _ => return None,
        };
        total += number * factor;
        rest = &after[unit..];
    }
    // A century: beyond that it is a typing error.
    (!text.is_empty() && total < 3.2e18).then_some(total as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn steps(text: &str) -> Vec<Instruction> {
        let parsed = parse("Dockerfile", &format!("FROM x\n{text}")).unwrap();
        parsed.stages[0].steps.iter().map(|step| step.instruction.clone()).collect()
    }

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn stages_have_names_and_steps() {
        let text = "ARG V=1\nFROM --platform=linux/amd64 a:$V AS Build\nRUN make\nFROM scratch\nCOPY --from=build /a /b";
        let parsed = parse("Dockerfile", text).unwrap();
        assert_eq!(parsed.args.len(), 1);
        let [build, last] = parsed.stages.as_slice() else { panic!("{parsed:?}") };
        assert_eq!((build.base.as_str(), build.name.as_deref()), ("a:$V", Some("build")));
        assert_eq!(build.platform.as_deref(), Some("linux/amd64"));
        assert_eq!((last.base.as_str(), last.steps.len()), ("scratch", 1));
    }

    #[test]
    fn commands_have_two_forms() {
        let found =
            steps("CMD [\"a\", \"b\"]\nENTRYPOINT echo $X | cat\nCMD [a, b]\nSHELL [\"/bin/bash\", \"-c\"]");
        assert_eq!(found[0], Instruction::Cmd(Command::Exec(strings(&["a", "b"]))));
        assert_eq!(found[1], Instruction::Entrypoint(Command::Shell("echo $X | cat".into())));
        assert_eq!(found[2], Instruction::Cmd(Command::Shell("[a, b]".into())));
        let Instruction::Shell(shell) = &found[3] else { panic!("{found:?}") };
        let Instruction::Entrypoint(command) = &found[1] else { panic!("{found:?}") };
        assert_eq!(command.words(shell), ["/bin/bash", "-c", "echo $X | cat"]);
    }

    #[test]
    fn pairs_have_an_old_form() {
        let found = steps("ENV A=\"b c\" D=$e\nENV OLD some value\nARG a b=c\nLABEL x.y=\"z\"");
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(found[0], Instruction::Env(vec![pair("A", "\"b c\""), pair("D", "$e")]));
        assert_eq!(found[1], Instruction::Env(vec![pair("OLD", "some value")]));
        assert_eq!(found[2], Instruction::Arg(vec![("a".into(), None), ("b".into(), Some("c".into()))]));
    }

    #[test]
    fn heredocs_are_scripts_and_files() {
        let found =
            steps("RUN <<EOF\na\nb\nEOF\nRUN <<E\n#!/bin/x\nE\nRUN cat <<E >f\n1\nE\nCOPY <<f a /d/\n$x\nf");
        let Instruction::Run(run) = &found[0] else { panic!("{found:?}") };
        assert_eq!(run.command, Command::Shell("a\nb\n".into()));
        let Instruction::Run(run) = &found[1] else { panic!("{found:?}") };
        assert_eq!(run.script.as_deref(), Some("#!/bin/x\n"));
        let Instruction::Run(run) = &found[2] else { panic!("{found:?}") };
        assert_eq!(run.command, Command::Shell("cat <<E >f\n1\nE\n".into()));
        let Instruction::Copy(copy) = &found[3] else { panic!("{found:?}") };
        assert_eq!(copy.inline, [Inline { name: "f".into(), content: "$x\n".into(), expand: true }]);
        assert_eq!((copy.sources.clone(), copy.target.as_str()), (strings(&["a"]), "/d/"));
    }

    #[test]
    fn healthchecks_are_kept_in_the_images_form() {
        let found =
            steps("HEALTHCHECK --interval=1m30s --timeout=500ms --retries=2 CMD curl x\nHEALTHCHECK NONE");
        let Instruction::Healthcheck(check) = &found[0] else { panic!("{found:?}") };
        assert_eq!(check.test, ["CMD-SHELL", "curl x"]);
        assert_eq!((check.interval, check.timeout, check.retries), (90_000_000_000, 500_000_000, 2));
    }

    #[test]
    fn errors_name_line_instruction_and_what_was_expected() {
        for (text, expected) in [
            ("RUN x", "f:1: RUN: before the first FROM"),
            ("", "f:1: FROM: the file has no FROM"),
            ("FROM a b", "f:1: FROM: \"a b\": expected \"IMAGE\" or \"IMAGE AS NAME\""),
            ("FROM a AS 1x", "the stage's name \"1x\": expected a letter"),
            ("FROM a AS x\nFROM b as X", "f:2: FROM: there is a stage \"x\" already"),
            ("FROM a\n\nCOPPY a b", "f:3: COPPY: there is no instruction COPPY: expected ADD, ARG"),
            ("FROM a\nRUN", "f:2: RUN: nothing follows it"),
            ("FROM a\nCOPY x", "f:2: COPY: \"x\": expected at least one source"),
            ("FROM a\nCOPY x y z", "\"z\": with more than one source"),
            ("FROM a\nCOPY --form=x y z", "the flag --form is not known here"),
            ("FROM a\nADD https://x.internal/y /", "nothing is downloaded by ADD"),
            ("FROM a\nENV A=b c", "\"c\": expected NAME=VALUE"),
            ("FROM a\nLABEL x", "\"x\": expected NAME=VALUE"),
            ("FROM a\nSHELL sh", "expected a list such as"),
            ("FROM a\nHEALTHCHECK --interval=3 CMD x", "--interval=3: expected a duration"),
            ("FROM a\nHEALTHCHECK x", "expected NONE, or CMD"),
            ("FROM a\nONBUILD FROM b", "FROM may not follow ONBUILD"),
            ("FROM a\nONBUILD COPPY a b", "there is no instruction COPPY"),
            ("FROM a\nRUN --mount=type=secret,id=x y", "--mount=type=secret is not supported"),
            ("FROM a\nRUN --mount=type=cache,target=../x y", "expected target=/an/absolute/path"),
            ("FROM a\nRUN --network=none y", "--network=none is not supported"),
        ] {
            let error = parse("f", text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "((FROM|RUN|COPY|ENV|HEALTHCHECK|ADD|ARG|ONBUILD|SHELL)?[ a-z\\[\\]\"'<\\-=$\\\\`,/\n]{0,20}){0,8}") {
            drop(parse("f", &text));
            drop(parse("f", &format!("FROM x\n{text}")));
        }

        #[test]
        fn bytes_do_not_panic(text in "\\PC{0,200}") {
            drop(parse("f", &text));
        }

        #[test]
        fn env_comes_back(name in "[A-Z]{1,8}", value in "[a-z0-9/:.]{0,12}") {
            let found = steps(&format!("ENV {name}={value}"));
            prop_assert_eq!(&found[0], &Instruction::Env(vec![(name, value)]));
        }
    }
}
