//! The seats of the priority levels, and who waits for them.
//!
//! A level may always have its *lower* bound of seats, whatever the others do; above, up to its *upper* bound, what the
//! others neither use nor keep as their own lower bound. So a level lends what it does not use, and the levels together
//! never have more than there are. Of waiting levels those come first that have the least of what is nominally theirs.
//!
//! Within a level requests wait in queues. Each flow has a *hand* of queues and takes the shortest of it, so that a flow
//! that floods its hand leaves others one that it does not share (shuffle sharding). The queues take turns by start-time
//! fair queuing: a queue's turn comes when it had no more seats than the others since it last was empty.
//!
//! Pure: nothing here waits or looks at a clock.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::oneshot;

/// How the requests of a level wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queuing {
    /// How many queues there are.
    pub(super) queues: usize,
    /// How many of them a flow may use.
    pub(super) hand: usize,
    /// How many requests wait in one.
    pub(super) length: usize,
}

/// How many seats a level has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Its share of all seats.
    pub(super) nominal: usize,
    /// What it never lends.
    pub(super) lower: usize,
    /// What it has at most, with all that it may borrow.
    pub(super) upper: usize,
    /// None: requests that find no seat are turned away.
    pub(super) queuing: Option<Queuing>,
}

/// The seats of all levels.
#[derive(Debug, Default)]
pub(super) struct Seats {
    levels: HashMap<Arc<str>, Level>,
    /// Requests that wait, in all levels.
    waiting: usize,
    ticket: u64,
}

#[derive(Debug)]
struct Level {
    bounds: Bounds,
    /// Seats that are taken.
    taken: usize,
    queues: Vec<Queue>,
    waiting: usize,
    /// What the queue had been given, whose turn it was last.
    given: u64,
    turn: usize,
    /// Whether the level is still configured; otherwise it goes with its last request.
    wanted: bool,
}

#[derive(Debug, Default)]
struct Queue {
    waiters: VecDeque<Waiter>,
    given: u64,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    flow: u64,
    go: oneshot::Sender<()>,
}

/// What becomes of a request that asks for a seat.
#[derive(Debug)]
pub(super) enum Entry {
    /// It has one.
    Seated,
    /// It waits for one.
    Waits {
        /// By which it may be taken from its queue.
        ticket: u64,
        /// Tells when it has its seat.
        go: oneshot::Receiver<()>,
        /// How many wait in its queue now.
        length: usize,
    },
    /// It is turned away.
    Refused(Refusal),
}

/// Why a request is turned away, in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The level has no queues.
    ConcurrencyLimit,
    /// The queue is full.
    QueueFull,
    /// No seat got free in time.
    TimeOut,
}

impl Refusal {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ConcurrencyLimit => "concurrency-limit",
            Self::QueueFull => "queue-full",
            Self::TimeOut => "time-out",
        }
    }
}

impl Seats {
    /// Makes the levels be these. Requests of levels that are no more are still served.
    pub(super) fn configure(&mut self, levels: impl IntoIterator<Item = (Arc<str>, Bounds)>) {
        for level in self.levels.values_mut() {
            level.wanted = false;
        }
        for (name, bounds) in levels {
            let level = self.levels.entry(name).or_insert_with(|| Level::new(bounds));
            level.wanted = true;
            level.set(bounds);
        }
        self.levels.retain(|_, level| level.wanted || level.taken > 0 || level.waiting > 0);
        self.seat_waiting();
    }

    /// Asks for a seat for a request of a flow.
    pub(super) fn enter(&mut self, name: &str, flow: u64) -> Entry {
        let free = self.free_for(name);
        let Some(level) = self.levels.get_mut(name) else {
            // It was removed while the request was classified, as if it had been for ever.
            return Entry::Refused(Refusal::ConcurrencyLimit);
        };
        if free && level.waiting == 0 {
            level.taken += 1;
            return Entry::Seated;
        }
        let Some(queuing) = level.bounds.queuing else { return Entry::Refused(Refusal::ConcurrencyLimit) };
        let queue = level.shortest(flow, queuing.hand);
        if level.queues[queue].waiters.len() >= queuing.length {
            return Entry::Refused(Refusal::QueueFull);
        }
        self.ticket += 1;
        self.waiting += 1;
        let (go, wait) = oneshot::channel();
        let length = level.push(queue, Waiter { ticket: self.ticket, flow, go });
        Entry::Waits { ticket: self.ticket, go: wait, length }
    }

    /// Gives a seat back.
    pub(super) fn leave(&mut self, name: &str) {
        if let Some(level) = self.levels.get_mut(name) {
            level.taken = level.taken.saturating_sub(1);
            if !level.wanted && level.taken == 0 && level.waiting == 0 {
                self.levels.remove(name);
            }
        }
        self.seat_waiting();
    }

    /// Takes a request from its queue; false if it does not wait any more, because it has its seat.
    pub(super) fn forget(&mut self, name: &str, ticket: u64) -> bool {
        let Some(level) = self.levels.get_mut(name) else { return false };
        for queue in &mut level.queues {
            if let Some(at) = queue.waiters.iter().position(|waiter| waiter.ticket == ticket) {
                queue.waiters.remove(at);
                level.waiting -= 1;
                self.waiting -= 1;
                return true;
            }
        }
        false
    }

    /// Whether one more request of a level may have a seat.
    fn free_for(&self, name: &str) -> bool {
        let Some(level) = self.levels.get(name) else { return false };
        let after = level.taken + 1;
        if after <= level.bounds.lower {
            return true;
        }
        if after > level.bounds.upper {
            return false;
        }
        let others = self.levels.iter().filter(|(other, _)| &***other != name);
        let kept: usize = others.map(|(_, other)| other.taken.max(other.bounds.lower)).sum();
        // Shares are rounded up, so this is what the server was given or a little more.
        let all: usize = self.levels.values().map(|level| level.bounds.nominal).sum();
        kept + after <= all
    }

    /// Gives free seats to whoever waits.
    fn seat_waiting(&mut self) {
        while self.waiting > 0 {
            let waiting = self.levels.iter().filter(|(name, level)| level.waiting > 0 && self.free_for(name));
            // The one that has the least of its own; by name, so that it is always the same.
            let ratio = |level: &Level| (level.taken * 1_000).checked_div(level.bounds.nominal);
            let next =
                waiting.min_by_key(|(name, level)| (ratio(level).unwrap_or(usize::MAX), (*name).clone()));
            let Some(name) = next.map(|(name, _)| name.clone()) else { return };
            let Some(level) = self.levels.get_mut(&name) else { return };
            let Some(waiter) = level.pop() else { return };
            self.waiting -= 1;
            // Who does not wait any more needs no seat.
            if waiter.go.send(()).is_ok() {
                level.taken += 1;
            }
        }
    }
}

impl Level {
    fn new(bounds: Bounds) -> Self {
        let mut level =
            Self { bounds, taken: 0, queues: Vec::new(), waiting: 0, given: 0, turn: 0, wanted: true };
        level.queues.resize_with(level.width(), Queue::default);
        level
    }

    /// How many queues there are: one for those who still wait where there should be none.
    fn width(&self) -> usize {
        self.bounds.queuing.map_or(1, |queuing| queuing.queues.max(1))
    }

    /// Changes the bounds; who waits is dealt out anew if the queues change.
    fn set(&mut self, bounds: Bounds) {
        self.bounds = bounds;
        if self.width() == self.queues.len() {
            return;
        }
        let old = std::mem::take(&mut self.queues);
        self.queues.resize_with(self.width(), Queue::default);
        (self.waiting, self.given, self.turn) = (0, 0, 0);
        let mut waiters: Vec<Waiter> = old.into_iter().flat_map(|queue| queue.waiters).collect();
        waiters.sort_by_key(|waiter| waiter.ticket);
        for waiter in waiters {
            let queue = self.shortest(waiter.flow, bounds.queuing.map_or(1, |queuing| queuing.hand));
            self.push(queue, waiter);
        }
    }

    /// The shortest queue of a flow's hand.
    fn shortest(&self, flow: u64, hand: usize) -> usize {
        let hand = deal(flow, self.queues.len(), hand);
        hand.into_iter().min_by_key(|queue| self.queues[*queue].waiters.len()).unwrap_or_default()
    }

    fn push(&mut self, at: usize, waiter: Waiter) -> usize {
        let given = self.given;
        let queue = &mut self.queues[at];
        if queue.waiters.is_empty() {
            // A queue cannot save up turns while nobody waits in it.
            queue.given = queue.given.max(given);
        }
        queue.waiters.push_back(waiter);
        self.waiting += 1;
        queue.waiters.len()
    }

    fn pop(&mut self) -> Option<Waiter> {
        let count = self.queues.len();
        let turn = self.turn;
        let after = |at: usize| (at + count - turn - 1) % count;
        let waiting = self.queues.iter_mut().enumerate().filter(|(_, queue)| !queue.waiters.is_empty());
        let (at, queue) = waiting.min_by_key(|(at, queue)| (queue.given, after(*at)))?;
        let waiter = queue.waiters.pop_front()?;
        self.given = queue.given;
        queue.given += 1;
        self.turn = at;
        self.waiting -= 1;
        Some(waiter)
    }
}

/// The hand of a flow: different queues, each hand as likely as any other.
fn deal(mut flow: u64, queues: usize, hand: usize) -> Vec<usize> {
    let mut dealt: Vec<usize> = Vec::with_capacity(hand);
    for n in 0..hand.min(queues) {
        let left = (queues - n) as u64;
        // Which of those that are not dealt yet.
        let mut card = (flow % left) as usize;
        flow /= left;
        let place = dealt
            .iter()
            .take_while(|taken| {
                let skip = **taken <= card;
                card += usize::from(skip);
                skip
            })
            .count();
        dealt.insert(place, card);
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(nominal: usize, lower: usize, upper: usize) -> Bounds {
        let queuing = Some(Queuing { queues: 4, hand: 1, length: 3 });
        Bounds { nominal, lower, upper, queuing }
    }

    fn seats(levels: &[(&str, Bounds)]) -> Seats {
        let mut seats = Seats::default();
        seats.configure(levels.iter().map(|(name, bounds)| (Arc::from(*name), *bounds)));
        seats
    }

    fn waits(entry: Entry) -> (u64, oneshot::Receiver<()>) {
        match entry {
            Entry::Waits { ticket, go, .. } => (ticket, go),
            other => panic!("{other:?}"),
        }
    }

    fn seated(seats: &mut Seats, level: &str) -> bool {
        matches!(seats.enter(level, 0), Entry::Seated)
    }

    #[test]
    fn a_level_borrows_what_others_do_not_keep_and_lends_no_more() {
        let mut seats = seats(&[("a", bounds(4, 2, 6)), ("b", bounds(4, 3, 8))]);
        // 8 seats: a may have 8 - 3 that b keeps.
        for n in 0..5 {
            assert!(seated(&mut seats, "a"), "{n}");
        }
        assert!(!seated(&mut seats, "a"));
        for n in 0..3 {
            assert!(seated(&mut seats, "b"), "{n}");
        }
        // b's fourth is lent; who lent it gets it back before the borrower takes another.
        let (_, mut lender) = waits(seats.enter("b", 0));
        seats.leave("a");
        assert!(lender.try_recv().is_ok());
    }

    #[test]
    fn an_upper_bound_holds_though_seats_are_free() {
        let mut seats = seats(&[("a", bounds(2, 2, 2)), ("b", bounds(9, 0, 9))]);
        assert!(seated(&mut seats, "a") && seated(&mut seats, "a"));
        assert!(!seated(&mut seats, "a"));
    }

    #[test]
    fn a_flood_does_not_delay_another_queue() {
        let mut seats = seats(&[("a", bounds(1, 1, 1))]);
        assert!(seated(&mut seats, "a"));
        let mut flood: Vec<_> = (0..3).map(|_| waits(seats.enter("a", 0)).1).collect();
        assert!(matches!(seats.enter("a", 0), Entry::Refused(Refusal::QueueFull)));
        let (_, mut other) = waits(seats.enter("a", 1));
        seats.leave("a");
        seats.leave("a");
        assert!(other.try_recv().is_ok(), "its turn is the first or the second");
        let served = flood.iter_mut().filter_map(|go| go.try_recv().ok()).count();
        assert_eq!(served, 1);
    }

    #[test]
    fn who_goes_away_leaves_its_place() {
        let mut seats = seats(&[("a", bounds(1, 1, 1))]);
        assert!(seated(&mut seats, "a"));
        let (first, _gone) = waits(seats.enter("a", 0));
        let (_, dropped) = waits(seats.enter("a", 0));
        let (third, mut go) = waits(seats.enter("a", 0));
        assert!(seats.forget("a", first));
        assert!(!seats.forget("a", first));
        drop(dropped);
        seats.leave("a");
        assert!(go.try_recv().is_ok());
        assert!(!seats.forget("a", third), "it has its seat");
    }

    #[test]
    fn without_queues_nobody_waits() {
        let mut seats = seats(&[("a", Bounds { queuing: None, ..bounds(1, 1, 1) })]);
        assert!(seated(&mut seats, "a"));
        assert!(matches!(seats.enter("a", 0), Entry::Refused(Refusal::ConcurrencyLimit)));
        assert!(matches!(seats.enter("b", 0), Entry::Refused(Refusal::ConcurrencyLimit)), "no such level");
    }

    #[test]
    fn a_removed_level_serves_who_waits_and_new_queues_keep_them() {
        let mut seats = seats(&[("a", bounds(1, 1, 1)), ("b", bounds(1, 1, 1))]);
        assert!(seated(&mut seats, "a") && seated(&mut seats, "b"));
        let (_, mut of_a) = waits(seats.enter("a", 3));
        let (_, mut of_b) = waits(seats.enter("b", 3));
        let narrow = Bounds { queuing: None, ..bounds(1, 1, 1) };
        seats.configure([(Arc::from("a"), narrow)]);
        seats.leave("a");
        seats.leave("b");
        assert!(of_a.try_recv().is_ok() && of_b.try_recv().is_ok());
        seats.leave("b");
        assert!(!seats.levels.contains_key("b"));
        assert_eq!(seats.waiting, 0);
    }

    #[test]
    fn more_seats_are_given_at_once() {
        let mut seats = seats(&[("a", bounds(1, 1, 1))]);
        assert!(seated(&mut seats, "a"));
        let (_, mut go) = waits(seats.enter("a", 0));
        seats.configure([(Arc::from("a"), bounds(2, 2, 2))]);
        assert!(go.try_recv().is_ok());
    }

    #[test]
    fn hands_are_of_different_queues() {
        let mut seen = std::collections::HashSet::new();
        for flow in 0..10_000 {
            let hand = deal(u64::wrapping_mul(flow, 0x9E37_79B9_7F4A_7C15), 7, 3);
            assert_eq!(hand.len(), 3);
            assert!(hand.windows(2).all(|pair| pair[0] < pair[1]) && hand[2] < 7, "{hand:?}");
            seen.insert(hand);
        }
        assert_eq!(seen.len(), 35, "each hand is dealt to somebody");
        assert_eq!(deal(5, 2, 9), [0, 1]);
    }
}
