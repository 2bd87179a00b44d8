//! What must hold of a record. Pure: tested with records that are wrong.

use std::collections::BTreeMap;

use super::{Item, Leg, Record, Revision, Seen, Watcher, What, Write};

/// How many violations are told: the first ones say enough.
const TOLD: usize = 20;

/// All changes that any watch told, by revision.
type History = BTreeMap<Revision, Seen>;

/// What is wrong with a record; nothing if the contract was kept.
pub fn check(record: &Record) -> Vec<String> {
    let mut wrong = Vec::new();
    let history = history(record, &mut wrong);
    chains(&history, &mut wrong);
    for watcher in &record.watchers {
        ordered(watcher, &mut wrong);
        for leg in &watcher.legs {
            covered(watcher, leg, &history, &mut wrong);
        }
        gapless(watcher, &history, &mut wrong);
    }
    for writes in &record.writes {
        acknowledged(writes, &history, &mut wrong);
    }
    listed(record, &history, &mut wrong);
    wrong.truncate(TOLD);
    wrong
}

fn events(leg: &Leg) -> impl Iterator<Item = &Seen> {
    leg.items.iter().filter_map(|item| match item {
        Item::Event(seen) => Some(seen),
        Item::Initial(_) | Item::Bookmark(_) => None,
    })
}

/// Atomic: one revision is one change, whoever tells it, and all of one write.
fn history(record: &Record, wrong: &mut Vec<String>) -> History {
    let mut history = History::new();
    for watcher in &record.watchers {
        for seen in watcher.legs.iter().flat_map(events) {
            if !seen.content.whole {
                wrong.push(format!("atomic: {}: {seen:?} mixes writes", watcher.name));
            }
            let first = history.entry(seen.revision).or_insert_with(|| seen.clone());
            if first != seen {
                wrong.push(format!("atomic: {}: {seen:?} is elsewhere {first:?}", watcher.name));
            }
        }
    }
    history
}

/// Reliable: what happens to one object makes sense.
fn chains(history: &History, wrong: &mut Vec<String>) {
    let mut there: BTreeMap<&str, bool> = BTreeMap::new();
    for seen in history.values() {
        let before = there.insert(&seen.key, seen.what != What::Deleted).unwrap_or(false);
        if before == (seen.what == What::Added) {
            wrong.push(format!("reliable: {seen:?}, but it was {}there", if before { "" } else { "not " }));
        }
    }
}

/// Ordered, unique, bookmarkable: within one watch, and from one that resumes to the next.
fn ordered(watcher: &Watcher, wrong: &mut Vec<String>) {
    let mut reached = 0;
    for leg in &watcher.legs {
        match leg.after {
            Some(after) if after != reached && reached != 0 => {
                wrong.push(format!("record: {}: resumed after {after} instead of {reached}", watcher.name));
            }
            Some(after) => reached = after,
            None => {}
        }
        for item in &leg.items {
            match item {
                // The state at the beginning may be older than what the watcher saw last time.
                Item::Initial(_) => {}
                Item::Event(seen) if seen.revision <= reached => {
                    let rule = if seen.revision == reached { "unique" } else { "ordered" };
                    wrong.push(format!("{rule}: {}: {seen:?} comes after {reached}", watcher.name));
                }
                Item::Event(seen) => reached = seen.revision,
                Item::Bookmark(revision) if *revision < reached => {
                    wrong.push(format!("bookmarkable: {}: {revision} comes after {reached}", watcher.name));
                }
                Item::Bookmark(revision) => reached = *revision,
            }
        }
    }
}

/// Bookmarkable: the initial state is that at the bookmark which ends it.
fn covered(watcher: &Watcher, leg: &Leg, history: &History, wrong: &mut Vec<String>) {
    if leg.after.is_some() {
        return;
    }
    let Some(end) = leg.items.iter().find_map(|item| match item {
        Item::Bookmark(revision) => Some(*revision),
        _ => None,
    }) else {
        return;
    };
    let mut told: Vec<(&str, u64)> = Vec::new();
    for item in &leg.items {
        if let Item::Initial(seen) = item {
            told.push((&seen.key, seen.content.number));
        }
    }
    told.sort_unstable();
    let is: Vec<(&str, u64)> = state(history, end)
        .into_iter()
        .filter(|(key, _)| key.starts_with(&watcher.prefix))
        .map(|(key, seen)| (key, seen.content.number))
        .collect();
    if told != is {
        wrong.push(format!("bookmarkable: {}: at {end} it was told {told:?}, and is {is:?}", watcher.name));
    }
}

/// What is there at a revision.
fn state(history: &History, at: Revision) -> BTreeMap<&str, &Seen> {
    let mut state = BTreeMap::new();
    for seen in history.range(..=at).map(|(_, seen)| seen) {
        if seen.what == What::Deleted {
            state.remove(seen.key.as_str());
        } else {
            state.insert(seen.key.as_str(), seen);
        }
    }
    state
}

/// Reliable: between where a watch began and what it saw last, it missed nothing.
fn gapless(watcher: &Watcher, history: &History, wrong: &mut Vec<String>) {
    for leg in &watcher.legs {
        let start = match (leg.after, leg.items.iter().position(|i| matches!(i, Item::Bookmark(_)))) {
            (Some(after), _) => after,
            (None, Some(at)) => match leg.items[at] {
                Item::Bookmark(revision) => revision,
                _ => continue,
            },
            // It broke off before it was at work.
            (None, None) => continue,
        };
        let reached = leg.items.iter().filter_map(|item| match item {
            Item::Event(seen) => Some(seen.revision),
            Item::Bookmark(revision) => Some(*revision),
            Item::Initial(_) => None,
        });
        let end = reached.max().unwrap_or(start);
        let seen: Vec<Revision> = events(leg).map(|seen| seen.revision).collect();
        let missed = history
            .range(start + 1..=end.max(start + 1))
            .filter(|(revision, change)| **revision <= end && change.key.starts_with(&watcher.prefix))
            .filter(|(revision, _)| seen.binary_search(revision).is_err());
        for (_, change) in missed {
            wrong.push(format!("reliable: {}: missed {change:?} between {start} and {end}", watcher.name));
        }
        for foreign in events(leg).filter(|seen| !seen.key.starts_with(&watcher.prefix)) {
            wrong.push(format!("reliable: {}: did not ask for {foreign:?}", watcher.name));
        }
    }
}

/// Reliable: what was acknowledged happened, once and in the writer's order.
fn acknowledged(writes: &[Write], history: &History, wrong: &mut Vec<String>) {
    let mut last: BTreeMap<&str, Revision> = BTreeMap::new();
    let mut gone: BTreeMap<&str, bool> = BTreeMap::new();
    for write in writes {
        let key = write.key.as_str();
        let Some((revision, number)) = write.put else {
            gone.insert(key, true);
            continue;
        };
        let before = last.insert(key, revision).unwrap_or(0);
        match history.get(&revision) {
            Some(seen) if seen.key == key && seen.content.number == number && seen.what != What::Deleted => {}
            other => wrong.push(format!("reliable: {write:?} was acknowledged, and is {other:?}")),
        }
        // The same again: what was tried in between did not happen.
        if revision < before {
            wrong.push(format!("ordered: {write:?} was acknowledged after {before}"));
        }
        let was_gone = gone.insert(key, false).unwrap_or(false);
        let between = history.range(before + 1..revision.max(before + 1));
        let deleted = between.into_iter().any(|(_, seen)| seen.key == key && seen.what == What::Deleted);
        if was_gone && before > 0 && !deleted {
            wrong.push(format!("reliable: the deletion of {key} before {revision} was acknowledged only"));
        }
    }
}

/// Reliable: the list is what the events add up to.
fn listed(record: &Record, history: &History, wrong: &mut Vec<String>) {
    let sum = state(history, Revision::MAX);
    let list: BTreeMap<&str, (Revision, u64)> = record
        .list
        .iter()
        .map(|(key, revision, content)| (key.as_str(), (*revision, content.number)))
        .collect();
    for (key, found) in &list {
        let told = sum.get(key).map(|seen| (seen.revision, seen.content.number));
        if told != Some(*found) {
            wrong.push(format!("reliable: {key} is {found:?} in the list, and {told:?} by its events"));
        }
    }
    for key in sum.keys().filter(|key| !list.contains_key(*key)) {
        wrong.push(format!("reliable: {key} is not in the list"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Content;
    use super::*;

    fn seen(revision: Revision, key: &str, what: What, number: u64) -> Seen {
        Seen { revision, key: key.to_owned(), what, content: Content { number, whole: true } }
    }

    fn happened() -> Vec<Seen> {
        vec![
            seen(11, "a-1", What::Added, 1),
            seen(12, "b-1", What::Added, 2),
            seen(14, "a-1", What::Modified, 3),
            seen(15, "b-1", What::Deleted, 2),
            seen(17, "b-1", What::Added, 4),
        ]
    }

    fn good() -> Record {
        let items = |seen: &[Seen]| seen.iter().cloned().map(Item::Event).collect::<Vec<_>>();
        let all = happened();
        let resumed = vec![
            Leg { after: Some(10), items: items(&all[..2]) },
            Leg { after: Some(12), items: items(&all[2..]) },
        ];
        let narrow = vec![Leg { after: Some(10), items: items(&[all[0].clone(), all[2].clone()]) }];
        let mut initial = vec![Item::Initial(all[2].clone()), Item::Bookmark(15)];
        initial.extend(items(&all[4..]));
        let watcher =
            |name: &str, prefix: &str, legs| Watcher { name: name.into(), prefix: prefix.into(), legs };
        let put = |key: &str, revision, number| Write { key: key.into(), put: Some((revision, number)) };
        let content = |number| Content { number, whole: true };
        Record {
            watchers: vec![
                watcher("resumed", "", resumed),
                watcher("narrow", "a-", narrow),
                watcher("initial", "", vec![Leg { after: None, items: initial }]),
            ],
            writes: vec![
                vec![put("a-1", 11, 1), put("a-1", 14, 3)],
                vec![put("b-1", 12, 2), Write { key: "b-1".into(), put: None }, put("b-1", 17, 4)],
            ],
            list: vec![("a-1".into(), 14, content(3)), ("b-1".into(), 17, content(4))],
        }
    }

    fn broken(by: impl Fn(&mut Record)) -> String {
        let mut record = good();
        by(&mut record);
        check(&record).join("\n")
    }

    #[test]
    fn a_good_record_is_good() {
        assert_eq!(check(&good()), [""; 0]);
    }

    #[test]
    fn each_breach_is_found() {
        let told = broken(|r| r.watchers[0].legs[0].items.swap(0, 1));
        assert!(told.contains("ordered: resumed"), "{told}");
        let told = broken(|r| {
            let again = r.watchers[0].legs[0].items[1].clone();
            r.watchers[0].legs[1].items.insert(0, again);
        });
        assert!(told.contains("unique: resumed"), "{told}");
        let told = broken(|r| drop(r.watchers[0].legs[1].items.remove(0)));
        assert!(told.contains("reliable: resumed: missed"), "{told}");
        let told = broken(|r| r.watchers[0].legs[1].after = Some(14));
        assert!(told.contains("record: resumed"), "{told}");
        let told = broken(|r| match &mut r.watchers[1].legs[0].items[1] {
            Item::Event(seen) => seen.content.number = 9,
            _ => unreachable!("an event was put there"),
        });
        assert!(told.contains("atomic"), "{told}");
        let told = broken(|r| match &mut r.watchers[0].legs[0].items[0] {
            Item::Event(seen) => seen.content.whole = false,
            _ => unreachable!("an event was put there"),
        });
        assert!(told.contains("mixes writes"), "{told}");
        let told = broken(|r| drop(r.watchers[2].legs[0].items.remove(0)));
        assert!(told.contains("bookmarkable: initial: at 15"), "{told}");
        let told = broken(|r| r.watchers[2].legs[0].items.push(Item::Bookmark(16)));
        assert!(told.contains("bookmarkable: initial: 16"), "{told}");
        let told = broken(|r| r.watchers[1].prefix = "b-".into());
        assert!(told.contains("did not ask"), "{told}");
    }

    #[test]
    fn a_lost_acknowledged_write_is_found() {
        let put = |revision, number| Write { key: "a-1".into(), put: Some((revision, number)) };
        let told = broken(|r| r.writes[0].insert(1, put(13, 7)));
        assert!(told.contains("was acknowledged, and is None"), "{told}");
        let told = broken(|r| r.writes[0].insert(1, Write { key: "a-1".into(), put: None }));
        assert!(told.contains("the deletion of a-1"), "{told}");
        let told = broken(|r| drop(r.list.remove(0)));
        assert!(told.contains("a-1 is not in the list"), "{told}");
        let told = broken(|r| r.list[1].1 = 12);
        assert!(told.contains("b-1 is (12, 4) in the list"), "{told}");
    }
}
