//! The expressions of nf_tables rules: a small machine with 64 bytes of registers, which loads parts of
//! the packet, looks them up and ends in a verdict.
//!
//! What always holds: an expression that does not match (a failed comparison, a lookup that finds
//! nothing, a payload that the packet does not have) ends its rule, and the next rule follows.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::nft::Verdict;
use super::wire::Encoder;

const ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `NFT_JUMP`, `NFT_GOTO` and `NFT_RETURN`.
const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;

const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;
/// The bits of a connection that was answered, and of one that belongs to another.
const CT_STATE_KNOWN: u32 = 1 << 1 | 1 << 2;
const CT_STATUS: u32 = 2;
/// `IPS_DST_NAT`.
const CT_STATUS_DNAT: u32 = 1 << 5;
const FIB_ADDRTYPE: u32 = 3;
const FIB_SADDR: u32 = 1;
const FIB_DADDR: u32 = 2;
const NAT_DESTINATION: u32 = 1;
const NAT_RANDOM_FULLY: u32 = 1 << 4;
const COMPARE_EQUAL: u32 = 0;
const COMPARE_NOT_EQUAL: u32 = 1;
const COMPARE_AT_MOST: u32 = 3;
const COMPARE_AT_LEAST: u32 = 5;
const DYNSET_UPDATE: u32 = 1;
/// The size of an interface's name in the kernel, terminator included.
const INTERFACE_NAME: usize = 16;

/// A 32-bit register; longer values take those that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register(u32);

impl Register {
    /// Where keys are put together.
    pub(crate) const KEY: Self = Self(8);
    /// Where a target (address and port) is put together.
    pub(crate) const TARGET: Self = Self(16);

    const fn plus(self, words: u32) -> Self {
        Self(self.0 + words)
    }
}

/// One end of a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// How a packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// ICMP port unreachable.
    PortUnreachable,
    /// A TCP reset.
    TcpReset,
}

/// Appends the expressions of one rule.
#[derive(Debug)]
pub(crate) struct Rule<'e>(pub(super) &'e mut Encoder);

impl Rule<'_> {
    /// Loads (destination address . protocol . destination port) into [`Register::KEY`].
    pub(crate) fn load_service_ip(&mut self) -> &mut Self {
        self.payload(BASE_NETWORK, 16, 4, Register::KEY).meta(META_L4PROTO, Register::KEY.plus(1)).payload(
            BASE_TRANSPORT,
            2,
            2,
            Register::KEY.plus(2),
        )
    }

    /// Loads (protocol . destination port) into [`Register::KEY`].
    pub(crate) fn load_service_port(&mut self) -> &mut Self {
        self.meta(META_L4PROTO, Register::KEY).payload(BASE_TRANSPORT, 2, 2, Register::KEY.plus(1))
    }

    /// Loads (source address . destination address) into [`Register::KEY`].
    pub(crate) fn load_addresses(&mut self) -> &mut Self {
        self.payload(BASE_NETWORK, 12, 4, Register::KEY).payload(BASE_NETWORK, 16, 4, Register::KEY.plus(1))
    }

    /// Loads the source address into [`Register::KEY`].
    pub(crate) fn load_source(&mut self) -> &mut Self {
        self.payload(BASE_NETWORK, 12, 4, Register::KEY)
    }

    /// Loads the destination address into [`Register::KEY`].
    pub(crate) fn load_destination(&mut self) -> &mut Self {
        self.payload(BASE_NETWORK, 16, 4, Register::KEY)
    }

    /// Loads (`id` . address of that end) into [`Register::KEY`].
    pub(crate) fn load_member(&mut self, id: [u8; 8], end: End) -> &mut Self {
        let (high, low) = id.split_at(4);
        let offset = if end == End::Source { 12 } else { 16 };
        self.immediate(Register::KEY, high).immediate(Register::KEY.plus(1), low).payload(
            BASE_NETWORK,
            offset,
            4,
            Register::KEY.plus(2),
        )
    }

    /// Loads (`id` . destination address . protocol . destination port) into [`Register::KEY`].
    pub(crate) fn load_member_port(&mut self, id: [u8; 8]) -> &mut Self {
        self.load_member(id, End::Destination).meta(META_L4PROTO, Register::KEY.plus(3)).payload(
            BASE_TRANSPORT,
            2,
            2,
            Register::KEY.plus(4),
        )
    }

    /// Goes on if the destination port is in the range, both ends included.
    pub(crate) fn port_within(&mut self, first: u16, last: u16) -> &mut Self {
        let port = self.payload(BASE_TRANSPORT, 2, 2, Register::KEY);
        if first == last {
            return port.compare(Register::KEY, true, &first.to_be_bytes());
        }
        port.compare_by(Register::KEY, COMPARE_AT_LEAST, &first.to_be_bytes()).compare_by(
            Register::KEY,
            COMPARE_AT_MOST,
            &last.to_be_bytes(),
        )
    }

    /// Goes on if the packet belongs to a connection that was answered, or is about one.
    pub(crate) fn established(&mut self) -> &mut Self {
        self.expression("ct", |e| {
            e.attr_be32(1, Register::KEY.0);
            e.attr_be32(2, CT_STATE);
        });
        self.bits(Register::KEY, CT_STATE_KNOWN, 0).compare(Register::KEY, false, &[0; 4])
    }

    /// Goes on if the address of that end is in `net`, or is not.
    pub(crate) fn address(&mut self, end: End, net: Ipv4Net, inside: bool) -> &mut Self {
        let offset = if end == End::Source { 12 } else { 16 };
        self.payload(BASE_NETWORK, offset, 4, Register::KEY).mask(Register::KEY, net.netmask()).compare(
            Register::KEY,
            inside,
            &net.network().octets(),
        )
    }

    /// Goes on if the address of that end is one of this machine's own.
    pub(crate) fn address_local(&mut self, end: End) -> &mut Self {
        let flag = if end == End::Source { FIB_SADDR } else { FIB_DADDR };
        self.expression("fib", |e| {
            e.attr_be32(1, Register::TARGET.0);
            e.attr_be32(2, FIB_ADDRTYPE);
            e.attr_be32(3, flag);
        })
        .compare(Register::TARGET, true, &u32::from(libc::RTN_LOCAL).to_ne_bytes())
    }

    /// Goes on if the packet came in by the interface `name`.
    pub(crate) fn interface_in(&mut self, name: &str) -> &mut Self {
        self.interface(META_IIFNAME, name, true)
    }

    /// Goes on if the packet leaves by the interface `name`, or does not.
    pub(crate) fn interface_out(&mut self, name: &str, same: bool) -> &mut Self {
        self.interface(META_OIFNAME, name, same)
    }

    /// Goes on if the packet has that protocol.
    pub(crate) fn protocol(&mut self, number: u8) -> &mut Self {
        self.meta(META_L4PROTO, Register::KEY).compare(Register::KEY, true, &[number])
    }

    /// Goes on if it is an ICMP message of that type.
    pub(crate) fn icmp(&mut self, kind: u8) -> &mut Self {
        let icmp = u8::try_from(libc::IPPROTO_ICMP).expect("protocol 1");
        self.protocol(icmp).payload(BASE_TRANSPORT, 0, 1, Register::KEY).compare(Register::KEY, true, &[kind])
    }

    /// Goes on if the destination of the packet's connection was translated.
    pub(crate) fn translated(&mut self) -> &mut Self {
        self.expression("ct", |e| {
            e.attr_be32(1, Register::KEY.0);
            e.attr_be32(2, CT_STATUS);
        });
        self.bits(Register::KEY, CT_STATUS_DNAT, 0).compare(Register::KEY, false, &[0; 4])
    }

    /// Goes on if any of these bits of the packet's mark is set.
    pub(crate) fn marked(&mut self, bits: u32) -> &mut Self {
        self.meta(META_MARK, Register::KEY).bits(Register::KEY, bits, 0).compare(
            Register::KEY,
            false,
            &[0; 4],
        )
    }

    /// Sets these bits of the packet's mark.
    pub(crate) fn mark(&mut self, bits: u32) -> &mut Self {
        self.mark_change(!bits, bits)
    }

    /// Clears these bits of the packet's mark.
    pub(crate) fn unmark(&mut self, bits: u32) -> &mut Self {
        self.mark_change(!bits, 0)
    }

    /// Takes the verdict that the map `set` has for [`Register::KEY`].
    pub(crate) fn lookup_verdict(&mut self, set: &str) -> &mut Self {
        self.lookup(set, Register::KEY, Some(Register(0)))
    }

    /// Goes on if the set has [`Register::KEY`].
    pub(crate) fn lookup_member(&mut self, set: &str) -> &mut Self {
        self.lookup(set, Register::KEY, None)
    }

    /// Loads what the map `set` has for [`Register::KEY`] into [`Register::TARGET`].
    pub(crate) fn lookup_target(&mut self, set: &str) -> &mut Self {
        self.lookup(set, Register::KEY, Some(Register::TARGET))
    }

    /// Loads (`chain` . a random number below `count`) into [`Register::KEY`].
    pub(crate) fn choose_slot(&mut self, chain: [u8; 8], count: u32) -> &mut Self {
        let (high, low) = chain.split_at(4);
        self.immediate(Register::KEY, high).immediate(Register::KEY.plus(1), low).expression("numgen", |e| {
            e.attr_be32(1, Register::KEY.plus(2).0);
            e.attr_be32(2, count);
            e.attr_be32(3, 1);
        })
    }

    /// Loads a fixed target into [`Register::TARGET`].
    pub(crate) fn load_target(&mut self, address: Ipv4Addr, port: u16) -> &mut Self {
        self.immediate(Register::TARGET, &address.octets())
            .immediate(Register::TARGET.plus(1), &port.to_be_bytes())
    }

    /// Translates the destination to [`Register::TARGET`] and ends.
    pub(crate) fn translate(&mut self) -> &mut Self {
        self.expression("nat", |e| {
            e.attr_be32(1, NAT_DESTINATION);
            e.attr_be32(2, libc::AF_INET.cast_unsigned());
            e.attr_be32(3, Register::TARGET.0);
            e.attr_be32(5, Register::TARGET.plus(1).0);
        })
    }

    /// Translates the source to the address of the interface by which the packet leaves, and ends.
    pub(crate) fn masquerade(&mut self) -> &mut Self {
        self.expression("masq", |e| e.attr_be32(1, NAT_RANDOM_FULLY))
    }

    /// Adds [`Register::KEY`] to the set, or keeps it there for its whole timeout again. Goes on only if
    /// there is room.
    pub(crate) fn remember(&mut self, set: &str) -> &mut Self {
        self.expression("dynset", |e| {
            e.attr_str(1, set);
            e.attr_be32(3, DYNSET_UPDATE);
            e.attr_be32(4, Register::KEY.0);
        })
    }

    /// Refuses the packet and ends.
    pub(crate) fn reject(&mut self, refusal: Refusal) -> &mut Self {
        let (kind, code) = match refusal {
            Refusal::PortUnreachable => (0, 3),
            Refusal::TcpReset => (1, 0),
        };
        self.expression("reject", |e| {
            e.attr_be32(1, kind);
            e.attr_u8(2, code);
        })
    }

    /// Ends with a verdict.
    pub(crate) fn verdict(&mut self, verdict: Verdict<'_>) -> &mut Self {
        self.expression("immediate", |e| {
            e.attr_be32(1, 0);
            e.nest(2, |data| verdict_write(data, verdict));
        })
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Encoder)) -> &mut Self {
        self.0.nest(ELEMENT, |element| {
            element.attr_str(EXPRESSION_NAME, name);
            element.nest(EXPRESSION_DATA, fill);
        });
        self
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, to: Register) -> &mut Self {
        self.expression("payload", |e| {
            e.attr_be32(1, to.0);
            e.attr_be32(2, base);
            e.attr_be32(3, offset);
            e.attr_be32(4, length);
        })
    }

    fn meta(&mut self, key: u32, to: Register) -> &mut Self {
        self.expression("meta", |e| {
            e.attr_be32(1, to.0);
            e.attr_be32(2, key);
        })
    }

    fn interface(&mut self, key: u32, name: &str, same: bool) -> &mut Self {
        let mut value = [0u8; INTERFACE_NAME];
        value[..name.len()].copy_from_slice(name.as_bytes());
        self.meta(key, Register::KEY).compare(Register::KEY, same, &value)
    }

    fn mark_change(&mut self, keep: u32, set: u32) -> &mut Self {
        self.meta(META_MARK, Register::KEY).bits(Register::KEY, keep, set).expression("meta", |e| {
            e.attr_be32(2, META_MARK);
            e.attr_be32(3, Register::KEY.0);
        })
    }

    fn mask(&mut self, register: Register, mask: Ipv4Addr) -> &mut Self {
        self.bitwise(register, mask.octets(), [0; 4])
    }

    fn bits(&mut self, register: Register, keep: u32, flip: u32) -> &mut Self {
        self.bitwise(register, keep.to_ne_bytes(), flip.to_ne_bytes())
    }

    fn bitwise(&mut self, register: Register, keep: [u8; 4], flip: [u8; 4]) -> &mut Self {
        self.expression("bitwise", |e| {
            e.attr_be32(1, register.0);
            e.attr_be32(2, register.0);
            e.attr_be32(3, 4);
            e.nest(4, |data| data.attr(DATA_VALUE, &keep));
            e.nest(5, |data| data.attr(DATA_VALUE, &flip));
        })
    }

    fn compare(&mut self, register: Register, equal: bool, value: &[u8]) -> &mut Self {
        self.compare_by(register, if equal { COMPARE_EQUAL } else { COMPARE_NOT_EQUAL }, value)
    }

    fn compare_by(&mut self, register: Register, operator: u32, value: &[u8]) -> &mut Self {
        self.expression("cmp", |e| {
            e.attr_be32(1, register.0);
            e.attr_be32(2, operator);
            e.nest(3, |data| data.attr(DATA_VALUE, value));
        })
    }

    fn immediate(&mut self, register: Register, value: &[u8]) -> &mut Self {
        self.expression("immediate", |e| {
            e.attr_be32(1, register.0);
            e.nest(2, |data| data.attr(DATA_VALUE, value));
        })
    }

    fn lookup(&mut self, set: &str, from: Register, to: Option<Register>) -> &mut Self {
        self.expression("lookup", |e| {
            e.attr_str(1, set);
            e.attr_be32(2, from.0);
            if let Some(to) = to {
                e.attr_be32(3, to.0);
            }
        })
    }
}

/// Writes `NFTA_DATA_VERDICT`.
pub(super) fn verdict_write(encoder: &mut Encoder, verdict: Verdict<'_>) {
    encoder.nest(DATA_VERDICT, |data| match verdict {
        Verdict::Drop => data.attr_be32(VERDICT_CODE, libc::NF_DROP.cast_unsigned()),
        Verdict::Accept => data.attr_be32(VERDICT_CODE, libc::NF_ACCEPT.cast_unsigned()),
        Verdict::Return => data.attr_be32(VERDICT_CODE, RETURN.cast_unsigned()),
        Verdict::Goto(chain) => {
            data.attr_be32(VERDICT_CODE, GOTO.cast_unsigned());
            data.attr_str(VERDICT_CHAIN, chain);
        }
        Verdict::Jump(chain) => {
            data.attr_be32(VERDICT_CODE, JUMP.cast_unsigned());
            data.attr_str(VERDICT_CHAIN, chain);
        }
    });
}
