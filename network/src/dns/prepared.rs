//! Answers that were given before, ready to be sent: most questions are the same few, again and again.
//!
//! What always holds: an answer is that of the newest index, and says the same as one made anew, since only those are kept
//! that depend on nothing but the question's bytes.

use std::collections::HashMap;

use super::index::Index;
use super::message::{Outcome, Pending, Transport, UDP_LIMIT, respond};

/// The most answers that a worker keeps: a few MiB at the very most, and 200 KiB of what is usual.
const ENTRIES: usize = 2048;
/// Questions that are longer are rare.
const LONGEST: usize = 300;
/// The length of the id, which every client chooses anew.
const ID: usize = 2;

/// What one worker has answered, since the index changed.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    version: u64,
    /// By the question without its id; the answer without its id, too.
    answers: HashMap<Box<[u8]>, Box<[u8]>>,
}

impl Prepared {
    /// Answers a question that came as a datagram: writes the answer, or leaves `answer` empty. Returns what has to be
    /// asked elsewhere.
    pub(super) fn answer(
        &mut self,
        version: u64,
        index: &Index,
        question: &[u8],
        rotation: u32,
        answer: &mut Vec<u8>,
    ) -> Option<Box<Pending>> {
        if self.version != version {
            self.answers.clear();
            self.version = version;
        }
        let (id, rest) = question.split_at(ID.min(question.len()));
        if let Some(known) = self.answers.get(rest) {
            answer.extend_from_slice(id);
            answer.extend_from_slice(known);
            return None;
        }
        match respond(index, question, Transport::Udp, rotation) {
            Outcome::Reply(reply) => {
                if let Err(error) = reply.encode(answer) {
                    tracing::debug!(%error, "an answer cannot be written");
                    answer.clear();
                } else if reply.is_fixed() {
                    self.keep(rest, &answer[ID..]);
                }
                None
            }
            Outcome::Resolve(pending) => Some(pending),
            Outcome::Ignore => None,
        }
    }

    fn keep(&mut self, question: &[u8], answer: &[u8]) {
        if question.len() > LONGEST || answer.len() > usize::from(UDP_LIMIT) {
            return;
        }
        if self.answers.len() == ENTRIES {
            // Somebody asks for ever new names: which answers go matters little.
            self.answers.clear();
        }
        self.answers.insert(question.into(), answer.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use decapod_client::ObjectKey;
    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use hickory_proto::rr::{Name, RecordType};
    use serde_json::json;

    use super::*;
    use crate::world::World;

    fn index(addresses: &[&str]) -> Index {
        let mut world = World::default();
        let key = ObjectKey::new("default", "web");
        let spec = json!({"spec": {"clusterIP": addresses[0], "clusterIPs": addresses}});
        world.service_set(key.clone(), Some(Arc::new(serde_json::from_value(spec).unwrap())));
        let mut index = Index::new(&Name::from_ascii("cluster.local.").unwrap()).unwrap();
        index.synced = true;
        index.service_set(&world, &key).unwrap();
        index
    }

    fn question(id: u16, name: &str) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    fn ask(prepared: &mut Prepared, version: u64, index: &Index, question: &[u8], rotation: u32) -> Vec<u8> {
        let mut answer = Vec::new();
        assert!(prepared.answer(version, index, question, rotation, &mut answer).is_none());
        answer
    }

    #[test]
    fn an_answer_from_store_is_the_one_made_anew_with_the_id_asked_by() {
        let (mut prepared, index) = (Prepared::default(), index(&["10.96.0.1"]));
        for name in
            ["web.default.svc.cluster.local.", "WEB.default.svc.cluster.local.", "no.svc.cluster.local."]
        {
            let fresh = ask(&mut Prepared::default(), 1, &index, &question(7, name), 0);
            assert_eq!(ask(&mut prepared, 1, &index, &question(3, name), 0)[ID..], fresh[ID..]);
            assert_eq!(ask(&mut prepared, 1, &index, &question(7, name), 0), fresh);
        }
        assert_eq!(prepared.answers.len(), 3);
    }

    #[test]
    fn a_newer_index_is_asked_again() {
        let name = question(1, "web.default.svc.cluster.local.");
        let mut prepared = Prepared::default();
        let before = ask(&mut prepared, 1, &index(&["10.96.0.1"]), &name, 0);
        let after = ask(&mut prepared, 2, &index(&["10.96.0.2"]), &name, 0);
        assert_ne!(before, after);
    }

    #[test]
    fn what_is_turned_is_not_kept() {
        let (mut prepared, index) = (Prepared::default(), index(&["10.96.0.1", "10.96.0.2"]));
        let name = question(1, "web.default.svc.cluster.local.");
        let first = ask(&mut prepared, 1, &index, &name, 0);
        let second = ask(&mut prepared, 1, &index, &name, 1);
        assert_ne!(first, second);
        assert!(prepared.answers.is_empty());
    }

    #[test]
    fn the_store_is_bounded_and_no_question_is_too_short() {
        let (mut prepared, index) = (Prepared::default(), index(&["10.96.0.1"]));
        for n in 0..=ENTRIES {
            ask(&mut prepared, 1, &index, &question(1, &format!("n{n}.svc.cluster.local.")), 0);
        }
        assert!(prepared.answers.len() <= ENTRIES);
        for length in 0..13 {
            ask(&mut prepared, 1, &index, &vec![0; length], 0);
        }
    }
}
