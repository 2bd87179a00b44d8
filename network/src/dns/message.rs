//! From the bytes of a question to the bytes of an answer.

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use super::index::{Answer, Index};

/// What fits a UDP answer if the client does not say.
const PLAIN_LIMIT: u16 = 512;
/// The largest UDP answer that we send or want: one that is never cut into fragments.
pub(super) const UDP_LIMIT: u16 = 1232;
/// Aliases may lead to aliases; more than this is a loop.
const ALIASES: usize = 8;
/// Where the id, the flags and the counts of a message end.
const HEADER: usize = 12;

/// By what a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// A datagram: answers may have to be cut.
    Udp,
    /// A stream.
    Tcp,
}

/// What is to be done about a question.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Send this.
    Reply(Reply),
    /// Ask elsewhere for the rest.
    Resolve(Box<Pending>),
    /// Say nothing: it is no question.
    Ignore,
}

/// A question that is answered elsewhere, and what was found so far.
#[derive(Debug)]
pub(super) struct Pending {
    /// What to ask elsewhere.
    pub(super) query: Query,
    /// Whether the client wants signatures.
    pub(super) dnssec: bool,
    reply: Reply,
}

/// An answer in the making.
#[derive(Debug)]
pub(super) struct Reply {
    message: Message,
    limit: u16,
}

impl Reply {
    fn new(metadata: &Metadata, limit: u16) -> Self {
        let mut message = Message::response(metadata.id, metadata.op_code);
        message.metadata = Metadata::response_from_request(metadata);
        message.metadata.recursion_available = true;
        Self { message, limit }
    }

    fn refuse(mut self, code: ResponseCode) -> Self {
        self.message.metadata.response_code = code;
        self
    }

    /// Whether it is the same for every client: nothing in it is turned, so that clients spread.
    pub(super) fn is_fixed(&self) -> bool {
        self.message.answers.len() < 2 && self.message.additionals.len() < 2
    }

    /// The answer's bytes, cut where the client can take no more.
    pub(super) fn encode(&self, bytes: &mut Vec<u8>) -> Result<(), ProtoError> {
        bytes.clear();
        let mut encoder = BinEncoder::new(bytes);
        encoder.set_max_size(self.limit);
        self.message.emit(&mut encoder)
    }
}

impl Pending {
    /// The answer with what was found elsewhere, or with a failure if nothing was.
    pub(super) fn complete(self: Box<Self>, found: Option<Message>) -> Reply {
        let mut reply = self.reply;
        let Some(found) = found else { return reply.refuse(ResponseCode::ServFail) };
        let message = &mut reply.message;
        message.metadata.response_code = found.metadata.response_code;
        message.metadata.authoritative &= found.metadata.authoritative;
        message.metadata.authentic_data = found.metadata.authentic_data && message.answers.is_empty();
        message.answers.extend(found.answers);
        message.authorities.extend(found.authorities);
        message.additionals.extend(found.additionals);
        reply
    }
}

/// Answers a question as far as the index knows. Pure but for `rotation`, which spreads clients over
/// equal records.
pub(super) fn respond(index: &Index, bytes: &[u8], transport: Transport, rotation: u32) -> Outcome {
    let request = match Message::from_vec(bytes) {
        Ok(request) => request,
        Err(_) => return malformed(bytes),
    };
    if request.metadata.message_type != MessageType::Query {
        return Outcome::Ignore;
    }
    let asked = request.edns.as_ref().map_or(PLAIN_LIMIT, Edns::max_payload);
    let limit = if transport == Transport::Tcp { u16::MAX } else { asked.clamp(PLAIN_LIMIT, UDP_LIMIT) };
    let mut reply = Reply::new(&request.metadata, limit);
    reply.message.add_queries(request.queries.iter().cloned());
    if let Some(edns) = &request.edns {
        let mut own = Edns::new();
        own.set_max_payload(UDP_LIMIT).set_dnssec_ok(edns.flags().dnssec_ok);
        reply.message.set_edns(own);
        if edns.version() > 0 {
            return Outcome::Reply(reply.refuse(ResponseCode::BADVERS));
        }
    }
    if request.metadata.op_code != OpCode::Query {
        return Outcome::Reply(reply.refuse(ResponseCode::NotImp));
    }
    let [query] = &request.queries[..] else {
        return Outcome::Reply(reply.refuse(ResponseCode::FormErr));
    };
    if query.query_class != DNSClass::IN {
        return Outcome::Reply(reply.refuse(ResponseCode::Refused));
    }
    let dnssec = request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
    answer(index, query, reply, dnssec, rotation)
}

/// Follows aliases through the index until there is an answer or the rest is not ours.
fn answer(index: &Index, query: &Query, mut reply: Reply, dnssec: bool, rotation: u32) -> Outcome {
    let mut name: Name = query.name.clone();
    for _ in 0..ALIASES {
        let message = &mut reply.message;
        let ours = index.answer(&name, query.query_type, rotation);
        message.metadata.authoritative = ours != Answer::Foreign || !message.answers.is_empty();
        match ours {
            Answer::Found(answers, additionals) => {
                message.answers.extend(answers);
                message.additionals.extend(additionals);
                return Outcome::Reply(reply);
            }
            Answer::Alias(record, target) => {
                message.add_answer(*record);
                name = target;
            }
            Answer::NoData => return Outcome::Reply(negative(reply, index.soa(), ResponseCode::NoError)),
            Answer::NoName => return Outcome::Reply(negative(reply, index.soa(), ResponseCode::NXDomain)),
            Answer::Unknown => return Outcome::Reply(reply.refuse(ResponseCode::ServFail)),
            Answer::Foreign => {
                let query = Query::query(name, query.query_type);
                return Outcome::Resolve(Box::new(Pending { query, dnssec, reply }));
            }
        }
    }
    Outcome::Reply(reply.refuse(ResponseCode::ServFail))
}

fn negative(mut reply: Reply, soa: &Record, code: ResponseCode) -> Reply {
    reply.message.add_authority(soa.clone());
    reply.refuse(code)
}

/// A question that cannot be read is told so, if at least its id can.
fn malformed(bytes: &[u8]) -> Outcome {
    let [high, low, flags, ..] = *bytes else { return Outcome::Ignore };
    let is_answer = flags & 0x80 != 0;
    if bytes.len() < HEADER || is_answer {
        return Outcome::Ignore;
    }
    let metadata = Metadata::new(u16::from_be_bytes([high, low]), MessageType::Query, OpCode::Query);
    Outcome::Reply(Reply::new(&metadata, PLAIN_LIMIT).refuse(ResponseCode::FormErr))
}
