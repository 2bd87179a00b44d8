//! Flow control: defaulting.

use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};

use super::{Kind, or};

/// What a schema that says nothing comes after, and before.
const PRECEDENCE: i32 = 1000;
const SHARES: i32 = 30;
const HAND_SIZE: i32 = 8;
const QUEUES: i32 = 64;
const QUEUE_LENGTH: i32 = 50;

fn or_number(slot: &mut Option<i32>, number: i32) {
    if slot.unwrap_or(0) == 0 {
        *slot = Some(number);
    }
}

impl Kind for FlowSchema {
    fn default_fields(&mut self) {
        if let Some(spec) = &mut self.spec {
            or_number(&mut spec.matching_precedence, PRECEDENCE);
        }
    }
}

impl Kind for PriorityLevelConfiguration {
    fn default_fields(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        if let Some(exempt) = &mut spec.exempt {
            or(&mut exempt.nominal_concurrency_shares, 0);
            or(&mut exempt.lendable_percent, 0);
        }
        let Some(limited) = &mut spec.limited else { return };
        or(&mut limited.nominal_concurrency_shares, SHARES);
        or(&mut limited.lendable_percent, 0);
        if let Some(queuing) = limited.limit_response.as_mut().and_then(|r| r.queuing.as_mut()) {
            or_number(&mut queuing.hand_size, HAND_SIZE);
            or_number(&mut queuing.queues, QUEUES);
            or_number(&mut queuing.queue_length_limit, QUEUE_LENGTH);
        }
    }
}
