//! The difference of two JSON trees as a unified diff, for people who are told that something they
//! changed may not change.

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

/// Lines around a change that are shown with it.
const CONTEXT: usize = 3;
/// Pairs of lines that are held against each other at most (8 MiB of lengths): where two trees differ in
/// more, all lines between the first and the last change are shown as changed.
const MAX_PAIRS: usize = 1 << 20;

/// One line of both texts, or of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line<'a> {
    Kept(&'a str),
    Removed(&'a str),
    Added(&'a str),
}

/// What leads from `old` to `new`, line by line; empty if nothing does.
pub(super) fn of(old: &Value, new: &Value) -> String {
    let (old, new) = (pretty(old), pretty(new));
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let lines = script(&old, &new);
    hunks(&lines).into_iter().map(|(start, end)| hunk(&lines, start, end)).collect()
}

fn pretty(value: &Value) -> String {
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b" "));
    value.serialize(&mut serializer).expect("a JSON tree is JSON, and memory takes it");
    String::from_utf8(text).expect("JSON is UTF-8")
}

/// All lines of both texts in order.
fn script<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Line<'a>> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (&old[head..], &new[head..]);
    let tail = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let (old_middle, new_middle) = (&old_rest[..old_rest.len() - tail], &new_rest[..new_rest.len() - tail]);
    let mut lines: Vec<Line<'_>> = old[..head].iter().copied().map(Line::Kept).collect();
    middle(old_middle, new_middle, &mut lines);
    lines.extend(old[old.len() - tail..].iter().copied().map(Line::Kept));
    lines
}

/// What differs, by the longest sequence of lines that both have.
fn middle<'a>(old: &[&'a str], new: &[&'a str], lines: &mut Vec<Line<'a>>) {
    let width = new.len() + 1;
    let fits = (old.len() + 1).checked_mul(width).is_some_and(|pairs| pairs <= MAX_PAIRS);
    if !fits {
        lines.extend(old.iter().copied().map(Line::Removed));
        lines.extend(new.iter().copied().map(Line::Added));
        return;
    }
    // The length of the longest common sequence from each pair of lines on.
    let mut common = vec![0_usize; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i * width + j] = if old[i] == new[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push(Line::Kept(old[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < old.len()
            && (j == new.len() || common[(i + 1) * width + j] >= common[i * width + j + 1])
        {
            lines.push(Line::Removed(old[i]));
            i += 1;
        } else {
            lines.push(Line::Added(new[j]));
            j += 1;
        }
    }
}

/// The ranges of lines that are shown: changes that are near each other with what is around them.
fn hunks(lines: &[Line<'_>]) -> Vec<(usize, usize)> {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    let changed = lines.iter().enumerate().filter(|(_, line)| !matches!(line, Line::Kept(_)));
    for (at, _) in changed {
        let (start, end) = (at.saturating_sub(CONTEXT), (at + CONTEXT + 1).min(lines.len()));
        match ranges.last_mut() {
            Some(last) if start <= last.1 => last.1 = end,
            _ => ranges.push((start, end)),
        }
    }
    ranges
}

fn hunk(lines: &[Line<'_>], start: usize, end: usize) -> String {
    let count = |lines: &[Line<'_>], without: fn(&Line<'_>) -> bool| {
        lines.iter().filter(|line| !without(line)).count()
    };
    let range = |without: fn(&Line<'_>) -> bool| {
        let (before, length) = (count(&lines[..start], without), count(&lines[start..end], without));
        match length {
            0 => format!("{before},0"),
            1 => format!("{}", before + 1),
            _ => format!("{},{length}", before + 1),
        }
    };
    let old = range(|line| matches!(line, Line::Added(_)));
    let new = range(|line| matches!(line, Line::Removed(_)));
    let mut text = format!("@@ -{old} +{new} @@\n");
    for line in &lines[start..end] {
        let (mark, line) = match line {
            Line::Kept(line) => (' ', line),
            Line::Removed(line) => ('-', line),
            Line::Added(line) => ('+', line),
        };
        text.push(mark);
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shows_what_changed_and_what_is_around_it() {
        let old = json!({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5});
        let new = json!({"a": 1, "b": 2, "c": 3, "d": 9, "e": 5, "f": [6]});
        let want = "@@ -2,6 +2,9 @@\n  \"a\": 1,\n  \"b\": 2,\n  \"c\": 3,\n- \"d\": 4,\n- \"e\": 5\n+ \"d\": 9,\n+ \"e\": 5,\n+ \"f\": [\n+  6\n+ ]\n }\n";
        assert_eq!(of(&old, &new), want);
        assert_eq!(of(&old, &old), "");
    }

    #[test]
    fn far_changes_are_apart_and_near_ones_together() {
        let tree = |a: i32, b: i32| {
            let mut items: Vec<i32> = (0..30).collect();
            (items[2], items[27]) = (a, b);
            json!(items)
        };
        assert_eq!(of(&tree(2, 27), &tree(90, 91)).matches("@@ -").count(), 2);
        let near = json!([0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(of(&near, &json!([0, 9, 2, 3, 4, 8, 6])).matches("@@ -").count(), 1);
    }

    #[test]
    fn a_large_difference_is_shown_as_a_whole() {
        let many = |from: usize| Value::from((from..from + 2000).collect::<Vec<_>>());
        let text = of(&many(0), &many(10_000));
        assert_eq!(text.matches("\n-").count() + text.matches("\n+").count(), 4000);
    }
}
