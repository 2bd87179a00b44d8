//! How many seats each priority level has of those the server has.

use k8s_openapi::api::flowcontrol::v1::PriorityLevelConfigurationSpec;

use super::seats::{Bounds, Queuing};

/// What a level's configuration says about its seats.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shares {
    shares: u32,
    lendable: u32,
    borrowing: Option<u32>,
    queuing: Option<Queuing>,
}

fn unsigned(number: Option<i32>, default: u32) -> u32 {
    number.map_or(default, |number| u32::try_from(number).unwrap_or(0))
}

impl Shares {
    pub(super) fn of(spec: &PriorityLevelConfigurationSpec) -> Self {
        let Some(limited) = &spec.limited else {
            let exempt = spec.exempt.as_ref();
            return Self {
                shares: unsigned(exempt.and_then(|e| e.nominal_concurrency_shares), 0),
                lendable: unsigned(exempt.and_then(|e| e.lendable_percent), 0),
                ..Self::default()
            };
        };
        let response = limited.limit_response.as_ref().filter(|response| response.type_ == "Queue");
        let number = |number: Option<i32>, default| unsigned(number, default).max(1) as usize;
        let queuing = response.map(|response| {
            let queuing = response.queuing.as_ref();
            Queuing {
                queues: number(queuing.and_then(|q| q.queues), 64),
                hand: number(queuing.and_then(|q| q.hand_size), 8),
                length: number(queuing.and_then(|q| q.queue_length_limit), 50),
            }
        });
        Self {
            shares: unsigned(limited.nominal_concurrency_shares, 30),
            lendable: unsigned(limited.lendable_percent, 0),
            borrowing: limited.borrowing_limit_percent.map(|percent| unsigned(Some(percent), 0)),
            queuing,
        }
    }
}

/// Divides the server's seats among its levels.
pub(super) fn divide(total: usize, levels: &[Shares]) -> Vec<Bounds> {
    let sum: u64 = levels.iter().map(|level| u64::from(level.shares)).sum();
    let bounds = |level: &Shares| {
        // Rounded up, as Kubernetes does, so that every share is a seat.
        let nominal = (total as u64 * u64::from(level.shares))
            .checked_div(sum)
            .map_or(0, |_| (total as u64 * u64::from(level.shares)).div_ceil(sum))
            as usize;
        let percent = |percent: u32| (nominal * percent as usize + 50) / 100;
        Bounds {
            nominal,
            lower: nominal.saturating_sub(percent(level.lendable)),
            upper: level.borrowing.map_or(total.max(nominal), |limit| nominal + percent(limit)),
            queuing: level.queuing,
        }
    };
    levels.iter().map(bounds).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn seats_are_divided_by_shares() {
        let level = |shares: u32, lendable: u32, borrowing: Option<u32>| {
            let spec = json!({"type": "Limited", "limited": {"nominalConcurrencyShares": shares,
                "lendablePercent": lendable, "borrowingLimitPercent": borrowing,
                "limitResponse": {"type": "Queue", "queuing": {"queues": 16, "handSize": 4, "queueLengthLimit": 50}}}});
            Shares::of(&serde_json::from_value(spec).unwrap())
        };
        let exempt: PriorityLevelConfigurationSpec =
            serde_json::from_value(json!({"type": "Exempt"})).unwrap();
        let levels =
            [level(30, 33, None), level(10, 0, Some(0)), level(60, 90, Some(50)), Shares::of(&exempt)];
        let divided: Vec<_> = divide(600, &levels).iter().map(|b| (b.nominal, b.lower, b.upper)).collect();
        assert_eq!(divided, [(180, 121, 600), (60, 60, 60), (360, 36, 540), (0, 0, 600)]);
        assert_eq!(divide(7, &levels)[1].nominal, 1);
        assert_eq!(divide(600, &[Shares::of(&exempt)])[0].nominal, 0);
        assert_eq!(levels[0].queuing, Some(Queuing { queues: 16, hand: 4, length: 50 }));
    }
}
