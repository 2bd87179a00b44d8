//! What upstream servers said, for as long as they allow and not longer than half a minute. Small: it
//! takes the load of repeated questions off the upstream servers, nothing more.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{RData, Record};

/// The most answers that are kept.
const ENTRIES: usize = 1024;
/// The most records of an answer that is kept: the whole cache stays below a few MiB.
const RECORDS: usize = 16;
/// The longest time that an answer is kept.
const LONGEST: Duration = Duration::from_secs(30);

/// A question: its name in lower case, its type, and whether signatures are wanted.
type Key = (Query, bool);

#[derive(Debug)]
struct Entry {
    message: Message,
    stored: Duration,
    expires: Duration,
}

/// A bounded cache of answers.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<HashMap<Key, Entry>>);

impl Cache {
    /// The answer to a question, as old as it is at the moment `now`.
    pub(super) fn get(&self, query: &Query, dnssec: bool, now: Duration) -> Option<Message> {
        let entries = self.lock();
        let entry = entries.get(&key(query, dnssec)).filter(|entry| now < entry.expires)?;
        let age = u32::try_from((now - entry.stored).as_secs()).unwrap_or(u32::MAX);
        let mut message = entry.message.clone();
        let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
        for record in sections.into_iter().flatten() {
            record.decrement_ttl(age);
        }
        Some(message)
    }

    /// Keeps an answer.
    pub(super) fn put(&self, query: &Query, dnssec: bool, message: &Message, now: Duration) {
        let Some(lifetime) = lifetime(message) else { return };
        let mut entries = self.lock();
        if entries.len() >= ENTRIES {
            entries.retain(|_, entry| now < entry.expires);
        }
        if entries.len() >= ENTRIES {
            // Full of answers that live: which one goes matters little.
            let victim = entries.keys().next().cloned();
            victim.and_then(|key| entries.remove(&key));
        }
        let entry = Entry { message: message.clone(), stored: now, expires: now + lifetime };
        entries.insert(key(query, dnssec), entry);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        // Entries are put and taken whole: the map is sound even if the lock is poisoned.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(query: &Query, dnssec: bool) -> Key {
    (Query::query(query.name.to_lowercase(), query.query_type), dnssec)
}

/// How long an answer may be kept, if at all.
fn lifetime(message: &Message) -> Option<Duration> {
    let code = message.metadata.response_code;
    if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) || message.metadata.truncation {
        return None;
    }
    let records = || message.answers.iter().chain(&message.authorities).chain(&message.additionals);
    if records().count() > RECORDS {
        return None;
    }
    let negative = message.answers.is_empty() || code == ResponseCode::NXDomain;
    let seconds = if negative {
        message.authorities.iter().find_map(negative_ttl)
    } else {
        records().map(|record| record.ttl).min()
    };
    let lifetime = Duration::from_secs(seconds?.into()).min(LONGEST);
    (!lifetime.is_zero()).then_some(lifetime)
}

/// How long an absence may be believed: by the zone's SOA.
fn negative_ttl(record: &Record) -> Option<u32> {
    if let RData::SOA(soa) = &record.data { Some(record.ttl.min(soa.minimum)) } else { None }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::OpCode;
    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{Name, RecordType};

    use super::*;

    fn name() -> Name {
        Name::from_ascii("example.com.").unwrap()
    }

    fn query() -> Query {
        Query::query(name(), RecordType::A)
    }

    fn positive(ttl: u32) -> Message {
        let mut message = Message::response(1, OpCode::Query);
        message.add_answer(Record::from_rdata(name(), ttl, RData::A(A::new(192, 0, 2, 1))));
        message
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_answer_ages_and_expires() {
        let cache = Cache::default();
        cache.put(&query(), false, &positive(10), at(100));
        assert_eq!(cache.get(&query(), false, at(104)).unwrap().answers[0].ttl, 6);
        assert_eq!(cache.get(&query(), false, at(110)), None);
        assert_eq!(cache.get(&query(), true, at(104)), None);
        let upper = Query::query(Name::from_ascii("EXAMPLE.com.").unwrap(), RecordType::A);
        assert!(cache.get(&upper, false, at(104)).is_some());
    }

    #[test]
    fn nothing_is_kept_longer_than_half_a_minute() {
        let cache = Cache::default();
        cache.put(&query(), false, &positive(3600), at(0));
        assert!(cache.get(&query(), false, at(29)).is_some());
        assert_eq!(cache.get(&query(), false, at(30)), None);
    }

    #[test]
    fn an_absence_is_kept_by_the_soa_and_a_failure_never() {
        let cache = Cache::default();
        let mut absent = Message::response(1, OpCode::Query);
        absent.metadata.response_code = ResponseCode::NXDomain;
        cache.put(&query(), false, &absent, at(0));
        assert_eq!(cache.get(&query(), false, at(0)), None, "no SOA");
        let soa = SOA::new(name(), name(), 1, 1, 1, 1, 7);
        absent.add_authority(Record::from_rdata(name(), 3600, RData::SOA(soa)));
        cache.put(&query(), false, &absent, at(0));
        assert!(cache.get(&query(), false, at(6)).is_some());
        assert_eq!(cache.get(&query(), false, at(7)), None);
        let mut failure = positive(10);
        failure.metadata.response_code = ResponseCode::ServFail;
        cache.put(&query(), false, &failure, at(10));
        assert_eq!(cache.get(&query(), false, at(10)), None);
    }

    #[test]
    fn the_cache_is_bounded() {
        let cache = Cache::default();
        for n in 0..ENTRIES + 10 {
            let name = Name::from_ascii(format!("n{n}.example.com.")).unwrap();
            cache.put(&Query::query(name, RecordType::A), false, &positive(10), at(0));
        }
        assert_eq!(cache.lock().len(), ENTRIES);
    }
}
